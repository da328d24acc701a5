"""An older robot with a newer cloud, a newer robot with an older cloud, and nonsense in a Welcome."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test.protocol.test_hostile_link import HELLO, PEER, Pair, own_answer
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.core.errors import CloudRefused, ProtocolError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import (
    MAX_SIDE_PX,
    UNKNOWN_LIMITS,
    AnswerRequest,
    Chat,
    ChatTurn,
    ImageLimits,
    Observation,
    SamplingParams,
)
from vlm_spec_decode.edge.client_protocol import OLD_CLOUD, ClientProtocol, ClientState
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire

LIMITS = ImageLimits(max_pixels=1_003_520)
CARD = ModelCard("target", "1", "tokens", "prompt", 3, 1, (), LIMITS)


class WelcomeOfVersion1(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """As version 1 defined it."""

    model_id: str
    revision: str
    num_layers: int
    exit_layers: tuple[int, ...]
    image_window_bytes: int
    max_image_bytes: int
    strategies: tuple[str, ...]


class CloudOfVersion1(ServerProtocol):
    """A cloud that understands version 1 alone, and says nothing that version 1 did not."""

    def receive(self, peer: bytes, data: bytes, now_s: float) -> None:
        if data[0] != 1:
            refused = wire.Refused(0, 0, "version", f"protocol version {data[0]}; this is version 1")
            self.outbox.append((peer, codec.encode(refused, 1)))
            return
        super().receive(peer, data, now_s)
        for at, (to, sent) in enumerate(self.outbox):
            assert sent[0] == 1, "a robot of version 1 is answered in version 1"
            message = codec.decode(sent)
            if isinstance(message, wire.Welcome):
                fields = msgspec.structs.astuple(message)[:7]
                self.outbox[at] = to, b"\x01" + msgspec.msgpack.encode(WelcomeOfVersion1(*fields))


class OldPair(Pair):
    """A robot of today, and two clouds of version 1."""

    def new_cloud(self) -> ServerProtocol:
        return CloudOfVersion1(self.target.card, "grammar")


def exchanged(pair: Pair) -> set[int]:
    """Carry everything until the answer has arrived; return the versions that the edge sent."""
    versions: set[int] = set()
    for _ in range(400):
        while pair.up:
            versions.add(pair.up[0][0])
            pair.deliver(True, pair.up.popleft())
        while pair.down:
            pair.deliver(False, pair.down.popleft())
        pair.work()
        if pair.sequence.finished:
            return versions
        pair.pass_time(0.05)
    raise AssertionError("the answer has not arrived")


def test_a_newer_robot_gets_its_answer_from_an_older_cloud() -> None:
    pair = OldPair()
    assert exchanged(pair) == {1, 2, 3, 4}, "a Hello each in versions 4 to 2, the rest in version 1"
    assert pair.sequence.tokens == own_answer(pair.params)
    assert pair.edge.image_limits == UNKNOWN_LIMITS
    assert not pair.edge.dropped["welcome"]


def test_two_ends_of_today_speak_version_4_alone() -> None:
    pair = Pair()
    assert exchanged(pair) == {4}
    assert pair.sequence.tokens == own_answer(pair.params)


def test_an_older_robot_is_answered_in_version_1_and_can_read_every_field() -> None:
    cloud = ServerProtocol(CARD, "grammar")
    cloud.receive(PEER, b"\x01" + codec.encode(HELLO)[1:], 0.0)
    cloud.receive(PEER, codec.encode(wire.Ping(5, 0, 0, 0, False), 1), 0.0)
    (_, welcome), (_, pong) = cloud.outbox
    read = msgspec.msgpack.decode(welcome[1:], type=WelcomeOfVersion1)
    assert (welcome[0], pong[0], read.model_id) == (1, 1, "target")


def test_a_robot_that_goes_over_to_a_newer_version_is_answered_in_it_and_learns_the_limits() -> None:
    cloud = ServerProtocol(CARD, "grammar")
    edge = ClientProtocol(HELLO)
    edge.connect(0.0)
    for data in edge.outbox:
        cloud.receive(PEER, b"\x01" + data[1:], 0.0)
        cloud.receive(PEER, data, 0.0)
    (_, first), (_, second) = cloud.outbox
    assert (first[0], second[0]) == (1, 4)
    edge.receive(second, 0.1)
    assert edge.image_limits == LIMITS


def test_a_version_of_the_future_is_refused_in_version_1_which_everybody_understands() -> None:
    cloud = ServerProtocol(CARD, "grammar")
    cloud.receive(PEER, b"\x09" + codec.encode(HELLO)[1:], 0.0)
    ((_, data),) = cloud.outbox
    assert data[0] == 1
    assert codec.decode(data) == wire.Refused(0, 0, "version", "protocol version 9; this is version 4")


def refused(version: int = 1) -> bytes:
    return codec.encode(wire.Refused(0, 0, "version", "protocol version 2; this is version 0"), version)


@pytest.mark.parametrize("is_older", [False, True])
def test_a_chat_goes_only_to_a_cloud_that_reads_it(is_older: bool) -> None:
    """An older cloud would leave the field out, and answer another question."""
    edge = ClientProtocol(HELLO)
    edge.connect(0.0)
    for _ in range(wire.VERSION - wire.CHAT_VERSION + 1 if is_older else 0):
        edge.receive(refused(), 0.0)
    edge.receive(welcome(), 0.1)
    edge.outbox.clear()
    asked = Observation(None, "go", chat=Chat((ChatTurn("user", "what is it"),)))
    edge.open(AnswerRequest(1, asked, SamplingParams(), "speculative"), 0.2)
    sent = [codec.decode(data) for data in edge.outbox]
    assert sum(isinstance(message, wire.Open) for message in sent) == (0 if is_older else 1)
    assert [(e.reason, e.answer) for e in edge.events if isinstance(e, CloudRefused)] == (
        [(OLD_CLOUD, 1)] if is_older else []
    )
    assert edge.state is (ClientState.READY if is_older else ClientState.ANSWERING)


def test_refusals_that_come_late_do_no_harm() -> None:
    pair = OldPair()
    exchanged(pair)
    pair.edge.receive(refused(), pair.now_s + 60)
    assert (pair.edge.state, pair.edge.dropped["stale"]) == (ClientState.ANSWERING, 1)


def test_a_cloud_that_refuses_every_version_ends_the_handshake_by_name() -> None:
    edge = ClientProtocol(HELLO, ProtocolTiming(welcome_timeout_s=2.0))
    edge.connect(0.0)
    now_s = 0.0
    while edge.state is ClientState.GREETING and now_s < 10:
        edge.receive(refused(), now_s)
        now_s += 0.1
        edge.tick(now_s)
    assert 2.0 <= now_s < 3.0
    error = edge.events[-1]
    assert isinstance(error, CloudRefused)
    assert "protocol version" in str(error)
    assert {data[0] for data in edge.outbox} == {1, 2, 3, 4}
    edge.outbox.clear()
    edge.connect(now_s)
    assert edge.outbox[0][0] == 4, "another attempt begins with the newest version"


@pytest.mark.parametrize("silent_s", [1.0, 3.0])
def test_the_next_cloud_is_greeted_in_the_newest_version(silent_s: float) -> None:
    edge = ClientProtocol(HELLO, ProtocolTiming(switch_cloud_s=2.0), clouds=2)
    edge.connect(0.0)
    edge.receive(refused(), 0.0)
    edge.outbox.clear()
    for tenth in range(1, round(10 * silent_s) + 1):
        edge.tick(tenth / 10)
    assert (edge.cloud_index, edge.outbox[-1][0]) == ((1, 4) if silent_s > 2 else (0, 3))


def welcome(window: int = 4096, most: int = 65_536, limits: Any = None) -> bytes:
    return codec.encode(wire.Welcome("target", "1", 1, (), window, most, ("hybrid",), limits))


HUGE = 10**18

NONSENSE = {
    "no list": ("huge", UNKNOWN_LIMITS, "image_limits 'huge'"),
    "NaN": (math.nan, UNKNOWN_LIMITS, "image_limits nan"),
    "too short": ([5], UNKNOWN_LIMITS, r"image_limits \[5\]"),
    "negative area": ([-1, [], None], UNKNOWN_LIMITS, "max_pixels -1"),
    "huge area": ([HUGE, [], None], ImageLimits(max_pixels=MAX_SIDE_PX**2), "max_pixels 1000000"),
    "NaN area": ([math.nan, [[640, 480]], None], ImageLimits(inside=((640, 480),)), "max_pixels nan"),
    "infinite area": ([math.inf, [], None], UNKNOWN_LIMITS, "max_pixels inf"),
    "yes": ([True, [], None], UNKNOWN_LIMITS, "max_pixels True"),
    "empty box": ([0, [[0, 5]], None], UNKNOWN_LIMITS, "inside 0"),
    "huge box": ([0, [[HUGE, 5]], None], ImageLimits(inside=((MAX_SIDE_PX, 5),)), "inside 1000000"),
    "no box": ([0, [7], None], UNKNOWN_LIMITS, "inside 7"),
    "many boxes": ([0, [[9, 9]] * 900, None], ImageLimits(inside=((9, 9),) * 64), "of 900 boxes"),
    "bad cover": ([0, [], [336]], UNKNOWN_LIMITS, r"cover \[336\]"),
    "negative cover": ([0, [], [336, -336]], UNKNOWN_LIMITS, "cover -336"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_a_welcome_is_bounded_and_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    sent, expected, named = NONSENSE[name]
    edge = ClientProtocol(HELLO)
    edge.connect(0.0)
    with caplog.at_level(logging.WARNING):
        edge.receive(welcome(limits=sent), 0.1)
    assert edge.state is ClientState.READY, "the robot can still ask"
    assert edge.image_limits == expected
    assert edge.dropped["welcome"] == 1
    assert re.search(named, caplog.text)


@pytest.mark.parametrize(("window", "most"), [(0, 0), (-5, -5), (HUGE, HUGE)])
def test_windows_and_sizes_out_of_bounds_are_bounded_too(window: int, most: int) -> None:
    edge = ClientProtocol(HELLO)
    edge.connect(0.0)
    edge.receive(welcome(window, most), 0.1)
    assert edge.welcome is not None
    assert 4096 <= edge.welcome.image_window_bytes <= wire.MAX_SENT_IMAGE_BYTES
    assert 1 <= edge.welcome.max_image_bytes <= wire.MAX_SENT_IMAGE_BYTES
    assert edge.dropped["welcome"] == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(limits=values, width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_whatever_a_welcome_says_the_width_is_one_that_a_picture_can_have(
    limits: Any, width: int, height: int
) -> None:
    message = codec.decode(welcome(limits=limits))
    assert isinstance(message, wire.Welcome)
    _, found, _ = codec.read_welcome(message)
    assert min(width, 448) <= found.useful_width(width, height) <= width


def test_an_unreadable_welcome_stays_unreadable() -> None:
    with pytest.raises(ProtocolError):
        codec.decode(welcome()[:-3])
