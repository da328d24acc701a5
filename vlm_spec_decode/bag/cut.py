"""Bags without their end, read from the front for as long as they make sense; and which reader a bag takes.

A recorder that was killed leaves no index and no metadata.yaml, a copy that broke off half a message.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from lz4.frame import LZ4FrameDecompressor
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from zstandard import ZstdDecompressor, ZstdError

from vlm_spec_decode.bag import ros1
from vlm_spec_decode.bag.pages import SqliteFile
from vlm_spec_decode.bag.source import READ_FAULTS, BagSource, Decoding, IndexedBag, Record
from vlm_spec_decode.core.errors import BagError

SUFFIXES = frozenset({".mcap", ".db3", ".bag", ".active"})
MAX_RECORD_BYTES = 256 * 2**20
MCAP_FAULTS = (McapError, ZstdError, struct.error, EOFError, ValueError, OSError, RuntimeError)
"""What mcap's reader raises where a file ends or does not hold what it should."""

CHUNK_HEAD = struct.Struct("<BQQQQII")
"""Opcode, record length, first and last time, size, checksum, length of the compression's name."""

DECOMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "zstd": lambda data: ZstdDecompressor().decompressobj().decompress(data),
    "lz4": lambda data: bytes(LZ4FrameDecompressor().decompress(data)),
}
"""Each gives what the beginning of a stream holds."""


def open_bag(path: Path) -> BagSource:
    """Open a bag: a folder with metadata.yaml, a folder of files without, or one .mcap, .db3 or .bag file.

    Raises BagError if there is none, or none that can be read at all.
    """
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    try:
        return IndexedBag(path)
    except READ_FAULTS as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [file for file in files if file.suffix in SUFFIXES and file.stat().st_size]
    for suffix, kind in ((".mcap", CutMcap), (".db3", CutSqlite), (".bag", CutRos1), (".active", CutRos1)):
        if fits := [file for file in parts if file.suffix == suffix]:
            return kind(fits, why)
    raise BagError(f"{path}: not a bag that can be read ({why})")


class _Cut(Decoding):
    """What both kinds have in common: files one after the other, definitions found on the way."""

    duration_s = 0.0
    is_ros1 = False

    def __init__(self, paths: Sequence[Path], why: str) -> None:
        self._types = get_typestore(Stores.ROS1_NOETIC if self.is_ros1 else Stores.ROS2_HUMBLE)
        super().__init__(self._types.deserialize_ros1 if self.is_ros1 else self._types.deserialize_cdr)
        self.paths = paths
        self.faults[f"read from its front, without an index ({why})"] += 1
        self.topics: dict[str, str] = {}
        for path in paths:
            self.topics |= self._find_topics(path)

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in the order of the files; ends early where they do."""
        for path in self.paths:
            for record in self._read(path):
                if record.topic in topics:
                    yield record

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _find_topics(self, path: Path) -> dict[str, str]:
        return {record.topic: record.kind for record in self._read(path)}

    def _read(self, path: Path) -> Iterator[Record]:
        raise NotImplementedError

    def _learn(self, kind: str, definition: str) -> None:
        if kind in self._types.fielddefs:
            return
        try:
            found = get_types_from_msg(definition, kind)
        except TypesysError:
            self.faults[f"{kind}: a definition that cannot be read"] += 1
            return
        self._types.register({k: v for k, v in found.items() if k not in self._types.fielddefs})


class CutMcap(_Cut):
    """An mcap file without footer or index; also a chunk that broke off gives what it holds."""

    def _read(self, path: Path) -> Iterator[Record]:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        with path.open("rb") as file:
            for record in mcap_front(file):
                if isinstance(record, Schema):
                    schemas[record.id] = record
                    if record.encoding == "ros2msg":
                        self._learn(record.name, record.data.decode(errors="replace"))
                elif isinstance(record, Channel) and record.schema_id in schemas:
                    channels[record.id] = record
                elif isinstance(record, Message) and record.channel_id in channels:
                    channel = channels[record.channel_id]
                    kind = schemas[channel.schema_id].name
                    yield Record(channel.topic, kind, record.data, record.log_time)


def mcap_front(file: BinaryIO) -> Iterator[McapRecord]:
    """Yield the records of an mcap file, those in chunks too, up to where it ends or makes no sense."""
    good = 0
    try:
        reader = StreamReader(file, emit_chunks=True, record_size_limit=MAX_RECORD_BYTES)
        for record in reader.records:
            yield from breakup_chunk(record) if isinstance(record, Chunk) else (record,)
            good = file.tell()
    except MCAP_FAULTS:
        file.seek(good)
        yield from _broken_chunk(file.read(MAX_RECORD_BYTES))


def _broken_chunk(data: bytes) -> Iterator[McapRecord]:
    """Yield the records at the beginning of a chunk whose end is missing."""
    try:
        opcode, _, _, _, _, _, name_length = CHUNK_HEAD.unpack_from(data)
        compression = data[CHUNK_HEAD.size : CHUNK_HEAD.size + name_length].decode()
        rest = data[CHUNK_HEAD.size + name_length + 8 :]
        if opcode != Opcode.CHUNK or compression not in DECOMPRESSORS:
            return
        inside = io.BytesIO(DECOMPRESSORS[compression](rest))
        yield from StreamReader(inside, skip_magic=True, record_size_limit=MAX_RECORD_BYTES).records
    except MCAP_FAULTS:
        return


class CutSqlite(_Cut):
    """An sqlite3 bag without metadata.yaml, or whose last pages are missing."""

    def _find_topics(self, path: Path) -> dict[str, str]:
        try:
            with SqliteFile(path) as file:
                for kind, definition in file.definitions():
                    self._learn(kind, definition)
                return dict(file.topics().values())
        except READ_FAULTS as error:
            raise BagError(f"{path}: not a bag that can be read ({error})") from error

    def _read(self, path: Path) -> Iterator[Record]:
        with SqliteFile(path) as file:
            topics = file.topics()
            for topic, at_ns, data in file.messages():
                if topic in topics:
                    yield Record(*topics[topic], data, at_ns)


class CutRos1(_Cut):
    """A ROS 1 file without its index; also a chunk that broke off gives what it holds."""

    is_ros1 = True

    def _read(self, path: Path) -> Iterator[Record]:
        known: dict[int, ros1.Connection] = {}
        with path.open("rb") as file:
            for heard in ros1.ros1_front(file):
                if isinstance(heard, ros1.Connection):
                    known[heard.number] = heard
                    self._learn(heard.kind, heard.definition)
                elif connection := known.get(heard.connection):
                    yield Record(connection.topic, connection.kind, heard.data, heard.at_ns)
