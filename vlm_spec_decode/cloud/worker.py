"""Runs jobs on the target, on threads of its own. Never touches the server protocol.

One thread opens contexts (decoding a JPEG, rendering a prompt), so that passes do not wait for it; one runs
passes, each over a whole batch. Results go into one queue for the socket's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeAlias

from vlm_spec_decode.cloud.failures import FAILURES, refusal
from vlm_spec_decode.cloud.requests import BatchResult, JobResult, Jobs, ServerJob
from vlm_spec_decode.core.ports import Clock, Model, Scored, ScoreRequest, Target
from vlm_spec_decode.core.types import EarlyExitVerdict
from vlm_spec_decode.decoding.session import ColocatedDraft

Outcome: TypeAlias = BatchResult | tuple[ServerJob, EarlyExitVerdict]
"""A batch that has ended, or a verdict of one that runs."""


class BatchRunner:
    """What the two threads do. `helper` drafts beside the target."""

    def __init__(
        self,
        target: Target,
        helper: Model | None,
        clock: Clock,
        on_early: Callable[[ServerJob, EarlyExitVerdict], None],
    ) -> None:
        self._target = target
        self._helper = helper
        self._clock = clock
        self._on_early = on_early
        self._splits = 0

    def open(self, jobs: Jobs) -> BatchResult:
        """Open the context of each job."""
        return BatchResult(jobs, tuple(self._open(job) for job in jobs))

    def run(self, jobs: Jobs) -> BatchResult:
        """Run the passes of all jobs in one."""
        started_s, self._splits = self._clock.now(), 0
        prepared = [self._prepare(job) for job in jobs]
        queries = [self._query(job) for job in prepared if isinstance(job, ServerJob)]
        scored = iter(self._score(queries))
        pass_s = self._clock.now() - started_s
        results = tuple(
            job if isinstance(job, JobResult) else self._result(job, next(scored), pass_s) for job in prepared
        )
        return BatchResult(jobs, results, pass_s, self._splits)

    def _open(self, job: ServerJob) -> JobResult:
        try:
            seen = job.entry.observation
            helper = ColocatedDraft(self._helper.open(seen), self._clock) if self._helper else None
            return JobResult(context=self._target.open(seen), helper=helper)
        except FAILURES as error:
            return JobResult(refusal=refusal(error))

    def _prepare(self, job: ServerJob) -> ServerJob | JobResult:
        """Let the cloud's own draft add to a pass."""
        session = job.entry.session
        assert session is not None
        try:
            return replace(job, plan=session.prepare(job.plan)) if job.plan else job
        except FAILURES as error:
            return JobResult(refusal=refusal(error))

    def _query(self, job: ServerJob) -> ScoreRequest:
        session = job.entry.session
        assert session is not None
        if job.plan is None:
            return ScoreRequest(session.context, ())
        return session.query(job.plan, lambda early: self._on_early(job, early))

    def _score(self, queries: Seq[ScoreRequest]) -> list[Scored | Exception]:
        """Score in one pass, or in halves if that fails, down to the one that it fails for."""
        if not queries:
            return []
        try:
            return [*self._target.score_batch(queries)]
        except FAILURES as error:
            if len(queries) == 1:
                return [error]
            self._splits += 1
            middle = len(queries) // 2
            return self._score(queries[:middle]) + self._score(queries[middle:])

    def _result(self, job: ServerJob, scored: Scored | Exception, pass_s: float) -> JobResult:
        if isinstance(scored, Exception):
            return JobResult(refusal=refusal(scored))
        return JobResult(plan=job.plan, logits=scored if job.plan else None, compute_s=pass_s)


class ModelWorker:
    """A thread that does one batch of jobs at a time."""

    def __init__(
        self, name: str, do: Callable[[Jobs], BatchResult], on_done: Callable[[BatchResult], None]
    ) -> None:
        self.is_idle = True
        self._do = do
        self._on_done = on_done
        self._batches: SimpleQueue[Jobs | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def give(self, jobs: Jobs) -> None:
        """Hand over a batch; only when `is_idle`."""
        self.is_idle = False
        self._batches.put(jobs)

    def stop(self) -> None:
        """Let the running batch end, then end the thread."""
        self._batches.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (jobs := self._batches.get()) is not None:
            self._on_done(self._do(jobs))
