"""An ASGI app on a socket, with what every server here needs in front of it: keys, hosts, sizes, deadlines.

`Guard` is an ASGI app around another one. It lets a request through that has a known key, comes from no
foreign web page, and whose body is small and quick enough; `refuse` writes what others get. `HttpServer` runs
an app with uvicorn, in the foreground or on a thread.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.serve.access import AccessKeys, BindAddress, HttpLimits, TlsFiles
from vlm_spec_decode.transport.address import is_loopback_host

MAX_HEAD_BYTES = 32 * 1024
MAX_WS_MESSAGE_BYTES = 64 * 1024
DRAINED = 4
"""A body beyond the limit is read, and dropped, up to so many times the limit: a client that still writes
sees no answer."""

NO_KEY, FOREIGN, TOO_LARGE, TOO_SLOW = "no_key", "foreign", "too_large", "too_slow"
STATUS = {NO_KEY: 401, FOREIGN: 403, TOO_LARGE: 413, TOO_SLOW: 408}

Refuse = Callable[[str, str], Response]
"""Makes the response of a refusal from its reason, a key of `STATUS`, and its text."""

TokenOf = Callable[[Scope], str]
"""Reads the key that a request presents, "" for none."""


def bearer(scope: Scope) -> str:
    """Return the token of `Authorization: Bearer TOKEN`."""
    kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


class BodyRefused(Exception):
    """A body is too large or too slow: `reason` is a key of `STATUS`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Guard:
    """Lets through to `app` what `keys` and `limits` allow; paths in `public` need no key.

    The key that was found is `scope["state"]["key"]`, None where there are no keys. Without keys a request
    must name this machine as its host: else a web page of another origin could reach a server on loopback
    by a name that it points there. With or without, a request of a page of another origin is refused, unless
    its origin is in `origins`.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: AccessKeys,
        limits: HttpLimits,
        refuse: Refuse,
        *,
        public: Collection[str] = (),
        token_of: TokenOf = bearer,
        origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._refuse = refuse
        self._public = frozenset(public)
        self._token_of = token_of
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._why_not(scope)
        if refusal:
            await self._answer(refusal, scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._limits, int_of(Headers(scope=scope).get("content-length")))
        started = False

        async def send_once(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, body.receive, send_once)
        except BodyRefused as refused:
            if not started:
                await body.drain()
                await self._answer((refused.reason, str(refused)), scope, receive, send)

    def _why_not(self, scope: Scope) -> tuple[str, str] | None:
        """Return reason and text of the refusal, None if the request may pass. Sets the key that it has."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._keys and not is_loopback_host(host_name(host)):
            return FOREIGN, "without a key only this machine's own name is served"
        origin = headers.get("origin")
        if origin and origin.partition("://")[2] != host and origin not in self._origins:
            return FOREIGN, "a page of another origin may not use this server"
        key = self._keys.find(self._token_of(scope)) if self._keys else None
        if self._keys and key is None and scope["path"] not in self._public:
            return NO_KEY, "no key, or one that is not known here"
        scope.setdefault("state", {})["key"] = key
        return None

    async def _answer(self, refusal: tuple[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
            return
        await self._refuse(*refusal)(scope, receive, send)


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def int_of(text: str | None) -> int:
    """Return a header's whole number, 0 if there is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0


class _Body:
    """One request's body on its way, which ends with BodyRefused where it is too large or too slow."""

    def __init__(self, receive: Receive, limits: HttpLimits, announced: int) -> None:
        self._receive = receive
        self._limits = limits
        self._announced = announced
        self._read = 0
        self._is_over = False
        self._deadline_s = asyncio.get_running_loop().time() + limits.body_s

    async def receive(self) -> Message:
        """Return the next part. Raises BodyRefused."""
        if self._is_over:
            return await self._receive()  # only the end of the connection can come
        most = self._limits.body_bytes
        if max(self._announced, self._read) > most:
            raise BodyRefused(TOO_LARGE, f"a body of more than {most} bytes")
        message = await self._next()
        if self._read > most:
            raise BodyRefused(TOO_LARGE, f"a body of more than {most} bytes")
        return message

    async def drain(self) -> None:
        """Read and drop what is still under way, within bounds."""
        while not self._is_over and self._read <= DRAINED * self._limits.body_bytes:
            try:
                message = await self._next()
            except BodyRefused:
                return
            if message["type"] == "http.disconnect":
                return

    async def _next(self) -> Message:
        left_s = self._deadline_s - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left_s))
        except asyncio.TimeoutError as error:  # on Python 3.10 no TimeoutError
            raise BodyRefused(TOO_SLOW, f"a body that took more than {self._limits.body_s:g} s") from error
        self._read += len(message.get("body", b""))
        self._is_over = not message.get("more_body", False)
        return message


def bounded_protocol(limits: HttpLimits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with bounds of connections, and of the time of a request's head.

    uvicorn itself waits for ever for the first head of a connection.
    """

    class BoundedProtocol(H11Protocol):
        """`H11Protocol` that closes connections beyond the limit, and those that do not speak."""

        _head: asyncio.TimerHandle | None = None
        _is_handed_over = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Take a connection, or close it at once."""
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.close()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            """Handle bytes; a head that has begun must end in time."""
            super().data_received(data)
            if self._is_handed_over or (self.cycle is not None and not self.cycle.response_complete):
                self._end_wait()
            elif self._head is None:
                self._await_head()

        def handle_websocket_upgrade(self, event: Any) -> None:
            """Hand the connection over: its head is complete."""
            self._is_handed_over = True
            super().handle_websocket_upgrade(event)

        def on_response_complete(self) -> None:
            """Go on with the next request; uvicorn waits for its first byte."""
            super().on_response_complete()
            if self.cycle is not None and not self.cycle.response_complete:
                self._end_wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the timer."""
            self._end_wait()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head = self.loop.call_later(limits.header_s, self.transport.close)

        def _end_wait(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return BoundedProtocol


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
        self._socket = _bound(address)
        host, self.port = address.host, int(self._socket.getsockname()[1])
        name = f"[{host}]" if address.is_v6 else host
        self.url = f"{'https' if tls else 'http'}://{name}:{self.port}"
        config = uvicorn.Config(
            app,
            http=bounded_protocol(limits or HttpLimits()),
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
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

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


def _bound(address: BindAddress) -> socket.socket:
    """Return a listening socket. Raises ConfigError."""
    host, port = address.host, address.port
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named: asyncio sets TCP_NODELAY only on sockets that say that they are TCP, and
        # without it each reply in two parts waits 40 ms for the client's acknowledgement.
        found = socket.socket(family, kind, socket.IPPROTO_TCP)
    except OSError as error:
        raise ConfigError(f"{host} is no address of this machine: {error.strerror}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
        found.listen(128)
    except OSError as error:
        found.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return found
