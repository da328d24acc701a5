"""The time-outs of the edge's half of the protocol, and the two monitors that apply them. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass

SUSPENDED_AFTER_S = 2.0
"""Ticks come some ten times a second; a longer gap means that this process was stopped or starved."""

MAX_RTT_S = 1.5
"""A longer round trip is taken for a stall: it does not predict the next one."""

RTT_DECAY = 0.7
"""Factor by which each new echo reduces the longest round trip before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolTiming:
    """Time-outs, all in seconds.

    `handshake_s` is how long each cloud may be silent before the first Welcome, since encryption costs
    several round trips; without it, `give_up_s` applies there too. An edge with several clouds tries the next
    one after `switch_cloud_s` of silence. This must be less than `give_up_s`, or the edge never switches.
    After the first Welcome `give_up_s` counts over all clouds. `busy_s` is how long busy clouds are tried
    again. A connection without an echo for `renew_s` and two round trips is replaced, and so is one without a
    Welcome for `welcome_timeout_s`.
    """

    hello_retry_s: float = 0.5
    ping_s: float = 0.3
    recover_s: float = 0.5
    give_up_s: float = 10.0
    handshake_s: float | None = None
    switch_cloud_s: float = 2.0
    busy_s: float = 10.0
    renew_s: float = 1.0
    welcome_timeout_s: float = 2.0

    @classmethod
    def walking(cls, silence_s: float, connect_s: float) -> ProtocolTiming:
        """Return the time-outs of a walking robot: half of `silence_s` for one cloud, half for the next.

        `connect_s` is the time-out of the first handshake.
        """
        ping_s, half_s = min(0.3, silence_s / 4), silence_s / 2
        return cls(
            ping_s=ping_s,
            give_up_s=silence_s,
            handshake_s=connect_s,
            switch_cloud_s=half_s,
            renew_s=min(1.0, half_s),
        )

    def total_timeout_s(self, *, was_welcomed: bool, clouds: int) -> float:
        """Return the longest tolerated silence in seconds. `was_welcomed`: a cloud has sent a Welcome."""
        if was_welcomed or self.handshake_s is None:
            return self.give_up_s
        return self.handshake_s * clouds

    def per_cloud_timeout_s(self, *, is_welcome: bool, rtt_s: float) -> float:
        """Return the longest tolerated silence of one of several clouds, in seconds.

        Before its Welcome this is long enough to connect and to receive one.
        """
        if is_welcome:
            return self.switch_cloud_s + rtt_s
        return max(self.switch_cloud_s, 4 * self.hello_retry_s)


@dataclass(slots=True)
class SuspensionDetector:
    """Detects that this process was suspended, during which it could not receive anything."""

    _at_s: float = 0.0

    def shift_starts(self, now_s: float, *since_s: float) -> tuple[float, ...]:
        """Return the start times `since_s`, shifted by the time for which this process was suspended.

        Call it at every tick.
        """
        stopped_s, self._at_s = now_s - self._at_s, now_s
        if stopped_s < SUSPENDED_AFTER_S:
            return since_s
        return tuple(min(now_s, start_s + stopped_s) for start_s in since_s)


@dataclass(slots=True, kw_only=True)
class EchoMonitor:
    """Detects that a connection no longer works in both directions: pings, or Hellos, are not answered.

    Unrequested messages do not count: a connection whose uplink is damaged still delivers commits.
    `last_echo_s` is when the last answer came, or when the connection was last found dead. `missed` counts
    how often it was found dead since an answer came. `is_alive`: the newest event is an answer.
    """

    timing: ProtocolTiming
    last_echo_s: float = 0.0
    hello_s: float = 0.0
    rtt_s: float = 0.0
    missed: int = 0
    is_alive: bool = False

    def restart(self, now_s: float) -> None:
        """Start anew: Hello goes to a cloud for the first time, or to another one."""
        self.last_echo_s = self.hello_s = now_s
        self.rtt_s, self.missed, self.is_alive = 0.0, 0, False

    def record_echo(self, now_s: float, rtt_s: float | None = None) -> None:
        """Record an answer to a ping or a Hello after `rtt_s`; that of a Hello includes the handshake."""
        self.last_echo_s, self.missed, self.is_alive = now_s, 0, True
        if rtt_s is not None:
            self.rtt_s = min(MAX_RTT_S, max(rtt_s, RTT_DECAY * self.rtt_s))

    def check_missed(self, now_s: float, *, is_welcome: bool) -> bool:
        """Return True once for each connection that must be replaced; each successor gets twice the time."""
        patience_s = self.timing.renew_s + 2 * self.rtt_s if is_welcome else self.timing.welcome_timeout_s
        if now_s - self.last_echo_s <= patience_s * 2**self.missed:
            return False
        self.last_echo_s, self.missed, self.is_alive = now_s, min(self.missed + 1, 4), False
        return True
