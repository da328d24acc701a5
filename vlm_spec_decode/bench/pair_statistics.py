"""Statistics of a pair without any strategy: acceptance, ranks and early exits.

The rank is the position of the target's choice in the draft's ranking; for each exit it is counted how
often it is already right. Measured on the target's own answers; tokens that the grammar forces are not
counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_spec_decode.bench.pairs import BenchPair
from vlm_spec_decode.core.ports import Logits, Model
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick

RANKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """`ranks[r]` counts the tokens that stand at rank r of the draft, the last entry those behind."""

    acceptance: float
    ranks: tuple[int, ...]
    tokens: int
    forced: int
    mean_tokens: float
    exits: dict[int, float]


def worth_of(pair: BenchPair) -> PairStatistics:
    """Measure a pair on its own questions, greedily."""
    ranks, forced, total = [0] * (RANKS + 1), 0, 0
    agreed: dict[int, list[bool]] = {}
    for question in pair.questions:
        tokens, free = _answer(pair.target, question, pair.params)
        total, forced = total + len(tokens), forced + len(tokens) - len(free)
        logits = _rows(pair.draft, question, tokens)
        for at in free:
            better = int(np.count_nonzero(logits[at] > logits[at][tokens[at]]))
            ranks[min(better, RANKS)] += 1
        for layer, rows in _exit_rows(pair.target, question, tokens).items():
            agreed.setdefault(layer, []).extend(int(rows[at].argmax()) == tokens[at] for at in free)
    counted = sum(ranks)
    return PairStatistics(
        acceptance=ranks[0] / max(1, counted),
        ranks=tuple(ranks),
        tokens=counted,
        forced=forced,
        mean_tokens=total / len(pair.questions),
        exits={layer: float(np.mean(same)) for layer, same in sorted(agreed.items())},
    )


def _answer(model: Model, question: Observation, params: SamplingParams) -> tuple[Tokens, tuple[int, ...]]:
    """Return the target's greedy answer and the positions that nothing forces."""
    context, tokens, free = model.open(question), Tokens(), list[int]()
    try:
        while not tokens or not params.ends(len(tokens), tokens[-1]):
            run = context.forced(tokens)
            if run:
                tokens += run[:1]
                continue
            free.append(len(tokens))
            tokens += (pick(context.score(tokens)[0], len(tokens), params),)
    finally:
        context.close()
    return tokens, tuple(free)


def _rows(model: Model, question: Observation, tokens: Tokens) -> Logits:
    """Return logits [n, vocab] of every position of `tokens`, each given the ones before it."""
    context = model.open(question)
    try:
        return context.score((), tokens[:-1], tuple(range(len(tokens) - 1)))
    finally:
        context.close()


def _exit_rows(model: Model, question: Observation, tokens: Tokens) -> dict[int, Logits]:
    """Return the exits' logits of every position."""
    found: dict[int, Logits] = {}

    def keep(exit_layer: int, logits: Logits) -> None:
        found[exit_layer] = logits

    context = model.open(question)
    try:
        context.score((), tokens[:-1], tuple(range(len(tokens) - 1)), on_exit=keep)
    finally:
        context.close()
    return found
