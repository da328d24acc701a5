"""The records of a ROS 1 bag from its front, for one without its index (wiki.ros.org/Bags/Format/2.0).

A recorder that was killed leaves `.bag.active` without an index, a copy that broke off half a chunk. Knows
the file's layout only; what the messages mean is nobody's business here.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from lz4.frame import LZ4FrameDecompressor

MAGIC = b"#ROSBAG V2.0\n"
MESSAGE, CHUNK, CONNECTION = b"\x02", b"\x05", b"\x07"
MAX_RECORD_BYTES = 256 * 2**20
FAULTS = (struct.error, KeyError, ValueError, OSError, EOFError, RuntimeError)
"""What bytes that make no sense lead to."""

DECOMPRESSORS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"none": lambda data: data,
    b"bz2": lambda data: bz2.BZ2Decompressor().decompress(data),
    b"lz4": lambda data: bytes(LZ4FrameDecompressor().decompress(data)),
}
"""Each gives what the beginning of a stream holds."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A topic, its type (`package/msg/Name`) and the type's definition."""

    number: int
    topic: str
    kind: str
    definition: str


@dataclass(frozen=True, slots=True)
class Message:
    """One serialised message on a connection."""

    connection: int
    at_ns: int
    data: bytes


Heard: TypeAlias = Connection | Message


def ros1_front(file: BinaryIO) -> Iterator[Heard]:
    """Yield connections and messages, those in chunks too, up to where the file ends or makes no sense."""
    if file.read(len(MAGIC)) == MAGIC:
        try:
            yield from _records(file)
        except FAULTS:
            return


def _records(file: BinaryIO) -> Iterator[Heard]:
    while True:
        head, _ = _block(file)
        fields = _fields(head)
        data, is_whole = _block(file)
        if fields["op"] == CHUNK:  # half a chunk holds messages too
            with contextlib.suppress(EOFError):
                yield from _records(io.BytesIO(DECOMPRESSORS[fields["compression"]](data)))
        elif is_whole and fields["op"] == CONNECTION:
            yield _connection(fields, _fields(data))
        elif is_whole and fields["op"] == MESSAGE:
            (number,) = struct.unpack("<I", fields["conn"])
            seconds, nanoseconds = struct.unpack("<II", fields["time"])
            yield Message(number, seconds * 1_000_000_000 + nanoseconds, data)


def _connection(fields: Mapping[str, bytes], said: Mapping[str, bytes]) -> Connection:
    (number,) = struct.unpack("<I", fields["conn"])
    package, _, name = said["type"].decode().partition("/")
    definition = said["message_definition"].decode(errors="replace")
    return Connection(number, fields["topic"].decode(), f"{package}/msg/{name}", definition)


def _block(file: BinaryIO) -> tuple[bytes, bool]:
    """Read a length and as many bytes; also say whether they are all there. Raises EOFError at the end."""
    size = file.read(4)
    if len(size) < 4:
        raise EOFError
    (length,) = struct.unpack("<I", size)
    data = file.read(min(length, MAX_RECORD_BYTES))
    return data, len(data) == length


def _fields(head: bytes) -> dict[str, bytes]:
    found, at = {}, 0
    while at < len(head):
        (length,) = struct.unpack_from("<I", head, at)
        name, _, value = head[at + 4 : at + 4 + length].partition(b"=")
        found[name.decode()] = value
        at += 4 + length
    return found
