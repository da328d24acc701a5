"""A bag as a stream of messages in time order: rosbag2 (mcap, sqlite3) and ROS 1, intact or truncated.

`bags.reader.open_bag` chooses the reader of a bag. Unreadable parts are counted in `faults`;
entries that begin with `UNREAD` count messages. Nothing here depends on the content of messages.

A recorder may have written all definitions, some, none, or empty ones; each type is looked up for itself.
"""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import apsw
import zstandard
from lz4.frame import LZ4FrameDecompressor
from mcap.exceptions import McapError
from rosbags.highlevel import AnyReaderError
from rosbags.rosbag1 import ReaderError as Ros1ReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore

from vlm_spec_decode.core.interfaces import message_definitions
from vlm_spec_decode.edge.image_upload import FFMPEG_PACKET, FOXGLOVE_VIDEO, GO2_VIDEO

NANOSECONDS = 1_000_000_000
UNREAD = "messages not read: "
"""Prefix of faults that count messages."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
FEED_BYTES = 1 << 16
COPY_BYTES = 1 << 20
ZERO_BYTES = 512


def _zstd_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the zstd libraries: each has its own class, and rosbags chooses one."""
    found: list[type[Exception]] = [zstandard.ZstdError]
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module = __import__(name, fromlist=["ZstdError"])
        except ImportError:
            continue
        found.append(module.ZstdError)
    return tuple(found)


READ_FAULTS = (
    *(AnyReaderError, ReaderError, Ros1ReaderError, SerdeError, TypesysError, McapError),
    *(apsw.Error, *_zstd_errors(), struct.error, EOFError, OSError, MemoryError, RecursionError),
    *(ValueError, KeyError, TypeError, AssertionError, IndexError, AttributeError, RuntimeError, SyntaxError),
)
"""Exceptions of the libraries for damaged bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One serialised message; `at_ns` is the recorder's time, `is_ros1` tells the serialisation."""

    topic: str
    kind: str
    data: bytes
    at_ns: int
    is_ros1: bool = False


class BagSource(Protocol):
    """An open bag. `faults` counts, by name, what could not be read, while records are read."""

    faults: Counter[str]

    @property
    def topics(self) -> dict[str, str]:
        """Topic to message type, such as `sensor_msgs/msg/Image`."""

    @property
    def duration_s(self) -> float:
        """Length of the recording; 0 if only a full read could tell."""

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order, up to where the bag is truncated."""

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""

    def close(self) -> None:
        """Close the files. Idempotent."""


class Span:
    """First and last time of the messages, in nanoseconds; None without any."""

    def __init__(self, first_ns: int | None = None, last_ns: int | None = None) -> None:
        self.first_ns, self.last_ns = first_ns, last_ns

    def add(self, at_ns: int) -> None:
        """Extend the span to this time."""
        self.first_ns = at_ns if self.first_ns is None else min(self.first_ns, at_ns)
        self.last_ns = at_ns if self.last_ns is None else max(self.last_ns, at_ns)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (
            0.0
            if self.first_ns is None or self.last_ns is None
            else (self.last_ns - self.first_ns) / NANOSECONDS
        )


class StorageFile:
    """One open file of a bag; the base class of all kinds of files. Each is a `BagSource` of its own.

    `lost` counts by topic the messages that are in the file and cannot be read, `span` are its first and
    last time. `types` are shared by all files of a bag.
    """

    def __init__(self, path: Path, types: MessageTypes) -> None:
        self.path = path
        self.faults: Counter[str] = Counter()
        self.topics: dict[str, str] = {}
        self.lost: Counter[str] = Counter()
        self._counted: set[tuple[str, Hashable]] = set()
        self.span = Span()
        self.types = types

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.span.duration_s

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order, up to where the bag is truncated."""
        raise NotImplementedError

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""
        try:
            return self.types.decode(record.data, record.kind, is_ros1=record.is_ros1)
        except READ_FAULTS:
            self.faults[f"{record.topic}: {record.kind} that cannot be read"] += 1
            return None

    def close(self) -> None:
        """Close the file. Idempotent."""

    def add_definition(self, kind: str, definition: str, encoding: str, *, is_ros1: bool = False) -> None:
        """Add a type's definition; count one that cannot be read."""
        if not self.types.add_definition(kind, definition, encoding, is_ros1=is_ros1):
            self.faults[f"{kind}: a definition that cannot be read"] += 1

    def count_lost(self, counts: Mapping[str, int], why: str, place: Hashable) -> None:
        """Count messages, by topic, that are in the file and cannot be read; each `place` counts once."""
        for topic, count in counts.items():
            if (topic, place) not in self._counted:
                self._counted.add((topic, place))
                self.lost[topic] += count
                self.faults[f"{UNREAD}{topic}: {why} ({self.path.name})"] += count


def num_unread(faults: Mapping[str, int]) -> int:
    """Return how many messages of the topics asked for could not be read."""
    return sum(count for name, count in faults.items() if name.startswith(UNREAD))


def bag_name(path: Path) -> str:
    """Return a bag's name in results; with its folder's name if its own is not specific."""
    path = path.resolve()
    return f"{path.parent.name}_{path.stem}" if path.stem in ("bag", "rosbag2") else path.stem


def unpack_message(data: bytes) -> bytes:
    """Return a message that the recorder compressed for itself (zstd), or any other as it is.

    No serialised message begins with zstd's magic number. Raises zstd's error.
    """
    if not data.startswith(ZSTD_MAGIC):
        return data
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def filled_bytes(file: BinaryIO) -> int:
    """Return the length of a file without the zeros that a file system leaves after a power failure.

    Fewer than `ZERO_BYTES` zeros count as data.
    """
    size = end = file.seek(0, io.SEEK_END)
    while end:
        begin = max(0, end - COPY_BYTES)
        file.seek(begin)
        block = file.read(end - begin).rstrip(b"\0")
        if block:
            end = begin + len(block)
            break
        end = begin
    return end if size - end >= ZERO_BYTES else size


def zstd_front(data: bytes) -> bytes:
    """Return the content of a zstd stream up to where it is damaged."""
    return _front(zstandard.ZstdDecompressor().decompressobj(), data)


def lz4_front(data: bytes) -> bytes:
    """Return the content of an lz4 stream up to where it is damaged."""
    return _front(LZ4FrameDecompressor(), data)


def _front(decompressor: Any, data: bytes) -> bytes:
    parts: list[bytes] = []
    try:
        for at in range(0, len(data), FEED_BYTES):
            parts.append(bytes(decompressor.decompress(data[at : at + FEED_BYTES])))
    except READ_FAULTS:
        pass
    return b"".join(parts)


OTHERS: Mapping[str, str] = {
    GO2_VIDEO: "uint64 time_frame\nuint8[] video720p\nuint8[] video360p\nuint8[] video180p\n",
    FOXGLOVE_VIDEO: "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    FFMPEG_PACKET: "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\n"
    "uint8 flags\nbool is_bigendian\nuint8[] data\n",
}
"""Camera message types that ROS does not have, for bags without definitions."""

DISTROS: Mapping[str, Stores] = {
    name.removeprefix("ros2_"): store for store in Stores if (name := store.value).startswith("ros2_")
}
"""Stores by the name of the distribution, as metadata.yaml of a newer recorder gives it."""

READERS: Mapping[str, Callable[[str, str], Mapping[str, Any]]] = {
    "ros2msg": get_types_from_msg,
    "ros1msg": get_types_from_msg,
    "ros2idl": lambda definition, _: _from_idl(definition),
    "omgidl": lambda definition, _: _from_idl(definition),
}
"""By the encoding of a definition, as mcap and sqlite3 name it."""

IDL_SECTION = "=" * 80 + "\n"
DEFINITION_FAULTS = (TypesysError, ValueError, KeyError, TypeError, IndexError, AttributeError, SyntaxError)


class MessageTypes:
    """The types of one bag. `distro` names the ROS that recorded it; unknown ones count as Humble."""

    def __init__(self, distro: str = "") -> None:
        self._default = DISTROS.get(distro.lower(), Stores.ROS2_HUMBLE)
        self._own = {is_ros1: get_typestore(Stores.EMPTY) for is_ros1 in (False, True)}

    def add_definition(self, kind: str, definition: str, encoding: str, *, is_ros1: bool = False) -> bool:
        """Add a definition from the bag; return False if it cannot be read.

        An empty one is ignored. The first of two for one type is used.
        """
        own, read = self._own[is_ros1], READERS.get(encoding)
        if not definition.strip() or kind in own.fielddefs:
            return True
        if read is None:
            return not encoding
        try:
            found = read(definition, kind)
            own.register({name: fields for name, fields in found.items() if name not in own.fielddefs})
        except DEFINITION_FAULTS:
            return False
        return True

    def decode(self, data: bytes, kind: str, *, is_ros1: bool = False) -> Any:
        """Return the message. Raises what `rosbags` raises where bytes or types do not fit."""
        own, default = self._own[is_ros1], _shipped(Stores.ROS1_NOETIC if is_ros1 else self._default)
        if kind not in own.fielddefs:
            return _decode(default, data, kind, is_ros1)
        try:
            return _decode(own, data, kind, is_ros1)
        except Exception:
            # A definition may be incomplete, but the type may be known from ROS.
            if kind not in default.fielddefs:
                raise
            return _decode(default, data, kind, is_ros1)


def _decode(store: Any, data: bytes, kind: str, is_ros1: bool) -> Any:
    return store.deserialize_ros1(data, kind) if is_ros1 else store.deserialize_cdr(data, kind)


@lru_cache(maxsize=4)
def _shipped(which: Stores) -> Any:
    return with_own_types(get_typestore(which), OTHERS)


def with_own_types(store: Any, others: Mapping[str, str] | None = None) -> Any:
    """Return a typestore with the messages of this package, by their `.msg` files, and with `others`."""
    found: dict[str, Any] = {}
    for kind, definition in {**message_definitions(), **(others or {})}.items():
        found |= get_types_from_msg(definition, kind)
    store.register({name: fields for name, fields in found.items() if name not in store.fielddefs})
    return store


def _from_idl(definition: str) -> Mapping[str, Any]:
    if not definition.startswith(f"{IDL_SECTION}IDL: "):
        return get_types_from_idl(definition)  # type: ignore[no-any-return]
    found: dict[str, Any] = {}
    for section in definition.split(IDL_SECTION)[1:]:
        found |= get_types_from_idl(section.partition("\n")[2])
    return found
