"""sqlite3 files of a bag: read by SQL, or page by page where sqlite fails.

A recorder that was killed may leave rows in a write-ahead log (`-wal`) or half a change beside a rollback
journal (`-journal`). The first is read by sqlite from a copy, so that nothing in the user's folder changes;
the second by pages, which hold the rows whether or not their change was finished.

sqlite itself refuses a file that is too short, and its tree may lead to early rows over a page that is
missing. But rows lie in leaf pages that are complete in themselves, in the order of recording
(sqlite.org/fileformat2.html, sections 1.6 and 2.1). Knows the tables of rosbag2 by the kinds of their
columns. Rows that are only in a write-ahead log are not read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias
from urllib.parse import quote

from vlm_spec_decode.bags.source import (
    READ_FAULTS,
    UNREAD,
    MessageTypes,
    Record,
    Span,
    StorageFile,
    filled_bytes,
    unpack_message,
)
from vlm_spec_decode.core.errors import BagError

WAL, JOURNAL = "-wal", "-journal"
COLUMNS = "PRAGMA table_info({})"
TOPICS = "SELECT id, name, type, serialization_format FROM topics"
DEFINITIONS = "SELECT topic_type, encoded_message_definition, encoding FROM message_definitions"
SPAN = "SELECT MIN(timestamp), MAX(timestamp) FROM messages"
USED = "SELECT DISTINCT topic_id FROM messages"
UNDESCRIBED = "SELECT COUNT(*) FROM messages WHERE topic_id IN ({})"
ROWS = "SELECT id, topic_id, timestamp, data FROM messages WHERE topic_id IN ({}) ORDER BY timestamp, id"
SQL_FAULTS = (*READ_FAULTS, sqlite3.Error, sqlite3.Warning)


class _SqliteFile(StorageFile):
    """The common part of both readers: topics by their numbers."""

    def __init__(self, path: Path, types: MessageTypes) -> None:
        super().__init__(path, types)
        self._numbers: dict[int, tuple[str, str]] = {}

    def _wanted(self, topics: Collection[str]) -> Mapping[int, tuple[str, str]]:
        return {number: found for number, found in self._numbers.items() if found[0] in topics}

    def _record(self, topic: str, kind: str, data: bytes, at_ns: int) -> Iterator[Record]:
        """Yield a message; count one whose own compression is damaged."""
        try:
            record = Record(topic, kind, unpack_message(data), at_ns)
        except READ_FAULTS:
            self.count_lost({topic: 1}, "damaged", (at_ns, data[-16:]))
        else:
            yield record

    def _by_pages(
        self, wanted: Mapping[int, tuple[str, str]], seen: Collection[int] = ()
    ) -> Iterator[Record]:
        """Yield the complete messages in the file's pages, except those in `seen`."""
        with SqliteFile(self.path) as file:
            for number, topic, at_ns, data in file.messages():
                if topic in wanted and number not in seen:
                    yield from self._record(*wanted[topic], data, at_ns)


class IndexedSqlite(_SqliteFile):
    """A file that sqlite opens. Raises an error with the reason if it does not."""

    def __init__(self, path: Path, types: MessageTypes) -> None:
        super().__init__(path, types)
        if _size(path, JOURNAL):
            raise BagError("a change that was not finished")
        if _num_missing_pages(path):
            raise BagError("its end is missing")
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        try:
            with contextlib.closing(self._open()) as database:
                self._read_tables(database)
        except BaseException:
            self.close()
            raise

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in time order; where the file is damaged, the rest by pages."""
        wanted = self._wanted(topics)
        if not wanted:
            return
        seen: set[int] = set()
        try:
            with contextlib.closing(self._open()) as database:
                for number, topic, at_ns, data in database.execute(ROWS.format(_list(wanted))):
                    seen.add(number)
                    yield from self._record(*wanted[topic], bytes(data), int(at_ns))
        except SQL_FAULTS as error:
            self.faults[f"a damaged file, read page by page ({self.path.name}; {error})"] += 1
            yield from self._by_pages(wanted, seen)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _open(self) -> sqlite3.Connection:
        path, how = self.path, "mode=ro&immutable=1"
        if _size(path, WAL):
            if self._copy is None:
                self._copy = tempfile.TemporaryDirectory(prefix="vsd-bag-")
                _copy(path, Path(self._copy.name))
            path, how = Path(self._copy.name, path.name), "mode=ro"
        return sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, check_same_thread=False)

    def _read_tables(self, database: sqlite3.Connection) -> None:
        database.text_factory = lambda data: data.decode(errors="replace")
        used, listed = {number for (number,) in database.execute(USED)}, set[int]()
        for number, name, kind, encoding in database.execute(TOPICS):
            listed.add(number)
            if encoding not in ("cdr", "", None):
                self.faults[f"{name}: messages encoded as {encoding!r}, which is not read"] += 1
            elif number in used:
                self._numbers[number] = (name, kind)
        if used - listed:
            (lost,) = database.execute(UNDESCRIBED.format(_list(used - listed))).fetchone()
            self.faults[f"{UNREAD}of topics that are listed nowhere ({self.path.name})"] += lost
        self.topics = dict(self._numbers.values())
        if database.execute(COLUMNS.format("message_definitions")).fetchall():
            for kind, definition, encoding in database.execute(DEFINITIONS):
                self.add_definition(kind, definition, encoding)
        self.span = Span(*database.execute(SPAN).fetchone())


class TruncatedSqlite(_SqliteFile):
    """An sqlite3 file whose last pages are missing, or that sqlite refuses for another reason (`why`)."""

    def __init__(self, path: Path, types: MessageTypes, why: str) -> None:
        super().__init__(path, types)
        self.faults[f"read from its front, without an index ({why})"] += 1
        try:
            with SqliteFile(path) as file:
                for kind, definition, encoding in file.definitions():
                    self.add_definition(kind, definition, encoding)
                self._numbers = file.topics()
                first = next(file.messages(), None)
                self.span = Span(first[2] if first else None)
        except READ_FAULTS as error:
            raise BagError(f"{path}: not a bag that can be read ({error})") from error
        self.topics = dict(self._numbers.values())

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in file order, up to where the file is truncated."""
        yield from self._by_pages(self._wanted(topics))


def _num_missing_pages(path: Path) -> int:
    """Return how many pages are missing, by the file's header (sqlite.org/fileformat2.html, 1.3.8)."""
    with path.open("rb") as file:
        head, length = file.read(100), filled_bytes(file)
    page_bytes, changes, pages, valid_for = struct.unpack_from(">16xH6xII60xI", head)
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    is_valid = changes == valid_for and page_bytes
    return max(0, pages - -(-length // page_bytes)) if is_valid and not _size(path, WAL) else 0


def _size(path: Path, ending: str) -> int:
    """Return the size of sqlite's additional file with this suffix; 0 if there is none."""
    with contextlib.suppress(OSError):
        return Path(f"{path}{ending}").stat().st_size
    return 0


def _copy(path: Path, folder: Path) -> None:
    """Put a file and its log into another folder; the file is linked instead of copied if possible."""
    target = folder / path.name
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
    shutil.copyfile(f"{path}{WAL}", f"{target}{WAL}")


def _list(numbers: Collection[int]) -> str:
    return ",".join(str(int(number)) for number in numbers)


MAGIC = b"SQLite format 3\0"
HEAD_BYTES = 100
LEAF = 0x0D
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
"""Sizes by serial type 0 (NULL) to 6; 7 is a float, 8 and 9 are the numbers 0 and 1."""

MAX_VALUE_BYTES = 2**30
Value: TypeAlias = int | bytes | str | None


@dataclass(frozen=True, slots=True)
class _TableLayout:
    page_bytes: int
    usable_bytes: int

    def local(self, payload_bytes: int) -> int:
        """Return how much of a payload lies in its leaf; the rest is in overflow pages."""
        largest = self.usable_bytes - 35
        if payload_bytes <= largest:
            return payload_bytes
        least = (self.usable_bytes - 12) * 32 // 255 - 23
        fits = least + (payload_bytes - least) % (self.usable_bytes - 4)
        return fits if fits <= largest else least


class SqliteFile:
    """A context manager: an sqlite file, intact or truncated. Raises BagError if it is none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        head = self._file.read(HEAD_BYTES)
        if len(head) < HEAD_BYTES or not head.startswith(MAGIC):
            self._file.close()
            raise BagError(f"{path}: no sqlite file")
        (page_bytes,) = struct.unpack(">H", head[16:18])
        page_bytes = 65536 if page_bytes == 1 else page_bytes
        if page_bytes < 512 or page_bytes & (page_bytes - 1):
            self._file.close()
            raise BagError(f"{path}: no sqlite file, or its first page is broken")
        self._layout = _TableLayout(page_bytes, page_bytes - head[20])
        self._data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        filled, size = filled_bytes(self._file), len(self._data)
        # A page that ends in zeros is complete; pages of zeros only are missing.
        self._end = size if filled == size else min(size, -(-filled // page_bytes) * page_bytes)

    def __enter__(self) -> SqliteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._data.close()
        self._file.close()

    def topics(self) -> dict[int, tuple[str, str]]:
        """Return name and type of each topic by its number."""
        found = {}
        for row, columns in self._small_rows():
            match columns:
                case [_, str(name), str(kind), str(), *_] if name.startswith("/") and "/" in kind:
                    found[row] = (name, kind)
        return found

    def definitions(self) -> Iterator[tuple[str, str, str]]:
        """Yield type, definition and its encoding, as newer recorders write them."""
        for _, columns in self._small_rows():
            match columns:
                case [_, str(kind), "ros2msg" | "ros2idl" as encoding, str(definition), *_]:
                    yield kind, definition, encoding

    def messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield number, topic, time in nanoseconds, and data of every complete message."""
        for number, columns in self._rows():
            match columns:
                case [None | int(), int(topic), int(at_ns), bytes(data)]:
                    yield number, topic, at_ns, data

    def _small_rows(self) -> Iterator[tuple[int, list[Value]]]:
        """Yield the rows that are no messages; most, but not all, precede the messages."""
        yield from self._rows(texts_only=True)

    def _rows(self, texts_only: bool = False) -> Iterator[tuple[int, list[Value]]]:
        page_bytes = self._layout.page_bytes
        for number in range(1, self._end // page_bytes):
            begin = number * page_bytes
            if self._data[begin] != LEAF:
                continue
            try:
                yield from self._leaf(begin, texts_only)
            except (IndexError, struct.error, UnicodeDecodeError):
                continue  # not a leaf after all

    def _leaf(self, begin: int, texts_only: bool) -> Iterator[tuple[int, list[Value]]]:
        page = self._data[begin : begin + self._layout.page_bytes]
        (count,) = struct.unpack_from(">H", page, 3)
        for cell in struct.unpack_from(f">{count}H", page, 8):
            size, at = _varint(page, cell)
            row, at = _varint(page, at)
            local = self._layout.local(size)
            if size > MAX_VALUE_BYTES or at + local > len(page):
                continue
            kinds, head_bytes = _kinds(page, at)
            if texts_only and not any(kind >= 13 and kind % 2 for kind in kinds):
                continue
            payload = page[at : at + local]
            if local < size:
                (following,) = struct.unpack_from(">I", page, at + local)
                payload += self._overflow(following, size - local)
            if len(payload) == size:
                yield row, _columns(payload, kinds, head_bytes)

    def _overflow(self, number: int, missing: int) -> bytes:
        """Return the content of a chain of overflow pages; less than `missing` bytes if a page is missing."""
        parts, room = [], self._layout.usable_bytes - 4
        while missing > 0 and number:
            begin = (number - 1) * self._layout.page_bytes
            if begin + 4 + min(room, missing) > self._end:
                break
            parts.append(self._data[begin + 4 : begin + 4 + min(room, missing)])
            missing -= len(parts[-1])
            (number,) = struct.unpack_from(">I", self._data, begin)
        return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1


def _kinds(data: bytes, at: int) -> tuple[list[int], int]:
    """Return the serial types of a record, and the length of its header."""
    begin, kinds = at, list[int]()
    head_bytes, at = _varint(data, at)
    while at < begin + head_bytes:
        kind, at = _varint(data, at)
        kinds.append(kind)
    return kinds, head_bytes


def _columns(payload: bytes, kinds: list[int], at: int) -> list[Value]:
    values: list[Value] = []
    for kind in kinds:
        length = (
            INTEGER_BYTES[kind] if kind <= 6 else 8 if kind == 7 else 0 if kind < 12 else (kind - 12) // 2
        )
        part = payload[at : at + length]
        at += length
        if kind in (0, 7):
            values.append(None)
        elif kind < 12:
            values.append(kind - 8 if kind >= 8 else int.from_bytes(part, "big", signed=True))
        else:
            values.append(part.decode() if kind % 2 else part)
    return values
