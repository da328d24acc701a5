"""Vanilla speculative decoding over the network: draft γ tokens, send, wait, repeat (stop and wait).

One round costs T_d + RTT + T_v and yields the accepted tokens plus one of the target's own
(Leviathan et al. 2211.17192, section 2; as the edge-cloud baseline in 2505.21594, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, DraftMessage, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree, chain_parents
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_chain, wait_commit


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Draft, submit, wait for the verdict, and start again from what was committed."""
    node = 1
    while not sequence.finished:
        base = len(sequence)
        chain = draft_chain(drafter, sequence.tokens, config)
        parents = chain_parents(node, len(chain))
        verifier.submit(DraftMessage(config.answer, config.epoch, base, node, chain, parents))
        # Node numbers are never used twice in an answer: the cloud may still hold what was drafted before.
        node += len(chain)
        yield sequence.commit(wait_commit(verifier, config))


class Cloud(CloudPolicy):
    """Verify what hangs below the committed tokens; without a draft there is nothing to do."""

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Return all live nodes, or None to wait for a draft."""
        return tree.live() or None


STRATEGY = Strategy(
    name="speculative", edge=edge, cloud=Cloud, drafts=True, source="arXiv 2211.17192", rules=RULES
)
