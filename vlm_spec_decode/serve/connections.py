"""Bounds of the connections to a server: how many, how long they may take to speak, and to read.

uvicorn itself has none of these: it waits forever for the first head of a connection, for a TLS handshake as
long as asyncio does (60 s), and for a client that does not read what it is sent.
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm_spec_decode.serve.access import HttpLimits

MAX_HEAD_BYTES = 32 * 1024
"""Of a request's head, and of what a client may send ahead while it waits for the reply before."""

MIN_READ_BYTES = 4096
"""What a client has to read in each `HttpLimits.write_s`, or all that there is."""


class BoundedListener(socket.socket):
    """A listening socket with at most `most` connections, those in their TLS handshake among them.

    Further ones are closed at once: a process without file descriptors cannot even open a key file, and
    libzmq ends it.
    """

    most = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._accepted: list[weakref.ref[socket.socket]] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its address. Raises ConnectionAbortedError for one too many."""
        connection, address = super().accept()
        accepted = ((reference, reference()) for reference in self._accepted)
        self._accepted = [reference for reference, each in accepted if each and each.fileno() >= 0]
        if len(self._accepted) >= self.most:
            connection.close()
            raise ConnectionAbortedError("there are as many connections as there may be")
        self._accepted.append(weakref.ref(connection))
        return connection, address


def bounded_protocol(limits: HttpLimits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with bounds of the time for a request's head and for reading a reply."""

    class BoundedProtocol(H11Protocol):
        """`H11Protocol` that closes connections of clients that do not speak, or do not read."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._head, self._reader, self._is_handed_over = _Timer(self.loop), _Timer(self.loop), False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Take a connection."""
            super().connection_made(transport)
            # So that `pause_writing` tells of all that the client does not take. Not 0: with that asyncio's
            # TLS would never write.
            transport.set_write_buffer_limits(high=1)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            """Handle bytes; a head that has begun must end in time."""
            super().data_received(data)
            is_answered = self.cycle is not None and not self.cycle.response_complete
            if self._is_handed_over or is_answered:
                self._head.stop()
            elif not self._head.is_running:
                self._await_head()
            if is_answered and not self.cycle.more_body and self.flow.read_paused:
                self._read_on()

        def handle_websocket_upgrade(self, event: Any) -> None:
            """Hand the connection over, with asyncio's own buffer: what follows has its own time-outs."""
            self._is_handed_over = True
            self._reader.stop()
            self.transport.set_write_buffer_limits()
            super().handle_websocket_upgrade(event)

        def on_response_complete(self) -> None:
            """Go on with the next request; uvicorn waits for its first byte."""
            super().on_response_complete()
            if self.cycle is not None and not self.cycle.response_complete:
                self._head.stop()

        def pause_writing(self) -> None:
            """Give the client time to read."""
            super().pause_writing()
            self._await_reader()

        def resume_writing(self) -> None:
            """Go on: the client has read everything."""
            super().resume_writing()
            self._reader.stop()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the timers."""
            self._head.stop()
            self._reader.stop()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head.start(limits.header_s, self.transport.close)

        def _await_reader(self) -> None:
            unread = self.transport.get_write_buffer_size()

            def check() -> None:
                if self.transport.get_write_buffer_size() > max(0, unread - MIN_READ_BYTES):
                    self.transport.abort()
                else:
                    self._await_reader()

            self._reader.start(limits.write_s, check)

        def _read_on(self) -> None:
            """Read on while a request is answered, else nobody would notice that its client leaves.

            uvicorn stops reading at the first byte of the next request until it is that one's turn.
            """
            if len(self.conn.trailing_data[0]) > MAX_HEAD_BYTES:
                self.transport.close()
            else:
                self.flow.resume_reading()

    return BoundedProtocol


class _Timer:
    """One call that is due, or none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether a call was started and not stopped."""
        return self._due is not None

    def start(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it after so many seconds, in place of what was due."""
        self.stop()
        self._due = self._loop.call_later(seconds, call)

    def stop(self) -> None:
        """Forget what is due."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
