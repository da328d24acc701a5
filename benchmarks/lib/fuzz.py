"""Malformed input: bytes close to valid messages or pictures, from a seeded generator.

The tests run a few through codec, server protocol and picture decoder; `flood` sends any number to a real
cloud, over sockets, beside robots that are to stay served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from vlm_spec_decode.core.errors import ProtocolError
from vlm_spec_decode.core.types import (
    MAX_MESSAGE_BYTES,
    AnswerRequest,
    DraftMessage,
    Image,
    Observation,
    SamplingParams,
)
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import (
    VERSION,
    AnyMessage,
    Close,
    Hello,
    ImageChunk,
    Open,
    Ping,
    WireCorrection,
)

Random: TypeAlias = np.random.Generator
Mutation: TypeAlias = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, -1, 127, 255, 65_535, 65_536, 2**31, -(2**31), 2**53, 2**63 - 1, 2**64 - 1, -(2**63))
LENGTHS = (0xC6, 0xDB, 0xDD, 0xDF, 0xC9)
"""msgpack's marks of bytes, text, arrays, maps and extensions with lengths of four bytes."""


def valid_messages(hello: Hello) -> tuple[AnyMessage, ...]:
    """Return one message of every kind that an edge sends, as robots with this handshake send them."""
    image = Image(b"\xff\xd8\xff" + bytes(600), 64, 48)
    observation = Observation(image, "walk to the red ball", ("forward(1.0)",), 12.5, "camera")
    request = AnswerRequest(1, observation, SamplingParams(max_tokens=20), "speculative")
    packer = codec.TokenPacker(hello.vocab_size)
    draft = DraftMessage(1, 0, 0, 1, (0, 1, 2, 1), (0, 1, 1, 0), (3, 4, 5, 6))
    return (
        hello,
        codec.open_message(request, packer, 0, (0, 1)),
        ImageChunk(1, 0, 0, image.jpeg[:256]),
        packer.draft_to_wire(draft),
        WireCorrection(1, 0, 2, 1),
        Ping(1_000_000, 1, 0, 2, True),
        Close(1, 0),
    )


def malformed(hello: Hello, seed: int, seeds: Sequence[bytes] = ()) -> Iterator[bytes]:
    """Yield bytes without end, none of which begins an answer: that would be a robot's good right."""
    rng = np.random.default_rng(seed)
    corpus = [codec.encode(message) for message in valid_messages(hello)]
    corpus += [data for data in seeds if not begins_an_answer(data)]
    while True:
        data = corpus[rng.integers(len(corpus))]
        for _ in range(rng.integers(1, 4)):
            data = MUTATIONS[rng.integers(len(MUTATIONS))](data, rng)
        if not begins_an_answer(data):
            yield data


def begins_an_answer(data: bytes) -> bool:
    """Return whether a cloud may take these bytes as a robot's Hello or Open."""
    try:
        return isinstance(codec.decode(data), Hello | Open)
    except ProtocolError:
        return False


def broken_pictures(jpeg: bytes, seed: int) -> Iterator[bytes]:
    """Yield bytes that are nearly a picture, without end."""
    rng = np.random.default_rng(seed)
    while True:
        data = jpeg
        for _ in range(rng.integers(1, 4)):
            data = PICTURE_MUTATIONS[rng.integers(len(PICTURE_MUTATIONS))](data, rng)
        yield data


def noise(_data: bytes, rng: Random) -> bytes:
    """Return random bytes instead, mostly few, now and then more than a message may have."""
    size = MAX_MESSAGE_BYTES + 9 if rng.random() < 0.002 else int(rng.integers(0, 200))
    return rng.bytes(size)


def flip(data: bytes, rng: Random) -> bytes:
    """Flip a few bits."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.integers(1, 6)):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(data: bytes, rng: Random) -> bytes:
    """Leave the end away."""
    return data[: rng.integers(len(data) + 1)]


def repeat(data: bytes, rng: Random) -> bytes:
    """Say a part twice."""
    at, end = sorted(int(n) for n in rng.integers(len(data) + 1, size=2))
    return data[:end] + data[at:]


def splice(data: bytes, rng: Random) -> bytes:
    """Put noise into the middle."""
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 24))) + data[at:]


def other_version(data: bytes, rng: Random) -> bytes:
    """Claim another protocol version."""
    return bytes([int(rng.integers(256))]) + data[1:]


def long_claim(data: bytes, rng: Random) -> bytes:
    """Claim a length that nothing has."""
    at = int(rng.integers(1, len(data) + 1)) if data else 0
    mark = LENGTHS[rng.integers(len(LENGTHS))]
    return data[:at] + bytes([mark]) + b"\xff\xff\xff\xf0" + data[at:]


def deep(_data: bytes, rng: Random) -> bytes:
    """Nest arrays deeper than the decoder allows."""
    return bytes([VERSION]) + b"\x91" * int(rng.integers(100, 30_000)) + b"\x00"


def other_field(data: bytes, rng: Random) -> bytes:
    """Put a number or a value of another type into a field of a message."""
    try:
        fields = msgspec.msgpack.decode(data[1:])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return flip(data, rng)
    if not isinstance(fields, list) or not fields:
        return flip(data, rng)
    values: tuple[object, ...] = (
        NUMBERS[rng.integers(len(NUMBERS))],
        float("nan"),
        None,
        "é" * 9,
        rng.bytes(9),
        [[]],
        {"a": 1},
    )
    fields[rng.integers(len(fields))] = values[rng.integers(len(values))]
    return data[:1] + msgspec.msgpack.encode(fields)


def huge_picture(data: bytes, rng: Random) -> bytes:
    """Write a huge size into a JPEG's frame header."""
    at = data.find(b"\xff\xc0")
    if at < 0:
        return flip(data, rng)
    return data[: at + 5] + rng.bytes(4) + data[at + 9 :]


MUTATIONS: tuple[Mutation, ...] = (
    flip, cut, repeat, splice, other_version, long_claim, deep, noise, other_field, other_field, other_field,
)  # fmt: skip
PICTURE_MUTATIONS: tuple[Mutation, ...] = (flip, cut, repeat, splice, huge_picture)
