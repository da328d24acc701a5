"""The cache of `multi_branch`: chains below hypothesised verdicts, drafted together in batched steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.ports import Clock, Drafter, Logits
from vlm_spec_decode.core.sampling import ranking_scores
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.strategies.base import EdgeConfig, choose
from vlm_spec_decode.strategies.estimates import StepCost


@dataclass(slots=True)
class Branches:
    """Outcomes of one round and the drafts below them. `chains[outcome]` grows by one token a step."""

    drafter: Drafter
    prefix: Tokens
    config: EdgeConfig
    clock: Clock
    cost: StepCost
    chains: dict[Tokens, Tokens] = field(default_factory=dict)
    is_open: bool = False

    def open(self, found: list[Tokens]) -> None:
        """Start one branch per outcome."""
        self.is_open = True
        self.chains = dict.fromkeys(found, ())

    @property
    def unfinished(self) -> list[Tokens]:
        """Outcomes whose draft is not γ tokens long yet."""
        params, gamma = self.config.params, self.config.draft_length

        def goes_on(outcome: Tokens) -> bool:
            said = outcome + self.chains[outcome]
            room = len(self.prefix) + len(said) < params.max_tokens
            return room and said[-1] not in params.stop_ids and len(self.chains[outcome]) < gamma

        return [outcome for outcome in self.chains if goes_on(outcome)]

    def step(self) -> None:
        """Draft one token more of every branch, in one batch."""
        growing = self.unfinished
        rows = self.score([outcome + self.chains[outcome] for outcome in growing])
        for outcome, row in zip(growing, rows, strict=True):
            path = self.prefix + outcome + self.chains[outcome]
            self.chains[outcome] += (choose(row, path, self.config),)

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


def outcomes(cache: Branches, chain: Tokens, counts: tuple[int, ...]) -> list[Tokens]:
    """Return the likeliest verdicts: `counts[k]` tokens other than the chain's own at each position k."""
    found: list[Tokens] = []
    params = cache.config.params
    rows = cache.drafter.score(cache.prefix, chain, tuple(range(len(chain))))
    for k, count in enumerate(counts[: len(chain) + 1]):
        if k and chain[k - 1] in params.stop_ids:
            break
        scores = ranking_scores(rows[k], len(cache.prefix) + k, params)
        best = [int(t) for t in np.argsort(-scores, kind="stable")[: count + 1] if scores[t] > -1e8]
        own = chain[k] if k < len(chain) else -1
        found += [(*chain[:k], token) for token in best if token != own][:count]
    return found
