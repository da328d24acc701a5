"""The action language: the actions that models may write and the robot can carry out.

One table defines it. Parser, prompt, training, gate and executor all read this table, and its digest
travels in the handshake, so that two ends with different languages refuse each other by name. Limits are in
the gate.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TypeAlias

from vlm_spec_decode.core.errors import ActionParseError


@dataclass(frozen=True, slots=True)
class Forward:
    """Walk straight by `distance_m`; negative is backwards."""

    distance_m: float


@dataclass(frozen=True, slots=True)
class Strafe:
    """Step sideways by `distance_m`; left is positive."""

    distance_m: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Turn on the spot by `angle_deg`; left is positive."""

    angle_deg: float


@dataclass(frozen=True, slots=True)
class Look:
    """Tilt the standing body: pitch down positive, yaw left positive."""

    pitch_deg: float
    yaw_deg: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Stand still for `duration_s`."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End all motion and wait for standstill."""


@dataclass(frozen=True, slots=True)
class StandUp:
    """Get up and into a stance that can walk."""


@dataclass(frozen=True, slots=True)
class StandDown:
    """Lie down with locked joints."""


@dataclass(frozen=True, slots=True)
class Sit:
    """Sit on the hind legs; only `Rise` leads out of it."""


@dataclass(frozen=True, slots=True)
class Rise:
    """Get up from sitting."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Wave a front leg."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Stretch the body."""


@dataclass(frozen=True, slots=True)
class Done:
    """The instruction is carried out; nothing may follow."""


@dataclass(frozen=True, slots=True)
class Ask(Done):
    """The words before it ask the operator something; the robot stands, and nothing may follow.

    It ends an answer as `Done` does, and whoever carries out a plan need not tell them apart. The mission
    does: it waits for the operator's word and goes on with it.
    """


Action: TypeAlias = (
    Forward
    | Strafe
    | Turn
    | Look
    | Wait
    | Stop
    | StandUp
    | StandDown
    | Sit
    | Rise
    | Hello
    | Stretch
    | Done
    | Ask
)

MOTIONS = (Forward, Strafe, Turn)
"""The actions that walk or turn."""

ACTION_TYPES = MappingProxyType(
    {
        "forward": Forward,
        "strafe": Strafe,
        "turn": Turn,
        "look": Look,
        "wait": Wait,
        "stop": Stop,
        "stand_up": StandUp,
        "stand_down": StandDown,
        "sit": Sit,
        "rise": Rise,
        "hello": Hello,
        "stretch": Stretch,
        "done": Done,
        "ask": Ask,
    }
)
"""The language: name of the call to its type; the type's fields are the call's arguments, in order."""

ACTION_NAMES = MappingProxyType({kind: name for name, kind in ACTION_TYPES.items()})
"""The type of an action to the name of its call, for formatting."""

DECIMALS = 4
"""Digits after the point that a number may have, and that `format_action` writes at most."""

NUMBER_PATTERN = rf"-?[0-9]{{1,4}}(\.[0-9]{{1,{DECIMALS}}})?"
"""Form of a number: plain ASCII decimals, no exponent, no NaN, no infinity."""

_NUMBER = re.compile(NUMBER_PATTERN)


def arity(name: str) -> int:
    """Return how many arguments the call `name` takes. Raises ActionParseError if there is none."""
    if name not in ACTION_TYPES:
        raise ActionParseError(f"unknown action {name[:40]!r}")
    return len(fields(ACTION_TYPES[name]))


def parse_number(text: str) -> float:
    """Return the number in `text`. Raises ActionParseError if it is not one of the language."""
    if _NUMBER.fullmatch(text) is None:
        raise ActionParseError(f"{text[:40]!r} is not a number such as 1.6 or -10")
    return float(text) + 0.0


def format_number(value: float) -> str:
    """Return the shortest text of `value` to 4 decimals: 1.6, -10, 0.

    Raises ActionParseError for numbers outside the language (NaN, infinity, ten thousand and more).
    """
    if not math.isfinite(value) or abs(round(value, DECIMALS)) >= 10_000:
        raise ActionParseError(f"{value!r} cannot be said in the action language")
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def make_action(name: str, numbers: tuple[float, ...]) -> Action:
    """Return the action `name` with `numbers`. Raises ActionParseError on an unknown name or arity."""
    wanted = arity(name)
    if len(numbers) != wanted:
        raise ActionParseError(f"{name} takes {wanted} argument(s), not {len(numbers)}")
    action: Action = ACTION_TYPES[name](*numbers)
    return action


def action_numbers(action: Action) -> tuple[float, ...]:
    """Return the arguments of `action` in order."""
    return tuple(float(getattr(action, field.name)) for field in fields(action))


def format_action(action: Action) -> str:
    """Return the canonical text, such as `forward(1.6)`, `turn(-10)`, `look(10,-5)` or `done()`.

    Raises ActionParseError if a number cannot be said in the language.
    """
    arguments = ",".join(format_number(value) for value in action_numbers(action))
    return f"{ACTION_NAMES[type(action)]}({arguments})"


def language_spec() -> str:
    """Return the language as text, one call a line and the number format: what the digest covers."""
    calls = [
        f"{name}({','.join(field.name for field in fields(kind))})"
        for name, kind in sorted(ACTION_TYPES.items())
    ]
    return "\n".join([*calls, f"number: {NUMBER_PATTERN}"])


ACTION_LANGUAGE_DIGEST = hashlib.sha256(language_spec().encode()).hexdigest()
"""SHA-256 (hex) of `language_spec()`; the grammar digest of the handshake."""
