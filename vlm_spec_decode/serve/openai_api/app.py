"""The endpoint as an ASGI app: paths, streams, and what happens when a client leaves.

::

    POST /v1/chat/completions   POST /v1/responses
    GET  /v1/models             GET  /v1/models/NAME
    GET  /health                GET  /metrics
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_spec_decode.core.config import digest
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.serve.access import AccessKeys, HttpLimits
from vlm_spec_decode.serve.guard import BodyRefused, Guard
from vlm_spec_decode.serve.openai_api.errors import JSON, ApiError, api_error, closing, refused, too_slow
from vlm_spec_decode.serve.openai_api.metrics import CONTENT_TYPE, ServeMetrics
from vlm_spec_decode.serve.openai_api.preparation import RequestPreparer
from vlm_spec_decode.serve.openai_api.replies import (
    Delta,
    ReplyState,
    ResponseEvents,
    chat_events,
    completion,
    error_event,
    response,
)
from vlm_spec_decode.serve.openai_api.requests import CompletionRequest, read_chat_request
from vlm_spec_decode.serve.openai_api.responses_body import read_responses_request
from vlm_spec_decode.serve.openai_api.service import LOOK_S, AnswerService, PreparedRequest, RunningAnswer
from vlm_spec_decode.serve.openai_api.settings import ServeSettings

Found = TypeVar("Found")

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
READERS: Mapping[str, Callable[[bytes], CompletionRequest]] = {
    CHAT: read_chat_request,
    RESPONSES: read_responses_request,
}
"""What reads the body of each path."""

MODELS, HEALTH, METRICS = "/v1/models", "/health", "/metrics"
PUBLIC = frozenset({HEALTH})
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
LEFT = 499
"""Status, in the metrics, of a request whose client went away."""


class ClientLeft(Exception):
    """The client has closed the connection."""


async def while_connected(receive: Receive, seconds: float, work: Coroutine[Any, Any, Found]) -> Found:
    """Return what `work` does; it ends at once when the client leaves, or after so many seconds.

    Raises ClientLeft, ApiError (408), and what `work` raises.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise ClientLeft if gone in done else too_slow(seconds)
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names of the models: the target, its draft, and further names that clients insist on."""

    target: str
    draft: str
    more: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """The names that a request may use."""
        return tuple(dict.fromkeys((self.target, *self.more)))


class Endpoint:
    """The handlers of all paths."""

    def __init__(self, service: AnswerService, preparer: RequestPreparer, settings: ServeSettings) -> None:
        self._service = service
        self._preparer = preparer
        self._settings = settings
        self._started_s = int(time.time())
        self._names = ModelNames("", "", settings.model_name)
        self._named_for: object = None
        self._fingerprint = ""
        self.metrics = ServeMetrics(
            lambda: service.under_way, lambda: service.decoding, lambda: service.is_connected
        )

    @property
    def names(self) -> ModelNames:
        """The models' names, as far as a connection has told them."""
        engine = self._service.engine
        if engine is not None and engine is not self._named_for:
            self._named_for, read = engine, json.loads(self._service.facts)
            self._names = ModelNames(
                read["target"]["model_id"], read["draft"]["model_id"], self._settings.model_name
            )
            self._fingerprint = f"vsd_{digest(read)}"
        return self._names

    # Answers -----------------------------------------------------------------------------------------

    def place(self) -> AbstractContextManager[None]:
        """Return the block in which one answer is under way. Raises ApiError (429)."""
        return self._service.place()

    async def answer(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions and /v1/responses. In a `place`, which lasts until it is sent."""
        began_s, path = time.monotonic(), request.scope["path"]
        asked = READERS[path](await _body(request))
        names = self.names
        if names.target and asked.model not in names.known:
            raise _no_model(asked.model, names)
        self._preparer.check(asked)
        if asked.stream:
            return _Stream(self, asked, path, began_s)
        whole = self._whole(asked, path, began_s)
        document = await while_connected(request.receive, self._settings.request_timeout_s, whole)
        return Response(msgspec.json.encode(document), 200, _marks(document["vsd"]["verified"]), JSON)

    async def _whole(self, asked: CompletionRequest, path: str, began_s: float) -> dict[str, Any]:
        async with self.answering(asked, began_s) as (state, answer, deltas):
            finish = "stop"
            async for delta in deltas:
                finish = delta.finish or finish
            return completion(state, answer, finish) if path == CHAT else response(state, answer, finish)

    @asynccontextmanager
    async def answering(
        self, asked: CompletionRequest, began_s: float
    ) -> AsyncIterator[tuple[ReplyState, RunningAnswer, AsyncIterator[Delta]]]:
        """Ask in this block; the first update is there when it begins. Raises what ends the answer."""
        fetched = await self._fetched(asked)

        def prepare(engine: Engine) -> PreparedRequest:
            return self._preparer.prepare(asked, engine, fetched)

        async with self._service.ask(prepare) as answer:
            first = await answer.next()
            names = self.names
            model = names.target if answer.is_verified else names.draft
            state = ReplyState(asked, model or "draft", self._fingerprint)
            self.metrics.first_s.observe(time.monotonic() - began_s)

            async def deltas() -> AsyncIterator[Delta]:
                update = first
                assert answer.prepared is not None
                stop_ids = answer.prepared.config.params.stop_ids
                while True:
                    delta = state.add(update, stop_ids)
                    yield delta
                    if delta.finish is not None:
                        return
                    update = await answer.next()

            yield state, answer, deltas()
            self._count(state, answer, time.monotonic() - began_s)

    async def _fetched(self, asked: CompletionRequest) -> bytes | None:
        """Fetch the question's picture, before it takes the place of an answer; None if it has no URL.

        Raises ApiError, or CloudUnreachable as soon as nobody would answer.
        """
        if not self._preparer.fetches(asked):
            return None
        self._service.check_answers()
        fetch = asyncio.ensure_future(self._preparer.fetch(asked))
        try:
            while not (await asyncio.wait({fetch}, timeout=LOOK_S))[0]:
                self._service.check_answers()
            return fetch.result()
        finally:
            fetch.cancel()

    def _count(self, state: ReplyState, answer: RunningAnswer, seconds: float) -> None:
        used = state.usage(answer)["vsd"]
        self.metrics.answer_s.observe(seconds)
        self.metrics.tokens.inc(len(state.tokens))
        self.metrics.drafted.inc(used["drafted_tokens"])
        self.metrics.accepted.inc(used["accepted_tokens"])
        self.metrics.unverified.inc(not answer.is_verified)

    @property
    def timeout_s(self) -> float:
        """How long one answer may take."""
        return self._settings.request_timeout_s

    # The other paths ---------------------------------------------------------------------------------

    def models(self) -> Response:
        """Answer GET /v1/models."""
        data = [self._model(name) for name in self.names.known if name]
        return _json({"object": "list", "data": data})

    def model(self, name: str) -> Response:
        """Answer GET /v1/models/NAME."""
        names = self.names
        if not name or name not in names.known:
            raise _no_model(name, names)
        return _json(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "vlm_spec_decode"}

    def health(self) -> Response:
        """Answer GET /health: 200 if questions are answered, by the target or by the draft alone."""
        has_target = self._service.check()
        is_well = has_target or self._settings.fallback == "draft"
        status = "ok" if has_target else "draft_only" if is_well else "cloud_away"
        return _json({"status": status}, 200 if is_well else 503)

    def page(self) -> Response:
        """Answer GET /metrics."""
        return Response(self.metrics.page(), media_type=CONTENT_TYPE)


class _Stream(Response):
    """A stream of server-sent events. An error before its first delta is an ordinary response."""

    def __init__(self, endpoint: Endpoint, asked: CompletionRequest, path: str, began_s: float) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._asked = asked
        self._path = path
        self._began_s = began_s
        self._is_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until its end, or until the client leaves."""
        fail: Callable[[dict[str, Any]], bytes] = error_event

        async def tell() -> None:
            nonlocal fail
            async with self._endpoint.answering(self._asked, self._began_s) as (state, answer, deltas):
                write: Callable[..., Iterator[bytes]]
                if self._path == CHAT:

                    def write(delta: Delta, *, is_first: bool) -> Iterator[bytes]:
                        return chat_events(state, answer, delta, is_first=is_first)
                else:
                    events = ResponseEvents(state, answer)
                    write, fail = events.of, events.failed
                async for delta in deltas:
                    data = b"".join(write(delta, is_first=not self._is_begun))
                    if not self._is_begun:
                        await self._begin(send, answer.is_verified)
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await while_connected(receive, self._endpoint.timeout_s, tell())
        except ClientLeft:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, the client is told
            problem = (
                closing() if isinstance(error, asyncio.CancelledError) else api_error(error).at(self._path)
            )
            if not self._is_begun:
                await problem.response()(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": fail(problem.body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send, is_verified: bool) -> None:
        marks = [(name.encode(), value.encode()) for name, value in _marks(is_verified).items()]
        self._is_begun = True
        await send({"type": "http.response.start", "status": 200, "headers": [*STREAM, *marks]})


def _marks(is_verified: bool) -> dict[str, str]:
    """Return the headers that say whether the target has decided the answer."""
    return {"x-vsd-verified": "true" if is_verified else "false"}


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        # A web page can send text/plain to any server without asking it first.
        raise ApiError(400, "the content type must be application/json", code="invalid_content_type")
    # Not `request.body()`, which would keep the bytes beside the picture's text until the answer ends.
    return b"".join([part async for part in request.stream()])


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type=JSON)


def _no_model(name: str, names: ModelNames) -> ApiError:
    text = f"the model {name[:80]!r} does not exist here; known: {', '.join(names.known)}"
    return ApiError(404, text, code="model_not_found", param="model")


class _Paths:
    """The innermost app: every request gets a response, and every error becomes one."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # there is nothing to start or stop
        with ExitStack() as held:
            try:
                found = await self._respond(Request(scope, receive), held)
            except (ClientLeft, ClientDisconnect, BodyRefused):
                raise  # those further out know what to do
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
                found = api_error(error).at(scope["path"]).response()
            await found(scope, receive, send)

    async def _respond(self, request: Request, held: ExitStack) -> Response:
        endpoint, path = self._endpoint, request.scope["path"]
        if path in READERS:
            _check_method(request, "POST")
            held.enter_context(endpoint.place())  # before its body, which takes memory, is read
            return await endpoint.answer(request)
        pages = {MODELS: endpoint.models, HEALTH: endpoint.health, METRICS: endpoint.page}
        name = path.removeprefix(f"{MODELS}/")
        if path not in pages and name == path:
            raise ApiError(404, f"unknown request URL: {request.method} {path[:200]}", code="unknown_url")
        _check_method(request, "GET", "HEAD")
        return pages[path]() if path in pages else endpoint.model(name)


def _check_method(request: Request, *methods: str) -> None:
    if request.method not in methods:
        text = f"{request.method} is not for this path"
        raise ApiError(405, text, code="method_not_allowed", allow=", ".join(methods))


class _Counted:
    """The outermost app: counts requests by path and status, and lets those end whose client has left."""

    def __init__(self, app: ASGIApp, metrics: ServeMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = LEFT

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, count)
        except (ClientLeft, ClientDisconnect):
            self._metrics.left.inc()
        except asyncio.CancelledError:
            if status != LEFT:
                raise
            await closing().response({"connection": "close"})(scope, receive, count)
        finally:
            path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()


KNOWN_PATHS = frozenset({CHAT, RESPONSES, MODELS, HEALTH, METRICS})


def make_app(endpoint: Endpoint, keys: AccessKeys, limits: HttpLimits) -> ASGIApp:
    """Return the whole app: what `Guard` lets through goes to the endpoint's handlers."""
    guarded = Guard(_Paths(endpoint), keys, limits, refused, public=PUBLIC)
    return _Counted(guarded, endpoint.metrics)
