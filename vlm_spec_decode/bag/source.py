"""A bag as a stream of messages in time order: rosbag2 (mcap, sqlite3) and ROS 1, whole or cut off.

Reading is the `rosbags` library's. What it refuses because the end is missing (a recorder that was killed,
a copy that broke off) is read from the front for as long as it can be. Nothing here knows what messages mean.
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import apsw
from lz4.frame import LZ4FrameDecompressor
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from zstandard import ZstdDecompressor, ZstdError

from vlm_spec_decode.core.errors import BagError

SUFFIXES = frozenset({".mcap", ".db3", ".bag"})
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

SQLITE_HEAD = struct.Struct(">16xH10xI")
"""Page size and number of pages in an sqlite file's header."""

READ_FAULTS = (
    *(AnyReaderError, ReaderError, SerdeError, apsw.Error, ZstdError, struct.error),
    *(OSError, ValueError, KeyError, TypeError, AssertionError, IndexError, RuntimeError),
)
"""The same for `rosbags`, which meets broken bytes in many places."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message as it was written; `at_ns` is the recorder's time."""

    topic: str
    kind: str
    data: bytes
    at_ns: int


class BagSource(Protocol):
    """An open bag. `faults` counts by name what could not be read; it grows while records are read."""

    faults: Counter[str]

    @property
    def topics(self) -> dict[str, str]:
        """Topic to message type, such as `sensor_msgs/msg/Image`."""

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order; ends early where the bag does."""

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""

    def close(self) -> None:
        """Let go of the files. Idempotent."""


def bag_name(path: Path) -> str:
    """Return what a bag is called in results: its own name, after its folder's if that alone says nothing."""
    path = path.resolve()
    return f"{path.parent.name}_{path.stem}" if path.stem in ("bag", "rosbag2") else path.stem


def open_bag(path: Path) -> BagSource:
    """Open a bag: a folder with metadata.yaml, a folder of files without, or one .mcap, .db3 or .bag file.

    Raises BagError if there is none, or none that can be read at all.
    """
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    try:
        return IndexedBag(path)
    except READ_FAULTS as error:
        why = f"{type(error).__name__}: {error}"
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [file for file in files if file.suffix in SUFFIXES and file.stat().st_size]
    for file in parts:
        if file.suffix == ".mcap":
            return CutMcap(file)
        if file.suffix == ".db3":
            return CutSqlite(file)
    raise BagError(f"{path}: not a bag that can be read ({' '.join(why.split())[:200]})")


class IndexedBag:
    """A complete bag."""

    def __init__(self, path: Path) -> None:
        self.faults: Counter[str] = Counter()
        self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        self._reader.open()
        self.topics = {c.topic: c.msgtype for c in self._reader.connections if c.msgcount}

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order; ends early where the bag does."""
        wanted = [c for c in self._reader.connections if c.topic in topics]
        if not wanted:
            return
        try:
            for connection, at_ns, data in self._reader.messages(connections=wanted):
                yield Record(connection.topic, connection.msgtype, data, at_ns)
        except READ_FAULTS as error:
            self.faults[f"the bag breaks off ({type(error).__name__})"] += 1

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""
        try:
            return self._reader.deserialize(record.data, record.kind)
        except READ_FAULTS:
            self.faults[f"{record.topic}: {record.kind} that cannot be read"] += 1
            return None

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        if self._reader.stack:
            self._reader.close()


@dataclass(slots=True)
class _Cut:
    """What both kinds of a bag without its end have in common: definitions found on the way."""

    path: Path
    faults: Counter[str] = field(default_factory=Counter)
    topics: dict[str, str] = field(default_factory=dict)
    _types: Any = None

    def __post_init__(self) -> None:
        self._types = get_typestore(Stores.ROS2_HUMBLE)
        self.faults["the bag has no end: read from its front"] += 1
        self.topics = self._find_topics()

    def _find_topics(self) -> dict[str, str]:
        raise NotImplementedError

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""
        try:
            return self._types.deserialize_cdr(record.data, record.kind)
        except READ_FAULTS:
            self.faults[f"{record.topic}: {record.kind} that cannot be read"] += 1
            return None

    def close(self) -> None:
        """Nothing stays open between reads."""


class CutMcap(_Cut):
    """An mcap file without footer or index; also a chunk that broke off gives what it holds."""

    def _find_topics(self) -> dict[str, str]:
        return {channel.topic: schema.name for channel, schema, _ in self._messages()}

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in the order of the file."""
        for channel, schema, message in self._messages():
            if channel.topic in topics:
                yield Record(channel.topic, schema.name, message.data, message.log_time)

    def _messages(self) -> Iterator[tuple[Channel, Schema, Message]]:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        with self.path.open("rb") as file:
            for record in mcap_front(file):
                if isinstance(record, Schema):
                    schemas[record.id] = record
                    self._learn(record)
                elif isinstance(record, Channel) and record.schema_id in schemas:
                    channels[record.id] = record
                elif isinstance(record, Message) and record.channel_id in channels:
                    channel = channels[record.channel_id]
                    yield channel, schemas[channel.schema_id], record

    def _learn(self, schema: Schema) -> None:
        if schema.encoding != "ros2msg" or schema.name in self._types.fielddefs:
            return
        try:
            found = get_types_from_msg(schema.data.decode(errors="replace"), schema.name)
        except TypesysError:
            self.faults[f"{schema.name}: a definition that cannot be read"] += 1
            return
        self._types.register({k: v for k, v in found.items() if k not in self._types.fielddefs})


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

    def _find_topics(self) -> dict[str, str]:
        try:
            with self._connect() as database:
                found = database.execute("SELECT name, type FROM topics").fetchall()
                return {name: kind for name, kind in found if name and kind}
        except sqlite3.Error as error:
            raise BagError(f"{self.path}: not a bag that can be read ({error})") from error

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in the order of the file, which is that of recording."""
        try:
            with self._connect() as database:
                names = {key: (n, k) for key, n, k in database.execute("SELECT id, name, type FROM topics")}
                # One table in the order of its pages: a join or an index would need the missing ones.
                for topic, data, at_ns in database.execute("SELECT topic_id, data, timestamp FROM messages"):
                    name, kind = names.get(topic, ("", ""))
                    if name in topics and data is not None and at_ns is not None:
                        yield Record(name, kind, bytes(data), at_ns)
        except sqlite3.Error as error:
            self.faults[f"the bag breaks off ({type(error).__name__})"] += 1

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """Open the file; sqlite refuses one that is too short, so that is filled up, in a copy."""
        with self.path.open("rb") as file, tempfile.TemporaryDirectory() as folder:
            head = file.read(SQLITE_HEAD.size).ljust(SQLITE_HEAD.size, b"\0")
            page_bytes, pages = SQLITE_HEAD.unpack(head)
            wanted, path = (page_bytes if page_bytes > 1 else 65536) * pages, self.path
            if self.path.stat().st_size < wanted:
                path = Path(folder) / "filled.db3"
                shutil.copyfile(self.path, path)
                os.truncate(path, wanted)
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
                yield database
