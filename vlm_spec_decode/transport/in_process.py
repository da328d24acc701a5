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
    """Bytes of many peers. Owned by the thread that calls `poll`; only `wake` comes from elsewhere."""

    @property
    def address(self) -> str:
        """Where peers find it."""
        ...

    @property
    def unroutable(self) -> int:
        """Messages that no peer was there to take."""
        ...

    def poll(self, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Yield (peer, bytes) of what has come, waiting for at most `timeout_s` or until `wake`."""
        ...

    def send(self, peer: bytes, data: bytes) -> None:
        """Send without waiting; what cannot be sent is counted."""
        ...

    def wake(self) -> None:
        """End a `poll` early. From one other thread."""
        ...

    def close(self) -> None:
        """Free everything. Idempotent enough to be called once by `serve`."""
        ...


LIMIT = 65_536
"""Messages held in one direction."""

BURST = 256
"""Messages given to the server between two looks at its own work, as the socket's link does."""

MISSED_LOOKS = 4
"""Quiet looks after which a batch that has not come is given up."""

Message = tuple[bytes, bytes]
"""A peer and what it said, or what it is told."""


class InProcessLink:
    """`deliver` and `collect` may be called from any thread; the rest is the server's."""

    address = "mailbox"

    def __init__(self) -> None:
        self.unroutable = 0
        self._in: Queue[Message | None] = Queue(LIMIT)
        self._out: Queue[Message] = Queue(LIMIT)

    def deliver(self, messages: Iterable[Message]) -> None:
        """Put in messages of peers."""
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
        """Put a message out."""
        try:
            self._out.put_nowait((peer, data))
        except Full:
            self.unroutable += 1

    def wake(self) -> None:
        """End a `poll` early."""
        try:
            self._in.put_nowait(None)
        except Full:
            return  # What it waits for is there.

    def close(self) -> None:
        """Nothing is held."""


class OrderedInbox:
    """Puts batches back into the order in which they were sent: calls of an actor may overtake another.

    A batch of a newer `life` than any before begins a new count; those of older lives are dropped.
    """

    def __init__(self) -> None:
        self._life = -1
        self._next = 0
        self._early: dict[int, list[Message]] = {}
        self._gap_looks = 0

    def put(self, life: int, number: int, messages: list[Message]) -> None:
        """Hold a batch."""
        if life > self._life:
            self._life, self._next = life, 0
            self._early.clear()
        if life == self._life:
            self._early[number] = messages

    def take(self) -> list[Message]:
        """Return the messages whose turn it is."""
        found: list[Message] = []
        while (batch := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._gap_looks = 0
            found += batch
        return found

    def skip_gap(self) -> list[Message]:
        """Give a missing batch up the second time that it is missed: a robot repeats what was lost."""
        self._gap_looks += bool(self._early)
        if self._gap_looks < MISSED_LOOKS:
            return []
        self._next = min(self._early, default=self._next)
        return self.take()
