"""`vsd doctor`: what a computer needs for the commands, checked one by one, each with its remedy.

Starts nothing that stays, changes nothing and moves nothing. A check that joins a network runs in a process
of its own: a DDS library that must not meet a robot, or crashes in its discovery, ends only that process.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from vlm_spec_decode.core import environment, extras
from vlm_spec_decode.core.config import ASSETS
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.errors import RobotError, VsdError
from vlm_spec_decode.core.options import FOLDER, as_json, finish, option
from vlm_spec_decode.core.types import FUTURE_TOLERANCE_S
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.spec import check_place
from vlm_spec_decode.robot.go2.config import check_network


@click.command()
@click.option("--interface", default="", help="Also look for a robot on this network interface.")
@click.option(
    "--domain", type=click.IntRange(0, MAX_DOMAIN), default=0, show_default=True, help="Its DDS domain."
)
@click.option("--cloud", "address", default="", help="Also shake hands with the cloud at tcp://HOST:PORT.")
@option(EdgeSettings, "keys", type=FOLDER)
@option(EdgeSettings, "draft")
@as_json
def doctor(as_json: bool, **where: Any) -> int:
    """Check that this computer has what the other commands need, and say what to do where it has not."""
    if where["draft"]:
        check_place(where["draft"])
    findings = examine(**where)
    lines = report(findings, bool(where["interface"]), bool(where["address"]))
    good = all(f.is_ok for f in findings)
    checks = [{"name": f.name, "ok": f.is_ok, "level": f.level, "detail": f.detail, "advice": f.advice}
              for f in findings]  # fmt: skip
    finish(as_json, {"ok": good, "checks": checks}, "\n".join(lines))
    return 0 if good else 1


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its name, whether it passed, what was found, and what to do.

    `advice` is one thing to do next; with it a finding that will do is a warning.
    """

    name: str
    is_ok: bool
    detail: str
    advice: str = ""

    @property
    def level(self) -> str:
        """`ok`, `warn` or `FAIL`."""
        return "FAIL" if not self.is_ok else "warn" if self.advice else "ok"


LOOK_S = 40.0
MIN_DISK_GB = 2.0
STA_UNSYNC = 0x0040
DAYS_S = 30 * 86400.0
LOOK = """
import json, sys, time
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ImageError, RobotError
from vlm_spec_decode.robot.go2.sdk import Go2Camera
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.sdk import StateFeed, join

clock, config = WallClock(), Go2Config(interface=sys.argv[1], domain=int(sys.argv[2]))
found = {"state": False, "battery": None, "code": None, "frames": 0, "seconds": 2.0, "camera": ""}
found["skew_s"] = 0.0
join(config.domain, config.interface)
feed = StateFeed(clock, config.state_topic, config.low_topic, config.stale_after_s)
if feed.wait(lambda _: feed.is_live(), clock.now() + 5.0):
    state = feed.newest()
    age_s = clock.now() - state.received_s
    found |= {"state": True, "battery": state.battery_soc, "code": state.code}
    found["skew_s"] = time.time() - age_s - state.stamp_s
feed.close()
try:
    camera = Go2Camera(config, clock)
    camera.frame()
    until_s = clock.now() + found["seconds"]
    while clock.now() < until_s:
        camera.frame()
        found["frames"] += 1
except (RobotError, ImageError) as error:
    found["camera"] = str(error)
print(json.dumps(found), flush=True)
"""
"""Receives states and requests frames; sends no command."""

ASK = """
import json, sys
from pathlib import Path
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
keys = Path(sys.argv[2]) if sys.argv[2] else None
runtime = bring_up(EdgeSettings(cloud=sys.argv[1], keys=keys, draft=sys.argv[3]))
print(json.dumps({"ok": True}), flush=True)
runtime.close()
"""
"""Does the handshake with the cloud, which compares tokenizer, prompt and grammar."""

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
from vlm_spec_decode.ros.middleware import OwnNode
from vlm_spec_decode.core.environment_checks import ros_domain
import sensor_msgs.msg, nav_msgs.msg
OwnNode("vsd_doctor", ros_domain(os.environ)).close()
"""
"""Makes a node and ends; in a process of its own, because rcl may end the process."""

ERRORS = "vlm_spec_decode.core.errors."
"""Module prefix of our exceptions in a traceback."""


def examine(
    interface: str = "", domain: int = 0, address: str = "", keys: Path | None = None, draft: str = ""
) -> tuple[Finding, ...]:
    """Run all checks, those of a robot and a cloud only where they are named; no check raises."""
    found = _environment_findings(os.environ)
    # As every other command does; the lines were printed already.
    environment.replace_bad_values(os.environ)
    from vlm_spec_decode.sim import choose_backend

    choose_backend()
    found += [check() for check in CHECKS]
    if interface:
        found += robot(interface, domain)
    if address:
        found.append(cloud(address, keys, draft))
    return tuple(found)


def report(findings: Sequence[Finding], with_robot: bool = False, with_cloud: bool = False) -> list[str]:
    """Return a line for each finding with its advice, and at the end what to do next."""
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
    """Return the check of a package; if only some machines need it (`extra`), it may be missing."""

    def check() -> Finding:
        try:
            return Finding(name, True, version(name))
        except PackageNotFoundError:
            return _not_installed(name, extra) if extra else Finding(name, False, "not installed", SETUP)

    return check


def _not_installed(name: str, extra: str) -> Finding:
    """Return the finding for a missing package that only some machines need."""
    return Finding(
        name, True, "not installed", f"if this machine is to have it: {extras.install_command(extra)}"
    )


def _rclpy() -> Finding:
    """Start ROS 2 as a command or node does: its import alone checks neither middleware nor log folder."""
    if find_spec("rclpy") is None:
        return _not_installed("rclpy", "ros")
    found = _run_check("rclpy", [sys.executable, "-c", START_ROS], "")
    if found.is_ok:
        return Finding("rclpy", True, f"starts with {environment.rmw_in_use() or 'its middleware'}")
    return Finding("rclpy", False, found.detail, "source the ROS that fits this Python, or `make setup`")


def _rendering() -> Finding:
    if find_spec("mujoco") is None:
        return _not_installed("rendering", "sim")
    good = f"MuJoCo draws without a display ({os.environ.get('MUJOCO_GL', 'its own choice')})"
    found = _run_check("rendering", [sys.executable, "-c", RENDER], good)
    advice = "sudo apt-get install libosmesa6, and unset MUJOCO_GL and PYOPENGL_PLATFORM"
    return Finding("rendering", found.is_ok, found.detail, "" if found.is_ok else advice)


def _run_check(name: str, command: list[str], good: str) -> Finding:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=RENDER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"no result within {RENDER_TIMEOUT_S:.0f} s")
    if done.returncode == 0:
        return Finding(name, True, good)
    last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    return Finding(name, False, f"{last.removeprefix(ERRORS)} (exit code {done.returncode})")


def _robot_link() -> Finding:
    try:
        found = version("cyclonedds")
    except PackageNotFoundError:
        return _not_installed("cyclonedds", "edge")
    use = (
        "simulated and real robots"
        if found.startswith("0.10.")
        else "simulated robots only: a real Go2 needs 0.10.2"
    )
    return Finding("cyclonedds", True, f"{found}, for {use}")


def _environment_findings(environ: Mapping[str, str]) -> list[Finding]:
    """Return a finding for every variable with a bad value, or one that all are good."""
    found = []
    for each in environment.find_problems(environ):
        refused = each.variable.remedy is environment.Remedy.REFUSE
        advice = f"set {each.variable.name} to {each.variable.good}"
        found.append(Finding("environment", not refused, each.problem, advice))
    return found or [Finding("environment", True, f"{len(environment.VARIABLES)} settings looked at")]


def _models() -> Finding:
    missing = [name for name in ("draft", "target") if not (ASSETS / name / "model.safetensors").is_file()]
    if missing:
        return Finding("models", False, f"missing: {', '.join(missing)}", "`git lfs pull`, or install again")
    return Finding("models", True, "draft and target are there")


def robot(interface: str, domain: int) -> list[Finding]:
    """Check the connection to a robot: interface, DDS version, states and camera."""
    found = [_interface(interface)]
    try:
        check_network(domain, interface)
        found.append(Finding("dds", True, f"may join domain {domain} on {interface}"))
    except RobotError as error:
        return [*found, Finding("dds", False, str(error))]
    try:
        seen = _run([sys.executable, "-c", LOOK, interface, str(domain)])
    except VsdError as error:
        return [*found, Finding("robot", False, str(error))]
    clocks = [_skew(seen)] if seen["state"] else []
    return [*found, _state(seen, domain, interface), *clocks, _camera(seen)]


def cloud(address: str, keys: Path | None, draft: str = "") -> Finding:
    """Check that the cloud welcomes a draft, by default the shipped one, with these keys."""
    try:
        _run([sys.executable, "-c", ASK, address, str(keys or ""), draft])
    except VsdError as error:
        if "vocabulary_mismatch" in str(error) or "tokenizer_mismatch" in str(error):
            advice = "name a draft of the cloud's vocabulary with --draft"
            return Finding("cloud", False, str(error), advice)
        detail = f"{error}; is `vsd cloud` up there, and are the keys a pair?"
        return Finding("cloud", False, detail, "start the cloud; copy both ends of one set of keys")
    return Finding("cloud", True, f"{address} welcomes the draft")


def clock_sync() -> Finding:
    """Report whether this computer's clock is synchronised, which stamps of other computers need."""
    error_s = clock_error_s()
    if error_s is None:
        advice = "sudo apt-get install chrony: frames stamped by other computers are refused otherwise"
        return Finding("clock", True, "not synchronised", advice)
    return Finding("clock", True, f"synchronised to within {error_s:.3f} s")


def clock_error_s() -> float | None:
    """Return the kernel's bound of this clock's error (adjtimex(2)); None if it is not synchronised."""
    timex = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).adjtimex(timex) < 0:
        return None
    error_us, _, status = struct.unpack_from("qqi", timex, 24)
    return None if status & STA_UNSYNC else float(error_us) / 1e6


def _skew(seen: dict[str, object]) -> Finding:
    """Compare the robot's clock with this one: a state takes milliseconds, so the rest is skew."""
    skew_s = float(str(seen["skew_s"]))
    if abs(skew_s) > DAYS_S:
        return Finding("robot's clock", True, "counts from its own start; this computer stamps the frames")
    difference = f"{abs(skew_s):.2f} s {'behind' if skew_s > 0 else 'ahead of'} this one"
    if abs(skew_s) > FUTURE_TOLERANCE_S:
        advice = "for other nodes' stamps run chrony on both"
        return Finding(
            "robot's clock", True, f"{difference}: harmless here, where this computer stamps", advice
        )
    return Finding("robot's clock", True, difference)


def gpu() -> Finding:
    """Report the GPU; none is needed."""
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", True, "none; the models run on the CPU")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return Finding("gpu", True, (done.stdout.strip().splitlines() or ["nvidia-smi names none"])[0])


def disk() -> Finding:
    """Check that there is room for logs and bags."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    enough = free_gb >= MIN_DISK_GB
    return Finding("disk", enough, f"{free_gb:.1f} GB free", "" if enough else "make room: bags need more")


def _interface(name: str) -> Finding:
    names = [known for _, known in socket.if_nameindex()]
    if name not in names:
        return Finding("interface", False, f"no {name!r} here", f"name one of: {', '.join(names)}")
    state = Path("/sys/class/net", name, "operstate")
    up = not state.exists() or state.read_text().strip() in {"up", "unknown"}
    advice = "" if up else f"plug in the cable, then `sudo ip link set dev {name} up`"
    return Finding("interface", up, f"{name} is {'up' if up else 'down'}", advice)


def _state(seen: dict[str, object], domain: int, interface: str) -> Finding:
    if not seen["state"]:
        return Finding(
            "robot",
            False,
            f"no moving state on domain {domain}, {interface}: switch the robot on, start its sport "
            "service in the app",
            "check the cable, and this computer's address: 192.168.123.x",
        )
    battery = float(str(seen["battery"]))
    return Finding("robot", True, f"state {seen['code']}, battery {100 * battery:.0f} %")


def _camera(seen: dict[str, object]) -> Finding:
    frames, seconds = int(str(seen["frames"])), float(str(seen["seconds"]))
    if not frames:
        return Finding("camera", False, f"no frame: {seen['camera']}", "switch the video service on")
    return Finding("camera", True, f"{frames / seconds:.1f} frames a second")


def _run(command: list[str]) -> dict[str, object]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise VsdError(f"no result within {LOOK_S:.0f} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise VsdError(last.removeprefix("vlm_spec_decode.core.errors."))
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


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
    clock_sync,
    gpu,
    disk,
)
