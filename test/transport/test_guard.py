"""Whom the cloud lets speak: keys come and go while it serves, and none takes more than its share."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.transport import access as guards
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.access import (
    ABSENT_S,
    KEPT_S,
    SCAN_EVERY_S,
    AccessControl,
    AuthorizedKeys,
    KeyLimits,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.generate(tmp_path)
    return tmp_path


def public_of(folder: Path) -> str:
    return keys.edge_keys(folder).public.decode()


def test_keys_come_and_go_without_a_restart(folder: Path) -> None:
    clock = VirtualClock()
    authorized = AuthorizedKeys(folder / "authorized", clock)
    first = public_of(folder)
    assert authorized.allows(first)
    keys.add_robot(folder, "rex")
    second = public_of(folder / "robots" / "rex")
    clock.sleep(SCAN_EVERY_S)
    assert authorized.allows(second)
    (folder / "authorized" / "edge.key").unlink()
    clock.sleep(SCAN_EVERY_S)
    assert not authorized.allows(first)
    assert authorized.allows(second)


def test_a_file_that_is_no_key_locks_nobody_out_and_a_missing_folder_lets_nobody_in(folder: Path) -> None:
    clock = VirtualClock()
    (folder / "authorized" / "broken.key").write_text("not a key")
    authorized = AuthorizedKeys(folder / "authorized", clock)
    assert authorized.allows(public_of(folder))
    for file in (folder / "authorized").iterdir():
        file.unlink()
    (folder / "authorized").rmdir()
    clock.sleep(SCAN_EVERY_S)
    assert not authorized.allows(public_of(folder))


def _in_place(old: Path, new: bytes) -> None:
    """As `cp -p` and `rsync --inplace -t` do: same inode, and the times of before."""
    times = old.stat()
    old.write_bytes(new)
    os.utime(old, ns=(times.st_atime_ns, times.st_mtime_ns))


def _by_rename(old: Path, new: bytes) -> None:
    """As `rsync -t` does: another inode, and the times of before."""
    times, other = old.stat(), old.with_suffix(".part")
    other.write_bytes(new)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(old)


def _by_folder(old: Path, new: bytes) -> None:
    """As a mounted set of secrets does: another folder behind the same link."""
    times, folder = old.stat(), old.parent
    fresh = folder.with_name("fresh")
    shutil.copytree(folder, fresh)
    (fresh / old.name).write_bytes(new)
    os.utime(fresh / old.name, ns=(times.st_atime_ns, times.st_mtime_ns))
    folder.rename(folder.with_name("before"))
    folder.symlink_to(fresh)


@pytest.mark.parametrize("replace", [_in_place, _by_rename, _by_folder])
@pytest.mark.parametrize("settled", [True, False])
def test_a_replaced_key_is_revoked_though_its_mtime_is_the_same(
    folder: Path, replace: Callable[[Path, bytes], None], settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`settled`: the first reading is old enough to be remembered."""
    monkeypatch.setattr(guards, "SETTLED_S", -60.0 if settled else 60.0)
    keys.add_robot(folder, "rex")
    clock, rex = VirtualClock(), folder / "authorized" / "rex.key"
    authorized = AuthorizedKeys(folder / "authorized", clock)
    revoked = public_of(folder / "robots" / "rex")
    assert authorized.allows(revoked)
    other = folder / "other"
    keys.generate(other)
    time.sleep(0.02)  # the kernel's clock for ctime ticks every few milliseconds
    replace(rex, (other / "edge.key").read_bytes())
    clock.sleep(SCAN_EVERY_S)
    assert not authorized.allows(revoked)
    assert authorized.allows(public_of(other))
    assert authorized.allows(public_of(folder))


def test_what_was_written_within_a_tick_of_the_clock_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same size, inode and times: a file system whose clock stands still between two writes."""
    clock, edge = VirtualClock(), folder / "authorized" / "edge.key"
    authorized = AuthorizedKeys(folder / "authorized", clock)
    revoked = public_of(folder)
    assert authorized.allows(revoked)
    stamp, really = edge.stat(), Path.stat
    monkeypatch.setattr(Path, "stat", lambda self: stamp if self == edge else really(self))
    keys.generate(folder / "other")
    edge.write_bytes((folder / "other" / "edge.key").read_bytes())
    clock.sleep(SCAN_EVERY_S)
    assert not authorized.allows(revoked)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_key_that_was_half_copied_is_let_in_once_it_is_whole(folder: Path, share: float) -> None:
    clock, edge = VirtualClock(), folder / "authorized" / "edge.key"
    whole, times = edge.read_bytes(), edge.stat()
    start = whole.index(b"public-key")
    edge.write_bytes(whole[: start + round(share * len(whole[start:].rstrip()))][:-1])
    os.utime(edge, ns=(times.st_atime_ns, times.st_mtime_ns))
    authorized = AuthorizedKeys(folder / "authorized", clock)
    assert not authorized.allows(public_of(folder))
    _in_place(edge, whole)
    clock.sleep(SCAN_EVERY_S)
    assert authorized.allows(public_of(folder))


def test_a_failed_read_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    monkeypatch.setattr(guards, "SETTLED_S", -60.0)
    with monkeypatch.context() as broken:
        broken.setattr(keys, "read_public", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, str(path))))
        authorized = AuthorizedKeys(folder / "authorized", clock)
        assert not authorized.allows(public_of(folder))
    clock.sleep(SCAN_EVERY_S)
    assert authorized.allows(public_of(folder))


def test_a_lack_of_descriptors_locks_nobody_out_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock()
    authorized = AuthorizedKeys(folder / "authorized", clock)
    assert authorized.allows(public_of(folder))

    def none_left(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(guards.os, "scandir", none_left)
    clock.sleep(KEPT_S - SCAN_EVERY_S)
    assert authorized.allows(public_of(folder))
    clock.sleep(2 * SCAN_EVERY_S)
    assert not authorized.allows(public_of(folder)), "a key that cannot be checked is not trusted for long"


@pytest.mark.parametrize("name", ["edge.key_secret", "cloud.key"])
@pytest.mark.parametrize("content", [b"", b"public-key", b'public-key = "abc"', b"\xff\xfe", "cut"])
def test_a_broken_key_of_ones_own_is_named(folder: Path, name: str, content: bytes | str) -> None:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes().rstrip()[:-9])
    with pytest.raises(ConfigError, match=rf"{name}.*key"):
        keys.edge_keys(folder)


def test_each_key_has_its_share_of_messages_bytes_and_robots() -> None:
    clock = VirtualClock()
    access = AccessControl(None, KeyLimits(robots=2, messages_per_s=10, bytes_per_s=1000, burst_s=1.0), clock)
    assert sum(access.admits("one", b"a", 10) for _ in range(30)) == 10
    assert access.admits("two", b"b", 10), "another key is not held up"
    clock.sleep(1.0)
    assert access.admits("one", b"a", 900)
    assert not access.admits("one", b"a", 200)
    clock.sleep(1.0)
    assert access.admits("one", b"c", 1)
    assert not access.admits("one", b"d", 1)
    assert dict(access.dropped) == {"too_fast": 21, "too_many_robots": 1}
    clock.sleep(ABSENT_S)
    assert access.admits("one", b"d", 1), "who is silent for long makes way"


def test_a_connection_does_not_outlive_its_key(folder: Path) -> None:
    clock = VirtualClock()
    access = AccessControl(AuthorizedKeys(folder / "authorized", clock), KeyLimits(), clock)
    key = public_of(folder)
    assert access.admits(key, b"a", 1)
    (folder / "authorized" / "edge.key").unlink()
    clock.sleep(SCAN_EVERY_S)
    assert not access.admits(key, b"a", 1)
    assert access.dropped["revoked"] == 1


@pytest.mark.parametrize("name", ["../x", "", "a b", "edge/x"])
def test_a_name_that_is_no_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name"):
        keys.add_robot(folder, name)


def test_a_robot_is_added_once_and_its_secret_is_its_own(folder: Path) -> None:
    secret, *_ = keys.add_robot(folder, "rex")
    assert secret.stat().st_mode & 0o077 == 0
    assert keys.edge_keys(folder / "robots" / "rex").cloud_public == keys.cloud_keys(folder).public
    with pytest.raises(ConfigError, match="exists"):
        keys.add_robot(folder, "rex")


@pytest.mark.parametrize("name", ["cloud.key", "cloud.key_secret", "edge.key_secret", "authorized/edge.key"])
def test_a_full_disk_leaves_no_half_made_keys(tmp_path: Path, name: str) -> None:
    (tmp_path / "authorized").mkdir()
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left"):
        keys.generate(tmp_path, overwrite=True)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
    keys.generate(tmp_path)
    assert keys.edge_keys(tmp_path).cloud_public == keys.cloud_keys(tmp_path).public


def test_a_full_disk_adds_no_robot_and_it_can_be_added_later(folder: Path) -> None:
    authorized = folder / "authorized" / "rex.key"
    authorized.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left"):
        keys.add_robot(folder, "rex")
    assert not authorized.is_symlink()
    keys.add_robot(folder, "rex")
    assert authorized.exists()


def test_the_command_line_adds_a_robot(folder: Path) -> None:
    assert cli.main(["keys", str(folder), "--robot", "rex"]) == 0
    assert (folder / "authorized" / "rex.key").exists()
    assert cli.main(["keys", str(folder), "--robot", "rex"]) == 2
