"""A server's link inside its process: messages are put in and collected, no socket anywhere.

What a replica's server sits on, and what tests drive a server with. Bounded: beyond `LIMIT` messages under
way the newest is dropped and counted, as a socket at its high-water mark does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue

LIMIT = 65_536
"""Messages held in one direction."""

BURST = 256
"""Messages given to the server between two looks at its own work, as the socket's link does."""

Message = tuple[bytes, bytes]
"""A peer and what it said, or what it is told."""


class MailboxLink:
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
