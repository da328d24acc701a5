"""The console as an ASGI app: its files, a WebSocket of events and commands, and one of pictures.

::

    console = Console([robot], keys)        # keys of `serve.access`, with the rights `view` and `command`
    HttpServer(console.app, address, websockets=True).serve()

The page presents its token as a WebSocket subprotocol, so that no address, and no log of one, has it. What is
asked, limited and logged is decided in `commands`, what is shown in `state`.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import UsageError, VsdError
from vlm_spec_decode.core.page import style
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.serve.access import AccessKeys, HttpLimits
from vlm_spec_decode.serve.console.commands import CommandDesk, ConsoleRobot, Page, press_of, stop_all
from vlm_spec_decode.serve.console.state import Event, encode
from vlm_spec_decode.serve.console.video import VideoFrame
from vlm_spec_decode.serve.guard import STATUS, Guard, bearer

log = logging.getLogger(__name__)

VIEW, COMMAND = "view", "command"
"""Rights of a token. Who may command may look, too."""

SUBPROTOCOL = "vsd.console.1"
TOKEN_PREFIX, ENCODED_PREFIX = "token.", "token64."
"""A page offers `SUBPROTOCOL`, and `token64.` with its token in base64url, or `token.` with it as it is.

The server takes the first. A token may hold `/` and `=`, which no subprotocol may.
"""

MAX_PAGES = 24
MAX_MESSAGE_CHARS = 8_000
MAX_WAITING_EVENTS = 2_000
"""Events that wait for one page; a page that is slower is closed, and comes back to a fresh snapshot."""

SEND_EVERY_S = 0.03
"""Events are sent together, at most so often."""

VIDEO_HZ, FRAMES_ON_THE_WAY = 15.0, 2
"""Pictures per second of one page, and how many may be on their way to it."""

LIMITS = HttpLimits(body_bytes=16_384, connections=128)

TYPES = {"html": "text/html", "js": "text/javascript"}
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


class StaticFile:
    """One file of the page, with its compressed form and its tag. `style` is the style sheet inside it."""

    def __init__(self, name: str, data: bytes, style: str = "") -> None:
        self.kind = f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        self.data, self.small = data, gzip.compress(data, mtime=0)
        # By its digest: no other style sheet counts, were one ever written into the page.
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        sources = f"'self' 'sha256-{digest}'" if style else "'self'"
        self.policy = CONTENT_POLICY.replace("style-src 'self'", f"style-src {sources}")
        self.tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'

    def response(self, request: Request) -> Response:
        """Return the file, or that the browser has it."""
        headers = {**HEADERS, "ETag": self.tag, "Vary": "Accept-Encoding"}
        headers["Content-Security-Policy"] = self.policy
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.data, headers=headers, media_type=self.kind)
        return Response(self.small, headers={**headers, "Content-Encoding": "gzip"}, media_type=self.kind)


def static_files() -> dict[str, StaticFile]:
    """Return the files of the page by their paths; the page itself is `/`.

    Its style sheets are inside it, so that it is drawn, with its stop, before anything else has come. The
    theme is the reports', too, and lies where they read it.
    """
    read = {each.name: each.read_text("utf-8") for each in files(__package__).joinpath("static").iterdir()}
    sheets = {"theme.css": style("theme.css")}
    sheets |= {name: read.pop(name) for name in tuple(read) if name.endswith(".css")}
    page, whole = read.pop("index.html"), "\n".join(sheets.values())
    for name in sheets:
        page = page.replace(f'<link rel="stylesheet" href="/static/{name}">\n', "")
    page = page.replace("</head>", f"<style>{whole}</style>\n</head>")
    found = {"/": StaticFile("index.html", page.encode(), whole)}
    return found | {f"/static/{name}": StaticFile(name, text.encode()) for name, text in read.items()}


def token_of(scope: Scope) -> str:
    """Return the token that a request or a WebSocket presents, "" for none."""
    if scope["type"] != "websocket":
        return bearer(scope)
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(ENCODED_PREFIX):
            return _decoded(offered.removeprefix(ENCODED_PREFIX))
        if offered.startswith(TOKEN_PREFIX):
            return str(offered.removeprefix(TOKEN_PREFIX))
    return ""


def _decoded(text: str) -> str:
    """Return what base64url without padding says, "" for what is none."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("utf-8")
    except ValueError:  # no base64, or no UTF-8
        return ""


class Console:
    """The app's parts for some robots. `close` ends the threads and stops what a page drives."""

    def __init__(self, robots: Sequence[ConsoleRobot], keys: AccessKeys, clock: Clock | None = None) -> None:
        clock = clock or WallClock()
        self.desks = {robot.state.facts.name: CommandDesk(robot, clock) for robot in robots}
        self._files = static_files()
        self._numbers = itertools.count(1)
        self._pages = 0
        routes: list[Any] = [Route(path, self._file) for path in self._files]
        routes += [
            Route("/api/robots", self._robots),
            Route("/api/stop", self._stop, methods=["POST"]),
            Route("/api/frame/{robot}/{mission}/{answer:int}", self._frame),
            WebSocketRoute("/api/events/{robot}", self._events),
            WebSocketRoute("/api/video/{robot}", self._video),
        ]
        app = Starlette(routes=routes)
        self.app: ASGIApp = Guard(
            app, keys, LIMITS, _refuse, public=frozenset(self._files), token_of=token_of
        )

    def close(self) -> None:
        """Stop what pages drive, and end all threads. Idempotent."""
        for desk in self.desks.values():
            desk.close()

    # Files and requests ----------------------------------------------------------------------------

    async def _file(self, request: Request) -> Response:
        return self._files[request.url.path].response(request)

    async def _robots(self, request: Request) -> Response:
        """Tell a page what there is, and what its token lets it do."""
        robots = [{"name": name, "title": desk.robot.state.facts.title} for name, desk in self.desks.items()]
        may = [VIEW, COMMAND] if _may_command(request.scope) else [VIEW]
        return JSONResponse({"robots": robots, "may": may}, headers=HEADERS)

    async def _stop(self, request: Request) -> Response:
        """Stop a robot, or all, without a WebSocket: for a page whose connection is gone, and for scripts."""
        desk, page = self.desks.get(request.query_params.get("robot", "")), self._page(request.scope)
        press = press_of(request.query_params.get("press"))
        stop = asyncio.wrap_future(desk.stop(page, press) if desk else self._stop_all(page, press))
        await asyncio.wait((stop,))
        fault = stop.exception()
        told = {"stopped": fault is None, "detail": str(fault or stop.result())}
        return JSONResponse(told, status_code=200 if fault is None else 500, headers=HEADERS)

    def _stop_all(self, page: Page, press: str) -> Future[str]:
        return stop_all(self.desks.values(), page, press)

    async def _frame(self, request: Request) -> Response:
        """Send the picture that an answer was about."""
        desk = self.desks.get(request.path_params["robot"])
        mission, answer = request.path_params["mission"], request.path_params["answer"]
        jpeg = desk.robot.state.frame_of(mission, answer) if desk else None
        if jpeg is None:
            return PlainTextResponse("no such picture", 404, headers=HEADERS)
        return Response(jpeg, headers=HEADERS, media_type="image/jpeg")

    # Events and commands ------------------------------------------------------------------------------

    def _page(self, scope: Scope) -> Page:
        key, client = scope["state"]["key"], scope.get("client") or ("?", 0)
        number = next(self._numbers)
        name = key.name if key is not None else "anyone"
        return Page(number, f"{name}@{client[0]} #{number}", _may_command(scope))

    async def _events(self, socket: WebSocket) -> None:
        """Serve one page: events out, commands in."""
        desk = self.desks.get(socket.path_params["robot"])
        if desk is None or self._pages >= MAX_PAGES:
            await socket.close(1008, "no such robot" if desk is None else "too many pages are open")
            return
        self._pages += 1
        page = self._page(socket.scope)
        log.info("%s: opens the page of %s", page.who, desk.robot.state.facts.name)
        connection = _EventSocket(socket, desk, page, self._stop_all)
        try:
            await connection.serve()
        finally:
            # First of all: what this page drives stops.
            desk.leave(page)
            self._pages -= 1
            log.info("%s: closes the page", page.who)

    async def _video(self, socket: WebSocket) -> None:
        """Send pictures as they come, not faster than the page shows them."""
        desk = self.desks.get(socket.path_params["robot"])
        if desk is None or desk.robot.video.viewers >= MAX_PAGES:
            await socket.close(1008, "no such robot" if desk is None else "too many pages are open")
            return
        await socket.accept(SUBPROTOCOL)
        video = desk.robot.video
        video.join()
        try:
            with suppress(WebSocketDisconnect, RuntimeError):
                await _send_video(socket, desk)
        finally:
            video.leave()


class _EventSocket:
    """One page's WebSocket of events. The state calls `_put` from any thread."""

    def __init__(
        self, socket: WebSocket, desk: CommandDesk, page: Page, stop_all: Callable[[Page, str], Future[str]]
    ) -> None:
        self._socket, self._desk, self._page, self._stop_all = socket, desk, page, stop_all
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Event | str] = []
        self._news = asyncio.Event()
        self._is_slow = False

    async def serve(self) -> None:
        """Serve until the page is gone."""
        state = self._desk.robot.state
        await self._socket.accept(SUBPROTOCOL)
        known = state.subscribe(self._put_from_thread)
        sender: asyncio.Task[None] | None = None
        try:
            may = [VIEW, COMMAND] if self._page.may_command else [VIEW]
            welcome = {"type": "welcome", "you": self._page.who, "may": may, "now": state.now_s}
            await self._send([welcome | {"facts": state.facts.to_event()}, *known])
            sender = self._loop.create_task(self._send_events())
            while True:
                text = await self._socket.receive_text()
                self._on_message(text)
        except (WebSocketDisconnect, RuntimeError, KeyError):
            pass  # the page is gone, or sent what is no text
        finally:
            state.unsubscribe(self._put_from_thread)
            if sender is not None:
                sender.cancel()

    def _put_from_thread(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event | str) -> None:
        if len(self._waiting) >= MAX_WAITING_EVENTS:
            self._is_slow = True
        else:
            self._waiting.append(event)
        self._news.set()

    async def _send_events(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._news.wait()
                self._news.clear()
                events, self._waiting = self._waiting, []
                if self._is_slow:
                    await self._socket.close(1013, "this page is too slow")
                    return
                await self._send(_newest(events))
                await asyncio.sleep(SEND_EVERY_S)

    async def _send(self, events: Iterable[Event | str]) -> None:
        """Send events; a text is one that is encoded already."""
        texts = (each if isinstance(each, str) else encode(each) for each in events)
        await self._socket.send_text(f"[{','.join(texts)}]")

    def _on_message(self, text: str) -> None:
        """Carry out one message of the page; what is wrong with it goes back to this page alone."""
        number = None
        try:
            message = _read(text)
            number, kind = message.get("id"), message.get("type")
            if kind == "drive":
                self._desk.drive(self._page, message)
            elif kind == "command" and message.get("command") == "stop_all":
                self._reply_later(number, self._stop_all(self._page, press_of(message.get("press"))))
            elif kind == "command":
                self._reply_later(number, self._desk.command(self._page, message))
            elif kind == "replay":
                self._desk.charge(self._page)
                mission = str(message.get("mission"))
                events = self._desk.robot.state.replay(mission)
                # Its events are encoded already: here that would keep every page, and its stop, waiting.
                self._put(f'{{"type":"replay","mission":{json.dumps(mission)},"events":{events or "null"}}}')
            elif kind == "ping":
                self._put({"type": "pong", "id": number})
            else:
                raise UsageError(f"no such message: {str(kind)[:40]!r}")
        except VsdError as error:
            self._put({"type": "refused", "id": number, "detail": str(error)})

    def _reply_later(self, number: object, future: Future[str]) -> None:
        def reply(done: Future[str]) -> None:
            error = done.exception()
            if error is None:
                self._put_from_thread({"type": "done", "id": number, "detail": done.result()})
                return
            if not isinstance(error, VsdError):
                log.error("a command failed", exc_info=error)
            self._put_from_thread({"type": "refused", "id": number, "detail": str(error)})

        future.add_done_callback(reply)


async def _send_video(socket: WebSocket, desk: CommandDesk) -> None:
    """Send pictures until the page is gone; it answers each one that it has shown."""
    loop = asyncio.get_running_loop()
    on_the_way = asyncio.Semaphore(FRAMES_ON_THE_WAY)
    number = 0

    async def read_answers() -> None:
        with suppress(WebSocketDisconnect, RuntimeError, KeyError):
            while True:
                await socket.receive_text()
                on_the_way.release()

    reader = loop.create_task(read_answers())
    try:
        while not reader.done():
            began_s = loop.time()
            await _until_either(on_the_way.acquire(), reader)
            frame = await _next_frame(desk, number, reader)
            if frame is None:
                return
            number = frame.number
            await socket.send_bytes(frame.jpeg)
            await asyncio.sleep(max(0.0, began_s + 1 / VIDEO_HZ - loop.time()))
    finally:
        reader.cancel()


async def _until_either(awaited: Any, reader: asyncio.Task[None]) -> None:
    task = asyncio.ensure_future(awaited)
    await asyncio.wait((task, reader), return_when=asyncio.FIRST_COMPLETED)
    task.cancel()


async def _next_frame(desk: CommandDesk, number: int, reader: asyncio.Task[None]) -> VideoFrame | None:
    """Return the next picture, None if the page is gone."""
    loop = asyncio.get_running_loop()
    coming: asyncio.Future[VideoFrame] = loop.create_future()

    def put(frame: VideoFrame) -> None:
        if not coming.done():
            coming.set_result(frame)

    def call(frame: VideoFrame) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(put, frame)

    desk.robot.video.after(number, call)
    await asyncio.wait((coming, reader), return_when=asyncio.FIRST_COMPLETED)
    return coming.result() if coming.done() else None


def _newest(events: list[Event | str]) -> list[Event | str]:
    """Leave out what a later event of the same batch replaces."""
    kinds = ["" if isinstance(event, str) else event["type"] for event in events]
    last = {kind: index for index, kind in enumerate(kinds)}
    replaced = {"body", "tokens", "missions"}
    return [
        event
        for index, (kind, event) in enumerate(zip(kinds, events, strict=True))
        if kind not in replaced or last[kind] == index
    ]


def _read(text: str) -> Mapping[str, Any]:
    """Return a page's message. Raises UsageError for what is none."""
    if len(text) > MAX_MESSAGE_CHARS:
        raise UsageError("a message that is too long")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("no JSON") from error
    if not isinstance(message, dict):
        raise UsageError("no JSON object")
    return message


def _may_command(scope: Scope) -> bool:
    key = scope["state"]["key"]
    return key is not None and COMMAND in key.rights


def _refuse(reason: str, text: str) -> Response:
    return JSONResponse({"error": text}, STATUS[reason], headers=HEADERS)
