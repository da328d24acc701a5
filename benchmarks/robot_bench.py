"""The processes of benchmarks/robot.py, brought up once and killed and started again by its cases."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType

import yaml
from robot_operator import Operator
from robot_rig import Tap, Wire, until

from vlm_spec_decode.actions.types import Forward, Turn
from vlm_spec_decode.demo.process_stack import ChildProcess, Processes

DDS_DOMAIN = 8
START_S = 180.0

ROOM = {"name": "hall", "length_m": 16.0, "width_m": 16.0, "start": {"x_m": -3.0, "y_m": 0.0},
        "objects": [{"kind": "box", "colour": "red", "x_m": 0.2, "y_m": 0.0},
                    {"kind": "chair", "colour": "cyan", "x_m": -7.0, "y_m": -1.5}]}  # fmt: skip
SLOW_LINK = {"name": "slow", "rtt_ms": 400, "up_mbps": 20, "down_mbps": 20}
SCAN = {"scan_topic": "scan", "obstacle_timeout_s": 0.4}


class Bench:
    """Processes, tap and operator of a run, a context. `out` takes what cases write beside the figures."""

    def __init__(self, processes: Processes, folder: Path, out: Path, body: str = "kinematic") -> None:
        self.processes, self.folder, self.out, self.body = processes, folder, out, body
        self.running: dict[str, ChildProcess] = {}
        self.trial = 0

    def __enter__(self) -> Bench:
        """Start simulator, cloud and nodes."""
        scene, link = self.folder / "hall.yaml", self.folder / "slow.yaml"
        scene.write_text(yaml.safe_dump(ROOM))
        link.write_text(yaml.safe_dump(SLOW_LINK))
        self.link = link
        where = ("--scene", str(scene), "--domain", str(DDS_DOMAIN), "--body", self.body)
        self.start("sim", "sim", *where, "--start", "standing")
        self.processes.wait_ready(self.running["sim"], START_S)
        self.address = self.cloud("tcp://127.0.0.1:*")
        host, port = self.address.removeprefix("tcp://").split(":")
        self.wire = Wire(host, int(port))
        self.tap, self.operator = Tap(DDS_DOMAIN), Operator()
        robot = {"interface": "lo", "domain": DDS_DOMAIN}
        self.node("camera_node", **robot)
        self.node("locomotion_node", **robot, **SCAN)
        until(lambda: self.operator.statuses and self.operator.frames, START_S, "robot and camera")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close tap and operator; the processes end with their own context."""
        self.operator.close()
        self.tap.close()
        self.wire.close()

    def start(self, name: str, *arguments: str) -> None:
        """Start a `vsd` command."""
        command = ["-m", "vlm_spec_decode.cli", *arguments, "--json"]
        self.running[name] = self.processes.start(name, command)

    def cloud(self, bind: str) -> str:
        """Start the cloud and return its address."""
        self.start("cloud", "cloud", "--bind", bind, "--insecure")
        return str(self.processes.wait_ready(self.running["cloud"], START_S)["address"])

    def node(self, name: str, **parameters: object) -> None:
        """Start a node."""
        options = [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
        part = name.removesuffix("_node")
        code = (
            f"import sys; from vlm_spec_decode.ros.entry_points import {part}_main; sys.exit({part}_main())"
        )
        self.running[name] = self.processes.start(name, ["-c", code, "--ros-args", *options])

    def vlm(self, **parameters: object) -> None:
        """Start a VLM node that is connected."""
        before = len(self.operator.vlm_statuses)
        self.node("vlm_node", cloud=f"tcp://127.0.0.1:{self.wire.port}", **parameters)
        until(
            lambda: any(d.state == "ready" for _, d in self.operator.vlm_statuses[before:]),
            START_S,
            "vlm_node",
        )

    def kill(self, name: str) -> float:
        """Kill a process at once and return when."""
        self.running[name].popen.kill()
        at_s = time.monotonic()
        self.running[name].popen.wait(10)
        self.processes.stop([name])
        return at_s

    def name(self) -> str:
        """Return a name for the next mission."""
        self.trial += 1
        return f"t{self.trial}"

    def rush(self, mps: float, distance_m: float) -> str:
        """Let the robot walk; return the mission's name at that speed. A busy computer may try again."""
        for _ in range(8):
            mission = self.name()
            self.operator.command(mission, Forward(distance_m))
            until(lambda m=mission: self.tap.speed_mps > mps or self.operator.ended(m), 30, "a walking robot")
            if self.tap.speed_mps > mps:
                return mission
        raise SystemExit("the robot does not walk: the computer is too busy to keep a heartbeat")

    def pid(self, name: str) -> int:
        """Return a process's id."""
        return self.running[name].popen.pid

    def home(self) -> None:
        """Walk back to where the robot has started, if it is not there."""
        until(lambda: self.tap.is_still, 20, "standstill")
        x, y, yaw = self.operator.pose
        if abs(y) > 0.5:
            bearing_deg = math.degrees(math.remainder(math.atan2(-y, -x) - yaw, 2 * math.pi))
            way_m = min(3.0, math.hypot(x, y))
            self.operator.walk(self.name(), Turn(round(bearing_deg, 1)), Forward(round(way_m, 2)))
            _, _, yaw = self.operator.pose
        if abs(yaw) > 0.03:
            self.operator.walk(self.name(), Turn(-math.degrees(yaw)))
        while abs(x := self.operator.pose[0]) > 0.15:
            self.operator.walk(self.name(), Forward(max(-3.0, min(3.0, -x))))
