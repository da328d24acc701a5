"""`vsd edge` as a process, towards the simulator over DDS on loopback, with the models that ship.

Another process's view of the robot, by its own state topic, says whether it stands.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from test.ros.processes import Processes
from test.simulator import ROOT, dds_domain, environment, simulator
from test.terminal import Terminal
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.sdk import StateFeed, join

pytestmark = [
    pytest.mark.sim,
    pytest.mark.dds,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

SCENE = """
length_m: 8.0
width_m: 6.0
start: {x_m: -3.0, y_m: 0.0}
objects:
  - {kind: ball, colour: red, x_m: 0.0, y_m: 0.1}
"""
GO = "walk to the red ball"
PATIENT = ("--timeout", "150")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edge") / "room.yaml"
    path.write_text(SCENE)
    return path


@pytest.fixture
def feed(scene: Path) -> Iterator[StateFeed]:
    """A fresh simulator, and what its robot says of itself."""
    with simulator(scene=str(scene), start="standing"):
        config = Go2Config(domain=dds_domain())
        join(config.domain, config.interface)
        found = StateFeed(WallClock(), config.state_topic, config.low_topic, 5.0)
        yield found
        found.close()


def start(*arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    options = ["--robot", "sim", "--domain", dds_domain(), *PATIENT, *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "vlm_spec_decode.cli", "edge", *map(str, options)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )


def wait_until_it_walks(feed: StateFeed, process: subprocess.Popen[str] | None = None) -> None:
    end_s = time.monotonic() + 90
    while not feed.wait(lambda state: state.speed_mps > 0.2, WallClock().now() + 0.2):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end_s


def seconds_until_it_stands(feed: StateFeed, began_s: float) -> float:
    while time.monotonic() < began_s + 10:
        if feed.newest().is_still:
            return time.monotonic() - began_s
        time.sleep(0.01)
    return float("inf")


def assert_it_stays(feed: StateFeed) -> None:
    there = feed.newest()
    time.sleep(1.0)
    now = feed.newest()
    assert now.is_still
    assert abs(now.x_m - there.x_m) + abs(now.y_m - there.y_m) < 0.03


def test_a_sentence_walks_the_robot_without_ros(feed: StateFeed) -> None:
    process = start("--instruction", GO, "--json")
    said, shown = process.communicate(timeout=200)
    assert process.returncode == 0, shown
    (ended,) = json.loads(said.splitlines()[-1])["missions"]
    assert (ended["status"], ended["exit_code"]) == ("done", 0)
    assert ended["actions"][-1] == "done()"
    assert feed.newest().x_m > 1.0, "it has walked"
    assert "[1] looks" in shown
    assert "> forward(" in shown
    assert shown.endswith("done\n")
    assert_it_stays(feed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_walking_stops_the_robot_within_one_and_a_half_seconds(
    feed: StateFeed, number: int
) -> None:
    process = start("--instruction", GO)
    wait_until_it_walks(feed, process)
    began_s = time.monotonic()
    process.send_signal(number)
    assert seconds_until_it_stands(feed, began_s) <= 1.5
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaint.splitlines()[-1] == "vsd: interrupted"
    assert_it_stays(feed)


def test_an_empty_line_stops_it_and_the_next_instruction_is_carried_out(feed: StateFeed) -> None:
    process = start(stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{GO}\n")
    process.stdin.flush()
    wait_until_it_walks(feed, process)
    began_s = time.monotonic()
    process.stdin.write("\n")
    process.stdin.flush()
    assert seconds_until_it_stands(feed, began_s) <= 1.5
    process.stdin.write(f"{GO}\n")
    said, complaint = process.communicate(timeout=200)
    assert "cancelled: cancel: stopped by the operator" in said, complaint
    assert said.endswith("done\n"), "the second went to its end"
    assert process.returncode == 1, "the first was not done"


@pytest.mark.parametrize("key", [" ", "\n"])
def test_one_key_in_a_terminal_stops_it_and_the_terminal_is_left_as_it_was(
    feed: StateFeed, tmp_path: Path, key: str
) -> None:
    terminal = Terminal(tmp_path)
    try:
        command = f"{sys.executable} -m vlm_spec_decode.cli edge --robot sim --domain {dds_domain()}"
        terminal.type(f"MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa {command}\n")
        terminal.wait_for("the robot stands ready")
        terminal.type(f"{GO}\n")
        wait_until_it_walks(feed)
        began_s = time.monotonic()
        terminal.type(key)
        assert seconds_until_it_stands(feed, began_s) <= 1.5
        terminal.wait_for("cancelled: cancel: stopped by the operator")
        assert_it_stays(feed)
        terminal.interrupt()
        assert terminal.run("stty -a | grep -q ' icanon'") == 0, "lines are read as before"
    finally:
        terminal.close()


def test_a_killed_cloud_stops_the_robot_and_gives_its_exit_code(
    feed: StateFeed, tmp_path: Path, free_tcp_port: int
) -> None:
    others, address = Processes(tmp_path), f"tcp://127.0.0.1:{free_tcp_port}"
    try:
        others.vsd("cloud", "cloud", "--bind", address, "--insecure")
        until_s = time.monotonic() + 90
        while "serving" not in others.output("cloud"):
            assert time.monotonic() < until_s, others.story()
            time.sleep(0.2)
        process = start("--instruction", GO, "--cloud", address, "--fallback", "stop")
        wait_until_it_walks(feed, process)
        others.interrupt("cloud", signal.SIGKILL)
        said, complaint = process.communicate(timeout=120)
    finally:
        others.close()
    # The answer under way, or the one after it, finds no cloud.
    assert process.returncode == 3, (said, complaint)
    assert "failed: Cloud" in said
    assert_it_stays(feed)


def test_an_engine_that_decodes_keeps_no_stop_waiting(feed: StateFeed) -> None:
    """The whole way of a stop: line, cancel, executor, SDK, robot; both models decode in this process."""
    process = start(stdin=subprocess.PIPE)
    assert process.stdin is not None
    times = []
    for _ in range(3):
        process.stdin.write(f"{GO}\n")
        process.stdin.flush()
        wait_until_it_walks(feed, process)
        began_s = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        times.append(seconds_until_it_stands(feed, began_s))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert max(times) <= 1.5, times


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--robot", "rover"), 2, "unknown robot 'rover'; known: go2, sim, fake, cmd_vel"),
        (("--robot", "fake", "--set", "colour=red"), 2, "robot 'fake' has no setting colour"),
        (("--robot", "fake", "--set", "colour"), 2, "NAME=VALUE is wanted"),
        (("--interface", "nowhere0"), 4, "no network interface 'nowhere0' here"),
        (("--domain", "99", "--start-timeout", "1"), 4, "nothing arrives on rt/lf/sportmodestate"),
        (("--instruction", "  "), 2, "the instruction is empty"),
        (("--cloud", "tcp://127.0.0.1:9"), 3, "127.0.0.1:9"),
    ],
)
def test_what_cannot_be_is_named_with_its_exit_code(arguments: tuple[str, ...], code: int, said: str) -> None:
    process = start("--instruction", "go", *arguments, "--json")
    out, complaint = process.communicate(timeout=90)
    assert (process.returncode, said in complaint) == (code, True), complaint
    assert json.loads(out.splitlines()[-1])["exit_code"] == code
    assert os.linesep.join(complaint.splitlines()[-1:]).startswith("vsd: ")
