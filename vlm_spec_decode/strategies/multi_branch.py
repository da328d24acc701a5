"""A cache of branches for the likeliest verdicts, grown while one waits (AceSpec 2609.02514, section 3).

The round is stop-and-wait with a chain of γ tokens. During RTT + T_v the edge drafts on, for each position
k at which the chain may first be rejected, below F_k alternatives to the token there, F_k proportional to
η^k; k = γ is the chain accepted whole. The budget B is the largest tree whose drafting fits in RTT + T_v
as measured: first as many branches as can have a token each, then depth for the likeliest of them. When the
verdict is in the cache (hit), the next chain begins with its branch and what is missing of γ is drafted.
Branches are drafted in one batch with a shared prefix and are never uploaded. (SSD 2603.03251 is the same
in a data centre.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.sequence import Sequence
from vlm_spec_decode.core.types import RULES, Commit, Tokens
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_chain, send_chain
from vlm_spec_decode.strategies.branches import MAX_BRANCHES, Branches
from vlm_spec_decode.strategies.estimates import Mean, StepCost, Window
from vlm_spec_decode.strategies.speculative import Cloud


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Send the chain, grow the cache, look the verdict up."""
    node, ready = 1, Tokens()
    window, eta, step = Window(), Mean(0.7, rate=0.05, trust=4), StepCost(slope=0.03, free=1)
    while not sequence.finished:
        prefix = sequence.tokens
        chain = draft_chain(drafter, prefix, config, ready)
        send_chain(verifier, config, len(prefix), node, chain)
        node += len(chain)
        sent_s = clock.now()
        budget = branch_budget(window.seconds, config.draft_length, step)
        cache = Branches(drafter, prefix, config, clock, step)
        cache.expect(chain, budget, eta.value)
        room = f"{budget} fit into {1000 * window.seconds:.0f} ms"
        config.explain(f"{len(cache.chains)} branches; {room}, acceptance {eta.value:.2f}")
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
    steps = window_s / step.base_s if window_s and step.base_s else float(length)
    return max(1, min(MAX_BRANCHES, 1 + int((steps - 2) / max(step.slope, 1e-3))))


def _await_verdict(
    verifier: Verifier, config: EdgeConfig, cache: Branches, until_s: float
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
    "multi_branch", edge, Cloud, drafts=True, source="arXiv 2609.02514; 2603.03251", rules=RULES
)
