"""A thread that ticks at a fixed rate until it is closed, and does one last thing however it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vlm_spec_decode.core.ports import Clock

JOIN_S = 5.0


class PeriodicThread:
    """Runs `tick` every `period_s`; `at_end` is called also after an unexpected error."""

    def __init__(
        self, name: str, clock: Clock, period_s: float, tick: Callable[[], None], at_end: Callable[[], object]
    ) -> None:
        self._clock, self._period_s = clock, period_s
        self._tick, self._at_end = tick, at_end
        self._closing = threading.Event()
        self.error: Exception | None = None
        """What ended the thread, if nobody foresaw it."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Do the last thing now, then wait for the thread. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            self._at_end()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=JOIN_S)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                began_s = self._clock.now()
                self._tick()
                self._clock.sleep(self._period_s - (self._clock.now() - began_s))
        except Exception as error:
            self.error = error
            raise
        finally:
            self._at_end()
