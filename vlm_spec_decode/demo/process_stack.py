"""Everything that a mission needs, up and connected: simulator, cloud, three nodes, a listener, a bag."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vlm_spec_decode.bags.recording import Recording
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudUnreachable, ProcessEnded, RobotUnreachable
from vlm_spec_decode.core.profiles import load_link
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.demo.listener import Listener
from vlm_spec_decode.demo.mission_log import MissionLog
from vlm_spec_decode.demo.processes import ChildProcess, Processes
from vlm_spec_decode.sim.ground_truth import GroundTruth
from vlm_spec_decode.sim.scene import Scene

NODES = ("camera", "locomotion", "vlm")
START_S = 120.0
SPIN_S = 0.05
SETTLE_S = 0.6
"""After the end of a mission: until the robot stands still and the last messages are in."""

ROS_DOMAINS = range(10, 60)
DDS_DOMAINS = range(1, 10)
"""Apart, because ROS and the robot's DDS would see each other's participants on one domain."""


@dataclass(frozen=True, slots=True)
class ProcessStackConfig:
    """Settings of the processes. `room` holds the simulator's options for the scene."""

    room: tuple[str, ...]
    seed: int
    keys: Path
    truth: Path
    strategy: str
    rule: str
    objective: str
    link: str
    out: Path


class ProcessStack:
    """A context: leaving it ends every process and completes the bag. `frames` stay readable."""

    def __init__(
        self, config: ProcessStackConfig, clock: WallClock, rng: random.Random, say: Callable[[str], None]
    ) -> None:
        self.config = config
        self.link = load_link(config.link) if config.link else None
        self.address = ""
        self.frames: Mapping[float, Image] = {}
        self._clock = clock
        self._began_s = clock.now()
        self._say = say
        self._story = MissionLog()
        self._dds_domain = rng.choice(DDS_DOMAINS)
        self._ros_domain = rng.choice(ROS_DOMAINS)
        self._listener: Listener | None = None
        self._bag = Recording(config.out / "bag")
        self._bag.note("vsd_demo", json.dumps({"room": config.room, "seed": config.seed}))
        environment = {
            "ROS_DOMAIN_ID": str(self._ros_domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "ROS_LOG_DIR": str((config.out / "logs" / "ros").resolve()),
        }
        self._processes = Processes(config.out / "logs", clock, environment)

    def __enter__(self) -> ProcessStack:
        """Be ready to start processes."""
        self._processes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything, whatever has happened."""
        try:
            self._processes.__exit__(kind, error, trace)
        finally:
            if self._listener is not None:
                self._listener.close()
            self._bag.close()

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        self._say(f"[{self._clock.now() - self._began_s:6.1f} s] {text}")

    def set_up(self) -> None:
        """Start everything and wait until a mission can begin. Raises ProcessEnded or CloudError."""
        config = self.config
        self.say(
            f"simulated Go2 ({' '.join(config.room).replace('--', '')}) on DDS domain {self._dds_domain}"
        )
        sim = self._vsd("sim", *config.room, "--seed", str(config.seed), "--domain", str(self._dds_domain),
                        "--interface", "lo", "--ground-truth", str(config.truth))  # fmt: skip
        self.say("cloud verifier, CURVE keys made for this run")
        cloud = self._vsd("cloud", "--bind", "tcp://127.0.0.1:*", "--keys", str(config.keys))
        self.address = str(self._processes.wait_ready(cloud, START_S)["address"])
        self._processes.wait_ready(sim, START_S)
        self.say(f"cloud serves at {self.address}; starting the nodes on ROS domain {self._ros_domain}")
        self._start_nodes()
        self._listen()

    def _vsd(self, name: str, *options: str) -> ChildProcess:
        return self._processes.start(name, ["-m", "vlm_spec_decode.cli", name, *options, "--json"])

    def _start_nodes(self) -> None:
        robot = {"interface": "lo", "domain": str(self._dds_domain)}
        vlm = {"cloud": self.address, "keys": str(self.config.keys), "strategy": self.config.strategy,
               "rule": self.config.rule, "objective": self.config.objective,
               "seed": str(self.config.seed)}  # fmt: skip
        if self.config.link:
            vlm["link_file"] = self.config.link
        for name in NODES:
            values = vlm if name == "vlm" else robot
            parameters = [part for key, value in values.items() for part in ("-p", f"{key}:={value}")]
            run = f"sys.exit(entry_points.{name}_main())"
            code = f"import sys; from vlm_spec_decode.ros import entry_points; {run}"
            self._processes.start(f"{name}_node", ["-c", code, "--ros-args", *parameters])

    def _listen(self) -> None:
        self._listener = listener = Listener(self._ros_domain, self._bag.write, self._hear)
        self.frames = listener.frames
        until_s = self._clock.now() + START_S
        while self._clock.now() < until_s:
            self._spin(listener)
            if (
                self._story.link == "ready"
                and listener.has_odometry
                and listener.frames
                and listener.is_heard()
            ):
                self.say("robot stands, camera sees, cloud has welcomed the draft model")
                return
            if self._story.link == "unavailable":
                raise CloudUnreachable(self._story.detail)
        missing = (
            "the cloud" if self._story.link != "ready" else "odometry" if listener.frames else "the camera"
        )
        raise RobotUnreachable(
            f"{missing} did not come up within {START_S:.0f} s; see {self.config.out / 'logs'}"
        )

    def _spin(self, listener: Listener) -> None:
        listener.spin(SPIN_S)
        self._processes.check()

    def _hear(self, topic: str, text: str) -> None:
        for line in self._story.hear(topic, text, self._clock.now()):
            self.say(line)

    def play(self, instruction: str, timeout_s: float) -> MissionLog:
        """Give the instruction and return the story when the mission has ended, or the time is up."""
        if self._listener is None:
            raise ProcessEnded("vlm_node", 1, "not started")
        self.say(f'instruction: "{instruction}"')
        self._story = MissionLog(link=self._story.link)
        self._story.give(self._clock.now())
        self._listener.instruct(instruction)
        until_s = self._clock.now() + timeout_s
        while not self._story.has_ended and self._clock.now() < until_s:
            self._spin(self._listener)
        if not self._story.has_ended:
            self.say(f"the mission has not ended within {timeout_s:.0f} s; stopping the robot")
        self._listener.spin(SETTLE_S)
        return self._story

    def label(self, scene: Scene, instruction: str, story: MissionLog) -> int:
        """Add what the teacher would have answered to the bag; return how many answers have a label."""
        # The teacher comes with training's libraries, which take seconds to import.
        from vlm_spec_decode.demo.labels import labels

        if self._listener is None:
            return 0
        found = labels(scene, instruction, story.steps, self._listener.poses)
        for stamp_s, text in found:
            self._bag.write_text("/vlm/label", text, round(stamp_s * 1e9))
        return len(found)

    def clear(self) -> GroundTruth:
        """End the nodes, which stops the robot, then simulator and cloud; return what really happened."""
        self._processes.stop([f"{name}_node" for name in NODES])
        self._processes.stop(["sim", "cloud"])
        told = json.loads(self.config.truth.read_text(encoding="utf-8"))
        return GroundTruth.from_mapping(told)
