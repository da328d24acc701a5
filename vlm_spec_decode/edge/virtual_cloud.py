"""The cloud in virtual time: one GPU that runs the open answers of a robot in shared passes.

Tokens come from real models (or tables), durations from a hardware profile. Passes follow each other as at
the server: when the GPU is free, the next pass takes every answer that is ready, and one that becomes ready
meanwhile waits for the pass after it. A pass costs what the profile says for the nodes of all its answers
(`HardwareProfile.shared_pass_s`). A pass all of whose answers have been closed is dropped with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import Model, Scores, Target
from vlm_spec_decode.core.processes import VirtualProcesses
from vlm_spec_decode.core.profiles import HardwareProfile
from vlm_spec_decode.core.types import AnswerRequest, EarlyExitVerdict, Event, Hint, Observation
from vlm_spec_decode.decoding.batched_drafting import prepare_together
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.decoding.policy import ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.models.paced import paced_copy, profile_costs
from vlm_spec_decode.strategies.registry import strategy

Deliver = Callable[[Event], None]
"""Sends an event of an answer to its robot."""


@dataclass(slots=True, eq=False)
class _VirtualRequest:
    """One answer, from the arrival of its Open on. `is_ready`: the GPU may have work for it."""

    session: Session
    deliver: Deliver
    is_prefilled: bool = False
    is_running: bool = False
    is_ready: bool = True


@dataclass(slots=True)
class VirtualCloud:
    """The answers of one robot at one GPU. `gpu_s` adds up the GPU's time.

    `memory` has the answers that were given, as free drafts for later ones; None: nothing is remembered.
    """

    target: Target
    hardware: HardwareProfile
    processes: VirtualProcesses
    colocated_draft: Model | None = None
    gpu_s: float = 0.0
    memory: FreeDrafts | None = field(default_factory=FreeDrafts)
    _copy: Model | None = field(init=False)
    _copy_clock: VirtualClock = field(default_factory=VirtualClock)
    _answers: dict[int, _VirtualRequest] = field(default_factory=dict)
    _running: list[_VirtualRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        draft = self.colocated_draft
        self._copy = paced_copy(draft, self.hardware, self._copy_clock) if draft else None

    def open(self, request: AnswerRequest, deliver: Deliver) -> None:
        """Begin an answer whose Open and image have arrived."""
        policy = strategy(request.strategy).cloud()
        context = self.target.open(request.observation)
        helper = self._open_colocated_draft(request.observation)
        session = Session(request, context, policy, helper, beside=len(self._answers), memory=self.memory)
        self._answers[request.answer] = _VirtualRequest(session, deliver)
        self._start_next_pass()

    def receive(self, request: AnswerRequest, message: Hint) -> None:
        """Take a message for an answer; drop it if that is not open."""
        answer = self._answers.get(request.answer)
        if answer is None:
            return
        reply = answer.session.receive(message, self.processes.event_s)
        if reply:
            answer.deliver(reply)
        answer.is_ready = True
        self._start_next_pass()

    def close(self, request: AnswerRequest) -> None:
        """End an answer and free both caches; the others go on. Idempotent."""
        answer = self._answers.pop(request.answer, None)
        if answer is None:
            return
        self.processes.drop(answer)
        answer.session.close()
        if self._running and not any(self._is_open(each) for each in self._running):
            self.processes.drop(self._running)
            self._running = []
            if self._answers:
                # Another has waited for the GPU; it begins at once, not inside its own call.
                self.processes.schedule(self.processes.clock.now(), self._start_next_pass)

    # Passes --------------------------------------------------------------------------------------

    def _start_next_pass(self) -> None:
        """Start the next pass if the GPU is free, as the server does, in virtual time."""
        if self._running:
            return
        now_s, jobs = self.processes.event_s, list[tuple[_VirtualRequest, PassPlan | None]]()
        for answer in self._answers.values():
            if not answer.is_ready:
                continue
            answer.is_ready = False
            plan = answer.session.plan(now_s)
            if plan or not answer.is_prefilled:
                jobs.append((answer, plan))
            elif answer.session.wake_s is not None:
                self._wake_later(answer, max(now_s, answer.session.wake_s))
        if jobs:
            self._start_pass(jobs)

    def _wake_later(self, answer: _VirtualRequest, time_s: float) -> None:
        def wake() -> None:
            answer.is_ready = True
            self._start_next_pass()

        self.processes.schedule(time_s, wake, answer)

    def _start_pass(self, jobs: list[tuple[_VirtualRequest, PassPlan | None]]) -> None:
        """Run a pass now, and let its results come when its time is over."""
        began_s = self.processes.event_s
        done = list[tuple[_VirtualRequest, PassPlan, Scores]]()
        early = list[tuple[_VirtualRequest, EarlyExitVerdict]]()
        fills = sum(not answer.is_prefilled for answer, _ in jobs)
        nodes = exits = 0
        for answer, plan in jobs:
            answer.is_prefilled = True
            if plan is None:
                answer.session.context.prefill()
        # The copy of the draft works on the same GPU, before the pass.
        planned = [(answer, plan) for answer, plan in jobs if plan]
        drafted_s = self._copy_clock.now()
        prepared = prepare_together([(answer.session, plan) for answer, plan in planned], self._copy)
        drafted_s = self._copy_clock.now() - drafted_s
        for (answer, _), grown in zip(planned, prepared, strict=True):
            if isinstance(grown, Exception):
                raise grown
            heard = list[EarlyExitVerdict]()
            done.append((answer, grown, answer.session.run(grown, heard.append)))
            early += [(answer, verdict) for verdict in heard]
            nodes, exits = nodes + len(grown.nodes.tokens), max(exits, len(heard))
        pass_s = self.hardware.shared_pass_s(nodes, len(jobs), fills, exits)
        layers = self.target.card.num_layers
        for answer, verdict in early:
            at_s = began_s + drafted_s + verdict.exit_layer / layers * pass_s
            self.processes.schedule(at_s, partial(answer.deliver, verdict), answer)
        duration_s = drafted_s + pass_s
        self._running = [answer for answer, _ in jobs]
        end = self._ending(done, duration_s)
        self.processes.schedule(began_s + duration_s, end, self._running)

    def _ending(
        self, done: list[tuple[_VirtualRequest, PassPlan, Scores]], duration_s: float
    ) -> Callable[[], None]:
        def end() -> None:
            for answer in self._running:
                answer.is_ready = True
            self._running = []
            self.gpu_s += duration_s
            for answer, plan, scores in done:
                if self._is_open(answer):
                    answer.deliver(answer.session.complete(plan, scores, duration_s))
            self._start_next_pass()

        return end

    def _is_open(self, answer: _VirtualRequest) -> bool:
        return self._answers.get(answer.session.request.answer) is answer

    def _open_colocated_draft(self, observation: Observation) -> ColocatedDraft | None:
        if self._copy is None:
            return None
        return ColocatedDraft(self._copy.open(observation), self._copy_clock, profile_costs(self.hardware))
