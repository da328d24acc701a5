"""Early exits show the edge what to draft next while the pass is still running (2505.21594, section 3).

The round is stop-and-wait. Each exit of the target runs VERIFY with its own head and reports a whole
outcome, (accepted count, next token), before the pass ends (eq. 5). The edge opens a drafting job for
each outcome, the most confident first. When the verdict equals a job's outcome (hit), its draft is sent
at once and T_d vanishes from the round; otherwise (miss) the edge drafts from scratch. Only the last
layer decides, so exits cost drafting time and never change the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Commit, EarlyExitVerdict, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_chain, send_chain
from vlm_spec_decode.strategies.speculative import Cloud as StopAndWait


@dataclass(slots=True)
class BranchDraft:
    """A hypothesised outcome (accepted tokens and the one after them) and the draft that follows it."""

    outcome: Tokens
    confidence: float
    chain: Tokens = ()
    done: bool = False

    def step(self, prefix: Tokens, drafter: Drafter, config: EdgeConfig) -> None:
        """Draft one token more."""
        one_more = replace(config, draft_length=len(self.chain) + 1)
        before, self.chain = self.chain, draft_chain(drafter, prefix + self.outcome, one_more, self.chain)
        self.done = len(self.chain) in {len(before), config.draft_length}


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """DRAFT, send, pre-draft on early results, compare with the verdict."""
    node, ready = 1, Tokens()
    while not sequence.finished:
        prefix = sequence.tokens
        chain = draft_chain(drafter, prefix, config, ready)
        send_chain(verifier, config, len(prefix), node, chain)
        jobs: dict[tuple[int, int], BranchDraft] = {}
        commit = _await_verdict(verifier, drafter, config, (node, prefix, chain), jobs)
        node += len(chain)
        new = sequence.commit(commit)
        # T_d of the next round is saved for as many tokens as are drafted by now.
        ready = _hit(jobs, new)
        yield new


def _await_verdict(
    verifier: Verifier,
    drafter: Drafter,
    config: EdgeConfig,
    sent: tuple[int, Tokens, Tokens],
    jobs: dict[tuple[int, int], BranchDraft],
) -> Commit:
    """Draft for the most confident outcome until the verdict is here."""
    first, prefix, chain = sent
    while True:
        event = verifier.poll()
        waiting = [job for job in jobs.values() if not job.done]
        if event is None and waiting and drafter.may_step:
            # The likeliest outcome first: its draft is the one that is most probably used.
            max(waiting, key=lambda job: job.confidence).step(prefix, drafter, config)
            continue
        event = event or verifier.wait(config.timeout_s)
        if isinstance(event, Commit):
            return event
        accepted = _accepted(event, first, len(chain))
        if accepted is not None:
            job = BranchDraft((*chain[:accepted], event.next_token), event.confidence)
            job.done = event.next_token in config.params.stop_ids
            # Exits that agree share one job, at the confidence of the surest.
            known = jobs.setdefault((accepted, event.next_token), job)
            known.confidence = max(known.confidence, event.confidence)


def _accepted(early: EarlyExitVerdict, first: int, length: int) -> int | None:
    """Return how many of this round's tokens the exit accepts; None if it speaks of another round."""
    accepted = early.node - first + 1 if early.node else 0
    return accepted if 0 <= accepted <= length else None


def _hit(jobs: dict[tuple[int, int], BranchDraft], committed: Tokens) -> Tokens:
    """Return the draft that is ready if an outcome came true, else ()."""
    said = [job.outcome + job.chain for job in jobs.values() if len(job.outcome) <= len(committed)]
    return next((s[len(committed) :] for s in said if s[: len(committed)] == committed), ())


class Cloud(StopAndWait):
    """As `speculative`, with early verdicts."""

    wants_exits = True


STRATEGY = Strategy(
    name="early_exit", edge=edge, cloud=Cloud, drafts=True, source="arXiv 2505.21594", rules=RULES
)
