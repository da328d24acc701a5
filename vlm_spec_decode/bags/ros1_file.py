"""ROS 1 files of a bag: intact ones by the `rosbags` library, others in file order.

A killed recorder leaves `.bag.active` without an index, a truncated copy ends within a chunk: those are read
in file order. A file with damaged bytes is read chunk by chunk by its index. Handles the file's layout only,
not the content of messages.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from lz4.frame import LZ4FrameDecompressor
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from vlm_spec_decode.bags.source import READ_FAULTS, MessageTypes, Record, Span, StorageFile
from vlm_spec_decode.core.errors import BagError

ANY_VERSION = b"#ROSBAG V"


class IndexedRos1(StorageFile):
    """A complete file. Raises an error with the reason if it is not."""

    def __init__(self, path: Path, types: MessageTypes) -> None:
        super().__init__(path, types)
        self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS1_NOETIC))
        self._reader.open()
        for connection in self._reader.connections:
            if connection.msgcount:
                self.topics[connection.topic] = connection.msgtype
                self.add_definition(connection.msgtype, connection.msgdef.data, "ros1msg", is_ros1=True)
        if self._reader.message_count:
            self.span = Span(self._reader.start_time, self._reader.end_time)

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order; after a fault the rest is counted as lost."""
        wanted = [c for c in self._reader.connections if c.topic in topics]
        if not wanted:
            return
        left = Counter[str]()
        for connection in wanted:
            left[connection.topic] += connection.msgcount
        try:
            for connection, at_ns, data in self._reader.messages(connections=wanted):
                left[connection.topic] -= 1
                yield Record(connection.topic, connection.msgtype, bytes(data), at_ns, is_ros1=True)
        except READ_FAULTS as error:
            self.faults[f"the bag breaks off ({type(error).__name__})"] += 1
            self.count_lost(+left, "in or after a damaged chunk", "rest")

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._reader.stack:
            self._reader.close()


class TruncatedRos1(StorageFile):
    """A ROS 1 file without its index; the intact part of a truncated chunk is read too."""

    def __init__(self, path: Path, types: MessageTypes, why: str) -> None:
        super().__init__(path, types)
        self.faults[f"read from its front, without an index ({why})"] += 1
        self._has_index: bool | None = None
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise BagError("no bag of version 2.0; `rosbag migrate` converts older ones")
        self._known: dict[int, Connection] = {}
        used: set[int] = set()
        for item in self._items():  # connections may be described after their first messages
            if isinstance(item, Connection):
                self._known[item.number] = item
                self.add_definition(item.kind, item.definition, "ros1msg", is_ros1=True)
            elif isinstance(item, Message):
                used.add(item.connection)
                self.span.add(item.at_ns)
        self.topics = {c.topic: c.kind for number, c in self._known.items() if number in used}

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in file order, up to where the file is truncated."""
        for item in self._items():
            if isinstance(item, Connection):
                continue
            connection = self._known.get(item.connection)
            if connection is None:
                self.count_lost({f"of connection {item.connection}": 1}, "which is described nowhere", item)
            elif connection.topic not in topics:
                continue
            elif isinstance(item, Lost):
                self.count_lost({connection.topic: item.count}, "in a damaged chunk", item.place)
            else:
                yield Record(connection.topic, connection.kind, item.data, item.at_ns, is_ros1=True)

    def _items(self) -> Iterator[Item]:
        with self.path.open("rb") as file:
            if self._has_index is None:
                self._has_index = _has_index(file)
            file.seek(0)
            yield from ros1_chunks(file) if self._has_index else ros1_front(file)


def _has_index(file: BinaryIO) -> bool:
    try:
        next(ros1_chunks(file))
    except (*FAULTS, StopIteration):
        return False
    return True


MAGIC = b"#ROSBAG V2.0\n"
MESSAGE, BAG_HEAD, INDEX_DATA, CHUNK, CHUNK_INFO, CONNECTION = (bytes([op]) for op in range(2, 8))
MAX_ROS1_RECORD_BYTES = 256 * 2**20
FAULTS = (struct.error, KeyError, ValueError, OSError, EOFError, RuntimeError)
"""Errors that invalid bytes cause."""

DECOMPRESSORS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"none": lambda data: data,
    b"bz2": lambda data: bz2.BZ2Decompressor().decompress(data),
    b"lz4": lambda data: bytes(LZ4FrameDecompressor().decompress(data)),
}
"""Each returns the intact beginning of a stream."""


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


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages of a connection that are in an index and cannot be read; `place` is their position."""

    connection: int
    count: int
    place: int


Item: TypeAlias = Connection | Message | Lost


def ros1_chunks(file: BinaryIO) -> Iterator[Item]:
    """Yield connections and messages as the index at the end of the file lists them.

    Raises one of FAULTS if there is no index.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("no ROS 1 bag")
    fields = _fields(_block(file)[0])
    (place,) = struct.unpack("<Q", fields["index_pos"])
    if fields["op"] != BAG_HEAD or not place:
        raise ValueError("no index")
    connections, chunks = _index(file, place)
    if len(chunks) != struct.unpack("<I", fields["chunk_count"])[0]:
        raise ValueError("half an index")
    yield from connections
    for at, counts in chunks:
        found: Counter[int] = Counter()
        file.seek(at)
        with contextlib.suppress(*FAULTS):
            head, data = _fields(_block(file)[0]), _block(file)[0]
            for items in _records(io.BytesIO(DECOMPRESSORS[head["compression"]](data))):
                if isinstance(items, Message):
                    found[items.connection] += 1
                yield items
        for number, count in counts.items():
            if count > found[number]:
                yield Lost(number, count - found[number], at)


def _index(file: BinaryIO, place: int) -> tuple[list[Connection], list[tuple[int, dict[int, int]]]]:
    """Return connections, and for each chunk its position and the number of messages of each connection."""
    connections, chunks = list[Connection](), list[tuple[int, dict[int, int]]]()
    file.seek(place)
    with contextlib.suppress(EOFError):
        while True:
            fields, (data, _) = _fields(_block(file)[0]), _block(file)
            if fields["op"] == CONNECTION:
                connections.append(_connection(fields, _fields(data)))
            elif fields["op"] == CHUNK_INFO:
                (at,) = struct.unpack("<Q", fields["chunk_pos"])
                chunks.append((at, dict(struct.iter_unpack("<II", data))))
    if not connections or not chunks:
        raise ValueError("an empty index")
    return connections, sorted(chunks, key=lambda chunk: chunk[0])


def ros1_front(file: BinaryIO) -> Iterator[Item]:
    """Yield connections and messages, also those in chunks, up to the end of the file or to invalid data."""
    if file.read(len(MAGIC)) == MAGIC:
        try:
            yield from _records(file)
        except FAULTS:
            return


def _records(file: BinaryIO) -> Iterator[Item]:
    found: Counter[int] = Counter()
    while True:
        head, _ = _block(file)
        fields = _fields(head)
        data, is_whole = _block(file)
        if fields["op"] == CHUNK:  # a truncated chunk holds messages too, and a damaged one affects no other
            found = Counter()
            with contextlib.suppress(*FAULTS):
                for items in _records(io.BytesIO(DECOMPRESSORS[fields["compression"]](data))):
                    if isinstance(items, Message):
                        found[items.connection] += 1
                    yield items
        elif is_whole and fields["op"] == CONNECTION:
            yield _connection(fields, _fields(data))
        elif is_whole and fields["op"] == INDEX_DATA:
            number, count = (struct.unpack("<I", fields[name])[0] for name in ("conn", "count"))
            if count > found[number]:
                yield Lost(number, count - found[number], file.tell())
        elif is_whole and fields["op"] == MESSAGE:
            (number,) = struct.unpack("<I", fields["conn"])
            seconds, nanoseconds = struct.unpack("<II", fields["time"])
            yield Message(number, seconds * 1_000_000_000 + nanoseconds, data)


def _connection(fields: Mapping[str, bytes], header: Mapping[str, bytes]) -> Connection:
    (number,) = struct.unpack("<I", fields["conn"])
    package, _, name = header["type"].decode().partition("/")
    definition = header["message_definition"].decode(errors="replace")
    return Connection(number, fields["topic"].decode(), f"{package}/msg/{name}", definition)


def _block(file: BinaryIO) -> tuple[bytes, bool]:
    """Read a length and that many bytes; return also whether all are there. Raises EOFError at the end."""
    size = file.read(4)
    if len(size) < 4:
        raise EOFError
    (length,) = struct.unpack("<I", size)
    data = file.read(min(length, MAX_ROS1_RECORD_BYTES))
    return data, len(data) == length


def _fields(head: bytes) -> dict[str, bytes]:
    found, at = {}, 0
    while at < len(head):
        (length,) = struct.unpack_from("<I", head, at)
        name, _, value = head[at + 4 : at + 4 + length].partition(b"=")
        found[name.decode()] = value
        at += 4 + length
    return found
