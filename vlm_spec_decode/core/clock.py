"""Clocks: wall time, and virtual time that only the program advances."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class WallClock:
    """Monotonic seconds of this machine."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Block for `duration_s` seconds; a duration below 0 is 0."""
        time.sleep(max(0.0, duration_s))


@dataclass(slots=True)
class VirtualClock:
    """Seconds that pass only through `sleep`; deterministic, so runs compare exactly."""

    now_s: float = 0.0

    def now(self) -> float:
        """Return virtual seconds."""
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        """Advance by `duration_s` at once; a duration below 0 is 0."""
        self.now_s += max(0.0, duration_s)
