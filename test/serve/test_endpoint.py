"""The endpoint over a real engine, asked by the real `openai` client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai
import pytest

from test.serve.chat_pair import write_pair
from test.serve.conformance import KEY, MODEL, Asker, cases, data_url
from vlm_spec_decode.core.types import Chat, ChatTurn, Observation
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.serve.openai_api.server import OpenAiServer
from vlm_spec_decode.serve.openai_api.settings import ServeSettings
from vlm_spec_decode.strategies.registry import STRATEGIES

pytestmark = pytest.mark.net

CASES = dict(cases())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAiServer]:
    folder = tmp_path_factory.mktemp("serve")
    draft, target = write_pair(folder)
    keys = folder / "keys"
    keys.write_text(f"tests {KEY}\n")
    keys.chmod(0o600)
    settings = ServeSettings(
        bind="127.0.0.1:0", api_keys=keys, model_name=("robot-vlm",), max_body_mib=1, max_megapixels=0.5
    )
    found = OpenAiServer(settings, EdgeSettings(draft=str(draft), target=str(target)))
    found.start()
    yield found
    found.close()


@pytest.fixture(scope="module")
def ask(server: OpenAiServer) -> Iterator[Asker]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=30) as client:
        yield Asker(client)


def test_the_matrix_is_as_large_as_promised() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_what_the_client_is_told(ask: Asker, name: str) -> None:
    CASES[name](ask)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_tokens_are_the_engines_own(server: OpenAiServer, ask: Asker, strategy: str) -> None:
    engine = server.service.engine
    assert isinstance(engine, Engine)
    config = engine.config
    params = replace(config.params, temperature=0.8, seed=7, max_tokens=10)
    chat = Observation(None, "what is it", chat=Chat((ChatTurn("user", "what is it"),)))
    answer = engine.answer(chat, replace(config, params=params, strategy=strategy, free_text=True))
    *_, last = answer
    assert last.result is not None
    told = ask.chat(temperature=0.8, seed=7, max_tokens=10, extra_body={"vsd": {"strategy": strategy}})
    assert told.choices[0].message.content == last.result.text
    assert told.usage.completion_tokens == len(last.result.tokens)


def idle(server: OpenAiServer, within_s: float = 2.0) -> bool:
    """Wait until no answer is decoded."""
    until_s = time.monotonic() + within_s
    while server.service.decoding and time.monotonic() < until_s:
        time.sleep(0.01)
    return not server.service.decoding and not server.service.under_way


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_session_at_once(server: OpenAiServer, stream: bool) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "go"}],
        "max_tokens": 1000,
        "stream": stream,
    }
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=0.4) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body)
    assert idle(server), "the answer goes on although nobody waits"


def test_paths_methods_and_pages(server: OpenAiServer) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/metrics").status_code == 401
        page = client.get("/metrics", headers=headers).text
        assert 'vsd_serve_requests_total{path="/metrics",status="401"} ' in page
        assert KEY not in page
        for path in (
            "/",
            "/v1",
            "/v1/chat/completions/",
            "/v1/models/..%2f..%2fetc",
            "//health",
        ):
            found = client.get(path, headers=headers)
            assert found.status_code in {404, 405}, path
            assert "error" in found.json()
        found = client.get("/v1/chat/completions", headers=headers)
        assert (found.status_code, found.json()["error"]["code"]) == (405, "method_not_allowed")
        assert "allow" in found.headers
        found = client.post("/v1/chat/completions", headers=headers, content=b"{}")
        assert (found.status_code, found.json()["error"]["code"]) == (400, "invalid_content_type")
        found = client.get("/v1/models", headers={**headers, "origin": "http://evil.example"})
        assert (found.status_code, found.json()["error"]["code"]) == (403, "foreign_origin")


def test_an_error_in_the_middle_of_a_stream_is_an_event(server: OpenAiServer, ask: Asker) -> None:
    engine = server.service.engine
    assert isinstance(engine, Engine)
    stream = iter(ask.chat(stream=True, max_tokens=1000))
    next(stream)
    engine.cancel()
    with pytest.raises(openai.APIError, match="the server ended the answer"):
        list(stream)


def test_events_are_lines_that_any_client_reads(server: OpenAiServer) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "go"}], "max_tokens": 4, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    found = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["x-vsd-verified"] == "true"
    *events, done, rest = found.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(
        json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events
    )


def test_a_picture_of_a_redirect_or_another_host_is_never_fetched(server: OpenAiServer, ask: Asker) -> None:
    for url in ("http://localhost/a.png", "https://user@host/a.png", "http://[::1]:9/", "ftp://host/a"):
        with pytest.raises(openai.BadRequestError):
            ask.chat(picture=url)
    assert ask.chat(picture=data_url()).usage.completion_tokens == 12
