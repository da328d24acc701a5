"""What a computer needs for the commands, checked one by one. Starts nothing and changes nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from vlm_spec_decode.cli import doctor_checks as doctor_robot
from vlm_spec_decode.cli.doctor_checks import Finding
from vlm_spec_decode.core import environment, extras
from vlm_spec_decode.core.assets import ASSETS

RENDER_TIMEOUT_S = 60.0
SETUP = "`make setup` installs it"
RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="1 1 1"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().any()
renderer.close()
"""
"""Draws one picture; in a process of its own, because a missing OpenGL library can end the process."""

START_ROS = """
import os
from vlm_spec_decode.ros.own_node import OwnNode
from vlm_spec_decode.core.environment_checks import ros_domain
import sensor_msgs.msg, nav_msgs.msg
OwnNode("vsd_doctor", ros_domain(os.environ)).close()
"""
"""Makes a node and leaves; in a process of its own, because rcl may end the process."""

ERRORS = "vlm_spec_decode.core.errors."
"""What a traceback puts before the name of an error of ours."""


def examine(
    interface: str = "", domain: int = 0, address: str = "", keys: Path | None = None
) -> tuple[Finding, ...]:
    """Run every check, those of a robot and a cloud where they are named; none raises."""
    found = _from_outside(os.environ)
    # As every other command does; what is bad has been told.
    environment.settle(os.environ)
    from vlm_spec_decode.sim import choose_backend

    choose_backend()
    found += [check() for check in CHECKS]
    if interface:
        found += doctor_robot.robot(interface, domain)
    if address:
        found.append(doctor_robot.cloud(address, keys))
    return tuple(found)


def report(findings: Sequence[Finding], with_robot: bool = False, with_cloud: bool = False) -> list[str]:
    """Return a line for each finding, what to do about it, and at the end what to do next."""
    lines = []
    for each in findings:
        lines.append(f"{each.level:4} {each.name}: {each.detail}")
        if each.advice:
            lines.append(f"     -> {each.advice}")
    first = next((each for each in findings if not each.is_ok), None)
    if first is not None:
        next_step = first.advice or f"mend {first.name}"
        return [*lines, f"next: {next_step}; then `vsd doctor` again"]
    if with_robot and with_cloud:
        return [*lines, "next: docs/real_robot.md, First walk"]
    if with_robot:
        return [*lines, "next: `vsd doctor --cloud tcp://HOST:PORT --keys DIR` looks at the way to a cloud"]
    return [*lines, "next: `vsd demo` runs everything in simulation; --interface looks for a robot"]


def _python() -> Finding:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", fits, f"{platform.python_version()} (3.10 to 3.12)")


def _package(name: str, extra: str = "") -> Callable[[], Finding]:
    """Return a check for a package; one that only machines with an `extra` need may be missing."""

    def check() -> Finding:
        try:
            return Finding(name, True, version(name))
        except PackageNotFoundError:
            return _not_here(name, extra) if extra else Finding(name, False, "not installed", SETUP)

    return check


def _not_here(name: str, extra: str) -> Finding:
    """Return the finding for what only some machines have."""
    return Finding(name, True, "not installed", f"if this machine is to have it: {extras.command(extra)}")


def _rclpy() -> Finding:
    """Start ROS 2 really, as a command or node does: importing it says nothing of middleware and logs."""
    if find_spec("rclpy") is None:
        return _not_here("rclpy", "ros")
    found = _run("rclpy", [sys.executable, "-c", START_ROS], "")
    if found.is_ok:
        return Finding("rclpy", True, f"starts with {environment.rmw_in_use() or 'its middleware'}")
    return Finding("rclpy", False, found.detail, "source the ROS that fits this Python, or `make setup`")


def _rendering() -> Finding:
    if find_spec("mujoco") is None:
        return _not_here("rendering", "sim")
    good = f"MuJoCo draws without a display ({os.environ.get('MUJOCO_GL', 'its own choice')})"
    found = _run("rendering", [sys.executable, "-c", RENDER], good)
    advice = "sudo apt-get install libosmesa6, and unset MUJOCO_GL and PYOPENGL_PLATFORM"
    return Finding("rendering", found.is_ok, found.detail, "" if found.is_ok else advice)


def _run(name: str, command: list[str], good: str) -> Finding:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=RENDER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"no result within {RENDER_TIMEOUT_S:.0f} s")
    if done.returncode == 0:
        return Finding(name, True, good)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return Finding(name, False, f"{last.removeprefix(ERRORS)} (exit code {done.returncode})")


def _robot_link() -> Finding:
    try:
        found = version("cyclonedds")
    except PackageNotFoundError:
        return _not_here("cyclonedds", "edge")
    use = (
        "simulated and real robots"
        if found.startswith("0.10.")
        else "simulated robots only: a real Go2 needs 0.10.2"
    )
    return Finding("cyclonedds", True, f"{found}, for {use}")


def _from_outside(environ: Mapping[str, str]) -> list[Finding]:
    """Return a finding for every variable that is not as it should be, one that all is well otherwise."""
    found = []
    for each in environment.examine(environ):
        refused = each.variable.remedy is environment.Remedy.REFUSE
        advice = f"set {each.variable.name} to {each.variable.good}"
        found.append(Finding("environment", not refused, each.problem, advice))
    return found or [Finding("environment", True, f"{len(environment.VARIABLES)} settings looked at")]


def _models() -> Finding:
    missing = [name for name in ("draft", "target") if not (ASSETS / name / "model.safetensors").is_file()]
    if missing:
        return Finding("models", False, f"missing: {', '.join(missing)}", "`git lfs pull`, or install again")
    return Finding("models", True, "draft and target are there")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _package("torch", "edge"),
    _package("transformers", "edge"),
    _package("pyzmq"),
    _package("mujoco", "sim"),
    _package("unitree-sdk2py-dimos", "edge"),
    _robot_link,
    _rclpy,
    _rendering,
    _models,
    doctor_robot.clock_sync,
    doctor_robot.gpu,
    doctor_robot.disk,
)
