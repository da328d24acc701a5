"""The verifier's process: one thread owns the socket, one runs the target.

The socket's thread feeds the desk and never computes; the worker runs one job at a time and never
touches the desk. Early verdicts leave while a pass is still running.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from vlm_spec_decode.cloud.desk import CloudDesk
from vlm_spec_decode.cloud.entry import Job, JobResult
from vlm_spec_decode.cloud.link import ServerLink
from vlm_spec_decode.core.errors import GrammarError, ImageError, VsdError
from vlm_spec_decode.core.ports import Clock, Model, Target
from vlm_spec_decode.core.session import Helper
from vlm_spec_decode.core.types import Early, Observation

POLL_S = 0.1
EXPIRE_EVERY_S = 1.0

Outcome: TypeAlias = tuple[Job, JobResult | Early]

log = logging.getLogger(__name__)


class Worker:
    """Runs jobs on the target, one at a time, on a thread of its own."""

    def __init__(
        self, target: Target, helper: Model | None, clock: Clock, on_outcome: Callable[[], None]
    ) -> None:
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.is_idle = True
        self._target = target
        self._helper = helper
        self._clock = clock
        self._on_outcome = on_outcome
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vsd-target", daemon=True)
        self._thread.start()

    def give(self, job: Job) -> None:
        """Hand over one job; only when `is_idle`."""
        self.is_idle = False
        self._jobs.put(job)

    def stop(self) -> None:
        """Let the running job end, then end the thread."""
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._put(job, self._execute(job))

    def _execute(self, job: Job) -> JobResult:
        started_s = self._clock.now()
        try:
            if job.kind == "open":
                return self._open(job.entry.observation)
            session = job.entry.session
            assert session is not None
            if job.plan is None:
                session.context.prefill()
                return JobResult(compute_s=self._clock.now() - started_s)
            plan = session.prepare(job.plan)
            logits = session.run(plan, lambda early: self._put(job, early))
            return JobResult(plan=plan, logits=logits, compute_s=self._clock.now() - started_s)
        except ImageError as error:
            return JobResult(refusal=("image", str(error)))
        except GrammarError as error:
            return JobResult(refusal=("grammar", str(error)))
        except (VsdError, RuntimeError, ValueError, MemoryError) as error:
            # One answer's failure must not end the service of the others.
            log.exception("a job of the target failed")
            return JobResult(refusal=("target_failed", type(error).__name__))

    def _open(self, observation: Observation) -> JobResult:
        helper = Helper(self._helper.open(observation), self._clock) if self._helper else None
        return JobResult(context=self._target.open(observation), helper=helper)

    def _put(self, job: Job, outcome: JobResult | Early) -> None:
        self.outcomes.put((job, outcome))
        self._on_outcome()


class CloudServer:
    """Serves one target on one link until `stop` is called; `helper` drafts beside it."""

    def __init__(
        self, link: ServerLink, desk: CloudDesk, target: Target, clock: Clock, helper: Model | None = None
    ) -> None:
        self.desk = desk
        desk.has_helper = helper is not None
        self._link = link
        self._clock = clock
        self._worker = Worker(target, helper, clock, link.wake)
        self._stopping = threading.Event()

    @property
    def address(self) -> str:
        """Where robots reach this server."""
        return self._link.address

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called: nothing new is begun."""
        return self._stopping.is_set()

    def serve(self) -> None:
        """Serve until stopped; frees everything on the way out."""
        expire_at_s = self._clock.now()
        try:
            while not self._stopping.is_set():
                for peer, data in self._link.poll(self._patience_s()):
                    self.desk.receive(peer, data, self._clock.now())
                self._take_outcomes()
                if self._clock.now() >= expire_at_s:
                    self.desk.expire(self._clock.now())
                    expire_at_s = self._clock.now() + EXPIRE_EVERY_S
                self._give_job()
                self._flush()
        finally:
            self._worker.stop()
            self._link.close()

    def stop(self) -> None:
        """End `serve` within its poll interval. From any thread or a signal handler."""
        self._stopping.set()

    def _patience_s(self) -> float:
        wake_s = self.desk.wake_s()
        return POLL_S if wake_s is None else min(POLL_S, max(0.001, wake_s - self._clock.now()))

    def _take_outcomes(self) -> None:
        while True:
            try:
                job, outcome = self._worker.outcomes.get_nowait()
            except Empty:
                return
            if isinstance(outcome, Early):
                self.desk.early(job.entry, outcome)
            else:
                self._worker.is_idle = True
                self.desk.finish(job, outcome)

    def _give_job(self) -> None:
        if self._worker.is_idle:
            job = self.desk.next_job(self._clock.now())
            if job:
                self._worker.give(job)

    def _flush(self) -> None:
        while self.desk.outbox:
            self._link.send(*self.desk.outbox.popleft())
