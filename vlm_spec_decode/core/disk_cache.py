"""Results that take long to compute, kept on disk from one start to the next; knows nothing of their meaning.

An entry is found by a hash of everything that its value follows from, the version of its format included, so
that it never becomes wrong, only unused. An entry carries a checksum: what is cut, damaged or of another key
counts as absent and is computed again. A folder that cannot be written, or none at all, costs only time. Any
number of processes may share a folder: entries appear whole, by a rename.

Where even the hash of the content takes too long to compute at every start, it is kept by what the file
system says of the files (`FileIdentities`), as build tools do.

The folder is $VSD_CACHE if set ("off": nothing is kept), else $XDG_CACHE_HOME/vlm_spec_decode, else
~/.cache/vlm_spec_decode. It may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "VSD_CACHE"
OFF = "off"

LIMIT_BYTES = 256 * 1024 * 1024
"""What a folder may hold; beyond it the entries go that were not used for longest."""

ABANDONED_S = 3600.0
"""Age of a temporary file whose writer has died."""

SETTLED_S = 2.0
"""The coarsest clock of a file system in use (FAT) ticks every 2 s."""

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_SUFFIX, _TEMPORARY = ".entry", ".part"


def cache_folder(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder that an environment, by default this process's, names; None: nothing is kept."""
    known = os.environ if environment is None else environment
    if named := known.get(VARIABLE, ""):
        return None if named.lower() == OFF else Path(os.path.expanduser(named))  # noqa: PTH111 - needs no home
    base = known.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():  # the XDG specification: a relative one is to be ignored
        return Path(base, "vlm_spec_decode")
    home = known.get("HOME", "")
    return Path(home, ".cache", "vlm_spec_decode") if home and Path(home).is_absolute() else None


def cache_key(kind: str, version: int, *parts: str | bytes) -> str:
    """Return the key of an entry: `version` is that of the format of this kind, `parts` decide the value."""
    digest = hashlib.sha256(f"{kind} {version}".encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        # With its length before it no part can run into the next one.
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"{kind}-{digest.hexdigest()}"


class DiskCache:
    """Entries in one folder; `folder` None keeps nothing. Raises nothing: what fails counts as absent."""

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def read(self, key: str) -> bytes | None:
        """Return the value of a key, None if it is not there whole."""
        if self._folder is None:
            return None
        path = self._folder / f"{key}{_SUFFIX}"
        try:
            found = path.read_bytes()
        except OSError:
            return None
        value = found[_CHECKSUM_BYTES:]
        if found[:_CHECKSUM_BYTES] != _checksum(key, value):
            log.debug("%s is damaged and will be written again", path)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # the mark of use that `_trim` goes by
        return value

    def write(self, key: str, value: bytes) -> None:
        """Keep a value, if the folder can be written."""
        if self._folder is None or len(value) > self._limit_bytes:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(suffix=_TEMPORARY, dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_checksum(key, value) + value)
                os.replace(part, self._folder / f"{key}{_SUFFIX}")  # noqa: PTH105 - one call for both names
            except BaseException:
                with suppress(OSError):
                    os.unlink(part)  # noqa: PTH108
                raise
            self._trim(self._folder)
        except OSError as error:
            log.debug("nothing is kept in %s: %s", self._folder, error)

    def _trim(self, folder: Path) -> None:
        """Remove abandoned files, and entries from the one unused for longest until the rest fits."""
        entries = []
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # another process trims too
                facts = path.stat()
                if path.suffix == _SUFFIX:
                    entries.append((facts.st_mtime, facts.st_size, path))
                elif path.suffix == _TEMPORARY and time.time() - facts.st_mtime > ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def user_cache() -> DiskCache:
    """Return the cache in the folder that the environment names now."""
    return DiskCache(cache_folder())


@dataclass(frozen=True, slots=True)
class FileIdentities:
    """What some files are told apart by without reading them: name, place, device, inode, size and times.

    The times are those of the last change of content and of the inode. Any program that writes a file moves
    the latter, which no program can set, so that a file with the same identity has the same bytes.
    """

    paths: tuple[Path, ...]
    facts: str
    newest_s: float

    @classmethod
    def of(cls, paths: Iterable[Path]) -> FileIdentities:
        """Look at files. Raises OSError if one is not there."""
        seen, facts = tuple(paths), []
        for path in seen:
            found = path.stat()
            times = (found.st_mtime_ns, found.st_ctime_ns)
            facts.append((path.name, str(path.resolve()), found.st_dev, found.st_ino, found.st_size, times))
        newest = max((max(times) for *_, times in facts), default=0)
        return cls(seen, json.dumps(facts), newest / 1e9)

    @property
    def has_changed(self) -> bool:
        """Tell whether a file is another one by now."""
        try:
            return FileIdentities.of(self.paths) != self
        except OSError:
            return True

    @property
    def is_settled(self) -> bool:
        """Tell whether a change from now on would be seen.

        A file system's clock ticks: a write within the same tick as the last one would move no time.
        """
        return time.time() - self.newest_s > SETTLED_S


def kept_by_files(
    kind: str, version: int, files: FileIdentities, facts: str, compute: Callable[[], str], length: int
) -> str:
    """Return a text of `length` ASCII characters that follows from files and `facts`, computed at most once.

    `files` were looked at before they were read. What has changed while it was read, or just before, is
    neither kept nor taken from what is kept.
    """
    cache, key = user_cache(), cache_key(kind, version, files.facts, facts)
    kept = None if files.has_changed else cache.read(key)
    if kept is not None and len(kept) == length:
        return kept.decode("ascii")
    found = compute()
    if files.is_settled and not files.has_changed:
        cache.write(key, found.encode("ascii"))
    return found


def _checksum(key: str, value: bytes) -> bytes:
    """Return a checksum that is right for this value under this key only."""
    return hashlib.sha256(key.encode() + b"\0" + value).digest()
