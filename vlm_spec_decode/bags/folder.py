"""The files of a bag on the disk, and the content of metadata.yaml.

Files are found by their names and recognised by their bytes. Files that were compressed as a whole
(`.db3.zstd`, `.mcap.zst`) are unpacked into a temporary folder. `bags.truncated_reader` chooses the reader
of a file.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
import zstandard

from vlm_spec_decode.bags.source import READ_FAULTS, ZSTD_MAGIC
from vlm_spec_decode.core.errors import BagError

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

    `faults` counts what was found wrong. Raises BagError if nothing is there, OSError if it cannot be
    looked at.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise BagError(f"{path}: no such bag")
        path = path.parent if path.name == METADATA else path
        self.path = path
        self.faults: Counter[str] = Counter()
        self.strangers: list[Path] = []
        """Files beside those of the bag that another recording has left."""
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self.metadata = read_metadata(path / METADATA) if path.is_dir() else Metadata()
        if self.metadata.problem:
            self.faults[self.metadata.problem] += 1
        found = self._find() if path.is_dir() else [path]
        self.paths = [unpacked for file in found if (unpacked := self._unpack(file)) is not None]

    @property
    def is_watched(self) -> bool:
        """Whether somebody must count what is read, or clear up after it."""
        return bool(self.metadata.counts or self.strangers) or self._unpacked is not None

    def close(self) -> None:
        """Remove what was unpacked. Idempotent."""
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def _find(self) -> list[Path]:
        """Return the files of the bag: those that metadata.yaml names, and those that lie beside them."""
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
        strangers = self._strangers(chosen)
        self.strangers = [there[name] for name in sorted(strangers, key=natural)]
        return [there[name] for name in sorted(chosen, key=natural) if name not in strangers]

    def _strangers(self, names: Iterable[str]) -> set[str]:
        """Return files that are not of this recording: all of it is there, and they are called otherwise."""
        files = self.metadata.files
        if not files or any(not {*_spellings(name)} & {*names} for name in files):
            return set()
        stems = {_stem(name) for name in files}
        return {name for name in names if _stem(name) not in stems}

    def _explain(self, there: Mapping[str, Path]) -> None:
        """Raise BagError that says what lies here instead of a bag."""
        inside = sorted(file.name for file in self.path.iterdir() if _is_bag(file))
        if inside:
            raise BagError(f"{self.path}: a folder of bags ({', '.join(inside[:5])}); name one of them")
        if self.faults:
            raise BagError(f"{self.path}: not a bag that can be read ({'; '.join(self.faults)})")
        raise BagError(f"{self.path}: not a bag: {len(there)} files, none of them .mcap, .db3 or .bag")

    def _unpack(self, file: Path) -> Path | None:
        """Return a file as the recorder wrote it before it was compressed; None if there is nothing in it."""
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
    """Read metadata.yaml of any version; say in `problem` why it is of no use."""
    if not path.exists():
        return Metadata()
    try:
        said: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        if not isinstance(said, dict) or not isinstance(said.get(ROOT), dict):
            return Metadata(problem=f"{METADATA} is empty or not of a bag")
        inside = said[ROOT]
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
    """Return what sorts walk_2 before walk_10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def _plain(name: str) -> str:
    """Return a name without the suffix of a compression."""
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _spellings(name: str) -> tuple[str, ...]:
    """Return the names that a file may have after somebody has unpacked or packed it."""
    return (name, _plain(name), *(_plain(name) + suffix for suffix in PACKED_SUFFIXES))


def _stem(name: str) -> str:
    """Return what all files of one recording have in common: walk of walk_3.db3.zstd."""
    return re.sub(r"_\d+$", "", _plain(name).rsplit(".", 1)[0])


def _is_bag(path: Path) -> bool:
    return path.is_dir() and ((path / METADATA).exists() or any(f.suffix in SUFFIXES for f in path.iterdir()))
