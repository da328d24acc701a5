"""Cloud autoregressive decoding: no drafts, one token per pass. The baseline of every paper here.

Tokens stream down as they come, so an answer costs one round trip and one pass per token.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, wait_commit


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Receive until the answer ends."""
    # Nothing is sent: the cloud steps on by itself, and its commits stream down.
    while not sequence.finished:
        yield sequence.commit(wait_commit(verifier, config))


class Cloud(CloudPolicy):
    """Step without waiting for anybody."""

    def next_pass(self, tree: SpeculationTree) -> Tokens:  # noqa: ARG002
        """Return a plain step."""
        return ()


STRATEGY = Strategy(
    name="autoregressive", edge=edge, cloud=Cloud, drafts=False, source="baseline", rules=RULES
)
