"""A node process ends quietly on signals, with the right code, and always closes what it runs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vlm_spec_decode.core.errors import CloudUnreachable, RobotUnreachable
from vlm_spec_decode.ros import entry_points as spin

pytestmark = pytest.mark.ros

PROGRAM = """
import sys, threading, time
from pathlib import Path
from vlm_spec_decode.ros.entry_points import run_node
from vlm_spec_decode.ros.convert import STEADY
from vlm_spec_decode.core.errors import CloudUnreachable, RobotUnreachable

log = Path(sys.argv[1])

def note(text):
    with log.open("a") as file:
        file.write(text + "\\n")

class Part:
    is_settled = True

    def begin(self):
        pass

    def __init__(self, node, stop):
        node.create_timer(0.05, self.work, clock=STEADY)
        self.stop = stop
        self.calls = 0

    def work(self):
        self.calls += 1
        if self.calls == 3:
            note("spinning")
        {work}

    def close(self):
        note("closed")
        {close}

def build(node, stop):
    {build}
    return Part(node, stop)

sys.exit(run_node("part", build, []))
"""


@pytest.fixture
def process(tmp_path):
    started = []

    def start(build="pass", work="pass", close="pass"):
        log = tmp_path / "log"
        log.touch()
        program = PROGRAM.format(build=build, work=work, close=close)
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        child = subprocess.Popen([sys.executable, "-c", program, str(log)], start_new_session=True, **options)
        started.append(child)
        return child, log

    yield start
    for child in started:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()


def wait_for_line(log, line, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while line not in log.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.02)
    return line in log.read_text().split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_the_part_and_ends_with_code_0(process, number):
    child, log = process()
    assert wait_for_line(log, "spinning")
    child.send_signal(number)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0, output
    assert log.read_text().split()[-1] == "closed"
    assert "Traceback" not in output


def test_more_signals_until_the_very_end_change_nothing(process):
    child, log = process(close="time.sleep(0.5)")
    assert wait_for_line(log, "spinning")
    child.send_signal(signal.SIGINT)
    assert wait_for_line(log, "closed")
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        child.send_signal(signal.SIGINT)
        time.sleep(0.005)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0, output
    assert "Traceback" not in output


def test_a_signal_while_the_parts_are_put_together_ends_that(process):
    child, log = process(build="note('building'); time.sleep(40)")
    assert wait_for_line(log, "building")
    asked_s = time.monotonic()
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=60)
    assert time.monotonic() - asked_s < 20.0
    assert child.returncode == 0, output
    assert "Traceback" not in output
    assert "closed" not in log.read_text()


def test_a_callback_that_computes_does_not_delay_the_close(process):
    child, log = process(work="time.sleep(5.0) if self.calls >= 3 else None")
    assert wait_for_line(log, "spinning")
    asked_s = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert wait_for_line(log, "closed")
    assert time.monotonic() - asked_s < 4.0
    child.communicate(timeout=60)


@pytest.mark.parametrize(
    ("where", "error"),
    [("build", RobotUnreachable), ("work", CloudUnreachable)],
)
def test_a_named_error_is_one_line_and_its_exit_code(process, where, error):
    name = error.__name__
    raised = f"raise {name}('nobody there')" if where == "build" else f"self.stop({name}('nobody there'))"
    child, log = process(**{where: raised})
    output, _ = child.communicate(timeout=60)
    assert child.returncode == error.exit_code, output
    assert f"{name}: nobody there" in output
    assert "Traceback" not in output
    assert ("closed" in log.read_text()) == (where == "work")


def test_a_bug_in_a_callback_closes_the_part_and_shows_its_traceback(process):
    child, log = process(work="1 / 0")
    output, _ = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "ZeroDivisionError" in output
    assert "closed" in log.read_text()


def test_a_message_that_cannot_be_taken_does_not_end_the_spinning():
    """Some middleware lets the taking of a message fail whose bytes are not of its type."""
    ended, said = threading.Event(), []

    class Executor:
        turns = 0

        def spin_once(self, timeout_sec):
            self.turns += 1
            if self.turns == 3:
                ended.set()
                return
            raise spin.RCLError("deserialization failed")

    class Node:
        def destroy_marked(self):
            pass

        def get_logger(self):
            return self

        def error(self, text, **_):
            said.append(text)

    spin._spin(Executor(), Node(), ended)
    assert said == ["a message could not be taken: deserialization failed"] * 2
