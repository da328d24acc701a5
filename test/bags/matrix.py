"""Every way in which a recorder or a person leaves a bag, written on the spot.

A `Case` writes one bag and says which of its messages a reader can have: those that lie there in full. The
reader may give more (the beginning of a chunk that broke off), but nothing that was not recorded, and nothing
twice.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mcap.writer import IndexType
from rosbags.rosbag1 import Writer as Writer1

from test.bags import states
from test.bags.recorders import (
    STORAGES,
    Key,
    messages,
)
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.source import num_unread
from vlm_spec_decode.core.errors import BagError


@dataclass(frozen=True)
class Case:
    """`write` makes a bag in an empty folder and returns it with the keys of what can be read there.

    `is_refused`: nothing can be read, and one line says so.
    """

    name: str
    write: Callable[[Path], tuple[Path, set[Key]]]
    is_refused: bool = False
    is_sorted: bool = True
    has_checksums: bool = True
    """Whether the reader can know of bytes that were changed; if not, only crashes count."""


def _cases() -> list[Case]:
    found = [
        Case(f"{s}, {n} files", partial(states.whole, storage=s, count=n)) for s in STORAGES for n in (1, 12)
    ]
    found += [
        Case(f"{s}, 12 files, no metadata", partial(states.whole, storage=s, count=12, version=0))
        for s in STORAGES
    ]
    found += [Case(f"{s}, one file", partial(states.one_file, storage=s)) for s in STORAGES]
    both = ("mcap", "sqlite3 v4")
    for s in both:
        found += [
            Case(f"{s}, metadata version {v}", partial(states.whole, storage=s, count=2, version=v))
            for v in range(1, 9)
        ]
        found += [
            Case(f"{s}, metadata {name}", partial(states.spoilt_metadata, storage=s, text=text))
            for name, text in states.METADATA.items()
        ]
        found += [
            Case(f"{s}, renamed: {how}", partial(states.renamed, storage=s, how=how))
            for how in ("file", "folder", "posix", "windows", "absolute")
        ]
        found += [Case(f"{s}, a file missing", partial(states.missing, storage=s, names_it=True))]
        found += [Case(f"{s}, a file more", partial(states.missing, storage=s, names_it=False))]
        found += [Case(f"{s}, another recording's file", partial(states.foreign, storage=s))]
        found += [
            Case(f"{s}, {n} files zstd, {what}", partial(states.packed, storage=s, count=n, what=what))
            for n, what in (
                (1, "as recorded"),
                (12, "as recorded"),
                (3, "unpacked"),
                (3, "both"),
                (3, "empty beside"),
                (3, "zst"),
                (3, "no metadata"),
                (3, "cut"),
            )
        ]
        found += [
            Case(f"{s}, messages zstd, {told}", partial(states.packed_messages, storage=s, told=told))
            for told in ("told", "not told", "only told")
        ]
        found += [Case(f"{s}, overlapping files", partial(states.overlapping, storage=s))]
        found += [
            Case(f"{s}, last file {w}", partial(states.tail, storage=s, what=w))
            for w in ("half zeros", "zeros", "nothing")
        ]
    found += [Case(f"sqlite3 v{v}", partial(states.sqlite_alone, version=v)) for v in (2, 3)]
    found += [Case("sqlite3 without its index", partial(states.sqlite_alone, version=4, index=False))]
    found += [
        Case(
            f"{s}, cut at {share}{', metadata' * told}",
            partial(states.cut, storage=s, share=share, has_metadata=told),
        )
        for s in STORAGES
        for share, told in ((0.0003, False), (0.6, False), (0.95, False), (0.6, True))
    ]
    found += [
        Case(f"sqlite3, killed in {mode} mode", partial(states.log, mode=mode)) for mode in ("WAL", "DELETE")
    ]
    found += [
        Case(f"{s}, damaged: {what}", partial(states.damaged, storage=s, what=what))
        for s in ("mcap", "mcap zstd", "mcap lz4")
        for what in ("first chunk", "middle", "no summary", "told")
    ]
    found += [
        Case(
            "sqlite3, damaged: told",
            partial(states.damaged, storage="sqlite3 v4", what="told"),
            is_sorted=False,
        )
    ]
    for name, options in {
        "no index at all": {"index_types": IndexType.NONE},
        "no chunk index": {"index_types": IndexType.MESSAGE},
        "no message index": {"index_types": IndexType.CHUNK},
        "no statistics": {"use_statistics": False},
        "no summary offsets": {"use_summary_offsets": False},
        "no schemas repeated": {"repeat_schemas": False},
        "no channels repeated": {"repeat_channels": False},
        "no checksums": {"enable_crcs": False},
        "no definitions": {"defined": "none"},
        "empty definitions beside one": {"defined": "mixed"},
        "one large chunk": {"chunk_size": 1 << 24},
        "a chunk for each message": {"chunk_size": 1},
    }.items():
        found += [Case(f"mcap, {name}", partial(states.indexes, **options))]
    found += [Case("mcap, indexes doubled", states.doubled_index)]
    found += [Case("mcap, out of order", states.no_order)]
    found += [
        Case("mcap unchunked, out of order", partial(states.no_order, use_chunking=False), is_sorted=False)
    ]
    found += [
        Case(f"ROS 1 {c or 'plain'}", partial(states.ros1_file, compression=c))
        for c in (None, *Writer1.CompressionFormat)
    ]
    found += [
        Case(f"ROS 1, {what}", partial(states.ros1_file, what=what))
        for what in ("active", "folder", "no index", "half")
    ]
    found += [
        Case(f"ROS 1 {c}, damaged", partial(states.ros1_file, compression=c, what="damaged"))
        for c in Writer1.CompressionFormat
    ]
    found += [Case("ROS 1 in mcap", states.ros1_in_mcap)]
    found += [Case("mcap, attachments between", states.with_attachments)]
    found += [Case("mcap, other encodings beside", states.with_other_encodings)]
    found += [
        Case(f"nothing: {what}", partial(states.nothing, what=what), is_refused=True)
        for what in (
            "empty",
            "zero bytes",
            "metadata alone",
            "other files",
            "bags inside",
            "garbage",
            "old ROS 1",
        )
    ]
    return found


CASES = _cases()
assert len({case.name for case in CASES}) == len(CASES), "names tell cases apart"


# Reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of reading a bag.

    `wrong` messages were not recorded, came twice, or could not be decoded without being counted. `error` is
    what was raised; it is a named one, or is not.
    """

    read: int = 0
    unread: int = 0
    counted: int = 0
    wrong: int = 0
    is_sorted: bool = True
    error: str = ""
    is_named: bool = True

    @property
    def uncounted(self) -> int:
        return max(0, self.unread - self.counted)

    def is_right(self, case: Case) -> bool:
        """Whether this is what should come of a case."""
        if not case.has_checksums:
            return self.is_named
        holds = self.is_named and bool(self.error) == case.is_refused and "\n" not in self.error
        return holds and not self.uncounted and not self.wrong and (self.is_sorted or not case.is_sorted)


def outcome(case: Case, folder: Path) -> Outcome:
    """Write the bag of a case and read all of it, as `vsd replay` does."""
    bag, readable = case.write(folder)
    walk = {m.key: m for m in messages("ros1" if "ROS 1" in case.name else "")}
    found, error, faults, wrong, undecoded = list[Key](), "", Counter[str](), 0, 0
    try:
        source = open_bag(bag)
        try:
            for record in source.records(source.topics):
                key = (record.topic, record.at_ns)
                found.append(key)
                wrong += key not in walk or walk[key].data != record.data
                undecoded += source.message(record) is None
            faults = source.faults
        finally:
            source.close()
    except BagError as problem:
        error = str(problem)
    except Exception as problem:  # noqa: BLE001  whatever it is, it is not what a user should see
        return Outcome(error=f"{type(problem).__name__}: {problem}", is_named=False)
    read = set(found)
    said = sum(count for name, count in faults.items() if name.endswith("that cannot be read"))
    wrong += len(found) - len(read) + max(0, undecoded - said)
    times = [at_ns for _, at_ns in found]
    unread = len(readable - read)
    return Outcome(len(read), unread, num_unread(faults), wrong, times == sorted(times), error)
