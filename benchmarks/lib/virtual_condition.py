"""Waiting in virtual time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from vlm_spec_decode.core.clock import VirtualClock


class VirtualCondition(threading.Condition):
    """A condition on which waiting lets virtual time pass, on the caller's thread."""

    def __init__(self, clock: VirtualClock, advance: Callable[[], None]) -> None:
        super().__init__()
        self._clock, self._advance = clock, advance

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Advance until the predicate holds or the time is over; return its value."""
        until_s = math.inf if timeout is None else self._clock.now() + timeout
        while not (found := predicate()) and self._clock.now() < until_s:
            self._advance()
        return found
