"""The verifier's process: one thread owns the socket, one runs the target, one opens new contexts.

The socket's thread runs the server protocol and never computes. Opening (decoding a JPEG, rendering a
prompt) has a thread of its own, so that passes do not wait for it. A pass runs a whole batch; results go
into one queue for the socket's thread, and early-exit verdicts are sent while a pass is running.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, TypeAlias, TypeVar

from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.requests import FAILURES, BatchResult, JobResult, Jobs, ServerJob
from vlm_spec_decode.core.ports import Clock, Model, Scored, ScoreRequest, Target
from vlm_spec_decode.core.types import EarlyExitVerdict
from vlm_spec_decode.decoding.batched_drafting import Prepared, prepare_together
from vlm_spec_decode.decoding.policy import ColocatedDraft, DraftCosts
from vlm_spec_decode.transport.in_process import ServerLink

Outcome: TypeAlias = BatchResult | tuple[ServerJob, EarlyExitVerdict]
"""The result of a batch, or an early-exit verdict of one that runs."""


Result = TypeVar("Result")


class BatchRunner:
    """Opens contexts and runs batches, for the two worker threads. `colocated_draft` drafts in the cloud."""

    def __init__(
        self,
        target: Target,
        colocated_draft: Model | None,
        clock: Clock,
        on_early: Callable[[ServerJob, EarlyExitVerdict], None],
        draft_costs: DraftCosts | None = None,
    ) -> None:
        self._target = target
        self._draft_costs = draft_costs
        self._colocated_draft = colocated_draft
        self._clock = clock
        self._on_early = on_early
        self._splits = 0

    def open(self, jobs: Jobs) -> BatchResult:
        """Open the context of each job."""
        return BatchResult(jobs, tuple(self._open(job) for job in jobs))

    def run(self, jobs: Jobs) -> BatchResult:
        """Run the passes of all jobs in one."""
        started_s, self._splits = self._clock.now(), 0
        prepared = self._prepare(jobs)
        due = [job for job in prepared if isinstance(job, ServerJob)]
        scored = iter(self._choose(due, self._score([self._score_request(job) for job in due])))
        pass_s = self._clock.now() - started_s
        results = tuple(
            job if isinstance(job, JobResult) else self._result(job, next(scored), pass_s) for job in prepared
        )
        return BatchResult(jobs, results, pass_s, self._splits)

    def _open(self, job: ServerJob) -> JobResult:
        try:
            observation = job.request.observation
            colocated_draft = (
                ColocatedDraft(self._colocated_draft.open(observation), self._clock, self._draft_costs)
                if self._colocated_draft
                else None
            )
            return JobResult(context=self._target.open(observation), colocated_draft=colocated_draft)
        except FAILURES as error:
            return JobResult(failure=error)

    def _prepare(self, jobs: Jobs) -> list[ServerJob | JobResult]:
        """Let the co-located draft add nodes to a pass, in steps that its answers share."""
        planned = [(job.request.session, job.plan) for job in jobs if job.request.session and job.plan]
        plans = iter(prepare_together(planned, self._colocated_draft, FAILURES))
        return [self._prepared(job, next(plans)) if job.plan else job for job in jobs]

    @staticmethod
    def _prepared(job: ServerJob, plan: Prepared) -> ServerJob | JobResult:
        if isinstance(plan, Exception):
            return JobResult(failure=plan)
        return job if plan is job.plan else replace(job, plan=plan)

    def _score_request(self, job: ServerJob) -> ScoreRequest:
        session = job.request.session
        assert session is not None
        if job.plan is None:
            return ScoreRequest(session.context, ())
        return session.query(job.plan, lambda early: self._on_early(job, early))

    def _score(self, requests: Seq[ScoreRequest]) -> list[Scored | Exception]:
        """Score in one pass; if that fails, in halves, down to the single request that fails."""
        if not requests:
            return []
        try:
            return [*self._target.score_batch(requests)]
        except FAILURES as error:
            if len(requests) == 1:
                return [error]
            self._splits += 1
            middle = len(requests) // 2
            return self._score(requests[:middle]) + self._score(requests[middle:])

    def _choose(self, jobs: Seq[ServerJob], scored: Seq[Scored | Exception]) -> list[Scored | Exception]:
        """Choose what the verdicts need while the model's thread has the device; the rest is for the host.

        All answers' questions are queued before the first of them is waited for.
        """
        begun = [self._guarded(self._begin, *pair) for pair in zip(jobs, scored, strict=True)]
        ended = [wait if isinstance(wait, Exception) else self._guarded(wait) for wait in begun]
        return [
            error if isinstance(error, Exception) else found
            for found, error in zip(scored, ended, strict=True)
        ]

    @staticmethod
    def _guarded(do: Callable[..., Result], *args: Any) -> Result | Exception:
        try:
            return do(*args)
        except FAILURES as error:
            return error

    @staticmethod
    def _begin(job: ServerJob, scored: Scored | Exception) -> Callable[[], None]:
        session = job.request.session
        if job.plan is None or session is None or isinstance(scored, Exception):
            return lambda: None
        return session.prefetch(job.plan, scored)

    def _result(self, job: ServerJob, scored: Scored | Exception, pass_s: float) -> JobResult:
        if isinstance(scored, Exception):
            return JobResult(failure=scored)
        return JobResult(plan=job.plan, scores=scored if job.plan else None, compute_s=pass_s)


class ModelWorker:
    """A thread that runs one batch of jobs at a time."""

    def __init__(
        self, name: str, do: Callable[[Jobs], BatchResult], on_done: Callable[[BatchResult], None]
    ) -> None:
        self.is_idle = True
        self._do = do
        self._on_done = on_done
        self._batches: SimpleQueue[Jobs | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, jobs: Jobs) -> None:
        """Queue a batch; only when `is_idle`."""
        self.is_idle = False
        self._batches.put(jobs)

    def stop(self) -> None:
        """Let the running batch end, then end the thread."""
        self._batches.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (jobs := self._batches.get()) is not None:
            self._on_done(self._do(jobs))


POLL_S = 0.1
EXPIRE_EVERY_S = 1.0
DRAIN_S = 30.0
"""How long answers that are under way may go on after `drain`."""


class Server(ABC):
    """Answers the robots of one link until it is stopped, with a target of its own or with replicas."""

    def __init__(self, link: ServerLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._stopping = threading.Event()

    @property
    def address(self) -> str:
        """Address at which robots reach this server."""
        return self._link.address

    @property
    @abstractmethod
    def is_stopping(self) -> bool:
        """Whether `stop` or `drain` was called: no new answer is accepted."""

    @abstractmethod
    def serve(self) -> None:
        """Serve until stopped, then free everything."""

    def stop(self) -> None:
        """End `serve` within its poll interval. From any thread or a signal handler."""
        self._stopping.set()

    @abstractmethod
    def drain(self) -> None:
        """Accept no new answers; end `serve` once none is under way, or time is up. A second call stops.

        From any thread or a signal handler.
        """


class CloudServer(Server):
    """Serves one target on one link until `stop` is called; `colocated_draft` drafts beside the target."""

    def __init__(
        self,
        link: ServerLink,
        protocol: ServerProtocol,
        target: Target,
        clock: Clock,
        colocated_draft: Model | None = None,
        draft_costs: DraftCosts | None = None,
    ) -> None:
        super().__init__(link, clock)
        self.protocol = protocol
        protocol.has_colocated_draft = colocated_draft is not None
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._waking = threading.Lock()
        runner = BatchRunner(
            target, colocated_draft, clock, lambda job, early: self._put_outcome((job, early)), draft_costs
        )
        self._opener = ModelWorker("vsd-opener", runner.open, self._put_outcome)
        self._target = ModelWorker("vsd-target", runner.run, self._put_outcome)
        self._draining = threading.Event()
        self._drain_until_s = 0.0

    @property
    def is_stopping(self) -> bool:
        """See `Server.is_stopping`."""
        return self._stopping.is_set() or self._draining.is_set()

    def serve(self) -> None:
        """Serve until stopped, then free everything."""
        expire_at_s = self._clock.now()
        try:
            while not self._stopping.is_set():
                self.protocol.tracer.polled()
                for peer, data in self._link.poll(self._poll_timeout_s()):
                    self.protocol.receive(peer, data, self._clock.now())
                self._handle_outcomes()
                if self._clock.now() >= expire_at_s:
                    self.protocol.expire(self._clock.now())
                    expire_at_s = self._clock.now() + EXPIRE_EVERY_S
                self._drain()
                self._submit_jobs()
                self._flush()
        finally:
            self._opener.stop()
            self._target.stop()
            with self._waking:
                self._link.close()

    def drain(self) -> None:
        """End once the answers under way are done; see `Server.drain`."""
        if self._draining.is_set():
            self.stop()
        self._draining.set()

    def _drain(self) -> None:
        if not self._draining.is_set():
            return
        if not self.protocol.stats.is_draining:
            self.protocol.stats.is_draining = True
            self._link.announce_drain()
            self._drain_until_s = self._clock.now() + DRAIN_S
        if not self.protocol.under_way(self._clock.now()) or self._clock.now() > self._drain_until_s:
            self._flush()
            self.stop()

    def _poll_timeout_s(self) -> float:
        wake_s = self.protocol.wake_s()
        return POLL_S if wake_s is None else min(POLL_S, max(0.001, wake_s - self._clock.now()))

    def _handle_outcomes(self) -> None:
        while True:
            try:
                outcome = self._outcomes.get_nowait()
            except Empty:
                return
            if isinstance(outcome, BatchResult):
                worker = self._opener if outcome.jobs[0].kind == "open" else self._target
                worker.is_idle = True
                self.protocol.finish(outcome, self._clock.now())
            else:
                self.protocol.early(*outcome)

    def _submit_jobs(self) -> None:
        now_s = self._clock.now()
        if self._opener.is_idle and (job := self.protocol.next_open(now_s)):
            self._opener.submit((job,))
        if self._target.is_idle and (jobs := self.protocol.next_batch(now_s)):
            self._target.submit(jobs)

    def _flush(self) -> None:
        while self.protocol.outbox:
            self._link.send(*self.protocol.outbox.popleft())

    def _put_outcome(self, outcome: Outcome) -> None:
        """Pass an outcome to the socket's thread, from a worker's; a link is woken by one at a time."""
        self._outcomes.put(outcome)
        with self._waking:
            if not self._stopping.is_set():
                self._link.wake()


@contextmanager
def ended_by_signals(drain: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Call `drain` on SIGTERM and `stop` on SIGINT for as long as the block runs; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, _frame: FrameType | None) -> None:
        drain() if signum == signal.SIGTERM else stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
