"""A load that takes long says so, once while it goes on and once at its end; a short one says nothing."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from vlm_spec_decode.cli.load_line import LoadLines, load_lines
from vlm_spec_decode.core import load_progress
from vlm_spec_decode.core.load_progress import (
    LoadLog,
    current_load,
    importing,
    in_background,
    reported,
    shown_by,
)

WAIT_S = 30.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_short_load_says_nothing():
    lines = []
    with shown_by(LoadLog(lines.append)), reported("small", after_s=WAIT_S):
        pass
    with shown_by(LoadLog(lines.append)), pytest.raises(OSError, match="gone"), reported("small", WAIT_S):
        raise OSError("gone")
    assert lines == []


def test_a_long_load_says_how_far_it_is_and_then_how_long_it_took():
    lines = []
    with shown_by(LoadLog(lines.append)), reported("Qwen2-VL-7B", after_s=0.05) as load:
        load.total_bytes = 15_200_000_000
        load.shares = {"tensors": 0.4, "hash": 0.0}
        until(lambda: lines)
        assert lines == ["loading Qwen2-VL-7B … 3.0 of 15.2 GB"]
        load.shares = {"tensors": 1.0, "hash": 1.0}
        load.began_s -= 41
    assert lines[1:] == ["loaded Qwen2-VL-7B (15.2 GB) in 41 s"]
    assert logging.getLogger("vlm_spec_decode.loading").handlers == []


def test_a_long_load_that_fails_says_that_too():
    lines = []

    def fail():
        with reported("m", 0.05) as load:
            load.total_bytes = 2_000_000
            until(lambda: lines)
            raise OSError("gone")

    with shown_by(LoadLog(lines.append)), pytest.raises(OSError, match="gone"):
        fail()
    assert lines == ["loading m … 0.0 of 2.0 MB", "gave up loading m (2.0 MB) after 0 s"]


def test_a_line_tells_draft_from_target_of_one_name():
    lines = []
    with shown_by(LoadLog(lines.append)):
        for role, name in (("draft", "Qwen3-VL"), ("target", "Qwen3-VL"), ("target", "target")):
            with reported(name, 0.0, role=role):
                pass
    assert lines[::2] == ["loading draft Qwen3-VL …", "loading target Qwen3-VL …", "loading target …"]
    assert lines[1::2] == [
        "loaded draft Qwen3-VL in 0 s",
        "loaded target Qwen3-VL in 0 s",
        "loaded target in 0 s",
    ]


def test_the_import_of_the_libraries_is_told_at_once_and_only_once(monkeypatch):
    lines = []
    monkeypatch.setattr(load_progress, "LIBRARY", "a library that nobody has imported")
    with shown_by(LoadLog(lines.append)), importing():
        assert lines == ["loading libraries …"]
    assert lines[1:] == ["loaded libraries in 0 s"]
    monkeypatch.setattr(load_progress, "LIBRARY", "pytest")
    with shown_by(LoadLog(lines.append)), importing():
        pass
    assert len(lines) == 2


def test_a_terminal_is_as_it_was_after_the_libraries(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(load_progress, "LIBRARY", "a library that nobody has imported")
    terminal = Terminal()
    with load_lines(terminal):
        with importing():
            assert terminal.getvalue().startswith("loading libraries …\r")
        assert "loaded libraries" not in terminal.getvalue()
        assert terminal.getvalue().endswith("\x1b[2K"), "the line is taken away"


def test_the_first_line_of_a_command_comes_before_torch(tmp_path):
    """Seen as a user sees it, in a terminal; rich and torch have not been imported by then."""
    seen = (
        "import sys; from vlm_spec_decode.cli import load_line, main; "
        "write = load_line.LoadLines._write; "
        "heavy = {'torch', 'rich', 'transformers'}; "
        "load_line.LoadLines._write = lambda *given: "
        "(write(*given), print(*heavy & set(sys.modules), 'before it'), sys.exit(0)); "
        "sys.exit(main.main(sys.argv[1:]))"
    )
    words = ["ask", "--instruction", "go", "--scene-text", "a chair"]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", seen, *words],
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert shown == "loading libraries …\rbefore it\r\n"
    assert done.returncode == 0


def test_parts_in_the_background_belong_to_their_load():
    with reported("one", WAIT_S) as one:
        assert in_background(current_load).result(WAIT_S) is one
    assert current_load() is not one
    with reported("one", WAIT_S) as one, reported("two", WAIT_S) as two:
        assert current_load() is two
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0).result(WAIT_S)


def test_a_terminal_shows_a_line_for_each_load_until_all_have_ended():
    terminal = Terminal()
    with load_lines(terminal):
        with reported("draft", 0.0) as draft, reported("target", 0.0) as target:
            draft.total_bytes, target.total_bytes = 2_000_000, 4_000_000_000
            until(lambda: "target" in terminal.getvalue())
            target.shares["tensors"] = 0.5
            until(lambda: "loading target … 2.0 of 4.0 GB" in terminal.getvalue())
            assert "loading draft … 0.0 of 2.0 MB" in terminal.getvalue()
        drawn = terminal.getvalue()
        assert re.search(r"loaded draft \(2.0 MB\) in \d+ s", drawn)
        assert re.search(r"loaded target \(4.0 GB\) in \d+ s", drawn)
        time.sleep(0.4)
        assert terminal.getvalue() == drawn, "nothing is drawn after the last load"
        with reported("again", 0.0):
            until(lambda: "again" in terminal.getvalue())
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is shown again"


def test_a_program_that_ends_in_the_middle_leaves_the_terminal_as_it_was():
    terminal = Terminal()
    with shown_by(LoadLines(terminal)):
        record = logging.LogRecord("x", logging.INFO, __file__, 1, "", (), None)
        with reported("m", WAIT_S) as load:
            record.load = load
            logging.getLogger("vlm_spec_decode.loading").handle(record)
    assert terminal.getvalue().endswith("\x1b[?25h")


def test_no_line_where_stderr_is_no_terminal():
    stream = io.StringIO()
    with load_lines(stream), reported("m", 0.0):
        time.sleep(0.05)
    assert stream.getvalue() == ""
