"""Earlier answers, as drafts for the same instruction given again, and how often they were wrong.

An earlier answer is sent to the cloud with the question, as a draft: the first pass verifies it. So is what
was said, or drafted by the edge alone, about an earlier frame of the same walk. Uses observations and tokens,
no strategies and no models. One per engine; the least recently asked answers are dropped first.
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

PRIORS = (0.01, 0.06, 0.15, 0.06)
"""Probability per token that an answer departs from the cached one: with the same frame and history; with
another frame; with another history; from what was said early, about an earlier frame of the same walk."""

EARLY = 3


@dataclass(frozen=True, slots=True)
class _CachedAnswer:
    frame: bytes
    history: tuple[str, ...]
    tokens: Tokens
    is_early: bool = False

    def prior_index(self, frame: bytes, history: tuple[str, ...]) -> int:
        if self.is_early:
            return EARLY
        return 2 if history != self.history else int(frame != self.frame)


@dataclass(slots=True)
class AnswerCache:
    """Answers by instruction, the last one to each, and how often they were wrong.

    Of what was said early there is one, for the history that was told with it.
    """

    departure_rates: tuple[RunningMean, ...] = field(
        default_factory=lambda: tuple(RunningMean(prior, rate=0.02, trust=20) for prior in PRIORS)
    )
    _answers: OrderedDict[str, _CachedAnswer] = field(default_factory=OrderedDict)
    _early: tuple[str, _CachedAnswer] | None = None

    def tokens(self, observation: Observation) -> Tokens:
        """Return the last answer to this instruction, () if there is none."""
        found = self._answers.get(observation.instruction)
        return found.tokens if found else ()

    def early_tokens(self, observation: Observation) -> Tokens:
        """Return what was said early of this question, () if there is nothing."""
        found = self._said_early(observation)
        return found.tokens if found else ()

    def draft(self, observation: Observation, answer: int) -> DraftMessage | None:
        """Return as the first nodes of answer `answer` what is likely to save most: the last answer to this
        instruction, or what was said early of this very question. None without either."""
        known = [
            (found, self._log_stay(found, observation))
            for found in (self._said_early(observation), self._answers.get(observation.instruction))
            if found is not None
        ]
        if not known:
            return None
        found, log_stay = max(known, key=lambda each: _expected(len(each[0].tokens), each[1]))
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
        """Store a finished answer; update the departure rates from where it departed from what was known."""
        frame, history = _key(observation)
        for known in (self._said_early(observation), self._answers.pop(observation.instruction, None)):
            if known is not None:
                self._learn(self.departure_rates[known.prior_index(frame, history)], tokens, known.tokens)
        self._early = None
        self._answers[observation.instruction] = _CachedAnswer(frame, history, tokens)
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def add_early(self, observation: Observation, tokens: Tokens) -> None:
        """Store what is known of an answer so far: said about an earlier frame, or drafted by the edge alone.

        If it agrees with what was known of the same question before, that one's rest stays.
        """
        if not tokens:
            return
        before = self.early_tokens(observation)
        if before[: len(tokens)] == tokens:
            tokens = before
        self._early = observation.instruction, _CachedAnswer(*_key(observation), tokens, is_early=True)

    def _said_early(self, observation: Observation) -> _CachedAnswer | None:
        if self._early is None:
            return None
        instruction, found = self._early
        is_same = (instruction, found.history) == (observation.instruction, observation.history)
        return found if is_same else None

    def _log_stay(self, found: _CachedAnswer, observation: Observation) -> float:
        """Return the log-probability that an answer stays with a cached one for a token more."""
        return math.log(1 - min(0.9, self.departure_rates[found.prior_index(*_key(observation))].value))

    @staticmethod
    def _learn(rate: RunningMean, tokens: Tokens, expected: Tokens) -> None:
        for actual, cached in zip(tokens, expected, strict=False):
            rate.learn(float(actual != cached))
            if actual != cached:
                break


def _expected(length: int, log_stay: float) -> float:
    """Return the expected number of accepted tokens of a draft of `length`: the sum of s^i, i = 1 to it."""
    stay = math.exp(log_stay)
    return float(length) if stay >= 1 else stay * (1 - stay**length) / (1 - stay)


def _key(observation: Observation) -> tuple[bytes, tuple[str, ...]]:
    return observation.image.digest if observation.image else b"", observation.history
