"""A bag as a stream of messages in time order: rosbag2 (mcap, sqlite3) and ROS 1, whole or cut off.

Reading is the `rosbags` library's. What it refuses because the end is missing (a recorder that was killed,
a copy that broke off) is read from the front by `bag.cut`. Nothing here knows what messages mean.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import apsw
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag1 import ReaderError as Ros1ReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_typestore
from zstandard import ZstdError

NANOSECONDS = 1_000_000_000
READ_FAULTS = (
    *(AnyReaderError, ReaderError, Ros1ReaderError, SerdeError, TypesysError),
    *(apsw.Error, ZstdError, struct.error, EOFError, OSError),
    *(ValueError, KeyError, TypeError, AssertionError, IndexError, RuntimeError),
)
"""What `rosbags` raises where bytes are broken, which it meets in many places."""


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

    @property
    def duration_s(self) -> float:
        """Length of the recording; 0 where nobody can tell without reading it all."""

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


class Decoding:
    """What all bags have in common: `message`, by the `rosbags` deserialiser that knows the bag's types."""

    def __init__(self, deserialize: Callable[[bytes, str], Any]) -> None:
        self.faults: Counter[str] = Counter()
        self._deserialize = deserialize

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""
        try:
            return self._deserialize(record.data, record.kind)
        except READ_FAULTS:
            self.faults[f"{record.topic}: {record.kind} that cannot be read"] += 1
            return None


class IndexedBag(Decoding):
    """A complete bag."""

    def __init__(self, path: Path) -> None:
        self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        self._reader.open()
        super().__init__(self._reader.deserialize)
        self.duration_s = self._reader.duration / NANOSECONDS if self._reader.message_count else 0.0
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

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        if self._reader.stack:
            self._reader.close()
