"""Which of several clouds is nearest, by measured round trips, and when it is worth to move to another one.

Two things are measured. A probe asks every cloud's address for an echo, without a session: the path's round
trip. Pings on the connection in use also see how long that cloud takes to answer. A cloud counts with the
longer of the two, and keeps its pings for a while after it was left, so that a robot does not come back to a
cloud that answers late at every second look.

A move costs a handshake, and in the middle of an answer also its prompt's pass. So another cloud has to be
clearly nearer, and more clearly while an answer is under way.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_spec_decode.transport import address as addresses

PROBE_EVERY_S = 2.0
PROBE_TIMEOUT_S = 1.0
"""An address without an echo for this time counts as not reachable."""

FIRST_PROBE_S = 0.5
"""The same before the first connection, which waits for it."""

HOLD_S = 5.0
"""How long a robot stays at least after a move."""

AVOID_S = 30.0
"""How long a cloud is not moved to that was left because it was busy or silent, or was not reached."""

MAX_DOUBLINGS = 5
"""Each failure in a row doubles that time, so often at most."""

FORGET_S = 600.0
"""After this time without another failure the next one counts as the first."""

PINGS_S = 30.0
"""How long the pings to a cloud count after it was left."""

HEARD_S = 1.0
"""A cloud whose last ping was answered so lately is there, whatever the probes say."""

MIN_PINGS = 3


@dataclass(frozen=True, slots=True)
class Advantage:
    """How much farther the present cloud must be than another: `factor` times, and `margin_s` more."""

    factor: float
    margin_s: float


IDLE = Advantage(1.5, 0.005)
ANSWERING = Advantage(2.0, 0.05)


@dataclass(slots=True)
class _Distance:
    """What was measured of one cloud, in seconds; infinity for a probe without an echo."""

    probes: deque[float] = field(default_factory=lambda: deque(maxlen=3))
    pings: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    pinged_s: float = -math.inf
    avoid_until_s: float = -math.inf
    failures: int = 0

    def rtt_s(self, now_s: float) -> float:
        """Return its round trip; infinity if nothing is known, or it is not reachable."""
        probe_s = statistics.median_high(self.probes) if self.probes else math.inf
        has_pings = len(self.pings) >= MIN_PINGS and now_s - self.pinged_s < PINGS_S
        if not has_pings:
            return probe_s
        ping_s = statistics.median(self.pings)
        is_heard = math.isinf(probe_s) and now_s - self.pinged_s < HEARD_S
        return ping_s if is_heard else max(probe_s, ping_s)


class NearestCloud:
    """The clouds' round trips and the choice among them, without I/O; clouds are numbers from 0."""

    def __init__(self, clouds: int) -> None:
        self._distances = [_Distance() for _ in range(clouds)]
        self._moved_s = -math.inf

    def record_probes(self, rtts_s: Sequence[float | None]) -> None:
        """Record one probe of each cloud [seconds]; None: no echo."""
        for distance, rtt_s in zip(self._distances, rtts_s, strict=True):
            distance.probes.append(math.inf if rtt_s is None else rtt_s)

    def record_ping(self, cloud: int, rtt_s: float, now_s: float) -> None:
        """Record an answered ping on the connection in use."""
        distance = self._distances[cloud]
        distance.pings.append(rtt_s)
        distance.pinged_s = now_s

    def avoid(self, cloud: int, now_s: float) -> None:
        """Do not move to a cloud for a while: it was busy or silent, or its handshake did not end."""
        distance = self._distances[cloud]
        failures = 0 if now_s - distance.avoid_until_s > FORGET_S else min(distance.failures, MAX_DOUBLINGS)
        distance.avoid_until_s = now_s + AVOID_S * 2**failures
        distance.failures = failures + 1

    def on_moved(self, now_s: float) -> None:
        """Stay for a while from now on."""
        self._moved_s = now_s

    def ranking(self, now_s: float) -> tuple[int, ...]:
        """Return all clouds, the nearest first, those to avoid last; the equally far as they were given."""

        def order(cloud: int) -> tuple[bool, float]:
            distance = self._distances[cloud]
            return distance.avoid_until_s > now_s, distance.rtt_s(now_s)

        return tuple(sorted(range(len(self._distances)), key=order))

    def better_than(self, present: int, now_s: float, *, is_answering: bool) -> int | None:
        """Return a cloud that is worth a move from the present one, or None."""
        best = self.ranking(now_s)[0]
        if best == present or now_s - self._moved_s < HOLD_S:
            return None
        needed, best_s = ANSWERING if is_answering else IDLE, self._distances[best].rtt_s(now_s)
        if math.isinf(best_s) or self._distances[best].avoid_until_s > now_s:
            return None
        is_worth_it = self._distances[present].rtt_s(now_s) > needed.factor * best_s + needed.margin_s
        return best if is_worth_it else None


def nearest_first(clouds: str) -> str:
    """Return a list of clouds with commas, the nearest first; where no echo came, in their order at the end.

    Waits for at most `FIRST_PROBE_S`. Raises ConfigError for what is no list of clouds.
    """
    found = addresses.split_list(clouds)
    rtts_s = addresses.round_trips(found, FIRST_PROBE_S) if len(found) > 1 else [None]
    pairs = sorted(zip(rtts_s, found, strict=True), key=lambda pair: math.inf if pair[0] is None else pair[0])
    return ",".join(address for _, address in pairs)
