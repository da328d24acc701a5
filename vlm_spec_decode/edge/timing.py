"""When the edge repeats itself, looks elsewhere and gives up."""

from __future__ import annotations

from dataclasses import dataclass

ASLEEP_S = 2.0
"""Ticks come some ten times a second; who was not called for so long was stopped, or starved."""

LONGEST_RTT_S = 1.5
"""A round trip that took longer was a stall, which says nothing of the next."""

FORGET = 0.7
"""What an echo leaves of the longest round trip before it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds.

    `handshake_s` is the patience with each cloud until one has greeted, since encryption costs several round
    trips; without it, `give_up_s` counts there too. An edge that knows several clouds tries the next after
    `elsewhere_s` of silence (less than `give_up_s`, or it never does); once one has greeted, its patience
    counts over all of them. `busy_s` is how long it comes again to busy ones. A connection over which no echo
    has come for `renew_s` and two round trips is made anew, one over which no greeting has for `greet_s`.
    """

    hello_retry_s: float = 0.5
    ping_s: float = 0.3
    recover_s: float = 0.5
    give_up_s: float = 10.0
    handshake_s: float | None = None
    elsewhere_s: float = 2.0
    busy_s: float = 10.0
    renew_s: float = 1.0
    greet_s: float = 2.0

    @classmethod
    def walking(cls, silence_s: float, connect_s: float) -> Timing:
        """Return the patience of a robot that walks: half for one cloud, half for the next to greet."""
        ping_s, half_s = min(0.3, silence_s / 4), silence_s / 2
        return cls(
            ping_s=ping_s,
            give_up_s=silence_s,
            handshake_s=connect_s,
            elsewhere_s=half_s,
            renew_s=min(1.0, half_s),
        )

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


@dataclass(slots=True)
class Echo:
    """Notices that a connection carries nothing to and fro any more: pings, or greetings, are not answered.

    What comes by itself does not count: of a connection that is damaged upwards the commits still come.
    `since_s` is when the last answer came or the connection was last to be made anew, `missed` how often that
    was since. `is_here`: the last thing that happened is that an answer came.
    """

    timing: Timing
    since_s: float = 0.0
    greeted_s: float = 0.0
    rtt_s: float = 0.0
    missed: int = 0
    is_here: bool = False

    def begin(self, now_s: float) -> None:
        """A cloud is greeted for the first time, or after it was given up."""
        self.since_s = self.greeted_s = now_s
        self.rtt_s, self.missed, self.is_here = 0.0, 0, False

    def came(self, now_s: float, rtt_s: float | None = None) -> None:
        """An answer has come; that of a greeting took the connection's handshake as well."""
        self.since_s, self.missed, self.is_here = now_s, 0, True
        if rtt_s is not None:
            self.rtt_s = min(LONGEST_RTT_S, max(rtt_s, FORGET * self.rtt_s))

    def is_missed(self, now_s: float, *, is_welcome: bool) -> bool:
        """Tell, once, that the connection is to be made anew; each time its successor has twice as long."""
        patience_s = self.timing.renew_s + 2 * self.rtt_s if is_welcome else self.timing.greet_s
        if now_s - self.since_s <= patience_s * 2**self.missed:
            return False
        self.since_s, self.missed, self.is_here = now_s, min(self.missed + 1, 4), False
        return True
