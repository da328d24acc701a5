"""Opens a bag: a folder with or without metadata.yaml, or one file, intact or truncated.

The files are authoritative; the content of metadata.yaml (names, order, compression, storage) is only checked
against them. Each file has its own reader, so that a truncated one loses only its end.

Files are found by their names and recognised by their bytes. Files that were compressed as a whole
(`.db3.zstd`, `.mcap.zst`) are unpacked into a temporary folder.
"""

from __future__ import annotations

import heapq
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
import zstandard

from vlm_spec_decode.bags.mcap_file import MAGIC as MCAP_MAGIC
from vlm_spec_decode.bags.mcap_file import IndexedMcap, TruncatedMcap
from vlm_spec_decode.bags.ros1_file import ANY_VERSION, IndexedRos1, TruncatedRos1
from vlm_spec_decode.bags.source import (
    READ_FAULTS,
    UNREAD,
    ZSTD_MAGIC,
    BagSource,
    MessageTypes,
    Record,
    Span,
    StorageFile,
)
from vlm_spec_decode.bags.sqlite_file import MAGIC as SQLITE_MAGIC
from vlm_spec_decode.bags.sqlite_file import SQL_FAULTS, IndexedSqlite, TruncatedSqlite
from vlm_spec_decode.core.errors import BagError


@dataclass(frozen=True, slots=True)
class _Storage:
    """One kind of file: its first bytes, and its readers for intact and truncated files."""

    magic: bytes
    suffix: str
    intact: Callable[[Path, MessageTypes], StorageFile]
    truncated: Callable[[Path, MessageTypes, str], StorageFile]


STORAGES = (
    _Storage(MCAP_MAGIC, ".mcap", IndexedMcap, TruncatedMcap),
    _Storage(SQLITE_MAGIC, ".db3", IndexedSqlite, TruncatedSqlite),
    _Storage(ANY_VERSION, ".bag", IndexedRos1, TruncatedRos1),
)


def open_bag(path: Path) -> BagSource:
    """Open a bag: a folder of files, with or without metadata.yaml, or one .mcap, .db3 or .bag file.

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

    Messages that are counted in metadata.yaml but are in no file, or in an excluded file, are counted as not
    read.
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
        """Yield the messages of these topics in time order, up to where the bag is truncated."""
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
        """Close the files. Idempotent."""
        for file in self._files:
            file.close()
        self._folder.close()

    def _count(self, read: Mapping[str, int], topics: Collection[str]) -> None:
        for topic, expected in self._folder.metadata.counts.items():
            lost = sum(file.lost[topic] for file in self._files)
            missing = expected - read.get(topic, 0) - lost
            if topic in topics and missing > 0:
                self.faults[f"{UNREAD}{topic}: counted in metadata.yaml, and in no file"] = missing
        for path in self._folder.unrelated:
            self.faults[f"{UNREAD}in {path.name}, of another recording"] = self._size_of(path, topics)

    def _size_of(self, path: Path, topics: Collection[str]) -> int:
        """Return how many messages of these topics an unrelated file has."""
        try:
            file = _open_file(path, self._types)
        except BagError:
            return 0
        count = sum(1 for _ in file.records(topics))
        file.close()
        return count


def _open_file(path: Path, types: MessageTypes) -> StorageFile:
    """Open one file of a bag with the reader for its kind. Raises BagError."""
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
        return storage.intact(path, types)
    except (BagError, *SQL_FAULTS) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    try:
        return storage.truncated(path, types, why)
    except SQL_FAULTS as error:
        raise BagError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _begin(file: StorageFile) -> tuple[float, Any]:
    """Return the sort key of a file: the time of its first message, then its number."""
    first_ns = file.span.first_ns
    return (float("inf") if first_ns is None else first_ns), natural(file.path.name)


def _groups(files: Sequence[StorageFile]) -> Iterator[list[StorageFile]]:
    """Yield files that overlap in time as one group, all others separately."""
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


METADATA = "metadata.yaml"
ROOT = "rosbag2_bagfile_information"
SUFFIXES = (".mcap", ".db3", ".bag", ".active")
PACKED_SUFFIXES = (".zstd", ".zst")
COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Metadata:
    """The content of metadata.yaml; empty where it is missing or invalid.

    `files` are names without their folder, `counts` the messages of each topic in all files together.
    """

    files: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    distro: str = ""
    problem: str = ""


class BagFolder:
    """The files of the bag at `path`, unpacked, in the order of their names.

    `faults` counts the faults found. Raises BagError if there is no bag, OSError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise BagError(f"{path}: no such bag")
        path = path.parent if path.name == METADATA else path
        self.path = path
        self.faults: Counter[str] = Counter()
        self.unrelated: list[Path] = []
        """Files in the folder that belong to another recording."""
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self.metadata = read_metadata(path / METADATA) if path.is_dir() else Metadata()
        if self.metadata.problem:
            self.faults[self.metadata.problem] += 1
        found = self._find() if path.is_dir() else [path]
        self.paths = [unpacked for file in found if (unpacked := self._unpack(file)) is not None]

    @property
    def is_watched(self) -> bool:
        """Whether messages must be counted, or unpacked files removed afterwards."""
        return bool(self.metadata.counts or self.unrelated) or self._unpacked is not None

    def close(self) -> None:
        """Remove the unpacked files. Idempotent."""
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def _find(self) -> list[Path]:
        """Return the files of the bag: those named in metadata.yaml, and others in the folder."""
        there = {file.name: file for file in self.path.iterdir() if file.is_file()}
        named = [name for name in self.metadata.files if name in there]
        for name in self.metadata.files:
            if not any(option in there for option in _spellings(name)):
                self.faults[f"{name}: named in {METADATA}, and not there"] += 1
        fits = [name for name in there if _plain(name).endswith(SUFFIXES) and not name.startswith(".")]
        names = {*named, *fits}
        filled = {name for name in names if there[name].stat().st_size}
        chosen = [name for name in names if _plain(name) == name or _plain(name) not in filled]
        chosen = [name for name in chosen if name in filled or not {*_spellings(name)} & filled]
        if not chosen:
            self._explain(there)
        strangers = self._find_unrelated(chosen)
        self.unrelated = [there[name] for name in sorted(strangers, key=natural)]
        return [there[name] for name in sorted(chosen, key=natural) if name not in strangers]

    def _find_unrelated(self, names: Iterable[str]) -> set[str]:
        """Return files of another recording: if all named files exist, those with a different stem."""
        files = self.metadata.files
        if not files or any(not {*_spellings(name)} & {*names} for name in files):
            return set()
        stems = {_stem(name) for name in files}
        return {name for name in names if _stem(name) not in stems}

    def _explain(self, there: Mapping[str, Path]) -> None:
        """Raise BagError that describes what is in the folder instead of a bag."""
        inside = sorted(file.name for file in self.path.iterdir() if _is_bag(file))
        if inside:
            raise BagError(f"{self.path}: a folder of bags ({', '.join(inside[:5])}); name one of them")
        if self.faults:
            raise BagError(f"{self.path}: not a bag that can be read ({'; '.join(self.faults)})")
        raise BagError(f"{self.path}: not a bag: {len(there)} files, none of them .mcap, .db3 or .bag")

    def _unpack(self, file: Path) -> Path | None:
        """Return the uncompressed file; None if it is empty."""
        with file.open("rb") as packed:
            if packed.read(len(ZSTD_MAGIC)) != ZSTD_MAGIC:
                return file
            packed.seek(0)
            self._unpacked = self._unpacked or tempfile.TemporaryDirectory(prefix="vsd-bag-")
            target = Path(self._unpacked.name, _plain(file.name))
            try:
                with target.open("wb") as out:
                    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
                    while block := reader.read(COPY_BYTES):
                        out.write(block)
            except READ_FAULTS as error:
                if isinstance(error, OSError) and not isinstance(error, EOFError) and error.errno is not None:
                    raise BagError(f"{file}: cannot be unpacked ({error.strerror})") from error
                self.faults[f"{file.name}: compressed, and damaged; read up to there"] += 1
        return target


def read_metadata(path: Path) -> Metadata:
    """Read metadata.yaml of any version; `problem` is why it cannot be used."""
    if not path.exists():
        return Metadata()
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        if not isinstance(content, dict) or not isinstance(content.get(ROOT), dict):
            return Metadata(problem=f"{METADATA} is empty or not of a bag")
        inside = content[ROOT]
        return Metadata(_files(inside), _topic_counts(inside), str(inside.get("ros_distro") or ""))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        return Metadata(problem=f"{METADATA} that cannot be read ({type(error).__name__})")


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _files(inside: Mapping[str, Any]) -> tuple[str, ...]:
    names = inside.get("relative_file_paths") or ()
    # Older recorders wrote the bag's folder before the name, some of them with backslashes.
    return tuple(PurePosixPath(PureWindowsPath(str(name)).as_posix()).name for name in names if name)


def _topic_counts(inside: Mapping[str, Any]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for topic in inside.get("topics_with_message_count") or ():
        try:
            counts[str(topic["topic_metadata"]["name"])] += int(topic["message_count"])
        except (KeyError, TypeError, ValueError):
            continue
    return dict(counts)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts walk_2 before walk_10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def _plain(name: str) -> str:
    """Return a name without the suffix of a compression."""
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _spellings(name: str) -> tuple[str, ...]:
    """Return the names that a file may have after packing or unpacking."""
    return (name, _plain(name), *(_plain(name) + suffix for suffix in PACKED_SUFFIXES))


def _stem(name: str) -> str:
    """Return the common name of a recording's files: walk of walk_3.db3.zstd."""
    return re.sub(r"_\d+$", "", _plain(name).rsplit(".", 1)[0])


def _is_bag(path: Path) -> bool:
    return path.is_dir() and ((path / METADATA).exists() or any(f.suffix in SUFFIXES for f in path.iterdir()))
