"""`vsd replay --live`: a bag's camera and instructions to the real nodes, at the bag's rate, under its clock.

The nodes must run with `use_sim_time`. Camera and executor are simulated here: frames come from the bag,
plans are reported as carried out in their nominal time, and nothing moves. Odometry is integrated from the
bag's velocities for display, with transforms and the shape of a standing Go2, whatever robot recorded. If a
robot is on the domain, the replay refuses to begin. The nodes' output goes into a bag, so that it can be
compared with a replay as fast as possible.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geometry_msgs.msg import Quaternion
from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Action, Done, Forward, Stop, Strafe, Turn, Wait, format_action
from vlm_spec_decode.bags.events import NANOSECONDS, Event, Events, Frame, Instructed, Moved, Topics
from vlm_spec_decode.bags.questions import AskPlan
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.recording import Recording
from vlm_spec_decode.core.errors import ConfigError, ImageError
from vlm_spec_decode.core.types import WHOLE
from vlm_spec_decode.mission.state import END_STATES
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import to_compressed
from vlm_spec_decode.ros.frames import FrameNames
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED, OwnNode
from vlm_spec_decode.ros.robot_model import RobotModel
from vlm_spec_decode.ros.visualization import Transforms
from vlm_spec_decode_msgs import msg

FRAMES = FrameNames()
LONGEST_STEP_S = 1.0
"""A gap longer than this counts as standing."""


@dataclass(slots=True)
class DeadReckoning:
    """The body's pose relative to the start of the bag."""

    x_m: float = 0.0
    y_m: float = 0.0
    yaw_rad: float = 0.0
    z_m: float = 0.0
    last_ns: int = 0

    def advance(self, moved: Moved) -> Odometry:
        """Integrate one velocity; return the odometry message."""
        step_s = (moved.at_ns - self.last_ns) / NANOSECONDS if self.last_ns else 0.0
        step_s = min(LONGEST_STEP_S, max(0.0, step_s))
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        self.x_m += step_s * (cos * moved.vx_mps - sin * moved.vy_mps)
        self.y_m += step_s * (sin * moved.vx_mps + cos * moved.vy_mps)
        self.yaw_rad = math.remainder(self.yaw_rad + step_s * moved.vyaw_radps, 2 * math.pi)
        self.last_ns = moved.at_ns
        message = self.pose(moved.at_ns)
        message.twist.twist.linear.x, message.twist.twist.linear.y = moved.vx_mps, moved.vy_mps
        message.twist.twist.angular.z = moved.vyaw_radps
        return message

    def pose(self, at_ns: int) -> Odometry:
        """Return the newest pose as of this time, without a velocity; `z_m` is the body's height."""
        message = Odometry()
        message.header.frame_id, message.child_frame_id = FRAMES.odom, FRAMES.base
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(at_ns, NANOSECONDS)
        message.pose.pose.position.x, message.pose.pose.position.y = self.x_m, self.y_m
        message.pose.pose.position.z = self.z_m
        half = self.yaw_rad / 2
        message.pose.pose.orientation = Quaternion(z=math.sin(half), w=math.cos(half))
        return message


POSTURE_S = 1.5
"""Nominal time of a posture or gesture."""


def nominal_s(action: Action, limits: SafetyLimits) -> float:
    """Return how long an action takes at the highest speed allowed."""
    if isinstance(action, (Forward, Strafe)):
        return abs(action.distance_m) / limits.max_speed_mps
    if isinstance(action, Turn):
        return math.radians(abs(action.angle_deg)) / limits.max_turn_radps
    if isinstance(action, Wait):
        return action.duration_s
    return 0.0 if isinstance(action, (Done, Stop)) else POSTURE_S


@dataclass(slots=True)
class FakeExecutor:
    """Simulates the progress of the newest plan; times are seconds of a monotonic clock."""

    limits: SafetyLimits = field(default_factory=SafetyLimits)
    _plan: Plan | None = None
    _executed: int = 0
    _began_s: float = 0.0

    def set_plan(self, plan: Plan, now_s: float) -> None:
        """Set the plan.

        Another answer supersedes the present one; an older version of the same is ignored.
        """
        old = self._plan
        if old is None or (old.mission, old.answer) != (plan.mission, plan.answer):
            self._plan, self._executed, self._began_s = plan, 0, now_s
        elif plan.sequence >= old.sequence:
            if self._executed == len(old.actions):
                self._began_s = now_s
            self._plan = plan

    def status(self, now_s: float) -> PlanStatus | None:
        """Return the status of the plan; None before the first."""
        plan = self._plan
        if plan is None:
            return None
        texts = [format_action(action) for action in plan.actions]
        while self._executed < len(texts):
            ends_s = self._began_s + nominal_s(plan.actions[self._executed], self.limits)
            if now_s < ends_s:
                break
            self._executed, self._began_s = self._executed + 1, ends_s
        is_moving = self._executed < len(texts)
        state = "moving" if is_moving else "done" if plan.final else "idle"
        action = texts[self._executed] if is_moving else ""
        executed = tuple(texts[: self._executed])
        return PlanStatus(plan.mission, plan.answer, self._executed, state, action=action, executed=executed)


CLOCK_S, STATUS_S, TRANSFORM_S = 0.01, 0.05, 0.1
DISCOVERY_S = 2.0
"""How long to wait for the discovery of another executor before the replay begins."""

READY_S = 180.0
AFTER_S = 10.0
"""How long a running mission may continue after the end of the bag."""

FAR_S = 5.0
"""A frame whose stamp differs from the bag's time by more than this gets the bag's time."""

IMAGES, ODOMETRY, INSTRUCTION = "camera/image_raw/compressed", "odom", "vlm/instruction"
RECORDED = {
    **dict.fromkeys(("vlm/answer", "vlm/answer/typed", "vlm/trace"), COMMAND),
    **dict.fromkeys(("vlm/status", "vlm/run"), LATCHED),
}
"""The nodes' topics that go into the bag."""


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """Settings of a live replay. `rate` 2.0 is twice as fast as recorded."""

    bag: Path
    out: Path
    topics: Topics = field(default_factory=Topics)
    plan: AskPlan = field(default_factory=AskPlan)
    rate: float = 1.0
    domain: int = 0
    namespace: str = ""


class LivePlayer:
    """One replay. `play` runs it, `close` leaves ROS and completes the bag of the nodes' output."""

    def __init__(self, config: LiveConfig) -> None:
        self.counts: Counter[str] = Counter()
        self._config = config
        self._bag = Recording(config.out / "bag")
        self._executor = FakeExecutor()
        self._state, self._reason = "", ""
        self._start_ns = self._clock_ns = 0
        self._began_s = self._clock_sent_s = self._status_sent_s = self._transform_sent_s = 0.0
        self._has_words = bool(config.plan.instruction or config.plan.spoken)
        self._spoken = list(config.plan.spoken)
        self._own = OwnNode("vsd_replay", config.domain, config.namespace)
        self._node = node = self._own.node
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._images = node.create_publisher(CompressedImage, IMAGES, qos_profile_sensor_data)
        self._odometry = node.create_publisher(Odometry, ODOMETRY, 20)
        shape = robot_kind("go2").spec
        self._model, self._transforms = RobotModel(node, shape, FRAMES.base), Transforms(node, FRAMES)
        height_m = shape.legs.standing_height_m if shape.legs is not None else 0.0
        self._dead_reckoning = DeadReckoning(z_m=height_m)
        self._instructions = node.create_publisher(String, INSTRUCTION, COMMAND)
        self._statuses = node.create_publisher(msg.PlanStatus, "vlm/plan/status", COMMAND)
        node.create_subscription(msg.Plan, "vlm/plan", self._on_plan, COMMAND)
        for topic, quality in RECORDED.items():
            kind = typed.TOPICS.get(topic, String)
            node.create_subscription(kind, topic, self._listener(topic, typed.type_name(kind)), quality)

    def play(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Replay to the end; return the numbers of published and received messages.

        Raises BagError, or ConfigError if a robot is on the domain or no vlm_node is.
        """
        source = open_bag(self._config.bag)
        try:
            events = Events(source, self._config.topics.choose(source.topics))
            self._wait_for_nodes(should_stop)
            for event in events:
                if should_stop():
                    break
                self._until(event.at_ns, should_stop)
                self._publish_event(event)
            self._finish(should_stop)
        finally:
            source.close()
        counts = {name: self.counts[name] for name in ("frames", "instructions", "answers")}
        return counts | {
            "bag": str(self._config.bag),
            "recorded": str(self._config.out / "bag"),
            "faults": dict(events.faults),
        }

    def close(self) -> None:
        """Leave ROS and complete the bag. Idempotent."""
        self._own.close()
        self._bag.close()

    # Time ----------------------------------------------------------------------------------------

    def _wait_for_nodes(self, should_stop: Callable[[], bool]) -> None:
        until_s = time.monotonic() + READY_S
        look_s = time.monotonic() + DISCOVERY_S
        while not should_stop():
            self._own.spin_once(CLOCK_S)
            if self._node.count_publishers("vlm/plan/status") > 1:
                raise ConfigError("an executor is on this ROS domain: a bag's plans are not for a robot")
            # A recorder subscribes too. The node is recognised by its acks.
            is_heard = self._node.count_publishers("vlm/ack") and all(
                0 < self._node.count_subscribers(topic) <= publisher.get_subscription_count()
                for topic, publisher in (
                    (INSTRUCTION, self._instructions),
                    ("vlm/plan/status", self._statuses),
                )
            )
            if self._state == "ready" and is_heard and time.monotonic() > look_s:
                return
            if self._state == "unavailable":
                raise ConfigError(f"vlm_node has no cloud: {self._reason}")
            if time.monotonic() > until_s:
                raise ConfigError(f"no vlm_node that is ready on this ROS domain within {READY_S:.0f} s")

    def _until(self, at_ns: int, should_stop: Callable[[], bool]) -> None:
        """Spin until the bag's clock reaches `at_ns`; the clock never goes back."""
        if not self._start_ns:
            self._start_ns, self._began_s = at_ns, time.monotonic()
            at_s = at_ns / NANOSECONDS
            self._transforms.publish_mount(at_s, 0.0, self._model.transforms((), at_s))
        while not should_stop():
            self._tick()
            left_s = (at_ns - self._clock_ns) / NANOSECONDS / self._config.rate
            if left_s <= 0:
                return
            self._own.spin_once(min(left_s, CLOCK_S))

    def _tick(self) -> None:
        now_s = time.monotonic()
        self._clock_ns = self._start_ns + round((now_s - self._began_s) * self._config.rate * NANOSECONDS)
        if now_s - self._clock_sent_s >= CLOCK_S:
            self._clock_sent_s = now_s
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(self._clock_ns, NANOSECONDS)
            self._clock.publish(message)
        if now_s - self._transform_sent_s >= TRANSFORM_S:
            # Also while nothing moves, and in a bag without motion: a display needs a place for the body.
            self._transform_sent_s = now_s
            self._transforms.publish(self._dead_reckoning.pose(self._clock_ns))
        status = self._executor.status(self._clock_ns / NANOSECONDS)
        if status is not None and now_s - self._status_sent_s >= STATUS_S:
            self._status_sent_s = now_s
            self._statuses.publish(typed.plan_status_to_message(status, self._clock_ns / NANOSECONDS))
        at_s = (self._clock_ns - self._start_ns) / NANOSECONDS
        while self._spoken and self._spoken[0].at_s <= at_s:
            self._publish_instruction(self._spoken.pop(0).instruction)

    def _finish(self, should_stop: Callable[[], bool]) -> None:
        until_s = time.monotonic() + AFTER_S
        while time.monotonic() < until_s and not should_stop() and self._state not in END_STATES | {"ready"}:
            self._tick()
            self._own.spin_once(CLOCK_S)

    # From the bag --------------------------------------------------------------------------------

    def _publish_event(self, event: Event) -> None:
        if isinstance(event, Frame):
            self._publish_frame(event)
            if self._config.plan.instruction and self.counts["frames"] == 1:
                self._publish_instruction(self._config.plan.instruction)
        elif isinstance(event, Moved):
            self._odometry.publish(self._dead_reckoning.advance(event))
        elif isinstance(event, Instructed) and not (
            self._config.plan.instruction or self._config.plan.spoken
        ):
            self._publish_instruction(event.text)

    def _publish_frame(self, frame: Frame) -> None:
        try:
            image = frame.image_for(WHOLE)  # the node reduces it, as one of a camera
        except ImageError:
            self.counts["frames that cannot be decoded"] += 1
            return
        at_s = frame.at_ns / NANOSECONDS
        stamp_s = frame.stamp_s if abs(frame.stamp_s - at_s) < FAR_S else at_s
        message = to_compressed(image, stamp_s, frame.frame_id)
        self._images.publish(message)
        self._record(IMAGES, "sensor_msgs/msg/CompressedImage", serialize_message(message))
        self.counts["frames"] += 1

    def _publish_instruction(self, text: str) -> None:
        message = String(data=text)
        self._instructions.publish(message)
        self._record(INSTRUCTION, "std_msgs/msg/String", serialize_message(message))
        self.counts["instructions"] += 1

    # From the nodes ------------------------------------------------------------------------------

    def _on_plan(self, message: msg.Plan) -> None:
        self._executor.set_plan(typed.plan_from_message(message), self._clock_ns / NANOSECONDS)

    def _listener(self, topic: str, kind: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            self._record(topic, kind, serialize_message(message))
            if topic == "vlm/status":
                status = typed.mission_status_from_message(message)
                self._state, self._reason = status.state, f"{status.reason}: {status.detail}"
            self.counts["answers"] += topic == "vlm/answer"

        return take

    def _record(self, topic: str, kind: str, data: bytes) -> None:
        self._bag.write(f"/{topic}", kind, data, self._clock_ns or 1)
