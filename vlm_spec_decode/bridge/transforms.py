"""Transforms on `/tf` and `/tf_static`, where `tf2_msgs` is installed; where it is not, said by name.

Every ROS installation has it; the wheels that CI uses do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node

from vlm_spec_decode.bridge import diagnostics
from vlm_spec_decode.bridge.convert import camera_transforms, to_transform
from vlm_spec_decode.bridge.qos import LATCHED

MISSING = "tf2_msgs is not installed: /tf and /tf_static are not published"


@dataclass(frozen=True, slots=True)
class Frames:
    """Names of the coordinate frames."""

    NAMES: ClassVar[tuple[str, ...]] = ("odom", "base", "camera", "optical")

    odom: str = "odom"
    base: str = "base_link"
    camera: str = "front_camera"
    optical: str = "front_camera_optical"


class Transforms:
    """Publishes odom → base → camera → optical."""

    def __init__(self, node: Node, frames: Frames) -> None:
        self._frames = frames
        self._message = _message_type()
        if self._message is None:
            node.get_logger().warning(MISSING)
            return
        self._moving = node.create_publisher(self._message, "/tf", 100)
        self._fixed = node.create_publisher(self._message, "/tf_static", LATCHED)

    def publish(self, odometry: Odometry) -> None:
        """Publish the body's place."""
        self._send("_moving", [to_transform(odometry)])

    def publish_mount(self, stamp_s: float, pitch_rad: float) -> None:
        """Publish the camera's place on the body, once for all who come later."""
        frames = self._frames
        self._send(
            "_fixed", camera_transforms(stamp_s, frames.base, frames.camera, frames.optical, pitch_rad)
        )

    def health(self, name: str) -> diagnostics.Health:
        """Say whether transforms go out."""
        if self._message is None:
            return diagnostics.Health(f"{name}: tf", diagnostics.WARN, MISSING)
        return diagnostics.Health(f"{name}: tf", diagnostics.OK, "published")

    def _send(self, publisher: str, transforms: list[TransformStamped]) -> None:
        if self._message is not None:
            getattr(self, publisher).publish(self._message(transforms=transforms))


def _message_type() -> Any | None:
    if find_spec("tf2_msgs") is None:
        return None
    from tf2_msgs.msg import TFMessage

    return TFMessage
