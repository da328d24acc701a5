"""Which requests run in the next pass, and whose cache stays in memory.

Uses requests and limits, no messages. Passes are shared by all answers that are ready, earliest due first;
an answer joins at the next pass and leaves when it is done, and no answer waits for another's end.
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
"""Passes without running out of memory after which a batch that was cut down may grow again."""


@dataclass(slots=True)
class Scheduler:
    """Picks batches. `session_bytes` is the most that one session's caches have held so far."""

    limits: ServerLimits
    stats: ServerCounts
    session_bytes: int = 0
    batch: int = field(init=False)
    _sound: int = 0

    def __post_init__(self) -> None:
        self.batch = self.limits.batch

    def next_batch(self, entries: Iterable[ServerRequest], now_s: float) -> Jobs:
        """Return the jobs of the next pass, marking their entries as running."""
        held = [entry for entry in entries if entry.session]
        ready = [entry for entry in held if self._is_ready(entry, now_s)]
        jobs: list[ServerJob] = []
        fills = 0
        for entry in sorted(ready, key=lambda e: e.due_s):
            if len(jobs) == self.batch:
                break
            if not entry.filled:
                if fills == self.limits.fills or not self._make_room(held, now_s, fills):
                    continue
                fills += 1
            job = entry.next_job(now_s)
            if job:
                jobs.append(job)
                self.stats.wait_s += now_s - job.ready_s
        self.stats.waiting = sum(entry.ready_s is not None for entry in held)
        return tuple(jobs)

    def next_open(self, entries: Iterable[ServerRequest], now_s: float) -> ServerJob | None:
        """Return the next answer whose context is to be opened: the one that came first."""
        for entry in entries:
            if not (entry.session or entry.running or entry.awaits_image):
                return entry.next_job(now_s)
        return None

    def wake_s(self, entries: Iterable[ServerRequest]) -> float | None:
        """Return when a session that waits for a hint wants to be asked again."""
        times = [entry.session.wake_s for entry in entries if entry.session and not entry.running]
        return min((time for time in times if time is not None), default=None)

    def has_memory(self, entries: Iterable[ServerRequest], now_s: float) -> bool:
        """Tell whether one more answer fits beside those that are under way."""
        active = sum(now_s - entry.touched_s < self.limits.active_s for entry in entries)
        return (active + 1) * self.session_bytes <= self.limits.kv_bytes

    def ran(self, done: BatchResult, entries: Iterable[ServerRequest], now_s: float) -> None:
        """A batch has ended: learn what its sessions hold."""
        self.stats.kv_bytes = sum(entry.kv_bytes for entry in entries)
        if done.jobs[0].kind == "open":
            return
        self.stats.ran(len(done.jobs), done.pass_s)
        self.stats.splits += done.splits
        for job, result in zip(done.jobs, done.results, strict=True):
            job.entry.ran_s = now_s
            job.entry.filled = result.failure is None
            self.session_bytes = max(self.session_bytes, job.entry.kv_bytes)
        self._sound += 1
        if self._sound >= GROW_AFTER and self.batch < self.limits.batch:
            self.batch, self._sound = self.batch + 1, 0

    def tries_again(
        self, job: ServerJob, failure: Exception, entries: Iterable[ServerRequest], now_s: float
    ) -> bool:
        """After a lack of memory: take smaller batches, evict idle caches, and run the job once more."""
        entry = job.entry
        if not isinstance(failure, OutOfMemory | MemoryError) or entry.tries or not entry.session:
            return False
        self.batch, self._sound = max(1, self.batch // 2), 0
        for idle in self._idle(entries, now_s, 0.0):
            self._evict(idle)
        entry.tries += 1
        entry.prefilled = job.kind == "pass"
        return True

    def _is_ready(self, entry: ServerRequest, now_s: float) -> bool:
        if entry.running or entry.session is None:
            return False
        wake_s = entry.session.wake_s
        if wake_s is not None and wake_s <= now_s:
            entry.stir(now_s)
        return entry.ready_s is not None

    def _make_room(self, held: list[ServerRequest], now_s: float, fills: int) -> bool:
        """Evict idle sessions until one more prompt fits; True also if there is nothing else to make way."""
        used = sum(entry.kv_bytes for entry in held)
        wanted = (fills + 1) * self.session_bytes
        for entry in self._idle(held, now_s, self.limits.evict_after_s):
            if used + wanted <= self.limits.kv_bytes:
                break
            used -= entry.kv_bytes
            self._evict(entry)
        return used + wanted <= self.limits.kv_bytes or (used == 0 and fills == 0)

    def _idle(self, entries: Iterable[ServerRequest], now_s: float, for_s: float) -> list[ServerRequest]:
        """Return who holds a cache that nothing needs now, the longest idle first."""
        idle = [e for e in entries if e.ready_s is None and not e.running and e.kv_bytes]
        return sorted((e for e in idle if now_s - e.ran_s >= for_s), key=lambda e: e.ran_s)

    def _evict(self, entry: ServerRequest) -> None:
        entry.forget()
        self.stats.evictions += 1
