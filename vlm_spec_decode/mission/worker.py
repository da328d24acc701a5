"""The thread on which missions run: one job at a time.

A newer job replaces one that waits and cancels one that runs. ROS-free, like what it runs.
"""

from __future__ import annotations

import threading

from vlm_spec_decode.mission.connection import EngineConnection
from vlm_spec_decode.mission.events import MissionEvents
from vlm_spec_decode.mission.runner import MissionRunner
from vlm_spec_decode.mission.state import MissionJob


class VlmWorker:
    """Runs jobs. `submit`, `cancel` and `close` may be called from any thread; only `close` waits."""

    def __init__(self, keeper: EngineConnection, runner: MissionRunner, feed: MissionEvents) -> None:
        self._keeper = keeper
        self._runner = runner
        self._feed = feed
        self._changed = threading.Condition()
        self._waiting: MissionJob | None = None
        self._running: MissionJob | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="missions", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether the cloud has welcomed the engine and not failed it since."""
        return self._keeper.current is not None

    @property
    def has_tried(self) -> bool:
        """Whether a first attempt to reach the cloud has ended, well or not."""
        return self._keeper.has_tried

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; a plan may only be kept alive while it does."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start connecting and working."""
        self._keeper.start()
        self._thread.start()

    def submit(self, job: MissionJob) -> None:
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
        if self._running is not None:
            self._keeper.cancel()

    def close(self, timeout_s: float) -> None:
        """End what runs and wait for the threads, at most `timeout_s` for each. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel("the node ends")
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._keeper.close(timeout_s)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._runner.run(job, self._keeper)
            with self._changed:
                self._running = None

    def _next(self) -> MissionJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            self._running, self._waiting = self._waiting, None
            return None if self._closed else self._running
