"""The thread on which missions run: keeps the engine connected and takes one job at a time.

A newer job replaces one that waits and cancels one that runs. ROS-free, like what it runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from vlm_spec_decode.bridge.mission_feed import MissionFeed
from vlm_spec_decode.bridge.mission_runner import Job, MissionRunner
from vlm_spec_decode.bridge.ports import Answerer, EngineSource
from vlm_spec_decode.bridge.reports import MissionStatus
from vlm_spec_decode.core.errors import CloudError, CloudUnreachable, VsdError

RETRY_S = 3.0


class VlmWorker:
    """Owns the engine. `submit`, `cancel` and `close` may be called from any thread and do not wait."""

    def __init__(
        self,
        source: EngineSource,
        runner: MissionRunner,
        feed: MissionFeed,
        say: Callable[[MissionStatus], None],
        on_failure: Callable[[VsdError], None],
    ) -> None:
        """`on_failure` is told of what waiting cannot mend: settings or a model that do not hold."""
        self._source = source
        self._runner = runner
        self._feed = feed
        self._say = say
        self._on_failure = on_failure
        self._engine: Answerer | None = None
        self._changed = threading.Condition()
        self._waiting: Job | None = None
        self._running: Job | None = None
        self._closed = False
        self._said = MissionStatus("connecting")
        self._thread = threading.Thread(target=self._work, name="missions", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether the cloud has welcomed the engine and not failed it since."""
        return self._engine is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; a plan may only be kept alive while it does."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start connecting."""
        self._say(self._said)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Run this job next, and at once: the one that runs is cancelled."""
        self.cancel("superseded by a new instruction")
        with self._changed:
            self._waiting = job
            self._changed.notify_all()

    def cancel(self, reason: str) -> None:
        """End the job that runs and drop the one that waits."""
        with self._changed:
            running, self._waiting = self._running, None
        if running is not None:
            self._feed.cancel(running.mission, reason)
        self.break_off()

    def break_off(self) -> None:
        """Let the engine drop the answer in progress; what that means is for the mission to find out."""
        engine = self._engine
        if engine is not None and self._running is not None:
            engine.cancel()

    def close(self, timeout_s: float) -> None:
        """End what runs and wait for the thread, at most `timeout_s`. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel("the node ends")
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._source.close()

    def _work(self) -> None:
        while not self._closed:
            if self._engine is None:
                self._connect()
            job = self._next(None if self._engine else RETRY_S)
            if job is not None:
                self._run(job)

    def _connect(self) -> VsdError | None:
        try:
            self._engine = self._source.connect()
        except VsdError as error:
            self._say_once(MissionStatus("unavailable", reason=type(error).__name__, detail=str(error)))
            if not isinstance(error, CloudError):
                self._on_failure(error)
            return error
        self._say_once(MissionStatus("ready"))
        return None

    def _next(self, timeout_s: float | None) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting, timeout_s)
            self._running, self._waiting = self._waiting, None
            return None if self._closed else self._running

    def _run(self, job: Job) -> None:
        error = self._connect() if self._engine is None else None
        if self._engine is None:
            self._runner.refuse(job, error or CloudUnreachable("no connection"))
        elif self._runner.run(job, self._engine).lost_cloud:
            self._engine = None
        with self._changed:
            self._running = None

    def _say_once(self, status: MissionStatus) -> None:
        if status != self._said:
            self._said = status
            self._say(status)
