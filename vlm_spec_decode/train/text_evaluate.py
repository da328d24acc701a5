"""What the language-only pair is worth in rooms that no training has seen, in part in new wordings.

Open loop: the words of one view in, one plan out, held against the teacher's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Action, Turn, action_numbers
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.train import agreement
from vlm_spec_decode.train.agreement import TEMPERATURES, Pair
from vlm_spec_decode.train.config import HELD_OUT_SEED
from vlm_spec_decode.train.dialogues import Dialogue
from vlm_spec_decode.train.held_out import held_out
from vlm_spec_decode.train.spoken import held_out_dialogue

NEAR_DEG, NEAR_M = 10.0, 0.2
"""A plan whose numbers lie no farther from the teacher's is near it."""


def run_text_evaluate(
    target: Path, draft: Path, count: int, *, first_seed: int = HELD_OUT_SEED, threads: int = 1
) -> dict[str, Any]:
    """Return the figures of `count` held-out dialogues."""
    pair = Pair.of(load_model(target, threads=threads), load_model(draft, threads=threads))
    asked = [held_out_dialogue(seed) for seed in range(first_seed, first_seed + count)]
    said = [
        agreement.decode(pair, d.observation, pair.params())
        for d in tqdm(asked, desc="told rooms", mininterval=5)
    ]
    figures = plan_figures(asked, [answer.text for answer in said])
    greedy = [(d.observation, answer.tokens) for d, answer in zip(asked, said, strict=True)]
    for temperature in TEMPERATURES:
        answers = greedy
        if temperature:
            params = pair.params(temperature)
            answers = [(o, agreement.decode(pair, o, params).tokens) for o, _ in greedy]
        found = agreement.acceptance(pair, answers, temperature)
        mark = f"t{temperature:.0f}"
        figures |= {f"acceptance_{mark}": found["all"], f"acceptance_by_token_{mark}": found["by_token"]}
    lengths = agreement.accepted_lengths(pair, [o for o, _ in greedy])
    return figures | {f"mean_accepted_of_{g}_t0": value for g, value in lengths.items()}


def plan_figures(asked: list[Dialogue], said: list[str]) -> dict[str, Any]:
    """Compare what was said with the teacher: the whole answer, its actions exactly, its actions nearly."""
    rows = []
    for dialogue, text in zip(asked, said, strict=True):
        wanted, plan = parse_answer(dialogue.answer), parse_answer(text)
        is_new = any(_fits(form, dialogue.goal.text) for form in held_out().wordings)
        is_new_pair = dialogue.goal.thing in held_out().pairs
        rows.append(
            (text.split() == dialogue.answer.split(), plan == wanted, near(plan, wanted), is_new, is_new_pair)
        )
    columns = np.array(rows, dtype=bool)
    totals = Counter(d.goal.verb for d in asked)
    right = Counter(d.goal.verb for d, row in zip(asked, rows, strict=True) if row[1])
    figures: dict[str, Any] = {"answers": len(rows)}
    for i, name in enumerate(("answer_exact", "plan_exact", "plan_near")):
        figures[name] = float(columns[:, i].mean())
    for i, name in ((3, "wordings"), (4, "pairs")):
        chosen = columns[columns[:, i]]
        figures[f"plan_exact_new_{name}"] = f"{chosen[:, 1].sum()}/{len(chosen)}"
    return figures | {
        "plan_exact_by_verb": {verb: f"{right[verb]}/{n}" for verb, n in sorted(totals.items())}
    }


def near(plan: tuple[Action, ...], wanted: tuple[Action, ...]) -> bool:
    """Tell whether two plans have the same kinds of action and numbers within 10 degrees and 0.2 m."""
    if [type(action) for action in plan] != [type(action) for action in wanted]:
        return False
    for one, other in zip(plan, wanted, strict=True):
        slack = NEAR_DEG if isinstance(one, Turn) else NEAR_M
        numbers = zip(action_numbers(one), action_numbers(other), strict=True)
        if any(abs(a - b) > slack + 1e-6 for a, b in numbers):
            return False
    return True


def _fits(form: str, text: str) -> bool:
    """Tell whether the instruction at the end of `text` has this wording."""
    before, after = form.split("{x}")
    instruction = text.rsplit(" . ", 1)[-1]
    return instruction.startswith(before) and instruction.endswith(after)
