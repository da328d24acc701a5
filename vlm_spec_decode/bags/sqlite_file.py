"""sqlite3 files of a bag: asked for their rows by SQL, or read page by page where sqlite refuses.

A recorder that was killed may leave rows in a write-ahead log (`-wal`) or half a change beside a rollback
journal (`-journal`). The first is read by sqlite from a copy, so that nothing in the user's folder changes;
the second by pages, which hold the rows whether or not their change was finished.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from vlm_spec_decode.bags.message_types import MessageTypes
from vlm_spec_decode.bags.source import (
    READ_FAULTS,
    UNREAD,
    Record,
    Span,
    StorageFile,
    filled_bytes,
    unpack_message,
)
from vlm_spec_decode.bags.sqlite_recovery import SqliteFile
from vlm_spec_decode.core.errors import BagError

WAL, JOURNAL = "-wal", "-journal"
COLUMNS = "PRAGMA table_info({})"
TOPICS = "SELECT id, name, type, serialization_format FROM topics"
DEFINITIONS = "SELECT topic_type, encoded_message_definition, encoding FROM message_definitions"
SPAN = "SELECT MIN(timestamp), MAX(timestamp) FROM messages"
USED = "SELECT DISTINCT topic_id FROM messages"
NAMELESS = "SELECT COUNT(*) FROM messages WHERE topic_id IN ({})"
ROWS = "SELECT id, topic_id, timestamp, data FROM messages WHERE topic_id IN ({}) ORDER BY timestamp, id"
SQL_FAULTS = (*READ_FAULTS, sqlite3.Error, sqlite3.Warning)


class _SqliteFile(StorageFile):
    """What both have in common: topics by their numbers."""

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
            self.lose({topic: 1}, "damaged", (at_ns, data[-16:]))
        else:
            yield record

    def _by_pages(
        self, wanted: Mapping[int, tuple[str, str]], seen: Collection[int] = ()
    ) -> Iterator[Record]:
        """Yield the messages that the file's pages hold in full, but for those that were `seen`."""
        with SqliteFile(self.path) as file:
            for number, topic, at_ns, data in file.messages():
                if topic in wanted and number not in seen:
                    yield from self._record(*wanted[topic], data, at_ns)


class WholeSqlite(_SqliteFile):
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
                self._look(database)
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

    def _look(self, database: sqlite3.Connection) -> None:
        database.text_factory = lambda data: data.decode(errors="replace")
        used, listed = {number for (number,) in database.execute(USED)}, set[int]()
        for number, name, kind, encoding in database.execute(TOPICS):
            listed.add(number)
            if encoding not in ("cdr", "", None):
                self.faults[f"{name}: messages encoded as {encoding!r}, which is not read"] += 1
            elif number in used:
                self._numbers[number] = (name, kind)
        if used - listed:
            (lost,) = database.execute(NAMELESS.format(_list(used - listed))).fetchone()
            self.faults[f"{UNREAD}of topics that are listed nowhere ({self.path.name})"] += lost
        self.topics = dict(self._numbers.values())
        if database.execute(COLUMNS.format("message_definitions")).fetchall():
            for kind, definition, encoding in database.execute(DEFINITIONS):
                self.learn(kind, definition, encoding)
        self.span = Span(*database.execute(SPAN).fetchone())


class CutSqlite(_SqliteFile):
    """An sqlite3 file whose last pages are missing, or that sqlite refuses for another reason (`why`)."""

    def __init__(self, path: Path, types: MessageTypes, why: str) -> None:
        super().__init__(path, types)
        self.faults[f"read from its front, without an index ({why})"] += 1
        try:
            with SqliteFile(path) as file:
                for kind, definition, encoding in file.definitions():
                    self.learn(kind, definition, encoding)
                self._numbers = file.topics()
                first = next(file.messages(), None)
                self.span = Span(first[2] if first else None)
        except READ_FAULTS as error:
            raise BagError(f"{path}: not a bag that can be read ({error})") from error
        self.topics = dict(self._numbers.values())

    def records(self, topics: Collection[str]) -> Iterator[Record]:
        """Yield the messages of these topics in the order of the file; ends early where it does."""
        yield from self._by_pages(self._wanted(topics))


def _num_missing_pages(path: Path) -> int:
    """Return how many pages a file lacks that its head counts (sqlite.org/fileformat2.html, 1.3.8)."""
    with path.open("rb") as file:
        head, length = file.read(100), filled_bytes(file)
    page_bytes, changes, pages, valid_for = struct.unpack_from(">16xH6xII60xI", head)
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    is_valid = changes == valid_for and page_bytes
    return max(0, pages - -(-length // page_bytes)) if is_valid and not _size(path, WAL) else 0


def _size(path: Path, ending: str) -> int:
    """Return the size of the file that sqlite keeps beside another; 0 if there is none."""
    with contextlib.suppress(OSError):
        return Path(f"{path}{ending}").stat().st_size
    return 0


def _copy(path: Path, folder: Path) -> None:
    """Put a file and its log into another folder; the file is linked there, not copied, if it can be."""
    target = folder / path.name
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
    shutil.copyfile(f"{path}{WAL}", f"{target}{WAL}")


def _list(numbers: Collection[int]) -> str:
    return ",".join(str(int(number)) for number in numbers)
