"""Earlier answers, as drafts for the same instruction given again, and how often they were wrong.

An earlier answer is sent to the cloud with the question, as a draft: the first pass verifies it. Uses
observations and tokens, no strategies and no models. One per engine; the least recently asked answers are
dropped first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import DraftMessage, Observation, Tokens
from vlm_spec_decode.decoding.tree import chain_parents, quantise
from vlm_spec_decode.strategies.estimators import RunningMean

MAX_ANSWERS = 64
MIN_REACH_PROBABILITY = 0.02
"""A position of the draft that is less likely than this to be reached is left out."""

PRIORS = (0.01, 0.06, 0.15)
"""Probability per token that an answer departs from the cached one: with the same frame and history; with
another frame; with another history."""


@dataclass(frozen=True, slots=True)
class _CachedAnswer:
    frame: bytes
    history: tuple[str, ...]
    tokens: Tokens

    def prior_index(self, frame: bytes, history: tuple[str, ...]) -> int:
        return 2 if history != self.history else int(frame != self.frame)


@dataclass(slots=True)
class AnswerCache:
    """Answers by instruction, the last one to each, and how often they were wrong."""

    departure_rates: tuple[RunningMean, ...] = field(
        default_factory=lambda: tuple(RunningMean(prior, rate=0.02, trust=20) for prior in PRIORS)
    )
    _answers: OrderedDict[str, _CachedAnswer] = field(default_factory=OrderedDict)

    def tokens(self, observation: Observation) -> Tokens:
        """Return the last answer to this instruction, () if there is none."""
        found = self._answers.get(observation.instruction)
        return found.tokens if found else ()

    def draft(self, observation: Observation, answer: int) -> DraftMessage | None:
        """Return the last answer to this instruction as the first nodes of answer `answer`, if any."""
        found = self._answers.get(observation.instruction)
        if found is None:
            return None
        log_stay = math.log(1 - min(0.9, self.departure_rates[found.prior_index(*_key(observation))].value))
        length = (
            min(len(found.tokens), int(math.log(MIN_REACH_PROBABILITY) / log_stay))
            if log_stay
            else len(found.tokens)
        )
        if not length:
            return None
        weights = (quantise(log_stay),) * length
        return DraftMessage(answer, 0, 0, 1, found.tokens[:length], chain_parents(1, length), weights)

    def add(self, observation: Observation, tokens: Tokens) -> None:
        """Store a finished answer; update the departure rate from where it departed from the one before."""
        frame, history = _key(observation)
        before = self._answers.pop(observation.instruction, None)
        if before:
            rate = self.departure_rates[before.prior_index(frame, history)]
            for actual, expected in zip(tokens, before.tokens, strict=False):
                rate.learn(float(actual != expected))
                if actual != expected:
                    break
        self._answers[observation.instruction] = _CachedAnswer(frame, history, tokens)
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)


def _key(observation: Observation) -> tuple[bytes, tuple[str, ...]]:
    return observation.image.digest if observation.image else b"", observation.history
