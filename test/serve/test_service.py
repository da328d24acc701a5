"""Queues, limits, clients that leave, and a cloud that is lost: with engines that answer from a script."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from test.serve.scripted import ScriptedEngine, ScriptedSource
from test.serve.test_pictures import Trickle
from vlm_spec_decode.core.errors import CloudUnreachable, ConfigError, ModelError
from vlm_spec_decode.serve.access import AccessKeys, BindAddress, HttpLimits
from vlm_spec_decode.serve.openai_api import pictures
from vlm_spec_decode.serve.openai_api.app import Endpoint, make_app
from vlm_spec_decode.serve.openai_api.pictures import PictureLimits
from vlm_spec_decode.serve.openai_api.preparation import RequestPreparer
from vlm_spec_decode.serve.openai_api.service import AnswerService, EngineTurns
from vlm_spec_decode.serve.openai_api.settings import ServeSettings, check_settings
from vlm_spec_decode.serve.server import HttpServer

PATH = "/v1/chat/completions"
BODY = {"model": "big", "messages": [{"role": "user", "content": "count to three"}]}


class Rig:
    """The app without sockets, over a scripted source."""

    def __init__(self, source: ScriptedSource, host: str = "", **settings: Any) -> None:
        """Pictures may be fetched from `host`."""
        self.source = source
        serve = ServeSettings(**settings)
        self.service = AnswerService(source, serve)
        limits = PictureLimits(max_bytes=1000, max_pixels=1000, hosts=frozenset({host}))
        preparer = RequestPreparer(pictures=limits, longest_answer=100, grammar=True, sees=bool(host))
        self.endpoint = Endpoint(self.service, preparer, serve)
        self.app = make_app(self.endpoint, AccessKeys(), HttpLimits())

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")

    async def ask(self, **more: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.post(PATH, json={**BODY, **more})

    def metric(self, name: str) -> float:
        lines = self.endpoint.metrics.page().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def running(source: ScriptedSource | None = None, **settings: Any) -> Iterator[Rig]:
    rig = Rig(source or ScriptedSource(), **settings)
    rig.service.start()
    try:
        yield rig
    finally:
        for engine in (*rig.source.engines, rig.source.alone):
            engine.gate.set()
        rig.service.close()


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "this does not come"
        await asyncio.sleep(0.005)


def told(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def test_requests_beyond_the_slots_wait_and_those_beyond_the_limit_are_refused() -> None:
    async def check(rig: Rig) -> None:
        engine = rig.source.engines[0]
        engine.gate.clear()
        asked = [asyncio.create_task(rig.ask()) for _ in range(5)]
        await until(lambda: len(engine.open) == 2)
        refused = await rig.ask()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert len(engine.asked) == 2, "three wait"
        engine.gate.set()
        assert [told(each) for each in await asyncio.gather(*asked)] == ["one two three "] * 5
        assert (await rig.ask()).status_code == 200

    with running(answers=2, concurrency=5) as rig:
        asyncio.run(check(rig))


def test_a_request_that_finds_no_place_is_refused_before_its_body_is_read() -> None:
    async def check(rig: Rig) -> None:
        async def receive() -> Any:
            raise AssertionError("the body is read")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        rig.source.engines[0].gate.clear()
        first = asyncio.create_task(rig.ask())
        await until(lambda: rig.service.under_way == 1)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
        await rig.app(scope, receive, send)
        assert sent[0]["status"] == 429
        rig.source.engines[0].gate.set()
        assert (await first).status_code == 200

    with running(concurrency=1) as rig:
        asyncio.run(check(rig))


@pytest.mark.net
@pytest.mark.parametrize("stream", [False, True])
def test_who_is_served_at_the_end_of_the_server_is_told(stream: bool) -> None:
    """One whose body is under way, one whose answer is, and one whose stream has begun."""
    with running() as rig:
        engine = rig.source.engines[0]
        server = HttpServer(rig.app, BindAddress("127.0.0.1", 0), grace_s=1.0)
        server.start()
        body = json.dumps({**BODY, "stream": stream}).encode()
        lines = [f"POST {PATH} HTTP/1.1", "host: localhost", "content-type: application/json"]
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode()
        if stream:
            engine.pauses_at = 1
        else:
            engine.gate.clear()
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as sending,
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as waiting,
        ):
            sending.sendall(head + body[:5])
            waiting.sendall(head + body)
            until_s = time.monotonic() + 5
            while not engine.asked and time.monotonic() < until_s:
                time.sleep(0.01)
            threading.Timer(0.2, server.stop).start()
            found = [rest_of(each) for each in (sending, waiting)]
        server.close()
    assert b" 503 " in found[0]
    assert b'"code":"server_closing"' in found[0]
    assert (b" 200 " if stream else b" 503 ") in found[1]
    assert b'"code":"server_closing"' in found[1]


def rest_of(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(4096):
        found += part
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_while_waiting_or_in_the_middle_frees_its_place(stream: bool) -> None:
    async def check(rig: Rig) -> None:
        engine = rig.source.engines[0]
        engine.gate.clear()
        gone = asyncio.Event()
        asked = [asyncio.create_task(ask_until(gone, rig, stream=stream)) for _ in range(3)]
        await until(lambda: len(engine.open) == 1 and rig.service.under_way == 3)
        gone.set()
        await asyncio.gather(*asked)
        assert rig.service.under_way == 0
        await until(lambda: rig.service.decoding == 0)
        assert not engine.open
        assert rig.metric("vsd_serve_clients_left_total") == 3
        engine.gate.set()
        assert (await rig.ask()).status_code == 200

    with running(answers=1) as rig:
        asyncio.run(check(rig))


async def ask_until(gone: asyncio.Event, rig: Rig, **more: Any) -> None:
    """Send a request as a server would hand it over; the client leaves, unanswered, when `gone` is set."""
    parts = iter([{"type": "http.request", "body": json.dumps({**BODY, **more}).encode()}])

    async def receive() -> Any:
        if (part := next(parts, None)) is not None:
            return part
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        raise AssertionError("something was sent")

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
    await rig.app(scope, receive, send)


def with_picture(host: str) -> dict[str, Any]:
    """Return what asks about a picture of a host."""
    parts = [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": f"http://{host}/a.png"}},
    ]
    return {"messages": [{"role": "user", "content": parts}]}


@pytest.mark.net
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_is_fetched_holds_no_answer_and_who_leaves_meanwhile_frees_its_place(
    stream: bool,
) -> None:
    silent = Trickle(b"", b"")

    async def check(rig: Rig) -> None:
        gone = asyncio.Event()
        asked = asyncio.create_task(ask_until(gone, rig, stream=stream, **with_picture(silent.name)))
        await until(lambda: rig.service.under_way == 1)
        await asyncio.sleep(0.3)
        assert told(await rig.ask()) == "one two three ", "the only place of an answer is taken"
        began_s = time.monotonic()
        gone.set()
        await asked
        assert (rig.service.under_way, rig.service.decoding) == (0, 0)
        assert time.monotonic() - began_s < 0.5
        assert rig.metric("vsd_serve_clients_left_total") == 1

    with running(host=silent.name, answers=1) as rig:
        asyncio.run(check(rig))
    silent.close()  # its connection has ended


@pytest.mark.net
@pytest.mark.parametrize("fallback", ["none", "draft"])
def test_a_cloud_that_is_lost_while_a_picture_is_fetched_is_told_at_once_unless_the_draft_answers(
    fallback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Trickle(b"", b"")
    monkeypatch.setattr(pictures, "FETCH_S", 2.0)

    async def check(rig: Rig) -> None:
        asked = asyncio.create_task(rig.ask(**with_picture(silent.name)))
        await until(lambda: rig.service.under_way == 1)
        await asyncio.sleep(0.2)
        began_s, rig.source.is_there = time.monotonic(), False
        rig.service._connection.reconnect()
        found = (await asked).json()["error"]["code"]
        assert found == {"none": "cloud_away", "draft": "image_fetch_failed"}[fallback]
        assert (time.monotonic() - began_s < 1) == (fallback == "none")
        if fallback == "none":
            began_s = time.monotonic()
            assert (await rig.ask(**with_picture(silent.name))).status_code == 503
            assert time.monotonic() - began_s < 0.5

    with running(host=silent.name, fallback=fallback) as rig:
        asyncio.run(check(rig))
    silent.close()


@pytest.mark.parametrize("outcome", ["next", "none", "draft", "left"])
def test_an_answer_that_loses_its_engine_while_it_waits_for_its_turn(outcome: str) -> None:
    """It goes on with the next engine, or as the setting says; who leaves meanwhile waits no more."""

    async def check(rig: Rig) -> None:
        old = rig.source.engines[0]
        old.gate.clear()
        before, gone = asyncio.create_task(rig.ask()), asyncio.Event()
        await until(lambda: len(old.open) == 1)
        rig.service._connection.reconnect()
        await until(lambda: len(rig.source.engines) == 2)
        waits = asyncio.create_task(ask_until(gone, rig) if outcome == "left" else rig.ask())
        await until(lambda: rig.service.decoding == 2)
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        if outcome == "left":
            gone.set()
            await waits
            await until(lambda: rig.service.decoding == 1, 0.5)
        else:
            rig.source.is_there = outcome == "next"
            rig.source.engines[1].is_lost = True
            rig.service._connection.reconnect()
        if outcome == "none":
            found = await waits
            assert (found.status_code, found.json()["error"]["code"]) == (503, "cloud_away")
            assert time.monotonic() - began_s < 1
        await asyncio.sleep(0.3)
        old.gate.set()
        assert told(await before) == "one two three "
        if outcome in {"next", "draft"}:
            found = await waits
            assert told(found) == {"next": "one two three ", "draft": "draft: one two three "}[outcome]
            assert found.headers["x-vsd-verified"] == {"next": "true", "draft": "false"}[outcome]
        assert not rig.source.engines[1].asked

    with running(answers=2, fallback="draft" if outcome == "draft" else "none") as rig:
        asyncio.run(check(rig))


def test_an_answer_that_finds_its_engine_lost_goes_on_with_one_that_is_there_already() -> None:
    async def check(rig: Rig) -> None:
        first = rig.source.engines[0]

        def lose(*_: Any) -> Any:
            rig.service._connection.reconnect()
            rig.service._connection.ensure()
            raise CloudUnreachable("the connection is closed")

        first.answer = lose  # type: ignore[method-assign]
        found = await rig.ask()
        assert (told(found), found.headers["x-vsd-verified"]) == ("one two three ", "true")
        assert len(rig.source.engines) == 2

    with running() as rig:
        asyncio.run(check(rig))


def test_an_answer_that_takes_too_long_is_a_408_and_ends() -> None:
    async def check(rig: Rig) -> None:
        rig.source.engines[0].gate.clear()
        found = await rig.ask()
        assert (found.status_code, found.json()["error"]["code"]) == (408, "request_timeout")
        await until(lambda: not rig.source.engines[0].open)

    with running(request_timeout_s=0.1) as rig:
        asyncio.run(check(rig))


def test_without_the_cloud_503_comes_at_once_until_it_is_back() -> None:
    async def check(rig: Rig) -> None:
        rig.source.is_there, rig.source.engines[0].is_lost = False, True
        for stream in (False, True, False):
            began_s = time.monotonic()
            found = await rig.ask(stream=stream)
            assert (found.status_code, found.json()["error"]["code"]) == (503, "cloud_away")
            assert found.headers["retry-after"]
            assert time.monotonic() - began_s < 1
        async with rig.client() as client:
            assert (await client.get("/health")).status_code == 503
        rig.source.is_there = True
        rig.service._connection.reconnect()
        await until(lambda: rig.service.is_connected)
        assert told(await rig.ask()) == "one two three "

    with running() as rig:
        asyncio.run(check(rig))


def test_a_cloud_that_is_lost_while_nobody_asks_is_told_of_and_connected_again() -> None:
    async def check(rig: Rig) -> None:
        async with rig.client() as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            rig.source.is_there = rig.source.engines[0].is_reachable = False
            assert rig.metric("vsd_serve_connected") == 0
            for _ in range(2):
                found = await client.get("/health")
                assert (found.status_code, found.json()) == (503, {"status": "cloud_away"})
            rig.source.is_there = True
            rig.service._connection.ensure()
            assert (await client.get("/health")).json() == {"status": "ok"}
        assert len(rig.source.engines) == 2

    with running() as rig:
        asyncio.run(check(rig))


def test_with_a_fallback_the_draft_answers_and_the_reply_says_so() -> None:
    async def check(rig: Rig) -> None:
        rig.source.is_there, rig.source.engines[0].is_lost = False, True
        for _ in range(2):
            found = await rig.ask()
            assert told(found) == "draft: one two three "
            assert (found.json()["vsd"]["verified"], found.json()["model"]) == (False, "small")
            assert found.headers["x-vsd-verified"] == "false"
        streamed = await rig.ask(stream=True)
        assert streamed.headers["x-vsd-verified"] == "false"
        assert '"verified":false' in streamed.text
        assert rig.metric("vsd_serve_unverified_total") == 3

    with running(fallback="draft") as rig:
        asyncio.run(check(rig))


def test_an_answer_whose_beginning_the_target_decided_is_not_ended_by_the_draft() -> None:
    async def check(rig: Rig) -> None:
        rig.source.engines[0].fails_at = 2
        rig.source.is_there = False
        found = await rig.ask(stream=True)
        assert found.status_code == 200
        *_, last = found.text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cloud_away"
        assert "draft:" not in found.text

    with running(fallback="draft") as rig:
        asyncio.run(check(rig))


def test_a_cloud_that_is_away_at_the_start_is_waited_for() -> None:
    source = ScriptedSource(is_there=False)

    async def check(rig: Rig) -> None:
        found = await rig.ask(model="any name, for none is known yet")
        assert found.status_code == 503
        source.is_there = True
        rig.service._connection.ensure()
        assert (await rig.ask()).status_code == 200

    with running(source) as rig:
        asyncio.run(check(rig))


def test_an_error_that_waiting_does_not_mend_ends_the_start() -> None:
    class Broken(ScriptedSource):
        def connect(self) -> Any:
            raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"), running(Broken()):
        raise AssertionError("it has started")
    with pytest.raises(ConfigError, match="--fallback draft"):
        check_settings(ServeSettings(fallback="draft"), "")


def test_an_unexpected_error_says_nothing_of_the_inside() -> None:
    async def check(rig: Rig) -> None:
        def fail(*_: Any) -> Any:
            raise ZeroDivisionError("a secret of the inside")

        rig.source.engines[0].answer = fail  # type: ignore[method-assign]
        found = await rig.ask()
        assert (found.status_code, found.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in found.text

    with running() as rig:
        asyncio.run(check(rig))


def test_around_a_reconnection_answers_of_one_engine_run_at_a_time() -> None:
    """Two engines of one cloud, the one that is given up and the new one, share the draft model, too."""

    async def check(rig: Rig) -> None:
        old = rig.source.engines[0]
        old.gate.clear()
        before = asyncio.create_task(rig.ask())
        await until(lambda: len(old.open) == 1)
        rig.service._connection.reconnect()
        await until(lambda: len(rig.source.engines) == 2)
        new = rig.source.engines[1]
        after = [asyncio.create_task(rig.ask()) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert not new.asked, "both engines decode"
        old.gate.set()
        assert [told(await each) for each in (before, *after)] == ["one two three "] * 3
        assert len(new.asked) == 2

    with running(answers=3) as rig:
        asyncio.run(check(rig))


def test_turns_go_to_the_engines_in_the_order_of_who_asks() -> None:
    turns, order = EngineTurns(), list[str]()
    engines: Any = {"a": ScriptedEngine(), "b": ScriptedEngine()}

    def run(name: str, number: int) -> None:
        with turns.of(engines[name]):
            order.append(f"{name}{number}")
            time.sleep(0.02)

    with turns.of(engines["a"]):
        threads = []
        for name, number in (("b", 1), ("a", 2), ("b", 3)):
            threads.append(threading.Thread(target=run, args=(name, number)))
            threads[-1].start()
            while len(turns._waiting) < len(threads):
                time.sleep(0.001)
        assert not order, "who asks later passes one who waits"
    for thread in threads:
        thread.join()
    assert order == ["b1", "a2", "b3"]
