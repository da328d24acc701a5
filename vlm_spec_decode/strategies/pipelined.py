"""PicoSpec (2603.19133, section 3): draft on as if all will be accepted; on an interrupt roll back.

An accepted round costs max(T_d, RTT + T_v), not the sum. Separate rejection sampling: `strategies.rejection`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Commit, DraftMessage, Event, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree, chain_parents
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_token, forced_run

BATCHES = 2  # of γ tokens beyond the committed ones: one is being verified, the next is on its way


@dataclass(slots=True)
class AssumedLine:
    """The assumed continuation: tokens after the committed ones, `sent` of them sent as node `first`, …"""

    tokens: Tokens = ()
    sent: int = 0
    first: int = 1

    def extend(self, committed: Tokens, drafter: Drafter, config: EdgeConfig) -> None:
        """Parallel drafting: one step on from the assumption that everything so far is accepted."""
        path = committed + self.tokens
        self.tokens += forced_run(drafter, config.tracer, path)[: config.params.max_tokens - len(path)] or (
            draft_token(drafter, path, config),
        )

    def is_complete(self, committed: Tokens, drafter: Drafter, config: EdgeConfig) -> bool:
        """Tell whether the line is as long as it may become, or may become now."""
        path = committed + self.tokens
        ended = bool(self.tokens) and (config.params.ends(len(path), path[-1]) or not drafter.may_step)
        return ended or len(self.tokens) >= BATCHES * config.draft_length

    def is_due(self, committed: Tokens, drafter: Drafter, config: EdgeConfig) -> bool:
        """A full batch goes, and a short one if the cloud would idle: the first token after a rollback (fast
        pre-verification), or what there is when drafting runs long (latency-aware truncation)."""
        unsent = len(self.tokens) - self.sent
        is_cut = not self.sent or self.is_complete(committed, drafter, config)
        return unsent >= config.draft_length or (unsent > 0 and is_cut)

    def batch(self, committed: Tokens, config: EdgeConfig) -> DraftMessage:
        """Return what has not been sent, below what has."""
        tokens, number = self.tokens[self.sent :], self.first + self.sent
        parents = chain_parents(number, len(tokens), number - 1 if self.sent else 0)
        self.sent = len(self.tokens)
        return DraftMessage(config.answer, config.epoch, len(committed), number, tokens, parents)

    def follow(self, new: Tokens) -> None:
        """Keep what lies beyond the committed tokens if they are the assumed ones, else drop the line."""
        # A commit that departs from the assumption is the interrupt: everything beyond it is void.
        is_hit = self.tokens[: len(new)] == new
        known = min(self.sent, len(new)) if is_hit else self.sent
        self.tokens = self.tokens[len(new) :] if is_hit else ()
        self.first += known
        self.sent -= known


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Send what is due, draft on until the line is complete, and follow each verdict as it comes."""
    line = AssumedLine()
    event: Event | None
    while not sequence.finished:
        if line.is_due(sequence.tokens, drafter, config):
            verifier.submit(line.batch(sequence.tokens, config))
        # With two batches ahead there is nothing to draft before a verdict: wait. Else draft on, and only
        # look.
        if line.is_complete(sequence.tokens, drafter, config):
            event = verifier.wait(config.timeout_s)
        else:
            line.extend(sequence.tokens, drafter, config)
            event = verifier.poll()
        while event:
            if isinstance(event, Commit) and (new := sequence.commit(event)):
                line.follow(new)
                yield new
            event = verifier.poll()


class Cloud(CloudPolicy):
    """Verify whatever has arrived; a commit that is shorter than the line is the interrupt."""

    is_pipeline = True

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Return all live nodes, or None to wait for some."""
        return tree.live() or None


STRATEGY = Strategy(
    name="pipelined", edge=edge, cloud=Cloud, drafts=True, source="arXiv 2603.19133", rules=RULES
)
