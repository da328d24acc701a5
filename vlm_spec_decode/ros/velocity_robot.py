"""The topics of a robot that takes `cmd_vel` and publishes odometry. The robot itself is `robot.cmd_vel`.

`VelocityTopics` serves the locomotion node, on the node's own executor. `ROBOT` is the same for programs
without a node, such as `vsd edge`: it makes a node of its own and spins it.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import BatteryState

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.environment_checks import ros_domain
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Camera, Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.cmd_vel import SPEC, Charge, VelocityRobot
from vlm_spec_decode.robot.registry import RobotAddress, RobotKind, RobotParts, check_settings
from vlm_spec_decode.ros.convert import to_seconds
from vlm_spec_decode.ros.middleware import OwnNode
from vlm_spec_decode.ros.nodes.locomotion import TopicBoard
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.subscriptions import subscribe

PARAMETERS = (
    Setting("cmd_vel_topic", "cmd_vel", "With driver cmd_vel: where velocities go."),
    Setting("cmd_vel_stamped", False, "Whether they are TwistStamped instead of Twist."),
    Setting("odometry_topic", "odom", "With driver cmd_vel: the robot's own odometry."),
    Setting("battery_topic", "", "With driver cmd_vel: its BatteryState; empty: taken as full."),
)

UNIT_TOLERANCE = 0.1


class VelocityTopics:
    """A `robot.cmd_vel.VelocityLink` over a node's topics; `robot` is the driver on top of it."""

    def __init__(self, node: Node, clock: Clock) -> None:
        """Declare the parameters, publish and subscribe."""
        values = Parameters(node, PARAMETERS)
        self._node, self._clock, self._charge = node, clock, Charge()
        self.odometry, battery = values.text("odometry_topic"), values.text("battery_topic")
        self._battery_topic = battery
        self._command_topic = values.text("cmd_vel_topic")
        self._send = self._sender(self._command_topic, values.flag("cmd_vel_stamped"))
        self.robot = VelocityRobot(self, clock, has_battery=bool(battery))
        group = MutuallyExclusiveCallbackGroup()
        sensor = qos_profile_sensor_data
        subscribe(node, Odometry, self.odometry, self._on_odometry, sensor, callback_group=group)
        if battery:
            subscribe(node, BatteryState, battery, self._on_battery, sensor, callback_group=group)

    @property
    def board(self) -> TopicBoard:
        """Return the board of this robot's lease: a topic below its velocity topic."""
        return TopicBoard(self._node, f"{self._node.resolve_topic_name(self._command_topic)}/executor")

    def send(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Publish a velocity."""
        self._send(vx_mps, vy_mps, vyaw_radps)

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
        self.robot.put_charge(self._charge.soc(float(message.percentage)))
        if self._charge.message:
            self._node.get_logger().warning(f"{self._battery_topic}: {self._charge.message}")

    def _on_odometry(self, message: Odometry) -> None:
        at, turned = message.pose.pose.position, message.pose.pose.orientation
        twist = message.twist.twist
        roll, pitch, yaw = to_angles(turned.w, turned.x, turned.y, turned.z)
        state = RobotState(
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
        )
        self.robot.put_odometry(state)


def to_angles(w: float, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return roll, pitch and yaw (applied yaw first) of a unit quaternion; NaN if it is not one.

    Four zeros, from a publisher that does not set them, also give NaN, not a heading of 0.
    """
    if not abs(math.hypot(w, x, y, z) - 1.0) <= UNIT_TOLERANCE:
        return (math.nan,) * 3
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    return roll, pitch, math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


# Without a node of the caller's ---------------------------------------------------------------------

SPIN_S = 0.1

SETTINGS = {parameter.name: parameter.description for parameter in PARAMETERS} | {
    "namespace": "Namespace of its topics, such as /base.",
    "camera": "Where its frames come from: image:TOPIC or compressed:TOPIC; without it there is no camera.",
}


class _SpunNode:
    """A separate node on ROS_DOMAIN_ID, and the thread that spins it until `close`."""

    def __init__(self, settings: RobotAddress) -> None:
        given = {key: value for key, value in settings.settings.items() if key != "camera"}
        namespace = given.pop("namespace", "")
        values = {key: _flag(value) if key == "cmd_vel_stamped" else value for key, value in given.items()}
        overrides = [RosParameter(key, value=value) for key, value in values.items()]
        self.own = OwnNode("robot", ros_domain(os.environ), namespace, parameter_overrides=overrides)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="robot topics", daemon=True)

    def start(self) -> None:
        """Start to process messages."""
        self._thread.start()

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.own.close()

    def _spin(self) -> None:
        while not self._closing.is_set():
            self.own.spin_once(SPIN_S)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ConfigError(f"cmd_vel_stamped: true or false, not {text!r}")
    return text == "true"


def _connect(address: RobotAddress, clock: Clock) -> RobotParts:
    check_settings(ROBOT, address)
    if address.interface or address.domain is not None:
        raise ConfigError("a cmd_vel robot is found on ROS topics: set ROS_DOMAIN_ID, no interface or domain")
    source = address.settings.get("camera", "")
    spun = _SpunNode(address)
    try:
        node = spun.own.node
        topics = VelocityTopics(node, clock)
        camera = _camera(source, node, clock) if source else None
    except BaseException:
        spun.close()
        raise
    spun.start()
    return RobotParts(
        driver=topics.robot,
        open_camera=(lambda: camera) if camera is not None else None,
        boards=(topics.board,),
        close=spun.close,
    )


def _camera(source: str, node: Node, clock: Clock) -> Camera:
    from vlm_spec_decode.ros.camera_sources import open_source

    return open_source(source, node, clock)


ROBOT = RobotKind(replace(SPEC, settings=MappingProxyType(SETTINGS)), _connect)
