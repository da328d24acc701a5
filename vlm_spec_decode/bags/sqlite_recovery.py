"""The rows of a rosbag2 sqlite file page by page, so that a file without its end gives all it holds.

sqlite itself refuses a file that is too short, and its tree may lead to early rows over a page that is
missing. But rows lie in leaf pages that are complete in themselves, in the order of recording
(sqlite.org/fileformat2.html, sections 1.6 and 2.1). Knows the tables of rosbag2 by the kinds of their
columns. Rows that only a write-ahead log holds are not seen.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from vlm_spec_decode.bags.source import filled_bytes
from vlm_spec_decode.core.errors import BagError

MAGIC = b"SQLite format 3\0"
HEAD_BYTES = 100
LEAF = 0x0D
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
"""By serial type 0 (NULL) to 6; 7 is a float, 8 and 9 are the numbers 0 and 1."""

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
    """A context: an sqlite file, whole or cut off. Raises BagError if it is none."""

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
        # A page that ends in zeros is there in full; pages of nothing but zeros are not.
        self._end = size if filled == size else min(size, -(-filled // page_bytes) * page_bytes)

    def __enter__(self) -> SqliteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the file."""
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
        """Yield number, topic, time in nanoseconds, and data of every message that is there in full."""
        for number, columns in self._rows():
            match columns:
                case [None | int(), int(topic), int(at_ns), bytes(data)]:
                    yield number, topic, at_ns, data

    def _small_rows(self) -> Iterator[tuple[int, list[Value]]]:
        """Yield the rows that are no messages; those come before most messages, but not only there."""
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
        """Return what lies in a chain of overflow pages; less than `missing` where a page is not there."""
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
