"""What benchmarks/bags.py measures on: bags written on the spot, cut off, made large, and read by others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vlm_spec_decode.bags.events import COMPRESSED, MOTION, RAW, Events, Topics
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.recording import Recording
from vlm_spec_decode.bags.source import Record
from vlm_spec_decode.core.errors import BagError

SECOND = 1_000_000_000
TYPES = get_typestore(Stores.ROS2_JAZZY)
SUFFIX = {"mcap": ".mcap", "sqlite3": ".db3"}


def rows_of(bag: Path, seconds: float = float("inf")) -> list[Record]:
    """Return the first seconds of a bag."""
    source = open_bag(bag)
    found: list[Record] = []
    for record in source.records(source.topics):
        if found and record.at_ns - found[0].at_ns > seconds * SECOND:
            break
        found.append(record)
    source.close()
    return found


def recorded(folder: Path, storage: str, messages: list[Record]) -> Path:
    """Write messages as `vsd record` does; return the file."""
    bag = Recording(folder, storage)
    for message in messages:
        bag.write(message.topic, message.kind, message.data, message.at_ns)
    bag.close()
    return next(path for path in folder.iterdir() if path.suffix == SUFFIX[storage])


def read_by_others(file: Path) -> list[tuple[str, int, bytes]]:
    """Return topic, time and bytes as the reader of the format's own makers gives them."""
    if file.suffix == ".db3":
        query = "SELECT name, timestamp, data FROM messages JOIN topics ON topics.id = topic_id"
        with closing(sqlite3.connect(file)) as database:
            return [(name, at_ns, bytes(data)) for name, at_ns, data in database.execute(query)]
    with file.open("rb") as stream:
        return [(c.topic, m.log_time, m.data) for _, c, m in make_reader(stream).iter_messages()]


def read_by_rosbags(folder: Path) -> list[tuple[str, int, bytes]]:
    """Return the same as the rosbags library gives it."""
    with Reader(folder) as reader:
        return [(c.topic, at_ns, bytes(data)) for c, at_ns, data in reader.messages()]


def ends(file: Path, messages: list[Record]) -> list[int]:
    """Return the offset in the file behind which each message is there in full."""
    if file.suffix == ".mcap":
        data, at, found = file.read_bytes(), 0, []
        for message in messages:
            at = data.index(message.data, at) + len(message.data)
            found.append(at)
        return found
    return _sqlite_ends(file)


def _sqlite_ends(file: Path) -> list[int]:
    """By sqlite's own account of its pages: the last page of each row."""
    with closing(sqlite3.connect(file)) as database:
        (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
        pages = database.execute(
            "SELECT path, pageno, pagetype, ncell FROM dbstat WHERE name = 'messages' ORDER BY path"
        ).fetchall()
    last: dict[tuple[str, int], int] = {}
    for path, number, kind, cells in pages:
        if kind == "leaf":
            last |= {(path, cell): number for cell in range(cells)}
        elif kind == "overflow":
            leaf, _, place = path.rpartition("/")
            cell, _, _ = place.partition("+")
            key = (f"{leaf}/", int(cell, 16))
            last[key] = max(last.get(key, 0), number)
    return [number * page_bytes for _, number in sorted(last.items())]


@dataclass(frozen=True, slots=True)
class Survey:
    """Results of the camera and motion messages of one bag."""

    read: int
    named: int
    total: int
    kinds: frozenset[str]


def survey(bag: Path) -> Survey | None:
    """Read every picture and every velocity of a bag; None if it cannot be opened with a named error."""
    try:
        source = open_bag(bag)
    except BagError:
        return None
    read = named = 0
    counts: dict[str, int] = {}
    wanted = {t: k for t, k in source.topics.items() if k in (COMPRESSED, RAW, *MOTION)}
    kinds = set()
    for record in source.records(wanted):
        counts[record.topic] = counts.get(record.topic, 0) + 1
    for topic, kind in wanted.items():
        events = Events(source, {topic: "frame" if kind in (COMPRESSED, RAW) else "motion"})
        for event in events:
            read += 1
            kinds.add(getattr(getattr(event, "message", None), "encoding", kind))
            if hasattr(event, "image") and _fails(event):
                read, named = read - 1, named + 1
        named += sum(n for name, n in events.faults.items() if name.startswith(f"{topic}:"))
    source.close()
    return Survey(read, named, sum(counts.values()), frozenset(kinds))


def _fails(event: object) -> bool:
    try:
        event.image  # type: ignore[attr-defined]  # noqa: B018
    except Exception:  # noqa: BLE001  any exception is counted
        return True
    return False


def public_bags(folder: Path) -> Iterator[Path]:
    """Yield the bags below a folder: folders with metadata.yaml, and files that lie in none."""
    folders = {path.parent for path in folder.rglob("metadata.yaml")}
    yield from sorted(folders)
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".mcap", ".db3", ".bag") and path.parent not in folders:
            yield path


def large_bag(folder: Path, num_bytes: int, rate_hz: float = 10.0) -> float:
    """Write raw 720p frames and an instruction; return the length in seconds."""
    width, height = 1280, 720
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
    make = TYPES.types
    count = num_bytes // pixels.nbytes
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        frames = writer.add_connection("/camera/image", RAW, typestore=TYPES)
        words = writer.add_connection("/vlm/instruction", "std_msgs/msg/String", typestore=TYPES)
        said = make["std_msgs/msg/String"]("walk to the red ball")
        writer.write(words, SECOND, bytes(TYPES.serialize_cdr(said, said.__msgtype__)))
        header = make["std_msgs/msg/Header"](make["builtin_interfaces/msg/Time"](1, 0), "camera")
        image = make[RAW](header, height, width, "rgb8", 0, 3 * width, pixels.reshape(-1))
        data = bytes(TYPES.serialize_cdr(image, RAW))
        for number in range(count):
            writer.write(frames, SECOND + round(number / rate_hz * SECOND), data)
    return count / rate_hz


def events_of(bag: Path) -> list[tuple[str, int]]:
    """Return kind and time of every event of a bag, as a replay meets them."""
    source = open_bag(bag)
    try:
        events = Events(source, Topics().choose(source.topics))
        return [(type(event).__name__, event.at_ns) for event in events]
    finally:
        source.close()
