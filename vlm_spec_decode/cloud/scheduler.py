"""Which requests run in the next pass, and which caches stay in memory.

Uses requests and limits, no messages. A pass takes all answers that are ready, earliest due first
(continuous batching): an answer joins at the next pass and leaves when it is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.requests import (
    BatchResult,
    Jobs,
    ServerCounts,
    ServerJob,
    ServerRequest,
)
from vlm_spec_decode.core.errors import OutOfMemory

GROW_AFTER = 64
"""Passes without lack of memory after which a reduced batch may grow again."""


@dataclass(slots=True)
class Scheduler:
    """Chooses batches. `session_bytes` is the largest size of one session's caches so far."""

    limits: ServerLimits
    stats: ServerCounts
    session_bytes: int = 0
    batch: int = field(init=False)
    _passes_since_oom: int = 0

    def __post_init__(self) -> None:
        self.batch = self.limits.batch

    def next_batch(self, requests: Iterable[ServerRequest], now_s: float) -> Jobs:
        """Return the jobs of the next pass; mark their requests as running."""
        with_session = [request for request in requests if request.session]
        ready = [request for request in with_session if self._is_ready(request, now_s)]
        jobs: list[ServerJob] = []
        fills = 0
        for request in sorted(ready, key=lambda e: e.due_s):
            if len(jobs) == self.batch:
                break
            if not request.is_cached:
                if fills == self.limits.fills or not self._make_room(with_session, now_s, fills):
                    continue
                fills += 1
            job = request.next_job(now_s)
            if job:
                jobs.append(job)
                self.stats.wait_s += now_s - job.ready_s
        self.stats.waiting = sum(request.ready_s is not None for request in with_session)
        return tuple(jobs)

    def next_open(self, requests: Iterable[ServerRequest], now_s: float) -> ServerJob | None:
        """Return the job that opens the context of the oldest request without one."""
        for request in requests:
            if not (request.session or request.running or request.awaits_image):
                return request.next_job(now_s)
        return None

    def wake_s(self, requests: Iterable[ServerRequest]) -> float | None:
        """Return when the first session that waits for a draft stops waiting, in seconds of the clock."""
        times = [request.session.wake_s for request in requests if request.session and not request.running]
        return min((time for time in times if time is not None), default=None)

    def has_memory(self, requests: Iterable[ServerRequest], now_s: float) -> bool:
        """Return whether the caches of one more answer fit beside those under way."""
        active = sum(now_s - request.touched_s < self.limits.active_s for request in requests)
        return (active + 1) * self.session_bytes <= self.limits.kv_bytes

    def on_batch_done(self, done: BatchResult, requests: Iterable[ServerRequest], now_s: float) -> None:
        """Update counts, cache sizes and batch size after a batch."""
        self.stats.kv_bytes = sum(request.kv_bytes for request in requests)
        if done.jobs[0].kind == "open":
            return
        self.stats.count_pass(len(done.jobs), done.pass_s)
        self.stats.splits += done.splits
        for job, result in zip(done.jobs, done.results, strict=True):
            job.request.ran_s = now_s
            job.request.is_cached = result.failure is None
            self.session_bytes = max(self.session_bytes, job.request.kv_bytes)
        self._passes_since_oom += 1
        if self._passes_since_oom >= GROW_AFTER and self.batch < self.limits.batch:
            self.batch, self._passes_since_oom = self.batch + 1, 0

    def retry(
        self, job: ServerJob, failure: Exception, requests: Iterable[ServerRequest], now_s: float
    ) -> bool:
        """Return whether to run a failed job once more: after lack of memory, with a smaller batch.

        It halves the batch and evicts idle caches.
        """
        request = job.request
        if not isinstance(failure, OutOfMemory | MemoryError) or request.tries or not request.session:
            return False
        self.batch, self._passes_since_oom = max(1, self.batch // 2), 0
        for idle in self._idle(requests, now_s, 0.0):
            self._evict(idle)
        request.tries += 1
        request.prefill_started = job.kind == "pass"
        return True

    def _is_ready(self, request: ServerRequest, now_s: float) -> bool:
        if request.running or request.session is None:
            return False
        wake_s = request.session.wake_s
        if wake_s is not None and wake_s <= now_s:
            request.mark_ready(now_s)
        return request.ready_s is not None

    def _make_room(self, with_session: list[ServerRequest], now_s: float, fills: int) -> bool:
        """Evict idle sessions until one more prompt fits; True also if no other cache is in memory."""
        used = sum(request.kv_bytes for request in with_session)
        needed_bytes = (fills + 1) * self.session_bytes
        for request in self._idle(with_session, now_s, self.limits.evict_after_s):
            if used + needed_bytes <= self.limits.kv_bytes:
                break
            used -= request.kv_bytes
            self._evict(request)
        return used + needed_bytes <= self.limits.kv_bytes or (used == 0 and fills == 0)

    def _idle(self, requests: Iterable[ServerRequest], now_s: float, for_s: float) -> list[ServerRequest]:
        """Return the requests with a cache that is not in use, the longest idle first."""
        idle = [e for e in requests if e.ready_s is None and not e.running and e.kv_bytes]
        return sorted((e for e in idle if now_s - e.ran_s >= for_s), key=lambda e: e.ran_s)

    def _evict(self, request: ServerRequest) -> None:
        request.forget()
        self.stats.evictions += 1
