"""The demo's ROS interface: subscribes to the mission's topics, stores frames, publishes the instruction.

Messages arrive as serialised bytes, so that a bag holds exactly those.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import String

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.ros.convert import from_compressed
from vlm_spec_decode.ros.own_node import OwnNode
from vlm_spec_decode.ros.qos import COMMAND, LATCHED
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S
from vlm_spec_decode.sim.scene import Pose2D

INSTRUCTION = "/vlm/instruction"
TEXTS = ("/vlm/answer", "/vlm/answer/partial", "/vlm/plan", "/vlm/plan/status", "/vlm/trace")
FRAMES = "/camera/image_raw/compressed"
KEPT_FRAMES = 200

Heard = Callable[[str, str, bytes, int], None]
"""Called with topic, type, serialised message and arrival in nanoseconds since 1970."""


class Listener:
    """A node of its own context on a ROS domain. `spin` must be called for anything to happen."""

    def __init__(self, domain: int, heard: Heard, said: Callable[[str, str], None]) -> None:
        """`heard` gets every message as bytes, `said` topic and text of every String."""
        self._heard = heard
        self._said = said
        self.frames: OrderedDict[float, Image] = OrderedDict()
        self.poses: dict[float, Pose2D] = {}
        self._own = OwnNode("vsd_demo", domain)
        self._node = self._own.node
        self._instructions = self._node.create_publisher(String, INSTRUCTION, COMMAND)
        for topic in TEXTS:
            self._subscribe(String, topic, COMMAND)
        self._subscribe(String, INSTRUCTION, COMMAND)
        self._subscribe(String, "/vlm/status", LATCHED)
        self._subscribe(String, "/vlm/run", LATCHED)
        self._subscribe(CompressedImage, FRAMES, qos_profile_sensor_data)
        self._subscribe(CameraInfo, "/camera/camera_info", qos_profile_sensor_data)
        self._subscribe(Odometry, "/odom", 20)

    def _subscribe(self, kind: Any, topic: str, qos: Any) -> None:
        name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"

        def take(data: bytes) -> None:
            self._heard(topic, name, data, time.time_ns())
            self._note(kind, topic, data)

        self._node.create_subscription(kind, topic, take, qos, raw=True)

    def _note(self, kind: Any, topic: str, data: bytes) -> None:
        if kind is String:
            self._said(topic, deserialize_message(data, String).data)
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
            message = deserialize_message(data, Odometry)
            stamp, pose = message.header.stamp, message.pose.pose
            # The body stands level, so half the yaw is all that its quaternion holds.
            yaw_rad = 2 * math.atan2(pose.orientation.z, pose.orientation.w)
            self.poses[stamp.sec + stamp.nanosec / 1e9] = Pose2D(pose.position.x, pose.position.y, yaw_rad)

    @property
    def has_odometry(self) -> bool:
        """Whether the robot has said where it is."""
        return bool(self.poses)

    def spin(self, duration_s: float) -> None:
        """Take in what arrives for about `duration_s`."""
        self._own.spin(duration_s)

    def is_heard(self) -> bool:
        """Whether the VLM node listens to instructions: it alone acknowledges, and this node listens too."""
        listeners = int(self._node.count_subscribers(INSTRUCTION))
        has_node = bool(self._node.count_publishers("/vlm/ack"))
        return has_node and 1 < listeners <= int(self._instructions.get_subscription_count())

    def instruct(self, text: str) -> None:
        """Publish the instruction."""
        self._instructions.publish(String(data=text))

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        self._own.close()
