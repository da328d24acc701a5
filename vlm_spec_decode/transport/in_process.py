"""The server's link as a port, and an implementation inside one process, without a socket.

A `RouterLink` implements the port, and so do its decorators and the link of a replica; the server cannot
distinguish them. Replicas' servers and tests use the in-process link. It is bounded: beyond `LIMIT`
messages under way the newest is dropped and counted, as a socket at its high-water mark does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Protocol


class ServerLink(Protocol):
    """Bytes of many peers. Only the thread that calls `poll` uses it; `wake` may come from another one."""

    @property
    def address(self) -> str:
        """Where peers find it."""
        ...

    @property
    def unroutable(self) -> int:
        """Messages whose peer was not connected."""
        ...

    def poll(self, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Yield (peer, bytes) of each message received, after waiting at most `timeout_s` or until `wake`."""
        ...

    def send(self, peer: bytes, data: bytes) -> None:
        """Send without waiting; a message that cannot be sent is counted in `unroutable`."""
        ...

    def wake(self) -> None:
        """End a `poll` early. May be called from one other thread."""
        ...

    def announce_drain(self) -> None:
        """Tell whoever chooses between servers that this one begins no new answers."""
        ...

    def close(self) -> None:
        """Free everything. `serve` calls it once."""
        ...


LIMIT = 65_536
"""Most messages under way in one direction."""

BURST = 256
"""Messages that one `poll` yields at most, as with the socket's link."""

MISSED_POLLS = 4
"""Polls without a message after which a missing batch is skipped."""

Message = tuple[bytes, bytes]
"""A peer, and the bytes from it or for it."""


class InProcessLink:
    """`deliver` and `collect` may be called from any thread; the rest is the server's."""

    address = "in-process"

    def __init__(self) -> None:
        self.unroutable = 0
        self._in: Queue[Message | None] = Queue(LIMIT)
        self._out: Queue[Message] = Queue(LIMIT)

    def deliver(self, messages: Iterable[Message]) -> None:
        """Add messages of peers."""
        for message in messages:
            try:
                self._in.put_nowait(message)
            except Full:
                self.unroutable += 1

    def collect(self, timeout_s: float) -> list[Message]:
        """Return what the server has sent since, waiting for the first of it for at most `timeout_s`."""
        found: list[Message] = []
        try:
            found.append(self._out.get(timeout=timeout_s))
            while len(found) < BURST:
                found.append(self._out.get_nowait())
        except Empty:
            pass
        return found

    def poll(self, timeout_s: float) -> Iterator[Message]:
        """Yield what was delivered, waiting for at most `timeout_s` or until `wake`."""
        try:
            first = self._in.get(timeout=timeout_s)
            if first is not None:
                yield first
            for _ in range(BURST):
                if (message := self._in.get_nowait()) is not None:
                    yield message
        except Empty:
            return

    def send(self, peer: bytes, data: bytes) -> None:
        """Queue a message for a peer."""
        try:
            self._out.put_nowait((peer, data))
        except Full:
            self.unroutable += 1

    def wake(self) -> None:
        """End a `poll` early."""
        try:
            self._in.put_nowait(None)
        except Full:
            return  # `poll` has messages and does not wait.

    def announce_drain(self) -> None:
        """Do nothing: the router of the replicas decides that itself."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


class OrderedInbox:
    """Restores the order in which batches were sent: calls of a Ray actor may overtake one another.

    An `incarnation` is one start of the actor. A batch of a newer one restarts the count; batches of older
    ones are dropped.
    """

    def __init__(self) -> None:
        self._incarnation = -1
        self._next = 0
        self._early: dict[int, list[Message]] = {}
        self._gap_polls = 0

    def put(self, incarnation: int, number: int, messages: list[Message]) -> None:
        """Store batch `number` of an incarnation."""
        if incarnation > self._incarnation:
            self._incarnation, self._next = incarnation, 0
            self._early.clear()
        if incarnation == self._incarnation:
            self._early[number] = messages

    def pop_ready(self) -> list[Message]:
        """Return the messages that are next in order."""
        found: list[Message] = []
        while (batch := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._gap_polls = 0
            found += batch
        return found

    def skip_gap(self) -> list[Message]:
        """Skip a batch that is missing for `MISSED_POLLS` polls; the robot sends its messages again."""
        self._gap_polls += bool(self._early)
        if self._gap_polls < MISSED_POLLS:
            return []
        self._next = min(self._early, default=self._next)
        return self.pop_ready()
