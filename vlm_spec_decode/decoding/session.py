"""The cloud's half of one answer, without I/O: committed tokens, speculation tree, passes, commits.

The owner of a session (a local verifier, the virtual-time one, the ZeroMQ server) asks it for the next
pass, runs that on the target and returns the logits. Nothing here blocks or uses sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.errors import NotFinite, TargetNotFinite
from vlm_spec_decode.core.ports import ExitHook, ModelContext, ScoreRequest, Scores
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    Correction,
    DraftMessage,
    EarlyExitVerdict,
    Hint,
    MoreSamples,
    Tokens,
)
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.early_exit import verdict_chance
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.decoding.policy import CloudPolicy, ColocatedDraft, DraftSteps, EarlyExitHook, PassPlan
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree, positions_of
from vlm_spec_decode.decoding.verify import RejectionRule, Verdict, verify_coupled

HELPER = "draft beside the target"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """One answer at the verifier. `context` holds the target's KV cache of it.

    `beside` is how many others are open as it begins: they will share its passes. `memory` has the answers
    that the robot has been given before, and gets this one.
    """

    request: AnswerRequest
    context: ModelContext
    policy: CloudPolicy
    helper: ColocatedDraft | None = None
    sequence: Sequence = field(init=False)
    tree: SpeculationTree = field(init=False)
    passes: int = 0
    rejection: RejectionRule | None = None
    beside: int = 0
    memory: FreeDrafts | None = None
    _unsound: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.sequence = Sequence(epoch=self.request.epoch)
        self.tree = SpeculationTree(committed=list(self.request.committed))
        self.sequence.commit(self._commit_of(0, self.request.committed, 0, 0, False, 0.0))
        if self.request.params.rule == "rejection":
            self.rejection = RejectionRule(self.request.params)
        # Under the `rejection` rule drafts are draws from a known q; what is remembered is none.
        if self.memory and self.rejection is None:
            self.policy.recall_from(self.memory)
        self.policy.begin(self.request, self.helper is not None)
        if self.helper and self.helper.costs:
            self.policy.expect(self.helper.costs)
        if self.beside:
            self.policy.shares(1 + self.beside, 0, 0)
        draft = self.request.draft
        if draft and (draft.answer, draft.epoch) == (self.request.answer, self.request.epoch):
            self._add(draft)

    @property
    def wake_s(self) -> float | None:
        """When to ask for a plan again although nothing has come; None: there is no need to."""
        return self.policy.wake_s

    def receive(self, hint: Hint, now_s: float = 0.0) -> Commit | None:
        """Add a hint; those of another answer or epoch are dropped.

        Returns a commit at once only where the edge asks for more of the residual.
        """
        if (hint.answer, hint.epoch) != (self.request.answer, self.request.epoch):
            return None
        if isinstance(hint, Correction):
            self._correct(hint)
            return None
        if isinstance(hint, MoreSamples):
            return self._send_more(hint)
        self._add(hint)
        self.policy.received(hint, now_s)
        return None

    def _add(self, draft: DraftMessage) -> None:
        new = self.tree.add(draft)
        if self.rejection:
            self.rejection.learn(draft, new, self.tree.nodes)

    def plan(self, now_s: float = 0.0) -> PassPlan | None:
        """Return the next pass, or None while there is nothing to do (see `wake_s`)."""
        # The token after a rejection is the edge's to draw: until it comes there is nothing to verify below.
        if self.sequence.finished or (self.rejection and self.rejection.is_waiting):
            return None
        self.policy.at(now_s)
        numbers = self.policy.next_pass(self.tree)
        if numbers is None:
            return None
        self.passes += 1
        plan = PassPlan(self.passes, self.sequence.tokens, self.tree.subtree(numbers))
        return self.runnable(self.policy.recalled(plan))

    def runnable(self, plan: PassPlan) -> PassPlan:
        """Return the plan as what runs the target can take it: of a tree one chain, if it takes no trees."""
        return plan if self.context.verifies_trees else replace(plan, nodes=plan.nodes.chain())

    def prepare(self, plan: PassPlan) -> PassPlan:
        """Let the cloud's own draft add to the plan. On the thread that runs the pass.

        A draft is a hint: one whose logits cannot be used is named once and asked no more.
        """
        if self.helper and HELPER not in self._unsound:
            try:
                return self.runnable(self.policy.extend(plan, self.helper))
            except NotFinite as error:
                self.drop_draft(error)
        return plan

    def draft_steps(self, plan: PassPlan, answers: int) -> DraftSteps | None:
        """Return what `prepare` does as steps, for a pass that so many answers share; None: `prepare` it."""
        if self.helper is None or HELPER in self._unsound:
            return None
        return self.policy.draft_steps(plan, self.helper, answers)

    def drop_draft(self, error: NotFinite) -> None:
        """Ask the cloud's own draft no more: its logits cannot be used."""
        self._drop_hints(HELPER, error)

    def query(self, plan: PassPlan, on_early: EarlyExitHook | None = None) -> ScoreRequest:
        """Return what `plan` asks of the target, for a pass that it may share with other answers."""
        hook = self._exit_hook(plan, on_early) if on_early and self.policy.wants_exits else None
        return ScoreRequest(self.context, plan.prefix, plan.nodes.tokens, plan.nodes.parents, hook)

    def run(self, plan: PassPlan, on_early: EarlyExitHook | None = None) -> Scores:
        """Run `plan` on the target by itself and return what it says after each row [1 + n]."""
        return self.query(plan, on_early).score()

    def prefetch(self, plan: PassPlan, scores: Scores) -> Callable[[], None]:
        """Begin to choose what `complete` needs; return what waits for it. On the pass's thread."""
        positions = positions_of(plan.nodes.parents, len(plan.prefix))
        return as_choices(scores).prefetch(positions, self.request.params)

    def complete(self, plan: PassPlan, scores: Scores, compute_s: float = 0.0) -> Commit:
        """Verify the pass and commit what is true; drafts that came meanwhile are re-rooted.

        Raises TargetNotFinite if a row that decides something cannot be used; nothing is committed then.
        """
        start = len(plan.prefix)
        try:
            verdict = self._verify(plan, scores)
        except NotFinite as error:
            raise TargetNotFinite(error.what) from error
        # The cloud's own nodes mean nothing to the edge: it re-roots at the deepest node that it knows.
        node = plan.nodes.named(verdict.row)[0]
        said, finished = self._with_forced(plan.prefix, verdict.tokens, verdict.finished)
        commit = self._commit_of(start, said, node, plan.pass_id, finished, compute_s)
        if self.rejection and verdict.is_open:
            path = plan.prefix + verdict.tokens
            commit = replace(commit, residual=self.rejection.wait_for_edge(path, scores, verdict.row))
        # Drafts that came while the pass ran are in the tree already; re-rooting keeps what the commit
        # confirms.
        self.tree.advance(self.sequence.commit(commit))
        self.policy.completed(plan, commit)
        if self.policy.floor and not finished:
            commit = replace(commit, floor=self.policy.floor)
        if self.memory and self.sequence.finished:
            self.memory.add(self.request.observation.instruction, self.sequence.tokens)
        return commit

    def close(self) -> None:
        """Free both models' caches. Idempotent."""
        self.context.close()
        if self.helper:
            self.helper.context.close()

    def replay(self, start: int) -> Commit | None:
        """Return one commit of everything from `start` on, for an edge that missed some of it."""
        # One commit of everything: commits are idempotent by `start`, so what the edge has already does no
        # harm.
        tokens = self.sequence.tokens[start:]
        residual = self.rejection.sparse() if self.rejection and start <= len(self.sequence) else None
        if not tokens and not residual:
            return None
        commit = self._commit_of(start, tokens, 0, self.passes, self.sequence.finished, 0.0)
        return replace(commit, residual=residual)

    def _verify(self, plan: PassPlan, scores: Scores, is_final: bool = True) -> Verdict:
        """Apply the answer's rule; of what an exit says (not final) guess the outcome."""
        nodes, params = plan.nodes, self.request.params
        if self.rejection is None:
            return verify_coupled(scores, nodes.tokens, nodes.parents, len(plan.prefix), params)
        own_q = dict(zip(nodes.numbers[::-1], plan.own_q[::-1], strict=False))
        if not is_final:
            return self.rejection.guess(nodes, scores, plan.prefix, own_q)
        return self.rejection.verify(nodes, scores, plan.prefix, not self.policy.is_pipeline, own_q)

    def _correct(self, correction: Correction) -> None:
        """Commit what the edge has drawn, if it is awaited."""
        length, token = len(self.sequence), correction.token
        if self.rejection is None or correction.position != length or not self.rejection.is_waiting:
            return
        self.rejection.corrected()
        finished = self.request.params.ends(length + 1, token)
        commit = self._commit_of(length, (token,), 0, self.passes, finished, 0.0)
        self.tree.advance(self.sequence.commit(commit))

    def _send_more(self, asked: MoreSamples) -> Commit | None:
        """Return the commit that brings the edge more tail samples, if its correction is awaited."""
        length = len(self.sequence)
        if self.rejection is None or asked.position != length or not self.rejection.is_waiting:
            return None
        more = self.rejection.more(asked.count)
        return replace(self._commit_of(length, (), 0, self.passes, False, 0.0), residual=more)

    def _with_forced(self, prefix: Tokens, said: Tokens, finished: bool) -> tuple[Tokens, bool]:
        """Add to what a pass has said the run that the grammar forces after it: it needs no pass."""
        for token in () if finished else self.context.forced(prefix + said):
            said += (token,)
            if self.request.params.ends(len(prefix) + len(said), token):
                return said, True
        return said, finished

    def _commit_of(
        self, start: int, tokens: Tokens, node: int, pass_id: int, finished: bool, compute_s: float
    ) -> Commit:
        request = self.request
        return Commit(request.answer, request.epoch, start, tokens, node, pass_id, finished, compute_s)

    def _drop_hints(self, source: str, error: NotFinite) -> None:
        if source not in self._unsound:
            self._unsound.add(source)
            log.warning("this answer goes on without hints of the %s: %s", source, error)

    def _exit_hook(self, plan: PassPlan, on_early: EarlyExitHook) -> ExitHook:
        """Run VERIFY with what each exit says (2505.21594, eq. 5) and report its hypothesis."""

        def hook(exit_layer: int, scores: Scores) -> None:
            try:
                verdict = self._verify(plan, scores, is_final=False)
                said = verdict.tokens[-1]
                confidence = verdict_chance(self.context, exit_layer, scores, verdict.row, said)
            except NotFinite as error:
                self._drop_hints(f"exit {exit_layer}", error)
                return
            # Where the exit accepts nodes of the cloud's own, the first of them is the next token as the edge
            # sees it.
            node, below = plan.nodes.named(verdict.row)
            token, request = said if below is None else below, self.request
            on_early(
                EarlyExitVerdict(
                    request.answer, request.epoch, plan.pass_id, exit_layer, node, token, confidence
                )
            )

        return hook
