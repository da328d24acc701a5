"""Whom the cloud lets speak: keys come and go while it serves, and none takes more than its share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_spec_decode import cli
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.guard import ABSENT_S, LOOK_S, AuthorizedKeys, Guard, KeyLimits


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
    clock.sleep(LOOK_S)
    assert authorized.allows(second)
    (folder / "authorized" / "edge.key").unlink()
    clock.sleep(LOOK_S)
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
    clock.sleep(LOOK_S)
    assert not authorized.allows(public_of(folder))


def test_each_key_has_its_share_of_messages_bytes_and_robots() -> None:
    clock = VirtualClock()
    guard = Guard(None, KeyLimits(robots=2, messages_per_s=10, bytes_per_s=1000, burst_s=1.0), clock)
    assert sum(guard.admits("one", b"a", 10) for _ in range(30)) == 10
    assert guard.admits("two", b"b", 10), "another key is not held up"
    clock.sleep(1.0)
    assert guard.admits("one", b"a", 900)
    assert not guard.admits("one", b"a", 200)
    clock.sleep(1.0)
    assert guard.admits("one", b"c", 1)
    assert not guard.admits("one", b"d", 1)
    assert dict(guard.dropped) == {"too_fast": 21, "too_many_robots": 1}
    clock.sleep(ABSENT_S)
    assert guard.admits("one", b"d", 1), "who is silent for long makes way"


def test_a_connection_does_not_outlive_its_key(folder: Path) -> None:
    clock = VirtualClock()
    guard = Guard(AuthorizedKeys(folder / "authorized", clock), KeyLimits(), clock)
    key = public_of(folder)
    assert guard.admits(key, b"a", 1)
    (folder / "authorized" / "edge.key").unlink()
    clock.sleep(LOOK_S)
    assert not guard.admits(key, b"a", 1)
    assert guard.dropped["revoked"] == 1


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
