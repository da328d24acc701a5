"""A robot from outside: registered by a call or an entry point, it is one like those that ship."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.robot.fake import ROBOT as FAKE
from vlm_spec_decode.robot.registry import ROBOTS, RobotRegistry, register_robot, robot_kind
from vlm_spec_decode.robot.spec import Hull, RobotSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LOOK = """
import sys
from vlm_spec_decode.cli import main as cli
assert cli.main(["edge", "--help"]) == 0
assert "numpy" not in sys.modules and "my_rover" not in sys.modules, "a name imports nothing"
from vlm_spec_decode.robot.registry import robot_kind
print("kind:", robot_kind("rover").spec.title)
try:
    robot_kind("broken_one")
except Exception as error:
    print("broken:", type(error).__name__, error)
"""


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test registers is gone after it."""
    monkeypatch.setattr(ROBOTS, "_sources", dict(ROBOTS._found()))


def test_those_that_ship_are_of_their_names_and_hold_their_specs() -> None:
    assert tuple(ROBOTS)[:4] == ("go2", "sim", "fake", "cmd_vel")
    for name in ("go2", "sim", "fake"):
        assert robot_kind(name).spec.name == name
    assert robot_kind("go2").spec.walking_codes
    assert not robot_kind("fake").spec.walking_codes


def test_a_title_can_be_the_heading_of_a_page_and_names_no_option() -> None:
    for name in ("go2", "sim", "fake"):
        for quoted in re.findall(r"`(.*?)`", robot_kind(name).spec.title):
            assert quoted.startswith("vsd "), "a command, not a setting that only its reader of code knows"


def test_the_robot_of_topics_is_registered_and_has_no_postures_or_codes() -> None:
    pytest.importorskip("rclpy", reason="its topics are those of ROS 2")
    spec = robot_kind("cmd_vel").spec
    assert (spec.postures, spec.walking_codes, spec.tilts) == ((), frozenset(), False)
    assert "odometry_topic" in spec.settings


@pytest.mark.parametrize("name", ["", "Rover", "9lives", "a" * 41])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="robot name"):
        RobotRegistry().add(name, FAKE)


def test_a_name_is_taken_once_and_the_same_again_is_fine() -> None:
    registry = RobotRegistry()
    registry.add("fake", FAKE)
    registry.add("fake", "vlm_spec_decode.robot.fake")
    with pytest.raises(ConfigError, match="already a robot 'fake'"):
        registry.add("fake", "somewhere.else")


@pytest.mark.parametrize("source", ["no.such.module", "json", "vlm_spec_decode.robot.go2.driver"])
def test_what_is_no_robot_of_this_name_says_so(source: str) -> None:
    registry = RobotRegistry()
    registry.add("rover", source)
    with pytest.raises(ConfigError, match="rover.*" + re.escape(source)):
        registry["rover"]


def test_a_body_narrows_the_limits_and_never_widens_them() -> None:
    slow = RobotSpec(
        name="slow",
        title="slow",
        hull=Hull(length_m=1, width_m=1, height_m=1),
        max_speed_mps=0.2,
        max_turn_radps=9.0,
    )
    found = slow.narrowed(SafetyLimits())
    assert (found.max_speed_mps, found.max_turn_radps) == (0.2, SafetyLimits().max_turn_radps)
    with pytest.raises(ConfigError, match="no such codes"):
        slow.narrowed(SafetyLimits(modes=(1,)))


@pytest.mark.usefixtures("own_registry")
def test_the_example_registers_a_robot_that_drives(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "04_new_robot.py"), run_name="__main__")
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "at most 0.4 m/s"
    place = re.search(r"turn\(45\) forward\(0.5\) done\(\): done  at \((.*), (.*)\)", second)
    assert place is not None
    assert float(place[1]) == pytest.approx(0.35, abs=0.15)
    assert float(place[2]) == pytest.approx(0.35, abs=0.15)
    assert "fault move: a base on two wheels does not go sideways" in third
    register_robot("rover", ROBOTS["rover"])


def test_the_example_of_a_mission_walks_a_metre() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "03_mission.py"],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    *_, ended, place = done.stdout.splitlines()
    assert ended == "done: forward(1) done()"
    assert float(place.rpartition("= ")[2].removesuffix(" m")) == pytest.approx(1.0, abs=0.15)


def test_an_entry_point_is_known_to_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "my_rover.py").write_text((EXAMPLES / "04_new_robot.py").read_text())
    info = tmp_path / "my_rover-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_rover\nVersion: 1.0\n")
    points = "[vlm_spec_decode.robots]\nrover = my_rover:ROBOT\nbroken_one = my_rover:NOTHING\n"
    (info / "entry_points.txt").write_text(points)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "[go2|sim|fake|cmd_vel|rover|broken_one]" in done.stdout
    assert "kind: a base on two wheels" in done.stdout
    assert "broken: ConfigError robot 'broken_one' cannot be imported" in done.stdout
