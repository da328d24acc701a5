"""Nearly messages and nearly pictures: whatever comes in ends in a value, a named error or a counted drop."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from benchmarks.lib.fuzz import begins_an_answer, broken_pictures, malformed, valid_messages
from test.tables import TARGET, TableModel
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.replicas.router import ReplicaRouter
from vlm_spec_decode.core.errors import ImageError, ProtocolError
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.types import AnswerRequest, Commit, Observation, SamplingParams
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Hello, Welcome, WireCommit

SEEDS = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "seeds").iterdir())}
MESSAGES = [data for name, data in SEEDS.items() if not name.endswith(".jpg")]
HELLO = Hello("test", "tokens", "prompt", "grammar", 3)
FRAMES = 60
CLOUD_TO_EDGE = [
    codec.encode(Welcome("m", "1", 1, (), 4096, 9999, ("hybrid",))),
    codec.encode(WireCommit(1, 0, 0, b"\0\0", 0, 1, False, 5)),
]


def frames(seed: int) -> list[bytes]:
    return [*MESSAGES, *itertools.islice(malformed(HELLO, seed, MESSAGES), FRAMES)]


def through_codec(data: bytes) -> None:
    try:
        message = codec.decode(data)
    except ProtocolError:
        return
    assert codec.decode(codec.encode(message)) == message or "nan" in str(message)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_codec(seed: int) -> None:
    for data in frames(seed):
        through_codec(data)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_handshake_desk_and_front(seed: int, greeted: bool) -> None:
    target, router = TableModel(TARGET), ReplicaRouter(replicas={0: "live"})
    protocol = ServerProtocol(target.card, "grammar")
    hello, opening = (codec.encode(message) for message in valid_messages(HELLO)[:2])
    for data in [hello, opening] if greeted else []:
        protocol.receive(b"robot", data, 0.0)
        router.route(b"robot", data)
    before = len(protocol.requests)
    for number, data in enumerate(frames(seed)):
        protocol.receive(b"robot", data, 0.01 * number)
        router.route(b"robot", data)
        for job in protocol.next_batch(0.01 * number):
            job.request.running = False
    assert before <= 1
    assert len(protocol.requests) <= protocol.limits.sessions_per_peer
    assert all(codec.decode(data) for _, data in [*protocol.outbox, *router.outbox]), "replies are messages"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32))
def test_edge(seed: int) -> None:
    edge = ClientProtocol(HELLO)
    edge.connect(0.0)
    edge.open(AnswerRequest(1, Observation(None, "go"), SamplingParams(max_tokens=20), "hybrid"), 0.0)
    for number, data in enumerate([*CLOUD_TO_EDGE, *frames(seed)]):
        edge.receive(data, 0.01 * number)
        edge.tick(0.01 * number)
    commits = [event for event in edge.events if isinstance(event, Commit)]
    assert all(0 <= token < 3 for commit in commits for token in commit.tokens)


def picture() -> bytes:
    held = io.BytesIO()
    PilImage.linear_gradient("L").resize((96, 64)).convert("RGB").save(held, "JPEG", quality=60)
    return held.getvalue()


def through_decoder(data: bytes) -> None:
    try:
        found = decode_jpeg(data)
    except ImageError:
        return
    assert found.mode == "RGB"
    assert found.size[0] * found.size[1] <= 40_000_000


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32))
def test_image_path(seed: int) -> None:
    for data in itertools.islice(broken_pictures(picture(), seed), 20):
        through_decoder(data)


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_that_was_found(name: str) -> None:
    (through_decoder if name.endswith(".jpg") else through_codec)(SEEDS[name])


def test_no_frame_of_a_flood_begins_an_answer() -> None:
    assert all(begins_an_answer(codec.encode(message)) for message in valid_messages(HELLO)[:2])
    assert not any(map(begins_an_answer, itertools.islice(malformed(HELLO, 1), 300)))
