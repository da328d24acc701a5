"""The form of an answer as one regular expression, made from the action language.

Words first, then calls and nothing but calls: `a red box ahead . turn ( -10 ) forward(1.6)`. An answer has
at least one call, because an instruction that is answered in words ends in `done()`, and a question to the
operator in `ask()`; either comes last.
Numbers are within the gate's default limits; the gate checks again, because its limits may be narrower and
depend on sensors. Independent of tokens: `models.grammar` compiles the expression for a tokenizer.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.types import (
    ACTION_LANGUAGE_DIGEST,
    ACTION_TYPES,
    DECIMALS,
    Ask,
    Done,
    language_spec,
)
from vlm_spec_decode.core.types import Language

_SPACE = " ?"
"""Between the parts of a call; a word-level tokenizer's text has it, others need not."""

_GAP = r"[ \n]?"
"""Between calls."""

_WORDS = r"([^()]*[ \t\n.,;:!?])?"
"""Words before the first call; their last character separates them from the call's name."""


def language(constrained: bool = True) -> Language:
    """Return the action language; if `constrained`, with the pattern that constrains answers.

    The digest depends on `constrained`: two ends that differ refuse each other with `grammar_mismatch`.
    """
    if not constrained:
        return Language(ACTION_LANGUAGE_DIGEST)
    pattern = answer_pattern()
    digest = hashlib.sha256(f"{language_spec()}\nanswer: {pattern}".encode()).hexdigest()
    return Language(digest, pattern)


def answer_pattern(words: str = _WORDS) -> str:
    """Return the regular expression of a whole answer, in the syntax that Python's and Rust's share.

    `words` is the expression of what may precede the first call.
    """
    limits = SafetyLimits()
    bounds = {
        "distance_m": number_pattern(limits.max_distance_m, signed=True),
        "angle_deg": number_pattern(limits.max_angle_deg, signed=True),
        "pitch_deg": number_pattern(limits.max_look_pitch_deg, signed=True),
        "yaw_deg": number_pattern(limits.max_look_yaw_deg, signed=True),
        "duration_s": number_pattern(limits.max_wait_s, signed=False),
    }
    calls = {kind: _call(name, kind, bounds) for name, kind in ACTION_TYPES.items()}
    moves = "|".join(call for kind, call in calls.items() if not issubclass(kind, Done))
    done, ask = calls[Done], calls[Ask]
    more = f"({_GAP}({moves})){{0,{limits.max_actions - 2}}}({_GAP}{done})?"
    # A question is asked before anything is done, so it is the only call of its answer.
    return f"{words}(({moves}){more}|{done}|{ask})"


def number_pattern(limit: float, signed: bool) -> str:
    """Return the expression of the numbers up to `limit`, rounded down to a whole one, in size."""
    whole = int(limit)
    below = "|".join(str(number) for number in range(whole))
    size = rf"({below})(\.[0-9]{{1,{DECIMALS}}})?|" if below else ""
    return ("-?" if signed else "") + rf"({size}{whole}(\.0{{1,{DECIMALS}}})?)"


def _call(name: str, kind: type[Any], bounds: dict[str, str]) -> str:
    arguments = f"{_SPACE},{_SPACE}".join(bounds[field.name] for field in fields(kind))
    inside = f"{_SPACE}{arguments}{_SPACE}" if arguments else _SPACE
    return rf"{name}{_SPACE}\({inside}\)"
