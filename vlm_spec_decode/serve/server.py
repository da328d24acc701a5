"""An ASGI app on a socket: `HttpServer` runs it with uvicorn, in the foreground or on a thread."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.serve.access import BindAddress, HttpLimits, TlsFiles
from vlm_spec_decode.serve.connections import MAX_HEAD_BYTES, BoundedListener, bounded_protocol

MAX_WS_MESSAGE_BYTES = 64 * 1024


class HttpServer:
    """An app on an address. The socket is bound when it is made, so that errors come then.

    Raises ConfigError for an address that cannot be bound, or TLS files that cannot be used.
    """

    def __init__(
        self,
        app: ASGIApp,
        address: BindAddress,
        tls: TlsFiles | None = None,
        limits: HttpLimits | None = None,
        *,
        websockets: bool = False,
        grace_s: float = 2.0,
    ) -> None:
        if tls:
            tls.context()  # what is wrong with the files is said before anything listens
        self._limits = limits or HttpLimits()
        self._has_tls = tls is not None
        self._socket = _bound(address, self._limits.connections)
        host, self.port = address.host, int(self._socket.getsockname()[1])
        name = f"[{host}]" if address.is_v6 else host
        self.url = f"{'https' if tls else 'http'}://{name}:{self.port}"
        config = uvicorn.Config(
            app,
            loop="asyncio",  # which accepts by the listener's own method
            http=bounded_protocol(self._limits),
            ws="auto" if websockets else "none",
            ws_max_size=MAX_WS_MESSAGE_BYTES,
            # What goes out is pictures, which are compressed, and short messages.
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(grace_s)),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def serve(self) -> None:
        """Serve until `stop`; called in the main thread, a SIGINT or SIGTERM stops it, too."""
        self.start()
        assert self._thread is not None
        with _stopped_by_signals(self.stop):
            while self._thread.is_alive():
                self._thread.join(0.2)

    def start(self) -> None:
        """Serve on a thread of its own, where uvicorn leaves the process's signals alone."""
        self._thread = threading.Thread(target=self._run, name="vsd-serve", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        if self._has_tls:
            # uvicorn has no setting for it; a client that begins a handshake and stops would stay for 60 s.
            loop, seconds = asyncio.get_running_loop(), self._limits.header_s
            create = partial(loop.create_server, ssl_handshake_timeout=seconds)
            loop.create_server = create  # type: ignore[method-assign]
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """End `serve` soon; from any thread."""
        self._server.should_exit = True

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop, wait for the thread, and free the port. Idempotent."""
        self.stop()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._socket.close()


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGINT and SIGTERM for as long as the block runs; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, lambda *_: stop()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _bound(address: BindAddress, most: int) -> BoundedListener:
    """Return a listening socket. Raises ConfigError."""
    host, port = address.host, address.port
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named: asyncio sets TCP_NODELAY only on sockets that say that they are TCP, and
        # without it each reply in two parts waits 40 ms for the client's acknowledgement.
        found = BoundedListener(family, kind, socket.IPPROTO_TCP)
    except OSError as error:
        raise ConfigError(f"{host} is no address of this machine: {error.strerror}") from error
    found.most = most
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
        found.listen(128)
    except OSError as error:
        found.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return found
