"""What every server here has in front of its app: keys, hosts, sizes and deadlines of bodies.

`Guard` is an ASGI app around another one. It lets a request through that has a known key, comes from no
foreign web page, and whose body is small and quick enough; `refuse` writes what others get.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_spec_decode.serve.access import AccessKeys, HttpLimits
from vlm_spec_decode.transport.address import is_loopback_host

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
        if scope["type"] == "websocket":
            if refusal:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
            else:
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._limits, int_of(headers.get("content-length")))
        is_last = headers.get("connection", "").lower() == "close" or scope.get("http_version") == "1.0"
        started = False

        async def send_once(message: Message) -> None:
            nonlocal started
            # A connection that is closed while its client still writes loses the reply; one that goes on
            # drops the rest of the body after it.
            if not started and is_last:
                await body.drain()
            started = True
            await send(message)

        if refusal:
            await self._refuse(*refusal)(scope, body.receive, send_once)
            return
        try:
            await self._app(scope, body.receive, send_once)
        except BodyRefused as refused:
            if not started:
                await body.drain()
                await self._refuse(refused.reason, str(refused))(scope, body.receive, send_once)

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
