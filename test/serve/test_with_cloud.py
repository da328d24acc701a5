"""The endpoint with its target in a cloud: the tokens of both models here, and a cloud that goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from test.serve.chat_pair import write_pair
from test.serve.conformance import MODEL, SCHEMA, Asker, data_url, error_of, user
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud.app import serve_on
from vlm_spec_decode.cloud.config import CloudConfig
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.serve.openai_api.server import OpenAiServer, edge_timing
from vlm_spec_decode.serve.openai_api.settings import ServeSettings
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

pytestmark = [pytest.mark.net, pytest.mark.alone]


@dataclass
class Rig:
    """An endpoint with its cloud, and one with both models here."""

    far: Asker
    near: Asker
    far_server: OpenAiServer
    cloud: CloudServer


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("serve")
    draft, target = write_pair(folder)
    keys.generate(folder / "keys")
    config = CloudConfig(language=language(), model=str(target), draft=str(draft))
    cloud = serve_on(config, RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder / "keys")))
    thread = threading.Thread(target=cloud.serve)
    thread.start()
    edge = EdgeSettings(
        cloud=cloud.address, keys=folder / "keys", draft=str(draft), timing=edge_timing(1.5, 4.0)
    )
    far = started(ServeSettings(bind="127.0.0.1:0", fallback="draft"), edge)
    near = started(ServeSettings(bind="127.0.0.1:0"), EdgeSettings(draft=str(draft), target=str(target)))
    yield Rig(asker(far), asker(near), far, cloud)
    far.close()
    near.close()
    cloud.stop()
    thread.join(10)


def started(settings: ServeSettings, edge: EdgeSettings) -> OpenAiServer:
    server = OpenAiServer(settings, edge)
    server.start()
    return server


def asker(server: OpenAiServer) -> Asker:
    return Asker(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30))


URL = data_url()
QUESTIONS = {
    "free": {},
    "sampled": {"temperature": 1.0, "seed": 5},
    "turns": {"messages": [user("what is it", URL), {"role": "assistant", "content": "a box"}, user("red?")]},
    "regex": {"extra_body": {"response_format": {"type": "regex", "regex": "(yes|no), sir"}}},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "max_tokens": 60,
    },
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_cloud_says_what_the_same_models_say_here(rig: Rig, name: str) -> None:
    far, near = (each.chat(**QUESTIONS[name]) for each in (rig.far, rig.near))
    assert far.choices[0].message.content == near.choices[0].message.content
    assert far.model == near.model == Path(rig.far_server.endpoint.names.target).name
    assert far.vsd["verified"] is True
    assert far.usage.vsd["uplink_bytes"] > 0


def test_by_rejection_the_answer_depends_on_the_drafts_and_is_verified_all_the_same(rig: Rig) -> None:
    """Its law is that of the target; its tokens are not those of a run in which others were drafted."""
    asked = {"temperature": 1.0, "seed": 5, "extra_body": {"vsd": {"rule": "rejection"}}}
    found = rig.far.chat(**asked)
    assert found.choices[0].message.content
    assert found.vsd["verified"] is True
    assert found.vsd["rule"] == "rejection"


def test_what_the_cloud_cannot_do_is_a_client_error(rig: Rig) -> None:
    """Without drafts the cloud alone reads the form."""
    bad = {"vsd": {"strategy": "autoregressive"}, "response_format": {"type": "regex", "regex": "(("}}
    error = error_of(lambda: rig.far.chat(extra_body=bad))
    assert (error.status_code, error.code) == (400, "grammar")


def test_who_leaves_ends_the_answer_in_the_cloud(rig: Rig) -> None:
    stream = rig.far.chat(stream=True, max_tokens=1000)
    next(iter(stream))
    assert rig.cloud.protocol.requests
    stream.close()
    until_s = time.monotonic() + 5
    while rig.cloud.protocol.requests and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not rig.cloud.protocol.requests


def health(rig: Rig) -> str:
    return str(httpx.get(f"{rig.far_server.url}/health").json()["status"])


def test_without_its_cloud_the_draft_answers_and_says_so(rig: Rig) -> None:
    """The last one: it ends the cloud."""
    assert health(rig) == "ok"
    rig.cloud.stop()
    until_s = time.monotonic() + 6
    while health(rig) == "ok":  # nobody has asked since
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert health(rig) == "draft_only"
    found = rig.far.chat()
    assert (found.vsd["verified"], found.choices[0].finish_reason) == (False, "length")
    assert found.model != MODEL
    began_s = time.monotonic()
    assert rig.far.chat().vsd["verified"] is False
    assert time.monotonic() - began_s < 10
