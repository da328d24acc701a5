"""What is kept from one start to the next: found again, never believed when damaged, never in the way."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vlm_spec_decode.core.disk_cache import DiskCache, cache_folder, cache_key

KEY = cache_key("a-kind", 1, "content")


def entry(folder):
    (path,) = folder.glob("*.entry")
    return path


def test_the_folder_is_the_users_choice_then_xdgs_then_the_homes():
    home = {"HOME": "/home/go2"}
    assert cache_folder(home) == Path("/home/go2/.cache/vlm_spec_decode")
    assert cache_folder(home | {"XDG_CACHE_HOME": "/var/x"}) == Path("/var/x/vlm_spec_decode")
    assert cache_folder(home | {"XDG_CACHE_HOME": "relative"}) == Path("/home/go2/.cache/vlm_spec_decode")
    assert cache_folder(home | {"XDG_CACHE_HOME": "/var/x", "VSD_CACHE": "/tmp/y"}) == Path("/tmp/y")
    assert cache_folder(home | {"VSD_CACHE": "OFF"}) is None
    assert cache_folder({}) is None


def test_a_value_is_found_under_its_key_only(tmp_path):
    cache = DiskCache(tmp_path / "new" / "folder")
    assert cache.read(KEY) is None
    cache.write(KEY, b"value")
    assert cache.read(KEY) == b"value"
    assert DiskCache(tmp_path / "new" / "folder").read(KEY) == b"value"
    others = (
        cache_key("a-kind", 2, "content"),
        cache_key("b-kind", 1, "content"),
        cache_key("a-kind", 1, "c", "ontent"),
    )
    assert [cache.read(other) for other in others] == [None] * 3
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "longer", "of another key"])
def test_a_damaged_entry_counts_as_absent_and_is_written_again(tmp_path, harm):
    cache = DiskCache(tmp_path)
    cache.write(KEY, b"value" * 100)
    path = entry(tmp_path)
    whole = path.read_bytes()
    if harm == "of another key":
        other = cache_key("a-kind", 1, "other")
        path.rename(tmp_path / f"{other}.entry")
        assert cache.read(other) is None
        return
    flipped = bytearray(whole)
    flipped[-7] ^= 1
    path.write_bytes(
        {"cut": whole[:-1], "empty": b"", "flipped": bytes(flipped), "longer": whole + b"x"}[harm]
    )
    assert cache.read(KEY) is None
    assert not path.exists()
    cache.write(KEY, b"value")
    assert cache.read(KEY) == b"value"


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = DiskCache(tmp_path, limit_bytes=2500)
    keys = [cache_key("a-kind", 1, str(i)) for i in range(3)]
    for age, key in zip((300, 200), keys, strict=False):
        cache.write(key, bytes(1000))
        path = tmp_path / f"{key}.entry"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert cache.read(keys[0]) is not None, "this use makes the other one the oldest"
    cache.write(keys[2], bytes(1000))
    assert [cache.read(key) is not None for key in keys] == [True, False, True]
    cache.write(KEY, bytes(3000))
    assert cache.read(KEY) is None, "larger than all that may be kept"


def test_what_a_dead_writer_left_is_removed(tmp_path):
    left, fresh = tmp_path / "tmpold.part", tmp_path / "tmpnew.part"
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    DiskCache(tmp_path).write(KEY, b"value")
    assert not left.exists()
    assert fresh.exists()


@pytest.mark.parametrize("where", ["nowhere", "a file", "below a file", "/proc/1/vsd", "/dev/full/x"])
def test_a_folder_that_cannot_be_used_costs_nothing(tmp_path, where):
    file = tmp_path / "file"
    file.write_text("")
    folder = {"nowhere": None, "a file": file, "below a file": file / "x"}.get(where, Path(where))
    cache = DiskCache(folder)
    cache.write(KEY, b"value")
    assert cache.read(KEY) is None


WRITER = """
import sys
from pathlib import Path
from vlm_spec_decode.core.disk_cache import DiskCache, cache_key
cache = DiskCache(Path(sys.argv[1]), limit_bytes=40_000)
for i in range(300):
    key = cache_key("a-kind", 1, str(i % 7))
    found = cache.read(key)
    assert found in (None, str(i % 7).encode() * 9000), "half an entry"
    cache.write(key, str(i % 7).encode() * 9000)
"""


def test_processes_and_threads_share_a_folder(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    wrong = []

    def reader():
        cache = DiskCache(tmp_path)
        while any(process.poll() is None for process in processes):
            for i in range(7):
                found = cache.read(cache_key("a-kind", 1, str(i)))
                if found is not None and found != str(i).encode() * 9000:
                    wrong.append(found)

    thread = threading.Thread(target=reader)
    thread.start()
    told = [process.communicate(timeout=60)[1] for process in processes]
    thread.join()
    assert [process.returncode for process in processes] == [0, 0], told
    assert wrong == []
    assert sum(path.stat().st_size for path in tmp_path.glob("*.entry")) <= 40_000 + 2 * 9032
    assert list(tmp_path.glob("*.part")) == []
