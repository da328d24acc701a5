"""Plans in; robot motion, odometry and health out. The only ROS node that commands the robot.

`control` decides what is safe; this node carries messages to it, and no stop may wait for this node: e-stop
and cancel have a callback group of their own, and no callback blocks except for the e-stop's own
confirmation.

Others must not starve its process: `hurry` raises the priority, and lets threads give way to one another
soon. Where many processes compute, a stop that comes waits until its process gets a core, which may take
longer than everything else about it.

`TopicBoard` is the board of the robot's lease as a ROS topic, for executors of one namespace and for robots
that are reached over ROS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.robot_supervisor import RobotSupervisor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.config import Setting, read_mapping
from vlm_spec_decode.core.errors import (
    ActionParseError,
    ActionRefused,
    RobotError,
    RobotStale,
    RobotUnreachable,
)
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.robot.lease import WAIT_S, Board, Lease
from vlm_spec_decode.robot.spec import RobotSpec
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros import diagnostics as robot_health
from vlm_spec_decode.ros import operator_inputs as hands
from vlm_spec_decode.ros.convert import STEADY, ClockConverter, to_odometry
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED
from vlm_spec_decode.ros.obstacle_sensors import ObstacleSensors, SensingDriver
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S, fault_lines, guarded_timer, listen
from vlm_spec_decode.ros.visualization import FrameNames, Transforms

LOOK_S = 0.025
"""How often the executor's status is looked at; a change is published within it."""


PARAMETERS = (
    Setting("start_timeout_s", 30.0, "How long to look for the robot before giving up.", 1.0, 600.0),
    Setting(
        "lease_wait_s",
        WAIT_S,
        "How long to listen for another executor of this robot before taking it; it refuses by name.",
        0.1,
        10.0,
    ),
    Setting("limits_file", "", "YAML of the safety gate's limits; empty: its defaults."),
    Setting("odom_hz", 20.0, "Rate of odometry and transform.", 1.0, 100.0),
    Setting("status_hz", 10.0, "Rate of vlm/plan/status; changes are published at once.", 5.0, 40.0),
    Setting("odom_frame", "odom", "Frame of the odometry (REP 105)."),
    Setting("base_frame", "base_link", "Frame of the body (REP 105)."),
    Setting("camera_frame", "front_camera", "Frame of the camera's mount."),
    Setting("optical_frame", "front_camera_optical", "Optical frame of the camera (REP 103)."),
    Setting("camera_pitch_rad", 0.0, "Pitch of the camera's mount, down positive.", -1.0, 1.0),
    Setting("publish_tf", True, "Publish odom to base_link, and the camera's place on the body."),
)


@dataclass(slots=True)
class _Counts:
    """Figures of plans for diagnostics."""

    plans: int = 0
    unparsable: int = 0
    early: int = 0


class LocomotionNode:
    """Feeds an `Executor` from `vlm/plan` and publishes its status, the odometry and the robot's health."""

    def __init__(
        self,
        node: Node,
        driver: RobotDriver,
        clock: Clock,
        on_failure: Callable[[RobotError], None],
        *,
        says_odometry: bool = True,
        boards: Sequence[Board] = (),
        spec: RobotSpec | None = None,
    ) -> None:
        """`says_odometry` is false for a robot that publishes odometry and transforms by itself.

        `boards` are where executors of this very robot meet, beside the topic of this namespace. `spec`
        narrows the limits to what the robot can do.
        """
        self._node, self._clock, self._says_odometry = node, clock, says_odometry
        self._stamps = ClockConverter(node, clock)
        self._parameters = parameters = Parameters(node, PARAMETERS)
        path = parameters.path("limits_file")
        limits = SafetyLimits.from_mapping(read_mapping(path)) if path else SafetyLimits()
        limits = spec.narrowed(limits) if spec is not None else limits
        self._surroundings = ObstacleSensors(node, clock)
        if self._surroundings.is_needed:
            driver = SensingDriver(driver, self._surroundings)
        executor = Executor(driver, SafetyGate(limits), clock, frame_now=self._stamps.ros_now_s)
        self._lease = Lease(
            (TopicBoard(node), *boards),
            str(node.get_fully_qualified_name()),
            clock,
            self._lost,
            parameters.real("lease_wait_s"),
        )
        timeout_s = parameters.real("start_timeout_s")
        self._legs = RobotSupervisor(driver, executor, clock, timeout_s, on_failure, self._lease)
        self._counts = _Counts()
        self._said: PlanStatus | None = None
        self._source = ""
        self._said_s = self._odom_s = float("-inf")
        self._frames = FrameNames(*(parameters.text(f"{name}_frame") for name in FrameNames.NAMES))
        has_tf = says_odometry and parameters.flag("publish_tf")
        self._transforms = Transforms(node, self._frames) if has_tf else None
        Parameters(node, hands.PARAMETERS)
        self._hands: hands.OperatorInputs | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the robot stands ready, or has been given up."""
        return self._legs.readiness.is_ready or self._legs.readiness.error is not None

    def begin(self) -> None:
        """Bring the robot up, and listen."""
        self._connect()
        self._hands = hands.OperatorInputs(self._node, self._legs, self._clock, self._engage)
        if self._transforms is not None:
            pitch_rad = self._parameters.real("camera_pitch_rad")
            self._transforms.publish_mount(self._stamps.ros_now_s(), pitch_rad)
        self._legs.begin()

    def _connect(self) -> None:
        node = self._node
        self._statuses = node.create_publisher(String, "vlm/plan/status", COMMAND)
        self._sources = node.create_publisher(String, "vlm/control", LATCHED)
        if self._says_odometry:
            self._odometry = node.create_publisher(Odometry, "odom", 20)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        stops, plans, looks, odom, slow = ReentrantCallbackGroup(), *_groups(4)
        node.create_service(SetBool, "e_stop", self._on_estop, callback_group=stops)
        node.create_service(Trigger, "vlm/cancel", self._on_cancel, callback_group=stops)
        listen(node, String, "vlm/plan", self._on_plan, COMMAND, on_fault=self._refuse, callback_group=plans)
        node.create_timer(LOOK_S, guarded_timer(node, "status", self._look), looks, clock=STEADY)
        if self._says_odometry:
            period_s = 1 / self._parameters.real("odom_hz")
            node.create_timer(period_s, guarded_timer(node, "odometry", self._odom), odom, clock=STEADY)
        node.create_timer(1.0, guarded_timer(node, "diagnostics", self._diagnose), slow, clock=STEADY)

    def close(self) -> None:
        """Stop the robot and free it. Idempotent."""
        was_ready, was_moved_by = self._legs.readiness.is_ready, self._legs.source
        error = self._legs.close()
        if isinstance(error, (RobotStale, RobotUnreachable)) and was_moved_by in ("none", "estop"):
            # A simulator that was interrupted together with this node, a robot that was switched off.
            self._node.get_logger().info(f"left: the robot had gone, and nobody moved it ({error})")
        elif error is not None:
            self._node.get_logger().error(f"the stop was not confirmed: {error}")
        elif was_ready:
            self._node.get_logger().info("left: the robot stands")

    def _lost(self, error: RobotError) -> None:
        self._legs.lose(error)

    # What others ask for -------------------------------------------------------------------------

    def _on_plan(self, message: String) -> None:
        try:
            plan = Plan.from_json(message.data)
        except ActionParseError as error:
            self._refuse(str(error))
            return
        self._counts.plans += 1
        if not self._legs.submit(plan):
            self._counts.early += 1

    def _refuse(self, detail: str) -> None:
        """Stop for a plan that cannot be read: whoever sent it has lost its way."""
        self._counts.unparsable += 1
        self._legs.cancel()
        self._say(PlanStatus(state="refused", reason="unparsable", detail=detail))
        self._node.get_logger().warning(f"plan refused: {detail}", throttle_duration_sec=WARN_EVERY_S)

    def _on_estop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            report = self._legs.estop(bool(request.data))
        except ActionRefused as error:
            response.success, response.message = False, str(error)
            return response
        self._look_at_source()
        response.success = report is None or report.confirmed_s is not None
        response.message = "released" if report is None else robot_health.describe_stop(report)
        self._node.get_logger().warning(f"e-stop: {response.message}")
        return response

    def _engage(self, by: str) -> None:
        """Engage for somebody who waits for no reply; once is enough."""
        if self._legs.source == "estop":
            return
        report = self._legs.estop(True)
        said = robot_health.describe_stop(report) if report else "engaged"
        self._node.get_logger().warning(f"e-stop by {by}: {said}")

    def _on_cancel(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._legs.cancel()
        response.success, response.message = True, "cancelled; the robot stops"
        return response

    # What this node says -------------------------------------------------------------------------

    def _look(self) -> None:
        """Publish the status when it has changed or is due; a robot that is not ready says nothing."""
        self._look_at_source()
        if not self._legs.readiness.is_ready:
            return
        status = self._legs.status()
        if status != self._said or self._clock.now() - self._said_s >= 1 / self._parameters.real("status_hz"):
            self._say(status)

    def _look_at_source(self) -> None:
        source = self._legs.source
        if source != self._source:
            self._source = source
            self._sources.publish(String(data=source))

    def _say(self, status: PlanStatus) -> None:
        if self._said is None or (status.state, status.reason) != (self._said.state, self._said.reason):
            text = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
            self._node.get_logger().info(f"{text} {status.action}".strip())
        self._said, self._said_s = status, self._clock.now()
        self._statuses.publish(String(data=status.to_json()))

    def _odom(self) -> None:
        try:
            state = self._legs.state()
        except RobotError:
            return
        if state.received_s <= self._odom_s:
            return
        self._odom_s = state.received_s
        stamp_s = self._stamps.to_ros_s(state.received_s)
        odometry = to_odometry(state, stamp_s, self._frames.odom, self._frames.base)
        self._odometry.publish(odometry)
        if self._transforms is not None:
            self._transforms.publish(odometry)

    def _diagnose(self) -> None:
        name = diagnostics.name_of(self._node)
        lines = robot_health.robot_lines(name, self._legs, self._clock.now())
        lines.append(robot_health.executor_line(name, self._legs.status(), self._legs.last_stop()))
        said = "holds the robot" if self._lease.holds else "does not hold the robot"
        level = diagnostics.OK if self._lease.holds else diagnostics.STALE
        lines.append(diagnostics.Health(f"{name}: lease", level, said))
        lines += self._surroundings.lines(name) + fault_lines(self._node, name)
        counts = {"plans": self._counts.plans, "unparsable": self._counts.unparsable}
        counts["teleop_dropped"] = self._hands.dropped if self._hands else 0
        counts["teleop_unusable"] = self._hands.unusable if self._hands else 0
        values = {key: str(value) for key, value in (counts | {"before_ready": self._counts.early}).items()}
        counts["claims_unreadable"] = self._lease.unreadable
        level = diagnostics.WARN if self._counts.unparsable else diagnostics.OK
        lines.append(diagnostics.Health(f"{name}: plans", level, "received", values))
        if self._transforms is not None:
            lines.append(self._transforms.health(name))
        self._diagnostics.publish(diagnostics.array(lines, self._stamps.ros_now_s(), "go2"))


def _groups(count: int) -> list[MutuallyExclusiveCallbackGroup]:
    return [MutuallyExclusiveCallbackGroup() for _ in range(count)]


PRIORITY = Setting(
    "nice",
    -10,
    "Priority that the process gives itself where the system lets it, so that no stop waits for a busy "
    "computer; 0: as it was started.",
    -20,
    0,
)

SWITCH_S = 0.001
"""After which a thread must give way to another that waits; Python's own 5 ms add up along a stop."""

THREADS = Path("/proc/self/task")


def hurry(nice: int) -> str:
    """Give all threads of this process at least this priority; return "", or why that is not allowed."""
    sys.setswitchinterval(SWITCH_S)
    if nice == 0 or not THREADS.is_dir() or os.getpriority(os.PRIO_PROCESS, 0) <= nice:
        return ""
    # Linux keeps a priority for each thread; those to come inherit it.
    for thread in THREADS.iterdir():
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except PermissionError:
            return f"not allowed to give itself nice {nice}, so stops wait for a busy computer"
    return ""


TOPIC = "vlm/executor"


class TopicBoard:
    """`robot.lease.Board` over a topic of String."""

    def __init__(self, node: Node, topic: str = TOPIC) -> None:
        self._node, self._topic = node, topic
        self._publisher: Any = None
        self._hear: Callable[[str], None] | None = None

    def open(self, hear: Callable[[str], None]) -> None:
        """See `robot.lease.Board`; once opened it stays until its node's part is freed."""
        self._hear = hear
        if self._publisher is None:
            self._publisher = self._node.create_publisher(String, self._topic, COMMAND)
            group = MutuallyExclusiveCallbackGroup()
            listen(self._node, String, self._topic, self._take, COMMAND, callback_group=group)

    def write(self, text: str) -> None:
        """See `robot.lease.Board`."""
        if self._publisher is not None and self._hear is not None:
            try:
                self._publisher.publish(String(data=text))
            except (rclpy_implementation.RCLError, InvalidHandle):
                return  # the node is being taken down

    def poll(self) -> None:
        """Do nothing: the node's executor reads."""

    def close(self) -> None:
        """See `robot.lease.Board`; the node frees the topic."""
        self._hear = None

    def _take(self, message: String) -> None:
        if self._hear is not None:
            self._hear(message.data)
