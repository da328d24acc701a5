"""Which replica serves which robot: a routing table without I/O, threads or Ray.

A robot stays with its replica, which has its images and its open answer. It moves for three reasons: its
replica is lost, its replica is being removed, or a new answer begins and another replica has less load.
Nothing is copied between replicas: a replica without the robot's session answers `hello_first`, as the
protocol defines, and the robot opens the answer again on another replica with prompt and committed tokens.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.cloud.protocol import MessageTracer, read_message
from vlm_spec_decode.core.errors import ProtocolError, VersionMismatch
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import (
    HELLO_FIRST,
    OLDEST_VERSION,
    OTHER_VERSION,
    AnyMessage,
    Busy,
    Close,
    Hello,
    Open,
    Refused,
)

Message: TypeAlias = tuple[bytes, bytes]
"""A peer, and the bytes from it or for it."""

State: TypeAlias = Literal["starting", "live", "draining"]


def _encode(message: Refused | Busy) -> bytes:
    """Return a reply of the router, in the oldest version, which every robot understands."""
    return codec.encode(message, OLDEST_VERSION)


HELLO_FIRST_REPLY = _encode(Refused(0, 0, HELLO_FIRST, ""))
NO_REPLICA = _encode(Busy(0, 0, "no_replica", 1000))
MAX_PEERS = 8192
ABSENT_S = 10.0
"""A robot that has sent nothing for this time (it pings three times a second) is no load on its replica."""

UNMENTIONED_S = 3.0
"""A robot that has not mentioned an answer for this time does not have it open."""

UNEVEN = 2
"""A robot moves at its next answer if its replica has at least this many more robots than another."""


@dataclass(slots=True)
class _RoutedClient:
    """State of one robot: its Hello, its replica, and when it last mentioned each answer that is open."""

    hello: bytes
    replica: int | None
    answers: dict[int, float] = field(default_factory=dict)
    last_message_s: float = 0.0

    def mention(self, message: AnyMessage, now_s: float) -> bool:
        """Note what the robot says about an answer; return whether it begins one.

        An answer of which it has said nothing for `UNMENTIONED_S` is not open any more: it pings for each.
        """
        since_s, number = now_s - UNMENTIONED_S, getattr(message, "answer", 0)
        self.answers = {n: at_s for n, at_s in self.answers.items() if at_s >= since_s}
        begins = isinstance(message, Open) and number not in self.answers
        if isinstance(message, Close):
            self.answers.pop(number, None)
        elif begins or number in self.answers:
            self.answers[number] = now_s
        return begins


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
        """Number of known robots."""
        return len(self._robots)

    def load(self, replica: int) -> int:
        """Return how many robots a replica serves; those silent for `ABSENT_S` do not count."""
        since_s = self._now_s - ABSENT_S
        return sum(r.replica == replica and r.last_message_s >= since_s for r in self._robots.values())

    # Robots --------------------------------------------------------------------------------------

    def route(self, peer: bytes, data: bytes, now_s: float = 0.0) -> tuple[int, list[Message]] | None:
        """Return the replica of a message and the messages to deliver there, or None if it has none."""
        self._now_s = now_s
        try:
            message = read_message(peer, data, self.tracer, self.dropped)
        except VersionMismatch as error:
            self.outbox.append((peer, _encode(Refused(0, 0, OTHER_VERSION, str(error)))))
            return None
        except ProtocolError:
            return None
        robot = self._robots.get(peer)
        if isinstance(message, Hello):
            robot = self._register(peer, data)
        elif robot is None:
            self.dropped["before_hello"] += 1
            self.outbox.append((peer, HELLO_FIRST_REPLY))
            return None
        robot.last_message_s = now_s
        messages_before: list[Message] = []
        if robot.mention(message, now_s) and isinstance(message, Open):
            if self.is_draining:
                robot.answers.pop(message.answer)
                self.outbox.append((peer, _encode(Busy(message.answer, message.epoch, "draining", 500))))
                return None
            if self._rebalance(robot, has_open=len(robot.answers) > 1) is not None:
                messages_before = [(peer, robot.hello)]
        if robot.replica is None:
            self.dropped["no_replica"] += 1
            # If a replica is live, the robot was asked for Hello already, and the link lost that.
            self.outbox.append((peer, NO_REPLICA if self._least_loaded() is None else HELLO_FIRST_REPLY))
            return None
        self._robots.move_to_end(peer)
        return robot.replica, [*messages_before, (peer, data)]

    def is_current_replica(self, replica: int, peer: bytes) -> bool:
        """Return whether this replica is the one that serves the robot now."""
        robot = self._robots.get(peer)
        return robot is not None and robot.replica == replica

    def _register(self, peer: bytes, hello: bytes) -> _RoutedClient:
        robot = self._robots.get(peer)
        if robot is None:
            robot = self._robots[peer] = _RoutedClient(hello, None)
            while len(self._robots) > MAX_PEERS:
                self._robots.popitem(last=False)
        robot.hello = hello
        if robot.replica is None:
            robot.replica = self._least_loaded()
        return robot

    def _rebalance(self, robot: _RoutedClient, *, has_open: bool) -> int | None:
        """Move a robot that begins an answer to the least loaded replica; return it, None if it stays.

        With other answers open it leaves only a replica that is not live.
        """
        best = self._least_loaded()
        if best is None or best == robot.replica:
            return None
        is_live = robot.replica is not None and self.replicas.get(robot.replica) == "live"
        if robot.replica is None or not is_live:
            is_worth_it = True
        else:
            is_worth_it = not has_open and self.load(robot.replica) - self.load(best) >= UNEVEN
        if not is_worth_it:
            return None
        robot.replica = best
        self.moved += 1
        return best

    def _least_loaded(self) -> int | None:
        live = [number for number, state in self.replicas.items() if state == "live"]
        return min(live, key=lambda number: (self.load(number), number), default=None)

    # Replicas ------------------------------------------------------------------------------------

    def on_starting(self, replica: int) -> None:
        """A replica was requested; it serves no robot yet."""
        self.replicas[replica] = "starting"

    def on_up(self, replica: int) -> None:
        """A replica has loaded its target. Robots without a replica are asked for Hello again."""
        if self.replicas.get(replica) == "starting":
            self.replicas[replica] = "live"
            self._request_hello(None)

    def on_draining(self, replica: int) -> None:
        """A replica is to be removed: its open answers end there, new ones begin on other replicas."""
        if replica in self.replicas:
            self.replicas[replica] = "draining"

    def on_lost(self, replica: int, *, is_removed: bool = False) -> None:
        """A replica does not answer, or `is_removed`: its robots are asked for Hello and open again."""
        if is_removed or self.replicas.get(replica) == "draining":
            self.replicas.pop(replica, None)
        elif replica in self.replicas:
            self.replicas[replica] = "starting"
        self._request_hello(replica)

    def _request_hello(self, replica: int | None) -> None:
        for peer, robot in self._robots.items():
            if robot.replica == replica:
                self.moved += replica is not None
                robot.replica = None
                self.outbox.append((peer, HELLO_FIRST_REPLY))
