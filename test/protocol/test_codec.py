from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.core.errors import ProtocolError
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Chat,
    ChatTurn,
    Commit,
    Correction,
    DraftMessage,
    EarlyExitVerdict,
    Image,
    ImageLimits,
    MoreSamples,
    Observation,
    SamplingParams,
    SparseTarget,
)
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as m
from vlm_spec_decode.strategies.rejection import ProposalLog

REQUEST = AnswerRequest(
    7,
    Observation(Image(b"jpeg", 640, 360), "go to the red chair", ("turn(-10)",), 12.5, "front_camera"),
    SamplingParams(temperature=0.5, top_k=40, top_p=0.9, max_tokens=64, stop_ids=(2,), seed=99),
    "speculative",
    (4, 5, 6),
    2,
    draft=DraftMessage(7, 2, 3, 1, (8, 9), (0, 1), (4, 4)),
    draft_step_s=0.02475,
)
PACKER = codec.TokenPacker(32000)

GOLDEN = {
    "hello": (m.Hello("vsd 0.1.0", "t", "p", "g", 300), "019601a976736420302e312e30a174a170a167cd012c"),
    "ping": (m.Ping(1_000_000, 3, 1, 12, True), "01960cce000f424003010cc3"),
    "pong": (m.Pong(5, 3, 1, False), "01950d050301c2"),
    "chunk": (m.ImageChunk(3, 0, 4096, b"\xff\xd8"), "0195050300cd1000c402ffd8"),
    "credit": (m.ImageCredit(3, 0, 8192), "0194060300cd2000"),
    "draft": (
        PACKER.draft_to_wire(DraftMessage(3, 0, 12, 5, (1, 256, 31999, 7), (0, 5, 6, 7))),
        "01990703000c05c40801000001ff7c0700c0c0c0",
    ),
    "tree": (
        PACKER.draft_to_wire(DraftMessage(3, 0, 12, 5, (1, 2), (0, 3), (16, 255))),
        "01990703000c05c40401000200c40400000300c40210ffc0",
    ),
    "early": (
        codec.early_exit_to_wire(EarlyExitVerdict(3, 0, 2, 6, 5, 256, 1.0)),
        "0198080300020605cd0100ccff",
    ),
    "commit": (
        PACKER.commit_to_wire(Commit(3, 0, 12, (1, 9), 5, 2, False, 0.0086)),
        "019a0903000cc404010009000502c2cd2198c0",
    ),
    "close": (m.Close(3, 1), "01930b0301"),
    "refused": (
        m.Refused(0, 0, "tokenizer_mismatch", ""),
        "0195030000b2746f6b656e697a65725f6d69736d61746368a0",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    """The bytes of version 1. A change here is a new protocol version, not a new golden file."""
    message, expected = GOLDEN[name]
    assert codec.encode(message, 1).hex() == expected
    assert codec.decode(bytes.fromhex(expected)) == message


LIMITS = ImageLimits(max_pixels=1_003_520, inside=((672, 672), (1008, 336)), cover=(336, 336))

GOLDEN_2 = {
    **{name: (message, "02" + data[2:]) for name, (message, data) in GOLDEN.items()},
    "welcome": (
        m.Welcome("m", "1", 12, (6,), 4096, 65536, ("hybrid",), codec.limits_to_wire(LIMITS)),
        "029902a16da1310c9106cd1000ce0001000091a6687962726964"
        "93ce000f500092" "92cd02a0cd02a0" "92cd03f0cd0150" "92cd0150cd0150",
    ),
    "welcome without limits": (
        m.Welcome("m", "1", 12, (), 4096, 65536, ()),
        "029902a16da1310c90cd1000ce0001000090c0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN_2)
def test_golden_bytes_of_version_2(name: str) -> None:
    message, expected = GOLDEN_2[name]
    assert codec.encode(message, 2).hex() == expected
    decoded = codec.decode(bytes.fromhex(expected))
    if isinstance(decoded, m.Welcome) and decoded.image_limits is not None:
        assert codec.read_welcome(decoded) == (decoded, LIMITS, ())
    assert codec.encode(decoded, 2).hex() == expected


CHAT = Chat(
    (
        ChatTurn("system", "be short"),
        ChatTurn("user", "what is it", sees=True),
        ChatTurn("assistant", "a box"),
        ChatTurn("user", "red?"),
    ),
    "regex",
    "yes|no",
)
CHAT_REQUEST = replace(REQUEST, observation=replace(REQUEST.observation, chat=CHAT))

GOLDEN_3 = {
    **{name: (message, "03" + data[2:]) for name, (message, data) in GOLDEN_2.items()},
    "open": (
        codec.open_message(REQUEST, PACKER, 2, REQUEST.committed, draft=REQUEST.draft),
        "03dc001b040702ab73706563756c6174697665b3676f20746f207468652072656420636861697291a9747572"
        "6e282d313029cb4029000000000000ac66726f6e745f63616d657261c42041e5787e9f28562d07b891b1816b"
        "492309d646c0f2829743fa4963a9f9cc1d6104cd0280cd0168cb3fe000000000000028cb3feccccccccccccd"
        "40910263a7636f75706c6564b034323066383037623261623537323534c406040005000600a6737061727365"
        "a76c6174656e637900990707020301c40408000900c0c4020404c0cd60aec0",
    ),
    "open with a chat": (
        codec.open_message(CHAT_REQUEST, PACKER, 2, ()),
        "03dc001b040702ab73706563756c6174697665b3676f20746f207468652072656420636861697291a9747572"
        "6e282d313029cb4029000000000000ac66726f6e745f63616d657261c42041e5787e9f28562d07b891b1816b"
        "492309d646c0f2829743fa4963a9f9cc1d6104cd0280cd0168cb3fe000000000000028cb3feccccccccccccd"
        "40910263a7636f75706c6564b034323066383037623261623537323534c400a6737061727365a76c6174656e"
        "637900c0cd60ae939493a673797374656da862652073686f7274c293a475736572aa77686174206973206974"
        "c393a9617373697374616e74a56120626f78c293a475736572a47265643fc2a57265676578a67965737c6e6f",
    ),
}


@pytest.mark.parametrize("name", GOLDEN_3)
def test_golden_bytes_of_version_3(name: str) -> None:
    message, expected = GOLDEN_3[name]
    assert codec.encode(message, 3).hex() == expected
    assert codec.decode(bytes.fromhex(expected)) == codec.decode(codec.encode(message))


PRICED = Commit(3, 0, 12, (1, 9), 5, 2, False, 0.0086, floor=math.exp(-20 / 16))

GOLDEN_4 = {
    **{
        name: (message, "04" + data[2:])
        for name, (message, data) in GOLDEN_3.items()
        if not isinstance(message, m.Open | m.WireCommit)
    },
    "commit": (PACKER.commit_to_wire(PRICED), "049b0903000cc404010009000502c2cd2198c014"),
    "commit of an idle cloud": (
        PACKER.commit_to_wire(replace(PRICED, floor=0.0)),
        "049b0903000cc404010009000502c2cd2198c0ccff",
    ),
    "open": (
        codec.open_message(
            replace(REQUEST, deadline_s=3.0), PACKER, 2, REQUEST.committed, draft=REQUEST.draft
        ),
        "04dc001c" + GOLDEN_3["open"][1][8:] + "cd0bb8",
    ),
}


@pytest.mark.parametrize("name", GOLDEN_4)
def test_golden_bytes_of_version_4(name: str) -> None:
    message, expected = GOLDEN_4[name]
    assert codec.encode(message).hex() == expected
    assert codec.encode(codec.decode(bytes.fromhex(expected))).hex() == expected


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_end_gets_the_messages_of_its_version(version: int) -> None:
    """Deadline and floor are left out, and what an older end sends has neither."""
    commit, opened = PACKER.commit_to_wire(PRICED), GOLDEN_4["open"][0]
    assert codec.encode(commit, version).hex()[2:] == GOLDEN["commit"][1][2:]
    assert codec.encode(opened, version).hex()[2:] == GOLDEN_3["open"][1][2:]
    older = codec.decode(codec.encode(commit, version))
    assert isinstance(older, m.WireCommit)
    assert PACKER.commit_from_wire(older).floor == 0.0


def test_a_floor_and_a_deadline_arrive_as_they_were_sent() -> None:
    sent = codec.decode(codec.encode(PACKER.commit_to_wire(PRICED)))
    assert isinstance(sent, m.WireCommit)
    assert PACKER.commit_from_wire(sent).floor == pytest.approx(PRICED.floor)
    opened = codec.open_message(replace(REQUEST, deadline_s=3.0), PACKER, 2, (), deadline_s=-1.0)
    assert opened.deadline_ms == 1, "a deadline that is over is not the same as none"
    image = REQUEST.observation.image
    assert codec.answer_request(GOLDEN_4["open"][0], PACKER, image).deadline_s == 3.0  # type: ignore[arg-type]
    for wrong in (-1, 256):
        with pytest.raises(ProtocolError):
            PACKER.commit_from_wire(msgspec.structs.replace(sent, floor=wrong))
    with pytest.raises(ProtocolError):
        codec.answer_request(msgspec.structs.replace(opened, deadline_ms=-1), PACKER, image)


def test_an_open_carries_its_chat() -> None:
    again = codec.decode(codec.encode(codec.open_message(CHAT_REQUEST, PACKER, 2, ())))
    assert isinstance(again, m.Open)
    image = CHAT_REQUEST.observation.image
    assert codec.answer_request(again, PACKER, image).observation == CHAT_REQUEST.observation


BAD_CHATS: dict[str, Any] = {
    "nobody": ((), "free", ""),
    "last word": ((("user", "a", True), ("assistant", "b", False)), "free", ""),
    "unknown role": ((("tool", "a", False), ("user", "b", True)), "free", ""),
    "two pictures": ((("user", "a", True), ("assistant", "b", False), ("user", "c", True)), "free", ""),
    "no picture": ((("user", "a", False),), "free", ""),
    "unknown form": ((("user", "a", True),), "lark", "x"),
    "free with a pattern": ((("user", "a", True),), "free", "x"),
    "regex without": ((("user", "a", True),), "regex", ""),
    "too long": ((("user", "a" * 50_000, True),), "free", ""),
    "too many": ((("user", "a", False),) * 70 + (("user", "a", True),), "free", ""),
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_chat_that_makes_no_sense_is_refused(name: str) -> None:
    message = codec.open_message(CHAT_REQUEST, PACKER, 2, ())
    with pytest.raises(ProtocolError):
        codec.answer_request(msgspec.structs.replace(message, chat=BAD_CHATS[name]), PACKER, None)


def test_a_round_of_four_ids_fits_in_24_bytes() -> None:
    draft = DraftMessage(900, 0, 120, 500, (31999, 31998, 5, 20000), (0, 500, 501, 502))
    assert len(codec.encode(PACKER.draft_to_wire(draft))) <= 24


@pytest.mark.parametrize("residual", ["sparse", "cloud"])
def test_a_round_of_four_ids_with_their_q_fits_in_60_bytes(residual: str) -> None:
    """The widest q that the edge sends: peaked or flat, the codec's bytes do not grow beyond the bar."""
    params = SamplingParams(1.0, rule="rejection", residual=residual)
    rng = np.random.default_rng(0)
    for _ in range(20):
        proposals = ProposalLog(params)
        prefixes = [tuple(range(n)) for n in range(4)]
        logits = rng.normal(0, rng.choice([0.1, 3.0, 8.0]), (4, 32000)).astype(np.float32)
        tokens = tuple(proposals.draw(p, row) for p, row in zip(prefixes, logits, strict=True))
        whole = tuple(proposals.q(p, t) for p, t in zip(prefixes, tokens, strict=True))
        q = whole if residual == "cloud" else tuple(support[:1] for support in whole)
        draft = DraftMessage(900, 0, 120, 500, tokens, (0, 500, 501, 502), (), q)
        data = codec.encode(PACKER.draft_to_wire(draft))
        assert len(data) <= 60
        wire = codec.decode(data)
        assert isinstance(wire, m.WireDraft)
        assert PACKER.draft_from_wire(wire) == draft, "what arrives is what was sampled from"


def test_a_residual_and_a_correction_round_trip() -> None:
    target = SparseTarget((3, 900, 31999), (1 << 39, 1 << 38, 1 << 37), 1 << 37, ((7, 12), (7, 12)))
    for cut in (target, replace(target, tail=(), is_cut=True)):
        commit = Commit(1, 2, 3, (), 4, 5, False, 0.25, cut)
        wire = codec.decode(codec.encode(PACKER.commit_to_wire(commit)))
        assert isinstance(wire, m.WireCommit)
        assert PACKER.commit_from_wire(wire) == commit
    correction = Correction(900, 0, 123, 31999)
    data = codec.encode(PACKER.client_message_to_wire(correction))
    wire_correction = codec.decode(data)
    assert isinstance(wire_correction, m.WireCorrection)
    assert PACKER.client_message_from_wire(wire_correction) == correction
    assert len(data) <= 12
    asked = MoreSamples(900, 0, 123, 20)
    data = codec.encode(PACKER.client_message_to_wire(asked))
    assert data == codec.encode(m.WireCorrection(900, 0, 123, -20)), "on the wire a negative token, as ever"
    wire_asked = codec.decode(data)
    assert isinstance(wire_asked, m.WireCorrection)
    assert PACKER.client_message_from_wire(wire_asked) == asked


@pytest.mark.parametrize("changed", [{"image_bytes": 0}, {"image_digest": b""}, {"draft_step_us": -1}])
def test_an_open_that_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    """The cloud would wait for ever for bytes of an image that nobody sends."""
    message = codec.open_message(REQUEST, PACKER, 0, ())
    codec.answer_request(message, PACKER, None)
    with pytest.raises(ProtocolError):
        codec.answer_request(msgspec.structs.replace(message, **changed), PACKER, None)


def test_an_open_carries_the_request() -> None:
    message = codec.open_message(REQUEST, PACKER, 2, REQUEST.committed, draft=REQUEST.draft)
    again = codec.decode(codec.encode(message))
    assert isinstance(again, m.Open)
    assert again.image_digest == REQUEST.observation.image.digest  # type: ignore[union-attr]
    assert codec.answer_request(again, PACKER, REQUEST.observation.image) == REQUEST


@given(st.data())
def test_drafts_and_commits_round_trip(data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from([3, 65536, 65537, 151936]))
    packer = codec.TokenPacker(vocab)
    ids = st.integers(0, vocab - 1)
    size = data.draw(st.integers(1, 20))
    first = data.draw(st.integers(1, 5000))
    parents = tuple(data.draw(st.integers(0, first + i - 1)) for i in range(size))
    parents = tuple(p if p == 0 or first + i - p < 65536 else 0 for i, p in enumerate(parents))
    tokens = tuple(data.draw(st.lists(ids, min_size=size, max_size=size)))
    weights = tuple(data.draw(st.lists(st.integers(0, 255), min_size=size, max_size=size)))
    draft = DraftMessage(1, 2, data.draw(st.integers(0, 4000)), first, tokens, parents, weights)
    wire = codec.decode(codec.encode(packer.draft_to_wire(draft)))
    assert isinstance(wire, m.WireDraft)
    back = packer.draft_from_wire(wire)
    assert (back.tokens, back.parents, back.base) == (draft.tokens, draft.parents, draft.base)
    assert back.weights == (weights if any(weights) else ())
    commit = Commit(1, 2, 3, tokens, 4, 5, True, 0.25)
    wire_commit = codec.decode(codec.encode(packer.commit_to_wire(commit)))
    assert isinstance(wire_commit, m.WireCommit)
    assert packer.commit_from_wire(wire_commit) == commit


def take(data: bytes) -> object:
    """Decode all the way down, as both ends do."""
    message = codec.decode(data)
    if isinstance(message, m.WireDraft):
        return PACKER.draft_from_wire(message)
    if isinstance(message, m.WireCommit):
        return PACKER.commit_from_wire(message)
    if isinstance(message, m.WireEarly):
        return codec.early_exit_from_wire(message)
    if isinstance(message, m.Open):
        return codec.answer_request(message, PACKER, None)
    return message


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    for candidate in (data, b"\x01" + data, b"\x01\x99\x07" + data):
        try:
            take(candidate)
        except ProtocolError:
            continue


@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_a_damaged_message_is_a_protocol_error_or_another_message(name: str, data: st.DataObject) -> None:
    raw = bytearray.fromhex(GOLDEN[name][1])
    cut = data.draw(st.integers(0, len(raw)))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for candidate in (bytes(raw), bytes(raw[:cut])):
        try:
            take(candidate)
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes"),
        (b"\x09" + codec.encode(m.Close(1, 1))[1:], "version 9"),
        (b"\x01" * 70_000, "70000 bytes"),
        (b"\x01\xc1\xc1", "not a message"),
    ],
)
def test_errors_say_what_is_wrong(data: bytes, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        codec.decode(data)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ProtocolError, match="vocabulary of 3"):
        codec.TokenPacker(3).unpack(b"\x03\x00")
    with pytest.raises(ProtocolError, match="3 bytes"):
        codec.TokenPacker(3).unpack(b"\x00\x00\x00")
