"""mcap files of a bag: by their index if it is complete, else read in file order.

Records are those of mcap.dev/spec. An index is trusted if it accounts for every message of the file's
statistics; a file of a killed recorder, without chunks or index, or with an index that has gaps or
duplicates, is read in file order, chunk by chunk, including the beginning of a truncated chunk. A damaged
chunk loses its own messages only, and those are counted by the index beside it.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, TypeAlias

from lz4.frame import decompress as lz4_decompress
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, ChunkIndex, Schema
from mcap.summary import Summary
from zstandard import ZstdDecompressor

from vlm_spec_decode.bags.source import (
    READ_FAULTS,
    MessageTypes,
    Record,
    StorageFile,
    filled_bytes,
    lz4_front,
    unpack_message,
    zstd_front,
)
from vlm_spec_decode.core.errors import BagError

MAGIC = b"\x89MCAP0\r\n"
MAX_MCAP_RECORD_BYTES = 1 << 30

HEAD = struct.Struct("<BQ")
"""Opcode and length of a record."""

MESSAGE_HEAD = struct.Struct("<HIQQ")
"""Channel, sequence number, time of recording, time of sending."""

CHUNK_HEAD = struct.Struct("<QQQII")
"""First and last time, size, checksum, length of the compression's name."""

FOOTER = struct.Struct("<BQQQI")
"""Opcode, length, positions of the summary and its offsets, checksum."""

CHECKSUM_BYTES = 4

INDEX_HEAD = struct.Struct("<HI")
"""Channel, and bytes of its entries."""

INDEX_ENTRY_BYTES = 16
INDEX_RECORD_BYTES = HEAD.size + INDEX_HEAD.size

WHOLE: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "zstd": lambda data: ZstdDecompressor().decompressobj().decompress(data),
    "lz4": lambda data: bytes(lz4_decompress(data)),
}
FRONT: Mapping[str, Callable[[bytes], bytes]] = {"": lambda data: data, "zstd": zstd_front, "lz4": lz4_front}
"""Decompressors by a chunk's compression: of whole data, and of the intact beginning of truncated data."""

ENCODINGS = {"cdr": False, "": False, "ros1": True}
"""Message encodings, and whether each is that of ROS 1."""

Stream: TypeAlias = Iterator[tuple[int, bytes]]
"""Opcode and content of records."""

_Waiting: TypeAlias = tuple[int, int, bytes]
"""Time, channel and bytes of a message."""


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    kind: str
    is_ros1: bool

    def record(self, data: bytes, at_ns: int) -> Record:
        return Record(self.name, self.kind, unpack_message(data), at_ns, self.is_ros1)


class _McapFile(StorageFile):
    """The common part of both readers: schemas and channels."""

    def __init__(self, path: Path, types: MessageTypes) -> None:
        super().__init__(path, types)
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, _Topic] = {}
        self._refused: set[int] = set()
        """Channels with an encoding that is not supported."""

    def _add_schema(self, schema: Schema) -> None:
        self._schemas[schema.id] = schema

    def _add_channel(self, channel: Channel) -> None:
        schema = self._schemas.get(channel.schema_id)
        encoding = channel.message_encoding.lower()
        if encoding not in ENCODINGS:
            self.faults[f"{channel.topic}: messages encoded as {encoding!r}, which is not read"] = 1
            self._refused.add(channel.id)
        elif channel.schema_id == 0:
            self.faults[f"{channel.topic}: messages of no named type"] = 1
            self._refused.add(channel.id)
        elif schema is not None:
            is_ros1 = ENCODINGS[encoding] and schema.encoding != "ros2msg"
            parts = schema.name.replace("::", "/").split("/")
            kind = f"{parts[0]}/msg/{parts[-1]}" if len(parts) > 1 else schema.name
            text = schema.data.decode(errors="replace")
            self.add_definition(kind, text, schema.encoding, is_ros1=is_ros1)
            self._channels[channel.id] = _Topic(channel.topic, kind, is_ros1)
            self.topics[channel.topic] = kind

    def _record(self, topic: _Topic, data: bytes, at_ns: int) -> Iterator[Record]:
        """Yield a message; count one whose own compression is damaged."""
        try:
            record = topic.record(data, at_ns)
        except READ_FAULTS:
            self.count_lost({topic.name: 1}, "damaged", (at_ns, data[-16:]))
        else:
            yield record


class IndexedMcap(_McapFile):
    """A file whose index accounts for every message. Raises an error with the reason if it does not."""

    def __init__(self, path: Path, types: MessageTypes) -> None:
        super().__init__(path, types)
        with path.open("rb") as file:
            self._chunks = self._read_index(file)

    def _read_index(self, file: BinaryIO) -> list[tuple[ChunkIndex, dict[int, int]]]:
        summary = _summary(file)
        if summary is None or summary.statistics is None or not summary.chunk_indexes:
            raise BagError("no index")
        chunks = [(index, _counts(index)) for index in _distinct(summary)]
        counted = sum((Counter(counts) for _, counts in chunks), Counter[int]())
        expected = Counter({k: n for k, n in summary.statistics.channel_message_counts.items() if n})
        if counted != expected or counted.total() != summary.statistics.message_count:
            raise BagError("an index that does not account for all messages")
        for schema in summary.schemas.values():
            self._add_schema(schema)
        for channel in summary.channels.values():
            if counted[channel.id]:
                self._add_channel(channel)
        if counted.keys() - self._channels.keys() - self._refused:
            raise BagError("an index without all channels")
        for index, _ in chunks:
            self.span.add(index.message_start_time)
            self.span.add(index.message_end_time)
        return sorted(chunks, key=lambda chunk: chunk[0].message_start_time)

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order. Chunks may overlap in time."""
        wanted = {number: topic for number, topic in self._channels.items() if topic.name in topics}
        chunks = [(index, counts) for index, counts in self._chunks if counts.keys() & wanted.keys()]
        waiting: list[_Waiting] = []
        with self.path.open("rb") as file:
            for place, (index, counts) in enumerate(chunks):
                waiting += self._load(file, index, counts, wanted)
                waiting.sort(key=itemgetter(0))  # stable: messages of one time stay in the file's order
                following = chunks[place + 1][0].message_start_time if place + 1 < len(chunks) else None
                ripe = (
                    len(waiting) if following is None else bisect_left(waiting, following, key=itemgetter(0))
                )
                for at_ns, channel, data in waiting[:ripe]:
                    yield from self._record(wanted[channel], data, at_ns)
                del waiting[:ripe]

    def _load(
        self, file: BinaryIO, index: ChunkIndex, counts: Mapping[int, int], wanted: Mapping[int, _Topic]
    ) -> list[_Waiting]:
        """Return the messages of a chunk; count them if it is damaged."""
        try:
            file.seek(index.chunk_start_offset)
            opcode, length = HEAD.unpack(file.read(HEAD.size))
            if opcode != Opcode.CHUNK or length > MAX_MCAP_RECORD_BYTES:
                raise BagError("no chunk where the index says")
            found = []
            for kind, data in _stream(_unpacked(file.read(length))):
                if kind == Opcode.MESSAGE:
                    channel, _, at_ns, _ = MESSAGE_HEAD.unpack_from(data)
                    if channel in wanted:
                        found.append((at_ns, channel, data[MESSAGE_HEAD.size :]))
        except (*READ_FAULTS, BagError):
            lost = Counter[str]()
            for number, messages in counts.items():
                if number in wanted:
                    lost[wanted[number].name] += messages
            self.count_lost(lost, "in a damaged chunk", index.chunk_start_offset)
            return []
        return found


class TruncatedMcap(_McapFile):
    """An mcap file without footer or index; a truncated chunk is read up to its end.

    `why` is the reason why its index is not used.
    """

    def __init__(self, path: Path, types: MessageTypes, why: str) -> None:
        super().__init__(path, types)
        self.faults[f"read from its front, without an index ({why})"] += 1
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                self.faults[f"{path.name} is no mcap file"] += 1
            self._add_summary(file)
        for record in self._scan(None):
            self.span.add(record.at_ns)

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in file order, up to where the file is truncated."""
        return self._scan(topics)

    def _add_summary(self, file: BinaryIO) -> None:
        """Add the channels of the summary: the chunk that also describes them may be damaged."""
        try:
            summary = _summary(file)
        except (*READ_FAULTS, BagError):
            return
        for schema in summary.schemas.values() if summary else ():
            self._add_schema(schema)
        for channel in summary.channels.values() if summary else ():
            self._add_channel(channel)

    def _scan(self, topics: Collection[str] | None) -> Iterator[Record]:
        """Yield messages. Without `topics` yield all and count nothing, for a first scan."""
        damaged = False
        with self.path.open("rb") as file:
            for number, (kind, data) in enumerate(_front_records(file)):
                if kind == Opcode.SCHEMA:
                    self._add_schema(Schema.read(ReadDataStream(io.BytesIO(data))))
                elif kind == Opcode.CHANNEL:
                    self._add_channel(Channel.read(ReadDataStream(io.BytesIO(data))))
                elif kind == Opcode.CHUNK:
                    damaged = True
                elif kind == Opcode.MESSAGE:
                    channel, _, at_ns, _ = MESSAGE_HEAD.unpack_from(data)
                    topic = self._channels.get(channel)
                    if topic is None:
                        self._count_undescribed(channel, topics, number)
                    elif topics is None or topic.name in topics:
                        yield from self._record(topic, data[MESSAGE_HEAD.size :], at_ns)
                elif kind == Opcode.MESSAGE_INDEX and topics is not None and damaged:
                    self._count_lost(data, topics, number)
                if kind not in (Opcode.CHUNK, Opcode.MESSAGE_INDEX):
                    damaged = False

    def _count_undescribed(self, channel: int, topics: Collection[str] | None, number: int) -> None:
        if topics is not None and channel not in self._refused:
            self.count_lost({f"of channel {channel}": 1}, "which is described nowhere", number)

    def _count_lost(self, index: bytes, topics: Collection[str], number: int) -> None:
        channel, num_bytes = INDEX_HEAD.unpack_from(index)
        topic = self._channels.get(channel)
        if topic is not None and topic.name in topics:
            self.count_lost({topic.name: num_bytes // INDEX_ENTRY_BYTES}, "in a damaged chunk", number)


def _summary(file: BinaryIO) -> Summary | None:
    """Return the summary at a file's end. Raises one of READ_FAULTS, or BagError."""
    summary = SeekingReader(file, record_size_limit=MAX_MCAP_RECORD_BYTES).get_summary()
    size = file.seek(0, io.SEEK_END)
    file.seek(size - FOOTER.size - len(MAGIC))
    _, _, start, _, checksum = FOOTER.unpack(file.read(FOOTER.size))
    if start and checksum:
        file.seek(start)
        if zlib.crc32(file.read(size - len(MAGIC) - CHECKSUM_BYTES - start)) != checksum:
            raise BagError("a summary whose checksum does not fit")
    return summary


def _distinct(summary: Summary) -> list[ChunkIndex]:
    """Return the index of every chunk once."""
    return list({index.chunk_start_offset: index for index in summary.chunk_indexes}.values())


def _counts(index: ChunkIndex) -> dict[int, int]:
    """Return how many messages of each channel a chunk has, by the offsets of its index records."""
    offsets = sorted((offset, channel) for channel, offset in index.message_index_offsets.items())
    ends = [offset for offset, _ in offsets[1:]]
    ends.append(index.chunk_start_offset + index.chunk_length + index.message_index_length)
    return {
        channel: (end - offset - INDEX_RECORD_BYTES) // INDEX_ENTRY_BYTES
        for (offset, channel), end in zip(offsets, ends, strict=True)
        if end - offset > INDEX_RECORD_BYTES
    }


def _unpacked(chunk: bytes) -> bytes:
    """Return the records inside a chunk. Raises one of READ_FAULTS, or BagError, if it is damaged."""
    found = Chunk.read(ReadDataStream(io.BytesIO(chunk)))
    if found.compression not in WHOLE:
        raise BagError(f"unknown compression {found.compression!r}")
    inside = WHOLE[found.compression](found.data)
    if len(inside) != found.uncompressed_size:
        raise BagError("a chunk of another size than it says")
    if found.uncompressed_crc and zlib.crc32(inside) != found.uncompressed_crc:
        raise BagError("a chunk whose checksum does not fit")
    return inside


def _stream(data: bytes) -> Stream:
    """Yield opcode and content of records one after the other. Raises EOFError if the last is cut."""
    at = 0
    while at < len(data):
        if at + HEAD.size > len(data):
            raise EOFError
        opcode, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        if at + length > len(data):
            raise EOFError
        yield opcode, data[at : at + length]
        at += length


def _front_records(file: BinaryIO) -> Stream:
    """Yield the records of a file, also those in chunks, up to its end or to invalid data.

    A damaged chunk is yielded empty, so that the messages in the index after it can be counted.
    """
    size = filled_bytes(file)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        return
    while len(head := file.read(HEAD.size)) == HEAD.size:
        opcode, length = HEAD.unpack(head)
        if opcode in (Opcode.DATA_END, Opcode.FOOTER, 0):
            return
        if file.tell() + length > size:
            if opcode == Opcode.CHUNK:
                yield from _broken_chunk(file.read(min(MAX_MCAP_RECORD_BYTES, max(0, size - file.tell()))))
            return
        if opcode == Opcode.ATTACHMENT or length > MAX_MCAP_RECORD_BYTES:
            file.seek(length, io.SEEK_CUR)
            continue
        data = file.read(length)
        if opcode != Opcode.CHUNK:
            yield opcode, data
            continue
        try:
            inside = list(_stream(_unpacked(data)))
        except (*READ_FAULTS, BagError):
            yield Opcode.CHUNK, b""
            continue
        yield from inside


def _broken_chunk(data: bytes) -> Stream:
    """Yield the records at the beginning of a chunk whose end is missing."""
    try:
        *_, name_length = CHUNK_HEAD.unpack_from(data)
        compression = data[CHUNK_HEAD.size : CHUNK_HEAD.size + name_length].decode()
        inside = FRONT[compression](data[CHUNK_HEAD.size + name_length + 8 :])
    except READ_FAULTS:
        return
    try:
        yield from _stream(inside)
    except EOFError:
        return
