"""`multi_branch`: a cache of branches for the likeliest verdicts, grown while the edge waits.

AceSpec (2609.02514, section 3). The round is stop-and-wait with a chain of γ tokens. During RTT + T_v the
edge drafts on, for each position k at which the chain may first be rejected, below F_k alternatives to the
token there, F_k proportional to η^k; k = γ is the chain accepted whole. The budget B is the largest tree
whose drafting fits in RTT + T_v as measured: first as many branches as can have a token each, then depth
for the likeliest of them. When the verdict is in the cache (hit), the next chain begins with its branch and
the rest of γ is drafted. Branches are drafted in one batch with a shared prefix and are never uploaded.
(SSD 2603.03251 is the same in a data centre.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from vlm_spec_decode.core.choices import Choices
from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Commit, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.strategies.base import (
    EdgeConfig,
    Strategy,
    choose,
    draft_chain,
    draft_step,
    forced_run,
    send_chain,
    tree_of,
)
from vlm_spec_decode.strategies.estimators import RunningMean, StepCost, VerdictTime
from vlm_spec_decode.strategies.speculative import Cloud

MAX_BRANCHES = 96
LEAST_GAIN = 0.0005


@dataclass(slots=True, kw_only=True)
class BranchTree:
    """Outcomes of one round and the drafts below them; `chains[outcome]` grows by one token a step.

    `chances` are the probabilities of the outcomes. The chain accepted whole (`open_end`) has outcomes of
    its own as soon as the draft has scored its continuation, in the first step.
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
        choices = draft_step(
            self.drafter, self.config.tracer, self.prefix, chain[:-1], tuple(range(len(chain) - 1))
        )
        ranked = [self._ranked(chain[:k], choices, k, token) for k, token in enumerate(chain)]
        # P(chain accepted up to k) = η^k, where forced tokens are always accepted (2609.02514, section 3).
        reached = [1.0]
        for others in ranked:
            reached.append(reached[-1] * (eta if others else 1.0))
        is_open = chain[-1] not in self.config.params.stop_ids
        # P(first rejection at k) = η^k - η^(k+1).
        rejected = [here - further for here, further in pairwise(reached)]
        counts = allocation(
            budget - 1, [*rejected, reached[-1] * (1 - eta) * is_open], [*map(len, ranked), budget]
        )
        for k, others in enumerate(ranked):
            self._start(chain[:k], others[: counts[k]], rejected[k])
        if is_open:
            self.open_end, self._end = chain, (1 + counts[-1], reached[-1])

    def _ranked(self, path: Tokens, choices: Choices, row: int, own: int = -1) -> list[tuple[int, float]]:
        """Return the legal tokens after `path` but `own`, best first, with their scores."""
        position, params = len(self.prefix) + len(path), self.config.params
        ranking = choices.ranked((row,), (position,), params, MAX_BRANCHES + 1, summed=False)[0]
        return [(t, score) for t, score in zip(ranking.tokens, ranking.scores, strict=True) if t != own]

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
        if params.ends(len(path), path[-1]):
            return ()
        return forced_run(self.drafter, self.config.tracer, path)[: params.max_tokens - len(path)]

    def due(self, until_s: float) -> list[Tokens]:
        """Return the paths that the next step goes on from, so that it ends by `until_s` if it can.

        Every branch gets its first token whatever that takes: without it there is nothing to hit.
        """
        growing = sorted(filter(self._goes_on, self.chains), key=lambda outcome: -self.chances[outcome])
        new = [outcome for outcome in growing if outcome in self._bare]
        if not self.drafter.may_step:
            return []
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
        choices = self.score([path + self.chains.get(path, ()) for path in growing])
        for row, path in enumerate(growing):
            if path == self.open_end:
                self._start(path, self._ranked(path, choices, row)[: self._end[0]], self._end[1])
            else:
                so_far = path + self.chains[path]
                token = choose(choices, row, self.prefix + so_far, self.config)
                self.chains[path] += (token, *self._forced((*self.prefix, *so_far, token)))
                self._bare.discard(path)
        self.open_end = ()

    def score(self, paths: list[Tokens]) -> Choices:
        """Return what the draft says after each path below the prefix, one row each."""
        tokens, parents, rows = tree_of(paths)
        started_s = self.clock.now()
        choices = draft_step(self.drafter, self.config.tracer, self.prefix, tokens, parents, rows)
        self.cost.learn(len(paths), self.clock.now() - started_s)
        return choices

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
        # Chance of k, divided by n² for its n-th alternative: take the best one at each turn.
        gains = [
            c / (n + 1) ** 2 if n < most else 0.0 for c, n, most in zip(chances, counts, room, strict=True)
        ]
        best = max(range(len(gains)), key=gains.__getitem__)
        if gains[best] < LEAST_GAIN:
            break
        counts[best] += 1
    return counts


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Send the chain, grow the cache, look the verdict up."""
    node, ready = 1, Tokens()
    window, eta, step = VerdictTime(), RunningMean(0.7, rate=0.05, trust=4), StepCost(slope=0.03, free=1)
    while not sequence.finished:
        prefix = sequence.tokens
        chain = draft_chain(drafter, prefix, config, ready)
        send_chain(verifier, config, len(prefix), node, chain)
        node += len(chain)
        sent_s = clock.now()
        # RTT + T_v as measured is the time in which drafting costs nothing.
        budget = branch_budget(window.seconds, config.draft_length, step)
        cache = BranchTree(drafter=drafter, prefix=prefix, config=config, clock=clock, cost=step)
        if drafter.may_step:
            cache.expect(chain, budget, eta.value)
        room = f"{budget} fit into {1000 * window.seconds:.0f} ms"
        config.tracer.decided(f"{len(cache.chains)} branches; {room}, acceptance {eta.value:.2f}")
        until_s = sent_s + (window.seconds or math.inf)
        commit, here_s = _await_verdict(verifier, config, cache, until_s)
        window.learn(here_s - sent_s, commit.compute_s)
        new = sequence.commit(commit)
        for k, token in enumerate(chain[: len(new)]):
            eta.learn(float(token == new[k]))
            if token != new[k]:
                break
        ready = cache.after(new)
        yield new


def branch_budget(window_s: float, length: int, step: StepCost) -> int:
    """Return B*: how many branches can have one token each, drafted in batches within the window.

    Before it is known, the window is taken to be as long as the drafting of the chain.
    """
    # T(B) = base (1 + slope (B - 1)) per step; two steps are the chain's own and the open end.
    steps = window_s / step.base_s if window_s and step.base_s else float(length)
    return max(1, min(MAX_BRANCHES, 1 + int((steps - 2) / max(step.slope, 1e-3))))


def _await_verdict(
    verifier: Verifier, config: EdgeConfig, cache: BranchTree, until_s: float
) -> tuple[Commit, float]:
    """Grow the cache by one batched step at a time until the verdict is here; return it, and since when.

    One that comes during a step may have come right at its beginning.
    """
    quiet_s = cache.clock.now()
    while True:
        asked_s = cache.clock.now()
        event = verifier.poll()
        if event is None and (growing := cache.due(until_s)):
            quiet_s = asked_s
            cache.step(growing)
            continue
        if event is None:
            event = verifier.wait(config.timeout_s)
            quiet_s = cache.clock.now()
        if isinstance(event, Commit):
            return event, quiet_s


STRATEGY = Strategy(
    name="multi_branch",
    edge=edge,
    cloud=Cloud,
    drafts=True,
    source="arXiv 2609.02514; 2603.03251",
    rules=RULES,
)
