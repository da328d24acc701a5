"""The verifier's process: one thread owns the socket, one runs the target, one opens new contexts.

The socket's thread feeds the server protocol and never computes. Early verdicts are sent while a pass is
running.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.requests import BatchResult
from vlm_spec_decode.cloud.worker import BatchRunner, ModelWorker, Outcome
from vlm_spec_decode.core.ports import Clock, Model, Target
from vlm_spec_decode.transport.in_process import ServerLink

POLL_S = 0.1
EXPIRE_EVERY_S = 1.0
DRAIN_S = 30.0
"""How long answers that are under way may go on after `drain`."""


class CloudServer:
    """Serves one target on one link until `stop` is called; `helper` drafts beside it."""

    def __init__(
        self,
        link: ServerLink,
        desk: ServerProtocol,
        target: Target,
        clock: Clock,
        helper: Model | None = None,
    ) -> None:
        self.desk = desk
        desk.has_helper = helper is not None
        self._link = link
        self._clock = clock
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._waking = threading.Lock()
        runner = BatchRunner(target, helper, clock, lambda job, early: self._tell((job, early)))
        self._opener = ModelWorker("vsd-opener", runner.open, self._tell)
        self._target = ModelWorker("vsd-target", runner.run, self._tell)
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._drain_until_s = 0.0

    @property
    def address(self) -> str:
        """Where robots reach this server."""
        return self._link.address

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` or `drain` was called: nothing new is begun."""
        return self._stopping.is_set() or self._draining.is_set()

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
                self._drain()
                self._give_jobs()
                self._flush()
        finally:
            self._opener.stop()
            self._target.stop()
            with self._waking:
                self._link.close()

    def stop(self) -> None:
        """End `serve` within its poll interval. From any thread or a signal handler."""
        self._stopping.set()

    def drain(self) -> None:
        """Begin nothing new, and end `serve` once the answers under way are done; a second call stops.

        From any thread or a signal handler.
        """
        if self._draining.is_set():
            self.stop()
        self._draining.set()

    def _drain(self) -> None:
        if not self._draining.is_set():
            return
        if not self.desk.stats.is_draining:
            self.desk.stats.is_draining = True
            self._drain_until_s = self._clock.now() + DRAIN_S
        if not self.desk.under_way(self._clock.now()) or self._clock.now() > self._drain_until_s:
            self._flush()
            self.stop()

    def _patience_s(self) -> float:
        wake_s = self.desk.wake_s()
        return POLL_S if wake_s is None else min(POLL_S, max(0.001, wake_s - self._clock.now()))

    def _take_outcomes(self) -> None:
        while True:
            try:
                outcome = self._outcomes.get_nowait()
            except Empty:
                return
            if isinstance(outcome, BatchResult):
                worker = self._opener if outcome.jobs[0].kind == "open" else self._target
                worker.is_idle = True
                self.desk.finish(outcome, self._clock.now())
            else:
                self.desk.early(*outcome)

    def _give_jobs(self) -> None:
        now_s = self._clock.now()
        if self._opener.is_idle and (job := self.desk.next_open(now_s)):
            self._opener.give((job,))
        if self._target.is_idle and (jobs := self.desk.next_batch(now_s)):
            self._target.give(jobs)

    def _flush(self) -> None:
        while self.desk.outbox:
            self._link.send(*self.desk.outbox.popleft())

    def _tell(self, outcome: Outcome) -> None:
        """Pass an outcome to the socket's thread, from a worker's; a link is woken by one at a time."""
        self._outcomes.put(outcome)
        with self._waking:
            if not self._stopping.is_set():
                self._link.wake()
