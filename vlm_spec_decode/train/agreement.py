"""How often the draft's token is the target's: teacher-forced on the target's own answers, and as decoded.

Tokens that a grammar forces are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.ports import ExitHook, Logits, Model, TextCodec
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import pick
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.sim.objects import COLOURS, KINDS

DRAFT_LENGTHS = (2, 4, 6, 8)
TEMPERATURES = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """Target and draft with the codec of their tokenizer."""

    target: Model
    draft: Model
    codec: TextCodec
    stop_ids: Tokens

    @classmethod
    def of(cls, target: LoadedModel, draft: LoadedModel) -> Pair:
        """Hold both to the action language, as edge and cloud do."""
        spoken = language()
        return cls(
            constrained(target, target.codec, spoken),
            constrained(draft, draft.codec, spoken),
            target.codec,
            target.codec.stop_ids,
        )

    def params(self, temperature: float = 0.0, seed: int = 0) -> SamplingParams:
        """Return the parameters of one answer."""
        return SamplingParams(temperature=temperature, seed=seed, stop_ids=self.stop_ids, max_tokens=64)


def decode(
    pair: Pair, observation: Observation, params: SamplingParams, draft_length: int | None = None
) -> GenerationResult:
    """Return one answer as the engine decodes it, `autoregressive` without a draft length."""
    clock = VirtualClock()
    name = "autoregressive" if draft_length is None else "speculative"
    draft = None if draft_length is None else pair.draft
    engine = Engine(draft, pair.codec, LocalVerifier(pair.target, clock), clock)
    for update in engine.answer(
        observation, EngineConfig(strategy=name, params=params, draft_length=draft_length or 1)
    ):
        if update.result:
            return update.result
    raise VsdError("the engine ended without a result")


def chain_logits(
    model: Model, observation: Observation, tokens: Tokens, on_exit: ExitHook | None = None
) -> Logits:
    """Return logits [n, vocab] of every position of `tokens`, each given the ones before it."""
    context = model.open(observation)
    try:
        return context.score((), tokens[:-1], tuple(range(len(tokens) - 1)), on_exit=on_exit)
    finally:
        context.close()


def free_positions(model: Model, observation: Observation, tokens: Tokens) -> tuple[int, ...]:
    """Return the positions of an answer that no grammar forces."""
    context = model.open(observation)
    try:
        free, at = [], 0
        while at < len(tokens):
            forced = context.forced(tokens[:at])
            if forced:
                at += len(forced)
                continue
            free.append(at)
            at += 1
        return tuple(free)
    finally:
        context.close()


def acceptance(
    pair: Pair, answers: Iterable[tuple[Observation, Tokens]], temperature: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Share of the target's free tokens that the draft would have said, in all and by kind of token."""
    right, total = Counter[str](), Counter[str]()
    for observation, tokens in answers:
        params = pair.params(temperature, seed)
        logits = chain_logits(pair.draft, observation, tokens)
        for at in free_positions(pair.target, observation, tokens):
            group = token_group(pair.codec.decode((tokens[at],)))
            total[group] += 1
            right[group] += pick(logits[at], at, params) == tokens[at]
    return {
        "all": sum(right.values()) / max(1, sum(total.values())),
        "by_token": {g: round(right[g] / n, 4) for g, n in sorted(total.items())},
        "tokens": sum(total.values()),
    }


def accepted_lengths(
    pair: Pair, asked: Iterable[Observation], temperature: float = 0.0, seed: int = 0
) -> dict[int, float]:
    """Mean number of tokens accepted of a full draft, by draft length."""
    observations = tuple(asked)
    means = {}
    for length in DRAFT_LENGTHS:
        found: list[float] = []
        for observation in observations:
            result = decode(pair, observation, pair.params(temperature, seed), length)
            found += [r.accepted for r in result.rounds if r.drafted >= length]
        means[length] = float(np.mean(found)) if found else float("nan")
    return means


def exit_agreement(pair: Pair, answers: Iterable[tuple[Observation, Tokens]]) -> dict[int, dict[str, float]]:
    """Share of positions at which each exit's first choice is the final one, also where it is confident."""
    same: dict[int, list[tuple[bool, float]]] = {}
    for observation, tokens in answers:
        exits: dict[int, Logits] = {}

        def keep(exit_layer: int, logits: Logits, exits: dict[int, Logits] = exits) -> None:
            exits[exit_layer] = logits

        final = chain_logits(pair.target, observation, tokens, keep).argmax(-1)
        for layer, logits in exits.items():
            same.setdefault(layer, []).extend(zip(logits.argmax(-1) == final, _top(logits), strict=True))
    return {layer: _calibration(rows) for layer, rows in sorted(same.items())}


def token_group(text: str) -> str:
    """Name what a token tells: colour, kind, side, number, or text."""
    if text in COLOURS:
        return "colour"
    if text in KINDS:
        return "kind"
    if text in {"left", "right", "ahead"}:
        return "side"
    return "number" if text.lstrip("-").replace(".", "").isdigit() else "text"


def _top(logits: Logits) -> Iterator[float]:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return iter((shifted.max(-1) / shifted.sum(-1)).tolist())


def _calibration(rows: list[tuple[bool, float]]) -> dict[str, float]:
    hits, confidence = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    sure = confidence >= 0.9
    return {
        "agrees": float(hits.mean()),
        "share_sure": float(sure.mean()),
        "agrees_when_sure": float(hits[sure].mean()) if sure.any() else float("nan"),
        "mean_confidence": float(confidence.mean()),
    }
