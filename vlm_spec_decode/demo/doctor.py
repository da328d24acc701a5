"""What a computer needs for the commands, checked one by one. Starts nothing and changes nothing."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vlm_spec_decode.core.assets import ASSETS
from vlm_spec_decode.demo import doctor_robot
from vlm_spec_decode.demo.finding import Finding

RENDER_TIMEOUT_S = 60.0
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


def examine(
    interface: str = "", domain: int = 0, address: str = "", keys: Path | None = None
) -> tuple[Finding, ...]:
    """Run every check, those of a robot and a cloud where they are named; none raises."""
    found = [check() for check in CHECKS]
    if interface:
        found += doctor_robot.robot(interface, domain)
    if address:
        found.append(doctor_robot.cloud(address, keys))
    return tuple(found)


def _python() -> Finding:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", fits, f"{platform.python_version()} (3.10 to 3.12)")


def _package(name: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            return Finding(name, True, version(name))
        except PackageNotFoundError:
            return Finding(name, False, "not installed; `make setup` installs it")

    return check


def _rclpy() -> Finding:
    command = [sys.executable, "-c", "import rclpy, sensor_msgs.msg, nav_msgs.msg; print(rclpy.__file__)"]
    return _run("rclpy", command, "importable")


def _rendering() -> Finding:
    return _run("rendering", [sys.executable, "-c", RENDER], "MuJoCo draws without a display")


def _run(name: str, command: list[str], good: str) -> Finding:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"no result within {RENDER_TIMEOUT_S:.0f} s")
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding(name, done.returncode == 0, good if done.returncode == 0 else last)


def _robot_link() -> Finding:
    try:
        found = version("cyclonedds")
    except PackageNotFoundError:
        return Finding("cyclonedds", False, "not installed; `make setup` installs it")
    use = (
        "simulated and real robots"
        if found.startswith("0.10.")
        else "simulated robots only: a real Go2 needs 0.10.2"
    )
    return Finding("cyclonedds", True, f"{found}, for {use}")


def _models() -> Finding:
    missing = [name for name in ("draft", "target") if not (ASSETS / name / "model.safetensors").is_file()]
    return Finding(
        "models", not missing, f"missing: {', '.join(missing)}" if missing else "draft and target are there"
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _package("torch"),
    _package("transformers"),
    _package("pyzmq"),
    _package("mujoco"),
    _package("unitree-sdk2py-dimos"),
    _robot_link,
    _rclpy,
    _rendering,
    _models,
    doctor_robot.clock_sync,
    doctor_robot.gpu,
    doctor_robot.disk,
)
