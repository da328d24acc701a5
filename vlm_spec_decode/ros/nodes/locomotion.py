"""Plans in; robot motion, odometry and health out. The only ROS node that commands the robot.

`control` decides what is safe; this node carries messages to it, and no stop may wait for this node: e-stop
and cancel have a callback group of their own, and no callback blocks except for the e-stop's own
confirmation.

Other processes must not starve this one: `raise_priority` raises its priority and shortens the thread switch
interval. On a busy computer a stop waits until its process gets a core, which may take longer than all other
parts of the stop.

`TopicBoard` is a board of the robot's lease on a ROS topic, for executors of one namespace and for robots
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
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.control.executor import Executor, PeriodicThread
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
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.robot.spec import RobotSpec
from vlm_spec_decode.ros import diagnostics, typed
from vlm_spec_decode.ros import diagnostics as robot_health
from vlm_spec_decode.ros import operator_inputs as hands
from vlm_spec_decode.ros.convert import STEADY, ClockConverter, to_odometry, to_ranges
from vlm_spec_decode.ros.frames import FrameNames
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED
from vlm_spec_decode.ros.obstacle_sensors import ObstacleSensors, SensingDriver
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.robot_model import RobotModel
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S, fault_lines, guarded_timer, subscribe
from vlm_spec_decode.ros.visualization import Transforms
from vlm_spec_decode_msgs import msg

STATUS_POLL_S = 0.025
"""Period of reading the executor's status; a change is published within it."""

RANGES_S = 0.2
"""Period of the free distances, which are for displays."""


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
        publishes_odometry: bool = True,
        boards: Sequence[Board] = (),
        spec: RobotSpec | None = None,
    ) -> None:
        """`publishes_odometry` is false for a robot that publishes odometry and transforms itself.

        `boards` carry the lease of this robot, besides the topic of this namespace. `spec` narrows the limits
        to what the robot can do.
        """
        self._node, self._clock, self._publishes_odometry = node, clock, publishes_odometry
        self._stamps = ClockConverter(node, clock)
        self._parameters = parameters = Parameters(node, PARAMETERS)
        path = parameters.path("limits_file")
        limits = SafetyLimits.from_mapping(read_mapping(path)) if path else SafetyLimits()
        limits = spec.narrowed(limits) if spec is not None else limits
        self._obstacle_sensors = ObstacleSensors(node, clock)
        if self._obstacle_sensors.is_needed:
            driver = SensingDriver(driver, self._obstacle_sensors)
        executor = Executor(driver, SafetyGate(limits), clock, frame_now=self._stamps.ros_now_s)
        self._lease = Lease(
            (TopicBoard(node), *boards),
            str(node.get_fully_qualified_name()),
            clock,
            self._on_lease_lost,
            parameters.real("lease_wait_s"),
        )
        timeout_s = parameters.real("start_timeout_s")
        self._supervisor = RobotSupervisor(driver, executor, clock, timeout_s, on_failure, self._lease)
        self._counts = _Counts()
        self._published: PlanStatus | None = None
        self._source = ""
        self._published_s = self._odom_s = float("-inf")
        self._frames = FrameNames(*(parameters.text(f"{name}_frame") for name in FrameNames.NAMES))
        has_tf = publishes_odometry and parameters.flag("publish_tf")
        self._transforms = Transforms(node, self._frames) if has_tf else None
        self._spec = spec if spec is not None else robot_kind("fake").spec
        Parameters(node, hands.PARAMETERS)
        self._operator_inputs: hands.OperatorInputs | None = None
        self._loops: list[PeriodicThread] = []

    @property
    def is_settled(self) -> bool:
        """Whether the robot stands ready, or could not be started."""
        return self._supervisor.readiness.is_ready or self._supervisor.readiness.error is not None

    def begin(self) -> None:
        """Start the robot, and subscribe."""
        self._connect()
        self._operator_inputs = hands.OperatorInputs(self._node, self._supervisor, self._clock, self._engage)
        if self._transforms is not None:
            pitch_rad = self._parameters.real("camera_pitch_rad")
            self._transforms.publish_mount(self._stamps.ros_now_s(), pitch_rad)
        for loop in self._loops:
            loop.start()
        self._supervisor.begin()

    def _connect(self) -> None:
        node = self._node
        self._statuses = node.create_publisher(msg.PlanStatus, "vlm/plan/status", COMMAND)
        self._sources = node.create_publisher(String, "vlm/control", LATCHED)
        self._ranges = node.create_publisher(LaserScan, "vlm/ranges", 1)
        if self._publishes_odometry:
            self._odometry = node.create_publisher(Odometry, "odom", 20)
            # A robot that publishes its odometry itself has a description of its own, too.
            self._model = RobotModel(node, self._spec, self._frames.base)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        stops, plans, slow = ReentrantCallbackGroup(), *_groups(2)
        node.create_service(SetBool, "e_stop", self._on_estop, callback_group=stops)
        node.create_service(Trigger, "vlm/cancel", self._on_cancel, callback_group=stops)
        subscribe(
            node, msg.Plan, "vlm/plan", self._on_plan, COMMAND, on_fault=self._refuse, callback_group=plans
        )
        self._repeat("status", STATUS_POLL_S, self._check_status)
        if self._publishes_odometry:
            self._repeat("odometry", 1 / self._parameters.real("odom_hz"), self._publish_odometry)
        self._repeat("ranges", RANGES_S, self._publish_ranges)
        node.create_timer(1.0, guarded_timer(node, "diagnostics", self._diagnose), slow, clock=STEADY)

    def _repeat(self, name: str, period_s: float, act: Callable[[], None]) -> None:
        """Repeat what reads and publishes on a thread of its own, which costs less than a timer of rclpy."""
        act = guarded_timer(self._node, name, act)
        self._loops.append(PeriodicThread(name, self._clock, period_s, act, lambda: None))

    def close(self) -> None:
        """Stop the robot and free it. Idempotent."""
        was_ready, was_moved_by = self._supervisor.readiness.is_ready, self._supervisor.source
        error = self._supervisor.close()
        for loop in self._loops:
            loop.close()
        if isinstance(error, (RobotStale, RobotUnreachable)) and was_moved_by in ("none", "estop"):
            # For example a simulator interrupted together with this node, or a robot that was switched off.
            self._node.get_logger().info(f"left: the robot had gone, and nobody moved it ({error})")
        elif error is not None:
            self._node.get_logger().error(f"the stop was not confirmed: {error}")
        elif was_ready:
            self._node.get_logger().info("left: the robot stands")

    def _on_lease_lost(self, error: RobotError) -> None:
        self._supervisor.on_lease_lost(error)

    # Requests ------------------------------------------------------------------------------------

    def _on_plan(self, message: msg.Plan) -> None:
        try:
            plan = typed.plan_from_message(message)
        except ActionParseError as error:
            self._refuse(str(error))
            return
        self._counts.plans += 1
        if not self._supervisor.submit(plan):
            self._counts.early += 1

    def _refuse(self, detail: str) -> None:
        """Stop after a plan that cannot be read, because its sender is faulty."""
        self._counts.unparsable += 1
        self._supervisor.cancel()
        self._publish_status(PlanStatus(state="refused", reason="unparsable", detail=detail))
        self._node.get_logger().warning(f"plan refused: {detail}", throttle_duration_sec=WARN_EVERY_S)

    def _on_estop(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            report = self._supervisor.estop(bool(request.data))
        except ActionRefused as error:
            response.success, response.message = False, str(error)
            return response
        self._check_source()
        response.success = report is None or report.confirmed_s is not None
        response.message = "released" if report is None else robot_health.describe_stop(report)
        self._node.get_logger().warning(f"e-stop: {response.message}")
        return response

    def _engage(self, by: str) -> None:
        """Engage the e-stop on a request without a reply; does nothing if it is engaged."""
        if self._supervisor.source == "estop":
            return
        report = self._supervisor.estop(True)
        outcome = robot_health.describe_stop(report) if report else "engaged"
        self._node.get_logger().warning(f"e-stop by {by}: {outcome}")

    def _on_cancel(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._supervisor.cancel()
        response.success, response.message = True, "cancelled; the robot stops"
        return response

    # Publishing ----------------------------------------------------------------------------------

    def _check_status(self) -> None:
        """Publish the status if it has changed or is due; nothing while the robot is not ready."""
        self._check_source()
        if not self._supervisor.readiness.is_ready:
            return
        status = self._supervisor.status()
        if status != self._published or self._clock.now() - self._published_s >= 1 / self._parameters.real(
            "status_hz"
        ):
            self._publish_status(status)

    def _check_source(self) -> None:
        source = self._supervisor.source
        if source != self._source:
            self._source = source
            self._sources.publish(String(data=source))

    def _publish_status(self, status: PlanStatus) -> None:
        if self._published is None or (status.state, status.reason) != (
            self._published.state,
            self._published.reason,
        ):
            text = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
            self._node.get_logger().info(f"{text} {status.action}".strip())
        self._published, self._published_s = status, self._clock.now()
        self._statuses.publish(typed.plan_status_to_message(status, self._stamps.ros_now_s()))

    def _publish_odometry(self) -> None:
        try:
            state = self._supervisor.state()
        except RobotError:
            return
        if state.received_s <= self._odom_s:
            return
        self._odom_s = state.received_s
        stamp_s = self._stamps.to_ros_s(state.received_s)
        odometry = to_odometry(state, stamp_s, self._frames.odom, self._frames.base)
        self._odometry.publish(odometry)
        self._model.publish(state.joints_rad, stamp_s)
        if self._transforms is not None and self._transforms.is_watched:
            self._transforms.publish(odometry, self._model.transforms(state.joints_rad, stamp_s))

    def _publish_ranges(self) -> None:
        """Publish the free distances that the gate sees, the robot's own and other sensors'."""
        if not self._ranges.get_subscription_count():
            return
        try:
            state = self._supervisor.state()
        except RobotError:
            return
        stamp_s = self._stamps.to_ros_s(state.received_s)
        hull, base = self._spec.hull.half_m, self._frames.base
        self._ranges.publish(to_ranges(state.range_obstacle_m, hull, stamp_s, base))

    def _diagnose(self) -> None:
        name = diagnostics.name_of(self._node)
        lines = robot_health.robot_lines(name, self._supervisor, self._clock.now())
        lines.append(
            robot_health.executor_line(name, self._supervisor.status(), self._supervisor.last_stop())
        )
        message = "holds the robot" if self._lease.holds else "does not hold the robot"
        level = diagnostics.OK if self._lease.holds else diagnostics.STALE
        lines.append(diagnostics.Health(f"{name}: lease", level, message))
        lines += self._obstacle_sensors.lines(name) + fault_lines(self._node, name)
        counts = {"plans": self._counts.plans, "unparsable": self._counts.unparsable}
        counts["teleop_dropped"] = self._operator_inputs.dropped if self._operator_inputs else 0
        counts["teleop_unusable"] = self._operator_inputs.unusable if self._operator_inputs else 0
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
"""Thread switch interval in seconds; Python's own 5 ms add up along a stop."""

THREADS = Path("/proc/self/task")


def raise_priority(nice: int) -> str:
    """Give all threads of this process at least this priority; return "", or why it was refused."""
    sys.setswitchinterval(SWITCH_S)
    if nice == 0 or not THREADS.is_dir() or os.getpriority(os.PRIO_PROCESS, 0) <= nice:
        return ""
    # Linux has a priority for each thread; new threads inherit it.
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
        self._on_text: Callable[[str], None] | None = None

    def open(self, on_text: Callable[[str], None]) -> None:
        """See `robot.lease.Board`. It stays open until the node's part is freed."""
        self._on_text = on_text
        if self._publisher is None:
            self._publisher = self._node.create_publisher(String, self._topic, COMMAND)
            group = MutuallyExclusiveCallbackGroup()
            subscribe(self._node, String, self._topic, self._on_message, COMMAND, callback_group=group)

    def write(self, text: str) -> None:
        """See `robot.lease.Board`."""
        if self._publisher is not None and self._on_text is not None:
            try:
                self._publisher.publish(String(data=text))
            except (rclpy_implementation.RCLError, InvalidHandle):
                return  # the node is being taken down

    def poll(self) -> None:
        """Do nothing: the node's executor reads."""

    def close(self) -> None:
        """See `robot.lease.Board`; the node frees the topic."""
        self._on_text = None

    def _on_message(self, message: String) -> None:
        if self._on_text is not None:
            self._on_text(message.data)
