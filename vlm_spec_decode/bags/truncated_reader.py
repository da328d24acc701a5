"""The choice of a bag's reader: a folder with or without metadata.yaml, or one file, intact or truncated.

The files are authoritative; the content of metadata.yaml (names, order, compression, storage) is only
checked against them. Each file has its own reader, so that a truncated one loses only its end.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_spec_decode.bags.folder import BagFolder, natural
from vlm_spec_decode.bags.mcap_file import MAGIC as MCAP_MAGIC
from vlm_spec_decode.bags.mcap_file import IndexedMcap, TruncatedMcap
from vlm_spec_decode.bags.message_types import MessageTypes
from vlm_spec_decode.bags.ros1_file import ANY_VERSION, CutRos1, IndexedRos1
from vlm_spec_decode.bags.source import UNREAD, BagSource, Record, Span, StorageFile
from vlm_spec_decode.bags.sqlite_file import SQL_FAULTS, CutSqlite, WholeSqlite
from vlm_spec_decode.bags.sqlite_recovery import MAGIC as SQLITE_MAGIC
from vlm_spec_decode.core.errors import BagError


@dataclass(frozen=True, slots=True)
class _Storage:
    """One kind of file: how it begins, and its two readers."""

    magic: bytes
    suffix: str
    whole: Callable[[Path, MessageTypes], StorageFile]
    cut: Callable[[Path, MessageTypes, str], StorageFile]


STORAGES = (
    _Storage(MCAP_MAGIC, ".mcap", IndexedMcap, TruncatedMcap),
    _Storage(SQLITE_MAGIC, ".db3", WholeSqlite, CutSqlite),
    _Storage(ANY_VERSION, ".bag", IndexedRos1, CutRos1),
)


def open_bag(path: Path) -> BagSource:
    """Open a bag: a folder with metadata.yaml, a folder of files without, or one .mcap, .db3 or .bag file.

    Raises BagError if there is none, or none that can be read at all.
    """
    try:
        folder = BagFolder(path)
    except OSError as error:
        raise BagError(f"{path}: {error.strerror or error}") from error
    try:
        return _open(folder)
    except BaseException:
        folder.close()
        raise


def _open(folder: BagFolder) -> BagSource:
    types = MessageTypes(folder.metadata.distro)
    faults, files = Counter(folder.faults), list[StorageFile]()
    for path in folder.paths:
        try:
            files.append(_open_file(path, types))
        except BagError as error:
            faults[f"{path.name}: cannot be read ({error})"] += 1
    if not files:
        raise BagError(f"{folder.path}: not a bag that can be read ({_why(faults)})")
    if len(files) > 1 or folder.is_watched:
        return SplitBag(folder, files, faults, types)
    files[0].faults += faults
    return files[0]


class SplitBag:
    """The files of one bag as one source, in the order of their times.

    Messages that metadata.yaml counts and no file gives are counted as not read, those of files that were
    left out too.
    """

    def __init__(
        self, folder: BagFolder, files: Sequence[StorageFile], faults: Counter[str], types: MessageTypes
    ) -> None:
        self._folder, self._types = folder, types
        self._files = sorted(files, key=_begin)
        self.faults = faults
        self.topics: dict[str, str] = {}
        span = Span()
        for file in self._files:
            self.faults += file.faults
            file.faults = self.faults
            self.topics = file.topics | self.topics
            for at_ns in (file.span.first_ns, file.span.last_ns):
                if at_ns is not None:
                    span.add(at_ns)
        self.duration_s = span.duration_s

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order; ends early where the bag does."""
        read: Counter[str] = Counter()
        for group in _groups(self._files):
            streams = [file.records(topics) for file in group]
            stream = (
                streams[0] if len(streams) == 1 else heapq.merge(*streams, key=lambda record: record.at_ns)
            )
            for record in stream:
                read[record.topic] += 1
                yield record
        self._count(read, topics)

    def message(self, record: Record) -> Any:
        """Return the message in a record, or None, counted, if it cannot be read."""
        return self._files[0].message(record)

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        for file in self._files:
            file.close()
        self._folder.close()

    def _count(self, read: Mapping[str, int], topics: Collection[str]) -> None:
        for topic, expected in self._folder.metadata.counts.items():
            lost = sum(file.lost[topic] for file in self._files)
            missing = expected - read.get(topic, 0) - lost
            if topic in topics and missing > 0:
                self.faults[f"{UNREAD}{topic}: counted in metadata.yaml, and in no file"] = missing
        for path in self._folder.strangers:
            self.faults[f"{UNREAD}in {path.name}, of another recording"] = self._size_of(path, topics)

    def _size_of(self, path: Path, topics: Collection[str]) -> int:
        """Return how many messages of these topics a file has that is not of this recording."""
        try:
            file = _open_file(path, self._types)
        except BagError:
            return 0
        count = sum(1 for _ in file.records(topics))
        file.close()
        return count


def _open_file(path: Path, types: MessageTypes) -> StorageFile:
    """Open one file of a bag with the reader that takes it. Raises BagError."""
    try:
        with path.open("rb") as file:
            begin = file.read(max(len(storage.magic) for storage in STORAGES))
    except OSError as error:
        raise BagError(error.strerror or str(error)) from error
    if not begin:
        raise BagError("an empty file")
    storage = next((storage for storage in STORAGES if begin.startswith(storage.magic)), None)
    storage = storage or next((storage for storage in STORAGES if path.suffix == storage.suffix), None)
    if storage is None:
        raise BagError("neither mcap nor sqlite3 nor a ROS 1 bag")
    try:
        return storage.whole(path, types)
    except (BagError, *SQL_FAULTS) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    try:
        return storage.cut(path, types, why)
    except SQL_FAULTS as error:
        raise BagError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _begin(file: StorageFile) -> tuple[float, Any]:
    """Return what files are sorted by: the time of their first message, then their number."""
    first_ns = file.span.first_ns
    return (float("inf") if first_ns is None else first_ns), natural(file.path.name)


def _groups(files: Sequence[StorageFile]) -> Iterator[list[StorageFile]]:
    """Yield files that overlap in time together; one after the other the rest."""
    group, last_ns = list[StorageFile](), 0
    for file in files:
        first_ns = file.span.first_ns
        if group and (first_ns is None or first_ns >= last_ns):
            yield group
            group = []
        group.append(file)
        last_ns = max(last_ns, file.span.last_ns or first_ns or 0)
    if group:
        yield group


def _why(faults: Mapping[str, int]) -> str:
    return "; ".join(faults) or "no file of a bag in it"
