"""Earlier answers, as drafts for the same instruction given again, and how often they were wrong.

An earlier answer is sent to the cloud with the question, as a draft: the first pass verifies it. So is what
was said, or drafted by the edge alone, about an earlier frame of the same walk: as a tree, where a number may
be another one by now. Uses observations and tokens, no models. One per engine; the least recently asked
answers are dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import DraftMessage, Observation, Tokens
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.edge.hint_tree import HintTree, WeighedHint, number_ranks
from vlm_spec_decode.strategies.estimators import RunningMean

RUN, LEAST = 32, 0.2
"""Tokens of a run from earlier answers; and how likely each must be to be reached where little matches."""

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
    """The likeliest answer."""
    tree: HintTree | None = None
    """All of it, if not the tokens alone."""
    is_early: bool = False

    @property
    def hint(self) -> HintTree:
        """All that may be said, as a tree."""
        return self.tree or HintTree.chain(self.tokens)

    def prior_index(self, frame: bytes, history: tuple[str, ...]) -> int:
        if self.is_early:
            return EARLY
        return 2 if history != self.history else int(frame != self.frame)


@dataclass(slots=True)
class AnswerCache:
    """Answers by instruction, the last one to each, and how often they were wrong.

    Of what was said early there is one, for the history that was told with it. `ranks` say how often each
    candidate for a number was right.
    """

    departure_rates: tuple[RunningMean, ...] = field(
        default_factory=lambda: tuple(RunningMean(prior, rate=0.02, trust=20) for prior in PRIORS)
    )
    ranks: tuple[RunningMean, ...] = field(default_factory=number_ranks)
    memory: FreeDrafts = field(default_factory=FreeDrafts)
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

    def early_hint(self, observation: Observation) -> HintTree:
        """Return all that was said or drafted early of this question."""
        found = self._said_early(observation)
        return found.hint if found else HintTree()

    def known(self, observation: Observation) -> HintTree:
        """Return what a draft about this observation may begin with: said early, or the last answer."""
        found = self._said_early(observation) or self._answers.get(observation.instruction)
        return found.hint if found else HintTree()

    def continuation_of(self, observation: Observation) -> Callable[[Tokens, int], Tokens]:
        """Return what gives the likeliest run after a part of the answer, by all earlier answers.

        Its second argument is how many tokens must match; () if fewer do.
        """

        def likeliest(said: Tokens, least: int) -> Tokens:
            if least:
                return self.memory.run(observation.instruction, said, most=RUN, least=least)
            return self.memory.recall(observation.instruction, said, most=RUN, floor=LEAST).best()

        return likeliest

    def draft(self, observation: Observation, answer: int) -> DraftMessage | None:
        """Return as the first nodes of answer `answer` what is likely to save most: the last answer to this
        instruction, or what was said early of this very question. None without either."""
        known = [
            self._weighed(found, observation)
            for found in (self._said_early(observation), self._answers.get(observation.instruction))
            if found is not None
        ]
        if not known:
            return None
        best = max(known, key=lambda hint: hint.expected)
        return best.message(answer) if best.tokens else None

    def add(self, observation: Observation, tokens: Tokens) -> None:
        """Store a finished answer; update the departure rates from where it departed from what was known."""
        frame, history = _key(observation)
        for known in (self._said_early(observation), self._answers.pop(observation.instruction, None)):
            if known is not None:
                self._learn(self.departure_rates[known.prior_index(frame, history)], tokens, known.hint)
        self._early = None
        self.memory.add(observation.instruction, tokens)
        self._answers[observation.instruction] = _CachedAnswer(frame, history, tokens)
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def add_early(self, observation: Observation, tokens: Tokens, hint: HintTree | None = None) -> None:
        """Store what is known of an answer so far: said about an earlier frame, or drafted by the edge alone.

        `hint` is all of it, if not the tokens alone. If it agrees with what was known of the same question
        before, that one's rest stays.
        """
        if not tokens:
            return
        before = self.early_hint(observation)
        if hint is None:
            hint = before if before.holds(tokens) else HintTree.chain(tokens)
        self._early = (
            observation.instruction,
            _CachedAnswer(*_key(observation), hint.best, hint, is_early=True),
        )

    def _said_early(self, observation: Observation) -> _CachedAnswer | None:
        if self._early is None:
            return None
        instruction, found = self._early
        is_same = (instruction, found.history) == (observation.instruction, observation.history)
        return found if is_same else None

    def _weighed(self, found: _CachedAnswer, observation: Observation) -> WeighedHint:
        """Return a hint's nodes with their probabilities, for a question about this observation."""
        stay = 1 - min(0.9, self.departure_rates[found.prior_index(*_key(observation))].value)
        return found.hint.weighed(stay, self.ranks, MIN_REACH_PROBABILITY)

    def _learn(self, rate: RunningMean, tokens: Tokens, expected: HintTree) -> None:
        """Learn from each token of an answer whether the hint had it there, and as which candidate."""
        for candidates, found in expected.along(tokens):
            if not candidates[0].ranks:
                rate.learn(float(found is None))
                continue
            begun = {rank for candidate in candidates for rank in candidate.ranks}
            right = set(found.ranks) if found else set()
            for rank in begun - right:
                self.ranks[rank].learn(0.0)
            if found and not any(child.ranks for child in found.children):
                # The number ends here: no other candidate can follow.
                for rank in right:
                    self.ranks[rank].learn(1.0)


def _key(observation: Observation) -> tuple[bytes, tuple[str, ...]]:
    return observation.image.digest if observation.image else b"", observation.history
