"""When the edge repeats itself, looks elsewhere and gives up."""

from __future__ import annotations

from dataclasses import dataclass

ASLEEP_S = 2.0
"""Ticks come some ten times a second; who was not called for so long was stopped, or starved."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds.

    `handshake_s` is the patience with each cloud until one has greeted, since encryption costs several round
    trips; without it, `give_up_s` counts there too. An edge that knows several clouds tries the next after
    `elsewhere_s` of silence (less than `give_up_s`, or it never does); once one has greeted, its patience
    counts over all of them. `busy_s` is how long it comes again to busy ones.
    """

    hello_retry_s: float = 0.5
    ping_s: float = 0.3
    recover_s: float = 0.5
    give_up_s: float = 10.0
    handshake_s: float | None = None
    elsewhere_s: float = 2.0
    busy_s: float = 10.0

    @classmethod
    def walking(cls, silence_s: float, connect_s: float) -> Timing:
        """Return the patience of a robot that walks: half for one cloud, half for the next to greet."""
        ping_s, elsewhere_s = min(0.3, silence_s / 4), silence_s / 2
        return cls(ping_s=ping_s, give_up_s=silence_s, handshake_s=connect_s, elsewhere_s=elsewhere_s)

    def patience_s(self, *, is_met: bool, clouds: int) -> float:
        """Return how long silence is borne at all; `is_met`: one of the clouds has greeted."""
        if is_met or self.handshake_s is None:
            return self.give_up_s
        return self.handshake_s * clouds

    def stay_s(self, *, is_welcome: bool, rtt_s: float) -> float:
        """Return how long silence is borne at one of several clouds.

        Before its welcome that is long enough to connect and be greeted.
        """
        if is_welcome:
            return self.elsewhere_s + rtt_s
        return max(self.elsewhere_s, 4 * self.hello_retry_s)


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
