"""The processes of a mission: simulator, cloud, three nodes, a listener, a bag.

Every process leads a group of its own, so that Ctrl-C reaches only the run itself, which then ends them in
order: a signal, patience, SIGKILL for the whole group. Should the run be killed, the kernel ends them
(`run_below`). To be used from the main thread: the kernel watches the thread that started a process.

The listener gets messages as serialised bytes, so that a bag holds exactly those. The teacher's labels of the
walk go into the bag as `/vlm/label`, so that a replay can score answers and training can learn from them.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import String

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.bags.recording import Recording
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudUnreachable, ImageError, ProcessEnded, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.profiles import load_link
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.demo.report import MissionLog, MissionStep
from vlm_spec_decode.mission.progress import MissionReport
from vlm_spec_decode.models.paced import SLOWER
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import from_compressed, from_odometry
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED, OwnNode
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.ground_truth import GroundTruth
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import instructions, scene_description, teacher
from vlm_spec_decode.train.frames import observe
from vlm_spec_decode.train.instructions import Goal, held_out

NODES = ("camera", "locomotion", "vlm")
START_S = 120.0
SPIN_S = 0.05
SETTLE_S = 0.6
"""Seconds after the end of a mission until the robot stands still and the last messages have arrived."""

ROS_DOMAINS = range(10, 60)
DDS_DOMAINS = range(1, 10)
"""Separate ranges, because ROS and the robot's DDS would discover each other on one domain."""


@dataclass(frozen=True, slots=True)
class ProcessStackConfig:
    """Settings of the processes.

    `room` holds the simulator's options for the scene. `limits` is a file of the safety gate's limits, None
    for its defaults. `mission` holds parameters of the VLM node that say how it runs missions, by name.
    """

    room: tuple[str, ...]
    seed: int
    keys: Path
    truth: Path
    strategy: str
    rule: str
    objective: str
    link: str
    out: Path
    profile: str = ""
    limits: Path | None = None
    mission: Mapping[str, str] = field(default_factory=dict)


class ProcessStack:
    """A context manager: its end stops every process and completes the bag. `frames` stay readable."""

    def __init__(
        self, config: ProcessStackConfig, clock: WallClock, rng: random.Random, on_line: Callable[[str], None]
    ) -> None:
        self.config = config
        self.link = load_link(config.link) if config.link else None
        self.address = ""
        self.waited_s = 0.0
        self.frames: Mapping[float, Image] = {}
        self._clock = clock
        self._began_s = clock.now()
        self._on_line = on_line
        self._log = MissionLog()
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
        """Prepare to start processes."""
        self._processes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything, also after an error."""
        try:
            self._processes.__exit__(kind, error, trace)
        finally:
            if self._listener is not None:
                self._listener.close()
            self._bag.close()

    def log(self, text: str) -> None:
        """Print a line with the time since the start."""
        self._on_line(f"[{self._clock.now() - self._began_s:6.1f} s] {text}")

    def set_up(self) -> None:
        """Start everything and wait until a mission can begin. Raises ProcessEnded or CloudError."""
        config = self.config
        self.log(
            f"simulated Go2 ({' '.join(config.room).replace('--', '')}) on DDS domain {self._dds_domain}"
        )
        sim = self._vsd("sim", *config.room, "--seed", str(config.seed), "--domain", str(self._dds_domain),
                        "--interface", "lo", "--ground-truth", str(config.truth))  # fmt: skip
        self.log("cloud verifier, CURVE keys made for this run")
        pace = ("--profile", config.profile) if config.profile else ()
        cloud = self._vsd("cloud", "--bind", "tcp://127.0.0.1:*", "--keys", str(config.keys), *pace)
        self.address = str(self._processes.wait_ready(cloud, START_S)["address"])
        self._processes.wait_ready(sim, START_S)
        self.log(f"cloud serves at {self.address}; starting the nodes on ROS domain {self._ros_domain}")
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
        if self.config.profile:
            vlm["hardware_profile"] = self.config.profile
        vlm |= self.config.mission
        limits = {"limits_file": str(self.config.limits)} if self.config.limits else {}
        given = {"camera": robot, "locomotion": robot | limits, "vlm": vlm}
        for name in NODES:
            values = given[name]
            parameters = [part for key, value in values.items() for part in ("-p", f"{key}:={value}")]
            run = f"sys.exit(entry_points.{name}_main())"
            code = f"import sys; from vlm_spec_decode.ros import entry_points; {run}"
            self._processes.start(f"{name}_node", ["-c", code, "--ros-args", *parameters])

    def _listen(self) -> None:
        self._listener = listener = Listener(self._ros_domain, self._bag.write, self._on_report)
        self.frames = listener.frames
        until_s = self._clock.now() + START_S
        while self._clock.now() < until_s:
            self._spin(listener)
            if (
                self._log.link == "ready"
                and listener.has_odometry
                and listener.frames
                and listener.is_connected()
            ):
                self.log("robot stands, camera sees, cloud has welcomed the draft model")
                return
            if self._log.link == "unavailable":
                raise CloudUnreachable(self._log.detail)
        missing = (
            "the cloud" if self._log.link != "ready" else "odometry" if listener.frames else "the camera"
        )
        raise RobotUnreachable(
            f"{missing} did not come up within {START_S:.0f} s; see {self.config.out / 'logs'}"
        )

    def _spin(self, listener: Listener) -> None:
        listener.spin(SPIN_S)
        self._processes.check()

    def _on_report(self, report: Plan | MissionReport) -> None:
        for line in self._log.on_report(report, self._clock.now()):
            self.log(line)

    def run_mission(self, instruction: str, timeout_s: float) -> MissionLog:
        """Send the instruction and return the log when the mission has ended, or the time is over."""
        if self._listener is None:
            raise ProcessEnded("vlm_node", 1, "not started")
        self.log(f'instruction: "{instruction}"')
        self._log = MissionLog(link=self._log.link)
        self._log.begin(self._clock.now())
        self._listener.instruct(instruction)
        until_s = self._clock.now() + timeout_s
        while not self._log.has_ended and self._clock.now() < until_s:
            self._spin(self._listener)
        if not self._log.has_ended:
            self.log(f"the mission has not ended within {timeout_s:.0f} s; stopping the robot")
        self.waited_s = self._clock.now() - self._log.given_s
        self._listener.spin(SETTLE_S)
        return self._log

    def slower(self) -> list[str]:
        """Return what cloud and VLM node have said of a machine that cannot keep the profile's pace."""
        return [
            line[line.index(SLOWER) :]
            for name in ("cloud", "vlm_node")
            for line in (self.config.out / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
            if SLOWER in line
        ]

    def add_labels(self, scene: Scene, instruction: str, log: MissionLog) -> int:
        """Add the teacher's answers to the bag as labels; return how many answers have one."""
        # The teacher comes with training's libraries, which take seconds to import.

        if self._listener is None:
            return 0
        found = teacher_labels(scene, instruction, log.steps, self._listener.poses)
        for stamp_s, text in found:
            self._bag.write_text("/vlm/label", text, round(stamp_s * 1e9))
        return len(found)

    def stop(self) -> GroundTruth:
        """End the nodes, which stops the robot, then simulator and cloud; return the ground truth."""
        self._processes.stop([f"{name}_node" for name in NODES])
        self._processes.stop(["sim", "cloud"])
        truth = json.loads(self.config.truth.read_text(encoding="utf-8"))
        return GroundTruth.from_mapping(truth)


POLL_S = 0.05
STOP_S = 6.0
"""Time for a process to end by itself; the locomotion node stops the robot in it."""


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """A started process and its log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def last_line(self) -> str:
        """Return the last non-empty line of output."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Processes:
    """A context manager for processes. Its end stops the last started first, groups of nodes together."""

    def __init__(self, logs: Path, clock: Clock, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._clock = clock
        self._environment = {**os.environ, **environment}
        self._running: list[ChildProcess] = []

    def __enter__(self) -> Processes:
        """Handle SIGTERM like Ctrl-C."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._old_term = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything; a second Ctrl-C meanwhile is ignored."""
        old_int = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self.stop([process.name for process in self._running])
        finally:
            signal.signal(signal.SIGINT, old_int)
            signal.signal(signal.SIGTERM, self._old_term)

    def start(self, name: str, arguments: Sequence[str]) -> ChildProcess:
        """Start `python ARGUMENTS` under the run's environment."""
        log = self._logs / f"{name}.log"
        # The source of one function, so that nothing of the package is imported before the command starts.
        code = f"{inspect.getsource(run_below)}\nrun_below()"
        launcher = [sys.executable, "-S", "-c", code, str(os.getpid())]
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*launcher, sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        process = ChildProcess(name, popen, log)
        self._running.append(process)
        return process

    def check(self) -> None:
        """Raise ProcessEnded if a process has ended that should run."""
        for process in self._running:
            code = process.popen.poll()
            if code is not None:
                raise ProcessEnded(process.name, code, process.last_line())

    def wait_ready(self, process: ChildProcess, timeout_s: float) -> dict[str, Any]:
        """Wait for the JSON line `{"event": "ready", …}`. Raises ProcessEnded."""
        until_s = self._clock.now() + timeout_s
        while self._clock.now() < until_s:
            for line in process.log.read_text(errors="replace").splitlines():
                if line.startswith('{"event": "ready"'):
                    found: dict[str, Any] = json.loads(line)
                    return found
            self.check()
            self._clock.sleep(POLL_S)
        raise ProcessEnded(process.name, 1, f"not ready within {timeout_s:.0f} s")

    def stop(self, names: Iterable[str]) -> None:
        """End these processes together and wait for them."""
        wanted = set(names)
        leaving = [process for process in self._running if process.name in wanted]
        self._running = [process for process in self._running if process.name not in wanted]
        for number, patience_s in ((signal.SIGINT, STOP_S), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            alive = [process for process in leaving if process.popen.poll() is None]
            for process in alive:
                _signal_group(process, number)
            until_s = self._clock.now() + patience_s
            while self._clock.now() < until_s and any(process.popen.poll() is None for process in alive):
                self._clock.sleep(POLL_S)
        for process in leaving:
            # The group may outlive its leader if the leader had children.
            _signal_group(process, signal.SIGKILL)


def run_below() -> None:
    """Become the command `sys.argv[2:]`, which the kernel ends when the process `sys.argv[1]` ends.

    Its source alone runs in a new interpreter, so it uses only its own body. Exits if the kernel
    refuses, or if the parent has ended already.
    """
    import ctypes
    import os
    import signal
    import sys

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_parent_death_signal, signal.SIGTERM) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the call above.
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent has ended already")
    os.execvp(sys.argv[2], sys.argv[2:])


def _signal_group(process: ChildProcess, number: signal.Signals) -> None:
    try:
        os.killpg(process.popen.pid, number)
    except ProcessLookupError:
        return


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


INSTRUCTION = "/vlm/instruction"
COMMANDS = (
    "vlm/answer",
    "vlm/answer/partial",
    "vlm/answer/typed",
    "vlm/plan",
    "vlm/plan/status",
    "vlm/trace",
)
FRAMES = "/camera/image_raw/compressed"
KEPT_FRAMES = 200

Heard = Callable[[str, str, bytes, int], None]
"""Called with topic, type, serialised message and arrival in nanoseconds since 1970."""


class Listener:
    """A node in its own context on a ROS domain. It works only while `spin` is called."""

    def __init__(self, domain: int, on_message: Heard, on_report: Callable[[Any], None]) -> None:
        """`on_message` gets every message as bytes, `on_report` every plan and report of the nodes."""
        self._on_message = on_message
        self._on_report = on_report
        self.frames: OrderedDict[float, Image] = OrderedDict()
        self.poses: dict[float, Pose2D] = {}
        self._own = OwnNode("vsd_demo", domain)
        self._node = self._own.node
        self._instructions = self._node.create_publisher(String, INSTRUCTION, COMMAND)
        for topic in COMMANDS:
            self._subscribe(typed.TOPICS.get(topic, String), f"/{topic}", COMMAND)
        self._subscribe(String, INSTRUCTION, COMMAND)
        self._subscribe(typed.TOPICS["vlm/status"], "/vlm/status", LATCHED)
        self._subscribe(String, "/vlm/run", LATCHED)
        self._subscribe(CompressedImage, FRAMES, qos_profile_sensor_data)
        self._subscribe(CameraInfo, "/camera/camera_info", qos_profile_sensor_data)
        self._subscribe(Odometry, "/odom", 20)

    def _subscribe(self, kind: Any, topic: str, qos: Any) -> None:
        name = typed.type_name(kind)

        def take(data: bytes) -> None:
            self._on_message(topic, name, data, time.time_ns())
            self._note(kind, data)

        self._node.create_subscription(kind, topic, take, qos, raw=True)

    def _note(self, kind: Any, data: bytes) -> None:
        if kind in typed.READERS:
            self._on_report(typed.from_message(deserialize_message(data, kind)))
        elif kind is CompressedImage:
            try:
                image, stamp_s = from_compressed(deserialize_message(data, CompressedImage))
            except ImageError as error:
                say = self._node.get_logger()
                say.warning(f"frame not kept: {error}", throttle_duration_sec=WARN_EVERY_S)
                return
            self.frames[stamp_s] = image
            if len(self.frames) > KEPT_FRAMES:
                self.frames.popitem(last=False)
        elif kind is Odometry:
            stamp_s, pose = from_odometry(deserialize_message(data, Odometry))
            self.poses[stamp_s] = pose

    @property
    def has_odometry(self) -> bool:
        """Whether odometry has arrived."""
        return bool(self.poses)

    def spin(self, duration_s: float) -> None:
        """Process callbacks for about `duration_s`."""
        self._own.spin(duration_s)

    def is_connected(self) -> bool:
        """Whether the VLM node subscribes to instructions; it is recognised by its acks."""
        listeners = int(self._node.count_subscribers(INSTRUCTION))
        has_node = bool(self._node.count_publishers("/vlm/ack"))
        return has_node and 1 < listeners <= int(self._instructions.get_subscription_count())

    def instruct(self, text: str) -> None:
        """Publish the instruction."""
        self._instructions.publish(String(data=text))

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        self._own.close()


MAX_AGE_S = 0.25
"""A frame without odometry within this time gets no label."""


def goal_of(instruction: str, scene: Scene) -> Goal | None:
    """Return the goal of an instruction, if it has one of the teacher's wordings."""
    return _known(scene).get(" ".join(instruction.lower().split()))


def _known(scene: Scene) -> dict[str, Goal]:
    goals: dict[str, Goal] = {}
    for name in scene.names:
        for form in (*instructions.GO_TO, *instructions.OVER_TO, *held_out().wordings):
            text = form.format(x=name)
            goals[text] = Goal(text, "goto", name)
        for form in instructions.FACE:
            text = form.format(x=name)
            goals[text] = Goal(text, "face", name)
        for form in instructions.STOP_BEFORE:
            for tenths in range(8, 21):
                text = form.format(x=name, n=f"{tenths / 10:.1f}")
                goals[text] = Goal(text, "goto", name, stop_m=tenths / 10)
    for action, forms in instructions.GESTURES.items():
        for text in forms:
            goals[text] = Goal(text, "act", action=action)
    return goals


def teacher_labels(
    scene: Scene, instruction: str, steps: Iterable[MissionStep], poses: Mapping[float, Pose2D]
) -> list[tuple[float, str]]:
    """Return for each answered step its frame's stamp and the JSON of its label; [] if the goal is unknown.

    `poses` holds odometry by its stamp; its origin is where the robot was switched on.
    """
    goal = goal_of(instruction, scene)
    if goal is None or not poses:
        return []
    world = World(scene, seed=scene.seed)
    camera = FrontCamera(world)
    found = []
    for step in steps:
        stamp_s = min(poses, key=lambda s: abs(s - step.stamp_s))
        if not step.token_ids or abs(stamp_s - step.stamp_s) > MAX_AGE_S:
            continue
        world.teleport(_placed(scene.start, poses[stamp_s]))
        text = teacher.answer(goal, scene_description.read_objects(observe(camera, world)), step.history[-8:])
        answer = {
            "stamp_s": step.stamp_s,
            "instruction": instruction,
            "history": list(step.history),
            "actions": [format_action(action) for action in parse_answer(text)],
            "text": text,
        }
        found.append((step.stamp_s, json.dumps(answer)))
    camera.close()
    return found


def _placed(start: Pose2D, moved: Pose2D) -> Pose2D:
    cos, sin = math.cos(start.yaw_rad), math.sin(start.yaw_rad)
    x_m = start.x_m + cos * moved.x_m - sin * moved.y_m
    y_m = start.y_m + sin * moved.x_m + cos * moved.y_m
    return Pose2D(x_m, y_m, math.remainder(start.yaw_rad + moved.yaw_rad, 2 * math.pi))
