"""A front: the robots' connections in a process of their own, before the clouds that have their answers.

Any number of fronts listen at one address, and each knows the same clouds. A robot's cloud follows from its
key alone (rendezvous hashing), so all fronts choose the same one, and share nothing. A front stores nothing
of an answer: where it ends, its robots connect again, which brings them to another front, and what was under
way is sent again, as after any loss. So it is replaced while it is in use.

A robot goes to another cloud than its key's when that one is down; when it drains, or is back again, with the
next answer that the robot begins. The new cloud answers `hello_first`, and the robot opens its answers there
with prompt and committed tokens, as the protocol defines.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlm_spec_decode.cloud.config import HTTP_OFF, FrontConfig, check_front
from vlm_spec_decode.cloud.server import Server, ended_by_signals
from vlm_spec_decode.cloud.telemetry.health import HealthServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import OLDEST_VERSION, Busy
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.address import split_list
from vlm_spec_decode.transport.keys import cloud_keys
from vlm_spec_decode.transport.router import RouterLink
from vlm_spec_decode.transport.trunk import Trunk, TrunkState

POLL_S = 0.1
RETRY_MS = 1000
NO_CLOUD = codec.encode(Busy(0, 0, "no_cloud", RETRY_MS), OLDEST_VERSION)
"""What a robot is told while no cloud answers, in the oldest version, which every robot understands."""

MAX_ROBOTS = 65_536
STALL_S = 10.0
"""A front that has not polled for so long is not healthy."""

log = logging.getLogger(__name__)


def ranked(key: bytes, clouds: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the clouds in the order in which a key prefers them.

    Every cloud is hashed with the key, the greatest hash first: a cloud more or fewer moves only the robots
    that it has or had. The order of `clouds` does not matter.
    """

    def weight(number: int) -> bytes:
        return blake2b(clouds[number].encode() + b"\0" + key, digest_size=8).digest()

    return tuple(sorted(range(len(clouds)), key=weight, reverse=True))


class CloudChoice:
    """Which cloud has which robot. No I/O; `states` are those of the clouds, by number."""

    def __init__(self, clouds: Sequence[str]) -> None:
        self.states = [TrunkState.DOWN] * len(clouds)
        self.moved = 0
        self._clouds = tuple(clouds)
        self._ranked: dict[bytes, tuple[int, ...]] = {}
        self._robots: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._robots)

    def choose(self, peer: bytes, key: str, data: bytes) -> int | None:
        """Return the number of the cloud for a message of a robot, None if none answers."""
        present = self._robots.get(peer)
        if present is not None and self._stays(present, data):
            return present
        best = self._best(key.encode() or peer)
        if best is not None and best != present:
            self.moved += present is not None
            self._robots[peer] = best
            while len(self._robots) > MAX_ROBOTS:
                del self._robots[next(iter(self._robots))]
        return best

    def _stays(self, present: int, data: bytes) -> bool:
        state = self.states[present]
        return state <= TrunkState.DRAINING and not codec.begins_answer(data)

    def _best(self, owner: bytes) -> int | None:
        """Return the first cloud of a key that takes answers, else the first that still has some."""
        order = self._ranked.get(owner)
        if order is None:
            if len(self._ranked) >= MAX_ROBOTS:
                self._ranked.clear()
            order = self._ranked[owner] = ranked(owner, self._clouds)
        for wanted in (TrunkState.OPEN, TrunkState.DRAINING):
            for number in order:
                if self.states[number] == wanted:
                    return number
        return None


class FrontServer(Server):
    """Carries messages between robots and clouds until it is stopped or drained."""

    def __init__(self, link: RouterLink, trunks: Sequence[Trunk], clock: Clock) -> None:
        super().__init__(link, clock)
        self.choice = CloudChoice([trunk.address for trunk in trunks])
        self.carried: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.polled_s = clock.now()
        self._robots = link
        self._trunks = tuple(trunks)

    @property
    def is_stopping(self) -> bool:
        """See `Server.is_stopping`."""
        return self._stopping.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether robots are let in, and a cloud takes answers."""
        return TrunkState.OPEN in self.choice.states and not self.is_stopping

    def drain(self) -> None:
        """End: answers go on by another front at this address. From any thread or a signal handler."""
        self.stop()
        self._robots.wake()

    def serve(self) -> None:
        """Serve until stopped, then free everything: what was sent goes out, and robots connect anew."""
        try:
            while not self._stopping.is_set():
                self._step()
            self._robots.stop_listening()
        finally:
            self._robots.close()
            for trunk in self._trunks:
                trunk.close()

    def _step(self) -> None:
        trunks, choice, robots = self._trunks, self.choice, self._robots
        if any(trunk.has_changed for trunk in trunks):
            robots.watch([trunk.socket for trunk in trunks])
            for trunk in trunks:
                trunk.has_changed = False
        robots.wait(POLL_S)
        self.polled_s = self._clock.now()
        choice.states = [trunk.state for trunk in trunks]
        up = 0
        for peer, key, data in robots.receive():
            number = choice.choose(peer, key, data)
            up += 1
            if number is None:
                self.dropped["no_cloud"] += 1
                robots.send(peer, NO_CLOUD)
            else:
                trunks[number].add((peer, key, data))
        down = 0
        for trunk in trunks:
            for peer, data in trunk.receive():
                robots.send(peer, data)
                down += 1
            trunk.flush()
        self.carried["up"] += up
        self.carried["down"] += down

    def figures(self) -> dict[str, float]:
        """Return the figures of the moment, by name. From any thread."""
        states = Counter(self.choice.states)
        return {
            "robots": len(self.choice),
            "clouds_open": states[TrunkState.OPEN],
            "clouds_draining": states[TrunkState.DRAINING],
            "clouds_down": states[TrunkState.DOWN] + states[TrunkState.ENDED],
        }

    def drops(self) -> dict[str, int]:
        """Return how many messages were dropped, by reason. From any thread."""
        found = Counter(dict(self.dropped)) + Counter(dict(self._robots.dropped))
        found["trunk"] += sum(trunk.dropped for trunk in self._trunks)
        found["unroutable"] += self._robots.unroutable
        return dict(found)


class _FrontCollector(Collector):
    """Turns the figures of a front into metrics."""

    def __init__(self, server: FrontServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the moment."""
        for name, value in self._server.figures().items():
            yield GaugeMetricFamily(f"vsd_front_{name}", _TEXTS[name], value=value)
        moves = CounterMetricFamily("vsd_front_moves", "Moves of robots between clouds.")
        moves.add_metric([], self._server.choice.moved)
        yield moves
        carried = CounterMetricFamily("vsd_front_messages", "Messages carried.", labels=["direction"])
        for direction in ("up", "down"):
            carried.add_metric([direction], self._server.carried[direction])
        yield carried
        dropped = CounterMetricFamily("vsd_front_dropped", "Messages dropped.", labels=["reason"])
        for reason, count in sorted(self._server.drops().items()):
            dropped.add_metric([reason], count)
        yield dropped


_TEXTS = {
    "robots": "Robots that this front has heard of.",
    "clouds_open": "Clouds behind it that take answers.",
    "clouds_draining": "Clouds behind it that end.",
    "clouds_down": "Clouds behind it that do not answer.",
}


def build(config: FrontConfig, clock: Clock) -> FrontServer:
    """Listen, and connect to the clouds. Raises ConfigError or CloudError."""
    check_front(config)
    keys = cloud_keys(config.keys) if config.keys else None
    limits = KeyLimits(config.key_robots, config.key_messages_per_s)
    link = RouterLink(config.bind, keys, limits, clock, shares_port=True)
    try:
        return FrontServer(link, [Trunk(one, keys, clock) for one in split_list(config.clouds)], clock)
    except BaseException:
        link.close()
        raise


def run(config: FrontConfig, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` gets the addresses once robots are let in."""
    clock = WallClock()
    server = build(config, clock)
    with ended_by_signals(server.drain, server.drain), _told(config, server, clock) as url:
        found = {"address": server.address, "clouds": list(split_list(config.clouds)), "http": url}
        on_ready({**found, "encrypted": config.keys is not None})
        server.serve()


@contextmanager
def _told(config: FrontConfig, server: FrontServer, clock: Clock) -> Iterator[str]:
    """Serve health and metrics over HTTP for the block; yield the URL, "" if that is off."""
    if config.http == HTTP_OFF:
        yield ""
        return

    def stalled() -> str:
        silent_s = clock.now() - server.polled_s
        return f"the front has not polled for {silent_s:.0f} s" if silent_s > STALL_S else ""

    registry = CollectorRegistry()
    registry.register(_FrontCollector(server))
    http = HealthServer(
        config.http,
        registry,
        stalled,
        lambda: stalled() or ("" if server.is_ready else "no cloud takes answers"),
    )
    http.start()
    try:
        yield http.url
    finally:
        http.close()
