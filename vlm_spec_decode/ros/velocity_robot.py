"""Any robot that takes `cmd_vel` and publishes odometry, behind `RobotDriver`: no SDK, no postures.

A Go2's firmware stops when commands stay out; here the robot's base has to: a base that repeats its last
Twist drives on forever if this process dies. Most base controllers stop after 0.5 s.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import BatteryState

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.ros.convert import to_seconds
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.subscriptions import listen

PARAMETERS = (
    Setting("cmd_vel_topic", "cmd_vel", "With driver cmd_vel: where velocities go."),
    Setting("cmd_vel_stamped", False, "Whether they are TwistStamped instead of Twist."),
    Setting("odometry_topic", "odom", "With driver cmd_vel: the robot's own odometry."),
    Setting("battery_topic", "", "With driver cmd_vel: its BatteryState; empty: taken as full."),
)

UNIT_TOLERANCE = 0.1
STALE_S = 0.5
START_S = 3.0
STOP_S = 1.2
AGAIN_S = 0.05
STANDING = frozenset({"stand_up", "balance_stand", "recovery_stand"})
"""Postures that a robot on wheels is in anyway."""


PERCENT_ABOVE = 1.0
SURELY_PERCENT = 2.0


@dataclass(slots=True)
class Charge:
    """Reads `BatteryState.percentage`, which is a share by its definition and a percentage in many drivers.

    Above 1 it can only be percent; from 2 on it certainly is, and then stays so, or the last per cent of a
    battery would read as a full one. `news` is the message to log about the newest value, once a kind.
    """

    is_percent: bool = False
    news: str = ""
    _told: set[str] = field(default_factory=set)

    def soc(self, said: float) -> float:
        """Return the state of charge, 0 to 1; NaN for what is none."""
        self.news = ""
        if not 0.0 <= said <= 100.0:
            self._tell("unknown", f"percentage {said:g} is no charge: it counts as unknown")
            return math.nan
        self.is_percent = self.is_percent or said >= SURELY_PERCENT
        if said > PERCENT_ABOVE:
            self._tell("percent", f"percentage {said:g} is above 1: taken as per cent")
        return said / 100 if self.is_percent or said > PERCENT_ABOVE else said

    def _tell(self, kind: str, text: str) -> None:
        self.news = "" if kind in self._told else text
        self._told.add(kind)


class VelocityRobot:
    """A `RobotDriver`; safe for threads. The odometry carries the velocity in the body frame (REP 105)."""

    def __init__(self, node: Node, clock: Clock) -> None:
        """Declare the parameters; nothing is spoken or heard before `listen`."""
        values = Parameters(node, PARAMETERS)
        self._node, self._clock = node, clock
        self._topic, self._battery_topic = values.text("odometry_topic"), values.text("battery_topic")
        # Asked for and not heard yet is not full: the gate refuses what is no number.
        self._battery_soc = math.nan if self._battery_topic else 1.0
        self._charge = Charge()
        self._changed = threading.Condition()
        self._state: RobotState | None = None
        self._closed = self._commanded = False
        self._command_topic = values.text("cmd_vel_topic")
        self._send = self._sender(self._command_topic, values.flag("cmd_vel_stamped"))
        group = MutuallyExclusiveCallbackGroup()
        sensor = qos_profile_sensor_data
        listen(node, Odometry, self._topic, self._on_odometry, sensor, callback_group=group)
        if self._battery_topic:
            listen(node, BatteryState, self._battery_topic, self._on_battery, sensor, callback_group=group)

    @property
    def command_topic(self) -> str:
        """The topic that velocities go to, as all nodes see it."""
        return str(self._node.resolve_topic_name(self._command_topic))

    def start(self) -> None:
        """Wait for odometry. Raises RobotUnreachable without any."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_live() or self._closed, START_S):
                raise RobotUnreachable(f"no odometry on {self._topic}")
        self._commanded = True

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Publish a velocity."""
        if not self._closed:
            self._send(vx_mps, vy_mps, vyaw_radps)

    def stop(self) -> None:
        """Publish zeros until the odometry shows standstill. Raises RobotRefused if it does not."""
        self._commanded = True
        until_s = self._clock.now() + STOP_S
        while True:
            asked_s = self._clock.now()
            self._send(0.0, 0.0, 0.0)
            with self._changed:
                if self._changed.wait_for(partial(self._rests, asked_s), AGAIN_S):
                    return
            if self._clock.now() > until_s:
                raise RobotRefused("stop", -1, f"{self._topic} shows no standstill within {STOP_S:g} s")

    def posture(self, name: str) -> None:
        """Do nothing for standing up, and refuse everything else by name."""
        if name not in STANDING:
            raise RobotRefused(name, -1, "a robot behind cmd_vel has no postures")

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Refuse to tilt."""
        if pitch_rad or yaw_rad:
            raise RobotRefused("look", -1, "a robot behind cmd_vel does not tilt")

    def state(self) -> RobotState:
        """Return the newest state. Raises RobotUnreachable before the first, RobotStale for an old one."""
        state = self._state
        if state is None:
            raise RobotUnreachable(f"no odometry on {self._topic}")
        if not self._is_live():
            raise RobotStale(f"{self._topic} is {self._clock.now() - state.received_s:.2f} s old")
        return state

    def close(self) -> None:
        """Stop, if anything was ever commanded: another executor may be. Idempotent."""
        if self._commanded and not self._closed:
            self._send(0.0, 0.0, 0.0)
        self._closed = True

    def _is_live(self) -> bool:
        return self._state is not None and self._clock.now() - self._state.received_s <= STALE_S

    def _rests(self, since_s: float) -> bool:
        return self._state is not None and self._state.received_s >= since_s and self._state.is_still

    def _sender(self, topic: str, stamped: bool) -> Callable[[float, float, float], None]:
        publisher = self._node.create_publisher(TwistStamped if stamped else Twist, topic, 1)

        def send(vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
            twist = Twist()
            twist.linear.x, twist.linear.y, twist.angular.z = vx_mps, vy_mps, vyaw_radps
            if stamped:
                message = TwistStamped(twist=twist)
                message.header.stamp = self._node.get_clock().now().to_msg()
                message.header.frame_id = "base_link"
                publisher.publish(message)
            else:
                publisher.publish(twist)

        return send

    def _on_battery(self, message: BatteryState) -> None:
        self._battery_soc = self._charge.soc(float(message.percentage))
        if self._charge.news:
            self._node.get_logger().warning(f"{self._battery_topic}: {self._charge.news}")

    def _on_odometry(self, message: Odometry) -> None:
        at, turned = message.pose.pose.position, message.pose.pose.orientation
        twist = message.twist.twist
        roll, pitch, yaw = to_angles(turned.w, turned.x, turned.y, turned.z)
        with self._changed:
            self._state = RobotState(
                stamp_s=to_seconds(message.header.stamp),
                received_s=self._clock.now(),
                x_m=at.x,
                y_m=at.y,
                yaw_rad=yaw,
                vx_mps=twist.linear.x,
                vy_mps=twist.linear.y,
                vyaw_radps=twist.angular.z,
                roll_rad=roll,
                pitch_rad=pitch,
                battery_soc=self._battery_soc,
            )
            self._changed.notify_all()


def to_angles(w: float, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return roll, pitch and yaw (applied yaw first) of a unit quaternion; NaN of what is none.

    Four zeros, what a publisher leaves that never fills them in, are no heading of 0.
    """
    if not abs(math.hypot(w, x, y, z) - 1.0) <= UNIT_TOLERANCE:
        return (math.nan,) * 3
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    return roll, pitch, math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
