"""What every strategy's two halves are, and the steps that their algorithms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.sampling import pick
from vlm_spec_decode.core.sequence import Sequence
from vlm_spec_decode.core.session import CloudPolicy
from vlm_spec_decode.core.types import Commit, SamplingParams, Tokens
from vlm_spec_decode.strategies.proposals import Corrector, Proposals


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """What one answer's edge half needs to know beside its ports.

    `draft_length` is γ, the tokens drafted per round; `timeout_s` bounds every wait for the cloud.
    """

    answer: int
    params: SamplingParams
    draft_length: int = 4
    timeout_s: float = 30.0
    epoch: int = 0
    proposals: Proposals | None = None


EdgePolicy: TypeAlias = Callable[[Sequence, Drafter, Verifier, Clock, EdgeConfig], Iterator[Tokens]]
"""The edge half: a generator of committed tokens; it ends when the sequence is finished."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A row of the design's table: both halves, whether it drafts, and where it comes from."""

    name: str
    edge: EdgePolicy
    cloud: Callable[[], CloudPolicy]
    drafts: bool
    source: str

    def decode(
        self, sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
    ) -> Iterator[Tokens]:
        """Run the edge half under the rule of `config.params`: what callers use instead of `edge`."""
        if config.params.rule == "rejection":
            proposals = Proposals(config.params)
            verifier = Corrector(verifier, proposals, sequence.tokens)
            config = replace(config, proposals=proposals)
        return self.edge(sequence, drafter, verifier, clock, config)


def draft_token(drafter: Drafter, prefix: Tokens, config: EdgeConfig) -> int:
    """Draft the token after `prefix`: one step, chosen as the answer's rule says."""
    logits = drafter.score(prefix)[0]
    return (
        config.proposals.draw(prefix, logits)
        if config.proposals
        else pick(logits, len(prefix), config.params)
    )


def draft_chain(drafter: Drafter, prefix: Tokens, config: EdgeConfig) -> Tokens:
    """Draft up to γ tokens after `prefix`; stop early at the answer's end.

    A token that the grammar forces costs no step, any other one.
    """
    chain: Tokens = ()
    room = min(config.draft_length, config.params.max_tokens - len(prefix))
    while len(chain) < room:
        chain += drafter.forced(prefix + chain)[: room - len(chain)] or (
            draft_token(drafter, prefix + chain, config),
        )
        if chain[-1] in config.params.stop_ids:
            break
    return chain


def wait_commit(verifier: Verifier, config: EdgeConfig) -> Commit:
    """Wait for the next commit; early verdicts on the way are not this caller's business."""
    while True:
        event = verifier.wait(config.timeout_s)
        if isinstance(event, Commit):
            return event
