"""Checks of `vsd doctor`: robot, cloud and this computer, each with its remedy. Moves nothing.

A check that joins a network runs in a process of its own: a DDS library that must not meet a robot, or
crashes in its discovery, ends only that process.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.core.errors import RobotError, VsdError
from vlm_spec_decode.robot.go2.config import check_network


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it will do, what there is, and what to do about it.

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
SKEW_S = 0.5
"""Beyond it a frame stamped over there may seem to come from the future, and moves nothing."""

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
"""Listens for states and asks for frames; commands nothing."""

ASK = """
import json, sys
from pathlib import Path
from vlm_spec_decode.edge.factory import EdgeSettings, bring_up
runtime = bring_up(EdgeSettings(cloud=sys.argv[1], keys=Path(sys.argv[2]) if sys.argv[2] else None))
print(json.dumps({"ok": True}), flush=True)
runtime.close()
"""
"""Shakes hands with the cloud, models and grammar compared."""


def robot(interface: str, domain: int) -> list[Finding]:
    """Check the way to a robot: interface, DDS version, states and camera."""
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


def cloud(address: str, keys: Path | None) -> Finding:
    """Check that the cloud welcomes the shipped draft with these keys."""
    try:
        _run([sys.executable, "-c", ASK, address, str(keys or "")])
    except VsdError as error:
        detail = f"{error}; is `vsd cloud` up there, and are the keys a pair?"
        return Finding("cloud", False, detail, "start the cloud; copy both ends of one set of keys")
    return Finding("cloud", True, f"{address} welcomes the draft")


def clock_sync() -> Finding:
    """Say how well this computer's clock is kept; without it stamps of other computers mislead."""
    error_s = clock_error_s()
    if error_s is None:
        advice = "sudo apt-get install chrony: frames stamped by other computers are refused otherwise"
        return Finding("clock", True, "not synchronised", advice)
    return Finding("clock", True, f"synchronised to within {error_s:.3f} s")


def clock_error_s() -> float | None:
    """Return the kernel's bound of this clock's error (adjtimex(2)); None if nobody keeps it."""
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
    said = f"{abs(skew_s):.2f} s {'behind' if skew_s > 0 else 'ahead of'} this one"
    if abs(skew_s) > SKEW_S:
        advice = "for other nodes' stamps run chrony on both"
        return Finding("robot's clock", True, f"{said}: harmless here, where this computer stamps", advice)
    return Finding("robot's clock", True, said)


def gpu() -> Finding:
    """Say which GPU there is; none is needed."""
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", True, "none; the models run on the CPU")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return Finding("gpu", True, (done.stdout.strip().splitlines() or ["nvidia-smi names none"])[0])


def disk() -> Finding:
    """Check that logs and bags find room."""
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
