"""Which requests run in the next pass, and which caches stay in memory.

Uses requests and limits, no messages. A pass takes the answers that are ready (continuous batching): an
answer joins at the next pass and leaves when it is done. Those come first that have little time to spare: an
answer is due at its deadline, one without a deadline when its edge's patience is over. A pass takes no more
than can all be in time; one that will be late whatever is done waits behind them, but for a share of each
pass that is kept for those who have waited longest: so nobody starves (`Scheduler._in_turn`). Before its pass
is planned each answer is told what the GPU's time costs it now (`decoding.price`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
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
from vlm_spec_decode.decoding.price import FREE, USUAL_NODE, PassTimes, Price, others_of, urgency
from vlm_spec_decode.strategies.estimators import RunningMean

GROW_AFTER = 64
"""Passes without lack of memory after which a reduced batch may grow again."""

KEPT_PLACES = 8
"""One in so many places of a pass is for who has waited longest, of those whose turn it is not."""

USUAL_TOKENS, USUAL_PASSES = 24.0, 6.0
"""Length of an answer and the passes that it takes, before one has ended."""


@dataclass(slots=True, kw_only=True)
class AnswerWork:
    """What answers of one strategy have taken, to tell how much of one is left.

    `pass_tokens` are the tokens of a pass and `gap_s` is how long after one pass an answer is ready for the
    next; `tokens` is the length of an answer.
    """

    tokens: RunningMean = field(default_factory=lambda: RunningMean(USUAL_TOKENS, rate=0.05, trust=2))
    pass_tokens: RunningMean = field(
        default_factory=lambda: RunningMean(USUAL_TOKENS / USUAL_PASSES, rate=0.02, trust=2)
    )
    gap_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, rate=0.02, trust=0))

    def left_s(self, committed: int, pass_s: float) -> float:
        """Return the seconds that an answer with so many tokens needs, if it never waits for others."""
        passes = self._passes(committed)
        return passes * pass_s + (passes - 1) * self.gap_s.value

    def longest_pass_s(self, committed: int, left_s: float) -> float:
        """Return how long passes may take so that it is done within `left_s`: the inverse of `left_s`."""
        passes = self._passes(committed)
        return (left_s - (passes - 1) * self.gap_s.value) / passes

    def _passes(self, committed: int) -> float:
        return max(1.0, (self.tokens.value - committed) / self.pass_tokens.value)


@dataclass(slots=True)
class Scheduler:
    """Chooses batches. `session_bytes` is the largest size of one session's caches so far."""

    limits: ServerLimits
    stats: ServerCounts
    session_bytes: int = 0
    batch: int = field(init=False)
    times: PassTimes = field(default_factory=PassTimes)
    work: dict[str, AnswerWork] = field(default_factory=dict)
    _pass_s: float = 0.0
    _nodes: float = 0.0
    _slower: RunningMean = field(default_factory=lambda: RunningMean(1.0, rate=0.1, trust=4))
    """Passes take so many times as long as by their answers and nodes: prompts and own drafts do that."""
    _passes_since_oom: int = 0

    def __post_init__(self) -> None:
        self.batch = self.limits.batch

    def next_batch(self, requests: Iterable[ServerRequest], now_s: float) -> Jobs:
        """Return the jobs of the next pass; mark their requests as running."""
        with_session = [request for request in requests if request.session]
        ready = [request for request in with_session if self._is_ready(request, now_s)]
        jobs: list[ServerJob] = []
        fills = 0
        prices = self._prices(ready, now_s)
        for request in self._in_turn(ready, now_s):
            if len(jobs) == self.batch:
                break
            if not request.is_cached:
                if fills == self.limits.fills or not self._make_room(with_session, now_s, fills):
                    continue
                fills += 1
            if request.session:
                request.session.policy.priced(prices[id(request)])
            ready_s = request.ready_s
            job = request.next_job(now_s)
            if job:
                self._note_gap(request, ready_s)
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
        self._learn(done)
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

    # Turns and prices -----------------------------------------------------------------------------

    def _in_turn(self, ready: Seq[ServerRequest], now_s: float) -> list[ServerRequest]:
        """Return the answers in the order in which the next pass takes them; some may be left out of it.

        Those that can be in time come first, earliest due first, and as many of them as can still be in time
        in one pass: each makes it longer for all. Beside them the late ones have a few places, who has waited
        longest first, and so has who waits for a full pass. An answer that has waited for as long as its edge
        has patience, or that has no deadline, is taken in its turn. So none waits for ever.
        """
        timely, late = self._split(sorted(ready, key=lambda each: self._due_s(each, now_s)), now_s)
        kept = self.batch // KEPT_PLACES
        if len(timely) > self.batch:
            first, rest = timely[: self.batch - kept], timely[self.batch - kept :]
            return [*sorted(rest, key=_waits_since_s)[:kept], *first]
        late.sort(key=_waits_since_s)
        return [*late[:kept], *timely] if timely else late

    def _split(
        self, due: Seq[ServerRequest], now_s: float
    ) -> tuple[list[ServerRequest], list[ServerRequest]]:
        """Return those that the next pass can bring on in time, and the others."""
        timely, late, longest_s = list[ServerRequest](), list[ServerRequest](), math.inf
        for request in due:
            deadline_s = request.deadline_s
            if deadline_s is None or now_s >= request.due_s:
                timely.append(request)
                continue
            limit_s = min(
                longest_s, self._work_of(request).longest_pass_s(_committed(request), deadline_s - now_s)
            )
            if self._expected_pass_s(len(timely) + 1) <= limit_s:
                timely.append(request)
                longest_s = limit_s
            else:
                late.append(request)
        return timely, late

    def _due_s(self, request: ServerRequest, now_s: float) -> float:
        """Return when an answer is due: at its deadline as long as that can be met."""
        deadline_s = request.deadline_s
        can_be_met = deadline_s is not None and deadline_s - now_s >= self._left_s(request)
        return deadline_s if deadline_s is not None and can_be_met else request.due_s

    def _expected_pass_s(self, answers: int) -> float:
        """Return what a pass of so many answers takes, with as many nodes and prompts as usual."""
        return self._slower.value * self.times.seconds(answers, round(self._nodes * answers))

    def _left_s(self, request: ServerRequest) -> float:
        """Return how long an answer still takes if it is in every pass that it is ready for."""
        return self._work_of(request).left_s(_committed(request), self._expected_pass_s(1))

    def _prices(self, ready: Seq[ServerRequest], now_s: float) -> dict[int, Price]:
        """Return what the GPU's time costs each of the answers that are ready for it, by `id`."""
        if not self.limits.prices:
            return {id(each): FREE for each in ready}
        size = min(len(ready), self.batch)
        pass_s = max(self._pass_s, self.times.seconds(size, 0))
        # A full pass takes nobody more: who joins it takes the place of another, which is worth its share.
        answer_s = self.times.answer_s if len(ready) <= self.batch else pass_s / size
        # Passes that read prompts have not told yet what a node costs; it is not nothing.
        node_s = self.times.node_s if self.times.base_s else USUAL_NODE * pass_s
        left = [(self._left_s(each), each.deadline_s) for each in ready]
        urgencies = [urgency(work_s, None if end_s is None else end_s - now_s) for work_s, end_s in left]
        return {
            id(each): Price(others=others, pass_s=pass_s, answer_s=answer_s, node_s=node_s)
            for each, others in zip(ready, others_of(urgencies), strict=True)
        }

    def _work_of(self, request: ServerRequest) -> AnswerWork:
        return self.work.setdefault(request.message.strategy, AnswerWork())

    def _note_gap(self, request: ServerRequest, ready_s: float | None) -> None:
        """Learn how long after its last pass an answer was ready for this one."""
        if request.ran_s and ready_s is not None:
            self._work_of(request).gap_s.learn(max(0.0, ready_s - request.ran_s))

    def _learn(self, done: BatchResult) -> None:
        """Learn from a pass what passes take, and how far they bring an answer."""
        plans = [result.plan for result in done.results if result.plan]
        self._pass_s += 0.3 * (done.pass_s - self._pass_s) if self._pass_s else done.pass_s
        if len(plans) == len(done.jobs) and all(job.request.is_cached for job in done.jobs):
            nodes = sum(len(plan.nodes.tokens) for plan in plans)
            self.times.learn(len(plans), nodes, done.pass_s)
            self._nodes += 0.1 * (nodes / len(plans) - self._nodes)
        told_s = self.times.seconds(len(done.jobs), sum(len(plan.nodes.tokens) for plan in plans))
        if told_s:
            self._slower.learn(max(1.0, done.pass_s / told_s))
        for job, result in zip(done.jobs, done.results, strict=True):
            session = job.request.session
            if session is None or result.plan is None:
                continue
            work = self._work_of(job.request)
            work.pass_tokens.learn(len(session.sequence) - len(result.plan.prefix))
            if session.sequence.finished:
                work.tokens.learn(len(session.sequence))

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


def _committed(request: ServerRequest) -> int:
    return len(request.session.sequence) if request.session else 0


def _waits_since_s(request: ServerRequest) -> float:
    return request.ready_s or 0.0
