"""The cache of `multi_branch`: chains below hypothesised verdicts, drafted together in batched steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from vlm_spec_decode.core.ports import Clock, Drafter, Logits
from vlm_spec_decode.core.sampling import Row, ranking_scores
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.strategies.base import EdgeConfig, choose
from vlm_spec_decode.strategies.estimates import StepCost

MAX_BRANCHES = 96
LEAST_GAIN = 0.0005


@dataclass(slots=True)
class Branches:
    """Outcomes of one round and the drafts below them; `chains[outcome]` grows by one token a step.

    `chances` says how likely each outcome is. The chain accepted whole (`open_end`) has outcomes of its own
    as soon as the draft has been asked what follows it, in the first step.
    """

    drafter: Drafter
    prefix: Tokens
    config: EdgeConfig
    clock: Clock
    cost: StepCost
    chains: dict[Tokens, Tokens] = field(default_factory=dict)
    chances: dict[Tokens, float] = field(default_factory=dict)
    open_end: Tokens = ()
    _end: tuple[int, float] = (0, 0.0)
    _bare: set[Tokens] = field(default_factory=set)

    def expect(self, chain: Tokens, budget: int, eta: float) -> None:
        """Start `budget` branches: F_k below alternatives to the chain's own token at each position k.

        The chain is accepted up to k with probability `eta` each; a forced token has no alternative.
        """
        rows = self.drafter.score(self.prefix, chain[:-1], tuple(range(len(chain) - 1)))
        ranked = [self._ranked(chain[:k], rows[k], token) for k, token in enumerate(chain)]
        reached = [1.0]
        for others in ranked:
            reached.append(reached[-1] * (eta if others else 1.0))
        is_open = chain[-1] not in self.config.params.stop_ids
        rejected = [here - further for here, further in pairwise(reached)]
        counts = allocation(
            budget - 1, [*rejected, reached[-1] * (1 - eta) * is_open], [*map(len, ranked), budget]
        )
        for k, others in enumerate(ranked):
            self._start(chain[:k], others[: counts[k]], rejected[k])
        if is_open:
            self.open_end, self._end = chain, (1 + counts[-1], reached[-1])

    def _ranked(self, path: Tokens, row: Row, own: int = -1) -> list[tuple[int, float]]:
        """Return the legal tokens after `path` but `own`, best first, with their scores."""
        scores = ranking_scores(row, len(self.prefix) + len(path), self.config.params)
        best = np.argsort(-scores, kind="stable")[: MAX_BRANCHES + 1]
        return [(int(t), float(scores[t])) for t in best if scores[t] > -1e8 and t != own]

    def _start(self, path: Tokens, others: list[tuple[int, float]], chance: float) -> None:
        """Start a branch for each of these tokens after `path`, likelier the better the draft's score."""
        shares = [math.exp(score - others[0][1]) for _, score in others]
        for (token, _), share in zip(others, shares, strict=True):
            outcome = (*path, token)
            self.chains[outcome] = self._forced(self.prefix + outcome)
            self.chances[outcome] = chance * share / sum(shares)
            self._bare.add(outcome)

    def _forced(self, path: Tokens) -> Tokens:
        """Return what the grammar forces after `path`: it costs no step."""
        params = self.config.params
        ended = params.ends(len(path), path[-1])
        return () if ended else self.drafter.forced(path)[: params.max_tokens - len(path)]

    def due(self, until_s: float) -> list[Tokens]:
        """Return the paths that the next step goes on from, so that it ends by `until_s` if it can.

        Every branch gets its first token whatever that takes: without it there is nothing to hit.
        """
        growing = sorted(filter(self._goes_on, self.chains), key=lambda outcome: -self.chances[outcome])
        new = [outcome for outcome in growing if outcome in self._bare]
        if self.open_end:
            return [self.open_end, *new]
        left_s = until_s - self.clock.now()
        fit = len(growing) if math.isinf(left_s) else self.cost.rows_within(left_s)
        return [*new, *(outcome for outcome in growing if outcome not in self._bare)][: max(len(new), fit)]

    def _goes_on(self, outcome: Tokens) -> bool:
        said, params = outcome + self.chains[outcome], self.config.params
        is_open = not params.ends(len(self.prefix) + len(said), said[-1])
        return is_open and (outcome in self._bare or len(self.chains[outcome]) < self.config.draft_length)

    def step(self, growing: list[Tokens]) -> None:
        """Draft one token more after these paths, in one batch."""
        rows = self.score([path + self.chains.get(path, ()) for path in growing])
        for path, row in zip(growing, rows, strict=True):
            if path == self.open_end:
                self._start(path, self._ranked(path, row)[: self._end[0]], self._end[1])
            else:
                so_far = path + self.chains[path]
                token = choose(row, self.prefix + so_far, self.config)
                self.chains[path] += (token, *self._forced((*self.prefix, *so_far, token)))
                self._bare.discard(path)
        self.open_end = ()

    def score(self, paths: list[Tokens]) -> Logits:
        """Return the draft's logits [len(paths), vocab] after each path below the prefix."""
        index: dict[Tokens, int] = {(): 0}
        tokens, parents = list[int](), list[int]()
        for path in paths:
            for depth in range(1, len(path) + 1):
                if path[:depth] not in index:
                    tokens.append(path[depth - 1])
                    parents.append(index[path[: depth - 1]])
                    index[path[:depth]] = len(tokens)
        started_s = self.clock.now()
        logits = self.drafter.score(self.prefix, tuple(tokens), tuple(parents))
        self.cost.learn(len(paths), self.clock.now() - started_s)
        chosen: Logits = logits[[index[path] for path in paths]]
        return chosen

    def after(self, committed: Tokens) -> Tokens:
        """Return the draft that is ready after these tokens, () on a miss."""
        for outcome, chain in self.chains.items():
            said = outcome + chain
            if len(outcome) <= len(committed) and said[: len(committed)] == committed:
                return said[len(committed) :]
        return ()


def allocation(budget: int, chances: list[float], room: list[int]) -> list[int]:
    """Return F_0, F_1, …, at most `room` each and `budget` together: the branches likeliest to be hit.

    The correction is the draft's n-th choice with a probability that falls with n squared, so that F_k goes
    with the root of the chance of k: geometric where that is (SSD 2603.03251, its fan-out with r = 1).
    """
    counts = [0] * len(chances)
    for _ in range(budget):
        gains = [
            c / (n + 1) ** 2 if n < most else 0.0 for c, n, most in zip(chances, counts, room, strict=True)
        ]
        best = max(range(len(gains)), key=gains.__getitem__)
        if gains[best] < LEAST_GAIN:
            break
        counts[best] += 1
    return counts
