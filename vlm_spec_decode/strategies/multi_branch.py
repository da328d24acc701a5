"""A cache of branches for the likeliest verdicts, grown while one waits (AceSpec 2609.02514, section 3).

The round is stop-and-wait with a chain of γ tokens. During RTT + T_v the edge drafts on, for each position
k at which the chain may first be rejected, below F_k alternatives to the token there, F_k proportional to
η^k; k = γ is the chain accepted whole. The budget B is the largest tree whose drafting fits in RTT + T_v
as measured. When the verdict is in the cache (hit), the next chain is sent at once. Branches are drafted
in one batch with a shared prefix and are never uploaded. (SSD 2603.03251 is the same in a data centre.)
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.sequence import Sequence
from vlm_spec_decode.core.types import RULES, Commit, Tokens
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_chain, send_chain
from vlm_spec_decode.strategies.branches import Branches, outcomes
from vlm_spec_decode.strategies.estimates import Mean, StepCost
from vlm_spec_decode.strategies.speculative import Cloud

MAX_BRANCHES = 64


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Send the chain, grow the cache, look the verdict up."""
    node, ready = 1, Tokens()
    window_s, eta, step = Mean(0.0, trust=0), Mean(0.7, trust=2), StepCost(slope=0.03, free=1)
    while not sequence.finished:
        prefix = sequence.tokens
        chain = draft_chain(drafter, prefix, config, ready)
        send_chain(verifier, config, len(prefix), node, chain)
        node += len(chain)
        sent_s = clock.now()
        budget = branch_budget(window_s.value, config.draft_length, step)
        counts = allocation(budget, len(chain), eta.value)
        cache = Branches(drafter, prefix, config, clock, step)
        commit = _await_verdict(verifier, config, cache, chain, counts)
        window_s.learn(clock.now() - sent_s)
        new = sequence.commit(commit)
        for k, token in enumerate(chain[: len(new)]):
            eta.learn(float(token == new[k]))
            if token != new[k]:
                break
        ready = cache.after(new)
        yield new


def branch_budget(window_s: float, length: int, step: StepCost) -> int:
    """Return B*: how many branches of `length` tokens can be drafted in one batch within the window."""
    if not window_s or not step.base_s:
        return length + 1
    batch = (window_s / step.base_s - 1) / length  # one step finds the outcomes
    return max(1, min(MAX_BRANCHES, 1 + int((batch - 1) / max(step.slope, 1e-3))))


def allocation(budget: int, length: int, eta: float) -> tuple[int, ...]:
    """Return F_0, …, F_length: geometric in the position, at least one branch where the budget allows."""
    shares = [eta**k * (1.0 if k == length else 1 - eta) for k in range(length + 1)]
    counts = [int(budget * share / sum(shares)) for share in shares]
    for k in sorted(range(length + 1), key=lambda k: (counts[k] > 0, -shares[k])):
        if sum(counts) < budget:
            counts[k] += 1
    return tuple(counts)


def _await_verdict(
    verifier: Verifier, config: EdgeConfig, cache: Branches, chain: Tokens, counts: tuple[int, ...]
) -> Commit:
    """Grow the cache by one batched step at a time until the verdict is here."""
    while True:
        event = verifier.poll()
        if event is None and not cache.is_open:
            cache.open(outcomes(cache, chain, counts))
        elif event is None and cache.unfinished:
            cache.step()
        else:
            event = event or verifier.wait(config.timeout_s)
            if isinstance(event, Commit):
                return event


STRATEGY = Strategy(
    "multi_branch", edge, Cloud, drafts=True, source="arXiv 2609.02514; 2603.03251", rules=RULES
)
