"""ROS 1 files of a bag: intact ones by the `rosbags` library, others in file order (`bags.ros1`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from vlm_spec_decode.bags import ros1
from vlm_spec_decode.bags.message_types import MessageTypes
from vlm_spec_decode.bags.source import READ_FAULTS, Record, Span, StorageFile
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
                self.learn(connection.msgtype, connection.msgdef.data, "ros1msg", is_ros1=True)
        if self._reader.message_count:
            self.span = Span(self._reader.start_time, self._reader.end_time)

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order; where it breaks off, the rest is counted."""
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
            self.lose(+left, "in or after a damaged chunk", "rest")

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._reader.stack:
            self._reader.close()


class CutRos1(StorageFile):
    """A ROS 1 file without its index; also a chunk that broke off gives what it holds."""

    def __init__(self, path: Path, types: MessageTypes, why: str) -> None:
        super().__init__(path, types)
        self.faults[f"read from its front, without an index ({why})"] += 1
        self._has_index: bool | None = None
        with path.open("rb") as file:
            if file.read(len(ros1.MAGIC)) != ros1.MAGIC:
                raise BagError("no bag of version 2.0; `rosbag migrate` converts older ones")
        self._known: dict[int, ros1.Connection] = {}
        used: set[int] = set()
        for heard in self._heard():  # connections may be described behind their first messages
            if isinstance(heard, ros1.Connection):
                self._known[heard.number] = heard
                self.learn(heard.kind, heard.definition, "ros1msg", is_ros1=True)
            elif isinstance(heard, ros1.Message):
                used.add(heard.connection)
                self.span.add(heard.at_ns)
        self.topics = {c.topic: c.kind for number, c in self._known.items() if number in used}

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in the order of the file; ends early where it does."""
        for heard in self._heard():
            if isinstance(heard, ros1.Connection):
                continue
            connection = self._known.get(heard.connection)
            if connection is None:
                self.lose({f"of connection {heard.connection}": 1}, "which is described nowhere", heard)
            elif connection.topic not in topics:
                continue
            elif isinstance(heard, ros1.Lost):
                self.lose({connection.topic: heard.count}, "in a damaged chunk", heard.place)
            else:
                yield Record(connection.topic, connection.kind, heard.data, heard.at_ns, is_ros1=True)

    def _heard(self) -> Iterator[ros1.Heard]:
        with self.path.open("rb") as file:
            if self._has_index is None:
                self._has_index = _has_index(file)
            file.seek(0)
            yield from ros1.ros1_chunks(file) if self._has_index else ros1.ros1_front(file)


def _has_index(file: BinaryIO) -> bool:
    try:
        next(ros1.ros1_chunks(file))
    except (*ros1.FAULTS, StopIteration):
        return False
    return True
