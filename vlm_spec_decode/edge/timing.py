"""When the edge repeats itself, looks elsewhere and gives up."""

from __future__ import annotations

from dataclasses import dataclass

ASLEEP_S = 2.0
"""Ticks come some ten times a second; who was not called for so long was stopped, or starved."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds.

    `handshake_s` is the patience before the welcome, where encryption costs several round trips; without it,
    `give_up_s` counts there too. An edge that knows several clouds tries the next after `elsewhere_s` of
    silence; its patience counts over all of them. `busy_s` is how long it comes again to busy ones.
    """

    hello_retry_s: float = 0.5
    ping_s: float = 0.3
    recover_s: float = 0.5
    give_up_s: float = 10.0
    handshake_s: float | None = None
    elsewhere_s: float = 2.0
    busy_s: float = 10.0

    def patience(self, is_welcome: bool) -> tuple[float, float]:
        """Return how long silence is borne at all, and at one of several clouds.

        Before the welcome the latter is long enough to connect and be greeted.
        """
        if is_welcome:
            return self.give_up_s, self.elsewhere_s
        total_s = self.give_up_s if self.handshake_s is None else self.handshake_s
        return total_s, max(self.elsewhere_s, 4 * self.hello_retry_s)


@dataclass(slots=True)
class Pulse:
    """Notices that this process did not run, in which time it cannot have heard anybody."""

    _at_s: float = 0.0

    def excuse(self, now_s: float, *since_s: float) -> tuple[float, ...]:
        """Return when silences began, moved on by as long as this process was stopped. At every tick."""
        stopped_s, self._at_s = now_s - self._at_s, now_s
        if stopped_s < ASLEEP_S:
            return since_s
        return tuple(min(now_s, start_s + stopped_s) for start_s in since_s)
