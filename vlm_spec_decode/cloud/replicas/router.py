"""Which replica serves which robot: a routing table without I/O, threads or Ray.

A robot stays with its replica, which has its images and its open answer. It moves for three reasons: its
replica is lost, its replica is being removed, or a new answer begins and another replica has less load.
Nothing is copied between replicas: a replica without the robot's session answers `hello_first`, as the
protocol defines, and the robot opens the answer again elsewhere with prompt and committed tokens.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.cloud.protocol import MessageTracer, read_message
from vlm_spec_decode.core.errors import ProtocolError, VersionMismatch
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import HELLO_FIRST, Busy, Hello, Open, Refused

Message: TypeAlias = tuple[bytes, bytes]
"""A peer and what it says or is told."""

State: TypeAlias = Literal["starting", "live", "draining"]

FORGOTTEN = codec.encode(Refused(0, 0, HELLO_FIRST, ""))
NO_REPLICA = codec.encode(Busy(0, 0, "no_replica", 1000))
MAX_PEERS = 8192
ABSENT_S = 10.0
"""A robot that has said nothing for so long (it pings three times a second) is no load on its replica."""

UNEVEN = 2
"""A robot moves at its next answer if its replica has at least so many more robots than another."""


@dataclass(slots=True)
class _RoutedClient:
    """What is kept of a robot: how it introduced itself, where it is served, which answer is open."""

    hello: bytes
    replica: int | None
    answer: int = 0
    heard_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class ReplicaRouter:
    """The routing table. `route` chooses a message's replica; `outbox` collects the router's own replies."""

    replicas: dict[int, State] = field(default_factory=dict)
    outbox: list[Message] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    is_draining: bool = False
    tracer: MessageTracer = field(default_factory=MessageTracer)
    _robots: OrderedDict[bytes, _RoutedClient] = field(default_factory=OrderedDict)
    _now_s: float = 0.0

    @property
    def robots(self) -> int:
        """Robots that are known."""
        return len(self._robots)

    def load(self, replica: int) -> int:
        """Return how many robots a replica serves; those that are gone do not count."""
        since_s = self._now_s - ABSENT_S
        return sum(r.replica == replica and r.heard_s >= since_s for r in self._robots.values())

    # Robots --------------------------------------------------------------------------------------

    def route(self, peer: bytes, data: bytes, now_s: float = 0.0) -> tuple[int, list[Message]] | None:
        """Return the replica of a message and what to deliver there, or None if it goes nowhere."""
        self._now_s = now_s
        try:
            message = read_message(peer, data, self.tracer, self.dropped)
        except VersionMismatch as error:
            self.outbox.append((peer, codec.encode(Refused(0, 0, "version", str(error)))))
            return None
        except ProtocolError:
            return None
        robot = self._robots.get(peer)
        if isinstance(message, Hello):
            robot = self._greet(peer, data)
        elif robot is None:
            self.dropped["before_hello"] += 1
            self.outbox.append((peer, FORGOTTEN))
            return None
        robot.heard_s = now_s
        ahead: list[Message] = []
        if isinstance(message, Open) and message.answer != robot.answer:
            if self.is_draining:
                self.outbox.append((peer, codec.encode(Busy(message.answer, message.epoch, "draining", 500))))
                return None
            robot.answer = message.answer
            if self._better_place(robot) is not None:
                ahead = [(peer, robot.hello)]
        if robot.replica is None:
            self.dropped["no_replica"] += 1
            # With a replica there, it was told to come again, and the link has lost that.
            self.outbox.append((peer, NO_REPLICA if self._least_loaded() is None else FORGOTTEN))
            return None
        self._robots.move_to_end(peer)
        return robot.replica, [*ahead, (peer, data)]

    def may_say(self, replica: int, peer: bytes) -> bool:
        """Tell whether a message comes from the replica that serves its robot now."""
        robot = self._robots.get(peer)
        return robot is not None and robot.replica == replica

    def _greet(self, peer: bytes, hello: bytes) -> _RoutedClient:
        robot = self._robots.get(peer)
        if robot is None:
            robot = self._robots[peer] = _RoutedClient(hello, None)
            while len(self._robots) > MAX_PEERS:
                self._robots.popitem(last=False)
        robot.hello = hello
        if robot.replica is None:
            robot.replica = self._least_loaded()
        return robot

    def _better_place(self, robot: _RoutedClient) -> int | None:
        """Move a robot at the beginning of an answer if that helps, and return where to."""
        best = self._least_loaded()
        if best is None or best == robot.replica:
            return None
        stays = robot.replica is not None and self.replicas.get(robot.replica) == "live"
        if stays and robot.replica is not None and self.load(robot.replica) - self.load(best) < UNEVEN:
            return None
        robot.replica = best
        self.moved += 1
        return best

    def _least_loaded(self) -> int | None:
        live = [number for number, state in self.replicas.items() if state == "live"]
        return min(live, key=lambda number: (self.load(number), number), default=None)

    # Replicas ------------------------------------------------------------------------------------

    def starting(self, replica: int) -> None:
        """A replica was asked for; it serves nobody yet."""
        self.replicas[replica] = "starting"

    def up(self, replica: int) -> None:
        """A replica has loaded its target. Robots that had nowhere to go are told to come again."""
        if self.replicas.get(replica) == "starting":
            self.replicas[replica] = "live"
            self._call_again(None)

    def draining(self, replica: int) -> None:
        """A replica is to go: what is open there ends there, new answers begin elsewhere."""
        if replica in self.replicas:
            self.replicas[replica] = "draining"

    def lost(self, replica: int, *, gone: bool = False) -> None:
        """A replica does not answer, or is `gone` for good: its robots open again elsewhere at once."""
        if gone or self.replicas.get(replica) == "draining":
            self.replicas.pop(replica, None)
        elif replica in self.replicas:
            self.replicas[replica] = "starting"
        self._call_again(replica)

    def _call_again(self, replica: int | None) -> None:
        for peer, robot in self._robots.items():
            if robot.replica == replica:
                self.moved += replica is not None
                robot.replica = None
                self.outbox.append((peer, FORGOTTEN))
