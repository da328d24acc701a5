"""ROS messages to core types and back, and the clock that a stamp belongs to.

The conversions are pure functions: no node, no clock, no state. Control compares ages on the monotonic clock;
messages have ROS time, which may jump or be simulated. Both clocks are read at one moment to convert a stamp
from one to the other.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, LaserScan

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.images import file_image
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.types import Image

MAX_CAMERA_FRAME_BYTES = 8 * 1024 * 1024
NANOSECONDS = 1_000_000_000

POSITION_VARIANCE_M2 = 0.01
HEADING_VARIANCE_RAD2 = 0.01
VELOCITY_VARIANCE = 0.0025
UNMEASURED_VARIANCE = 1e6
"""Leg odometry drifts and the robot publishes no covariance: these mean about 10 cm, 6 deg, 5 cm/s."""


RANGE_MAX_M = 20.0


def to_time(stamp_s: float) -> Time:
    """Return a message stamp; fractions are rounded to nanoseconds."""
    # The fraction alone: the product with the seconds since 1970 would be off by up to 128 ns.
    sec = math.floor(stamp_s)
    carry, nanosec = divmod(round((stamp_s - sec) * NANOSECONDS), NANOSECONDS)
    return Time(sec=sec + carry, nanosec=nanosec)


def to_seconds(stamp: Time) -> float:
    """Return a message stamp in seconds."""
    return float(stamp.sec + stamp.nanosec / NANOSECONDS)


def to_compressed(image: Image, stamp_s: float, frame_id: str) -> CompressedImage:
    """Return a JPEG as message, stamped with its capture time."""
    # An array, not bytes: some versions of rclpy check bytes one by one, which takes 20 ms for a frame.
    message = CompressedImage(format="jpeg", data=array("B", image.jpeg))
    message.header.stamp = to_time(stamp_s)
    message.header.frame_id = frame_id
    return message


def from_compressed(message: CompressedImage) -> tuple[Image, float]:
    """Return the frame as an upright JPEG, and its capture time, which is 0 if the camera sets none.

    The type is read from the bytes, not from `format`. Raises ImageError if they are no picture within
    limits.
    """
    return jpeg_image(bytes(message.data), message.format), to_seconds(message.header.stamp)


def jpeg_image(data: bytes, format_name: str = "") -> Image:
    """Return an encoded picture as an upright JPEG; one that already is one is not decoded.

    `format_name` is the message's name of the format, for the error's text. Raises ImageError.
    """
    if len(data) > MAX_CAMERA_FRAME_BYTES:
        raise ImageError(f"an image of {len(data)} bytes; {MAX_CAMERA_FRAME_BYTES} are allowed")
    return file_image(data, format_name)


def to_quaternion(roll_rad: float, pitch_rad: float, yaw_rad: float) -> Quaternion:
    """Return the rotation z-y-x (yaw, then pitch, then roll), as the Go2 reports its attitude."""
    sin_r, cos_r = math.sin(roll_rad / 2), math.cos(roll_rad / 2)
    sin_p, cos_p = math.sin(pitch_rad / 2), math.cos(pitch_rad / 2)
    sin_y, cos_y = math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)
    return Quaternion(
        w=cos_r * cos_p * cos_y + sin_r * sin_p * sin_y,
        x=sin_r * cos_p * cos_y - cos_r * sin_p * sin_y,
        y=cos_r * sin_p * cos_y + sin_r * cos_p * sin_y,
        z=cos_r * cos_p * sin_y - sin_r * sin_p * cos_y,
    )


def to_odometry(state: RobotState, stamp_s: float, odom: str, base: str) -> Odometry:
    """Return the pose in `odom` and the velocity in `base`; z is the height of the body."""
    message = Odometry(child_frame_id=base)
    message.header.stamp = to_time(stamp_s)
    message.header.frame_id = odom
    pose, twist = message.pose.pose, message.twist.twist
    pose.position.x, pose.position.y, pose.position.z = state.x_m, state.y_m, state.body_height_m
    pose.orientation = to_quaternion(state.roll_rad, state.pitch_rad, state.yaw_rad)
    twist.linear.x, twist.linear.y, twist.angular.z = state.vx_mps, state.vy_mps, state.vyaw_radps
    _diagonal(message.pose.covariance, (POSITION_VARIANCE_M2,) * 3 + (HEADING_VARIANCE_RAD2,) * 3)
    measured = (VELOCITY_VARIANCE, VELOCITY_VARIANCE)
    blind = (UNMEASURED_VARIANCE,) * 3
    _diagonal(message.twist.covariance, measured + blind + (VELOCITY_VARIANCE,))
    return message


def from_odometry(message: Odometry) -> tuple[float, Pose2D]:
    """Return the stamp in seconds, and the pose on the floor; its yaw is that of the horizontal heading."""
    stamp, pose = message.header.stamp, message.pose.pose
    turned = pose.orientation
    yaw_rad = math.atan2(2 * (turned.w * turned.z + turned.x * turned.y), 1 - 2 * (turned.y**2 + turned.z**2))
    return stamp.sec + stamp.nanosec / 1e9, Pose2D(pose.position.x, pose.position.y, yaw_rad)


def to_ranges(
    free_m: Sequence[float], hull_half_m: tuple[float, float], stamp_s: float, base: str
) -> LaserScan:
    """Return the free distances in front, left, behind and right as a scan of four beams from the base.

    `free_m` counts from the body's edge, a beam from its centre: half the hull's length or width longer.
    """
    message = LaserScan(angle_max=1.5 * math.pi, angle_increment=math.pi / 2, range_max=RANGE_MAX_M)
    message.header.stamp, message.header.frame_id = to_time(stamp_s), base
    message.ranges = [float(free + hull_half_m[side % 2]) for side, free in enumerate(free_m)]
    return message


def from_ranges(message: LaserScan, hull_half_m: tuple[float, float]) -> tuple[float, ...]:
    """Return the four free distances of such a scan; at least 0, infinity where nothing is seen."""
    return tuple(max(0.0, beam - hull_half_m[side % 2]) for side, beam in enumerate(message.ranges))


def to_transform(odometry: Odometry) -> TransformStamped:
    """Return the same pose as a transform from the odometry frame to the body."""
    message = TransformStamped(header=odometry.header, child_frame_id=odometry.child_frame_id)
    position = odometry.pose.pose.position
    move = message.transform.translation
    move.x, move.y, move.z = position.x, position.y, position.z
    message.transform.rotation = odometry.pose.pose.orientation
    return message


def camera_transforms(
    stamp_s: float, base: str, camera: str, optical: str, pitch_rad: float
) -> list[TransformStamped]:
    """Return base → camera (URDF of the Go2: 0.327, 0, 0.043 m, pitch down positive) → optical (REP 103)."""
    mount = TransformStamped(child_frame_id=camera)
    mount.header.frame_id = base
    mount.transform.translation.x, mount.transform.translation.z = 0.327, 0.043
    mount.transform.rotation = to_quaternion(0.0, pitch_rad, 0.0)
    lens = TransformStamped(child_frame_id=optical)
    lens.header.frame_id = camera
    lens.transform.rotation = to_quaternion(-math.pi / 2, 0.0, -math.pi / 2)
    for transform in (mount, lens):
        transform.header.stamp = to_time(stamp_s)
    return [mount, lens]


def _diagonal(matrix: object, variances: tuple[float, ...]) -> None:
    for index, variance in enumerate(variances):
        matrix[index * 7] = variance  # type: ignore[index]


STEADY = RosClock(clock_type=ClockType.STEADY_TIME)
"""Clock of every timer, so that the watchdogs also run under `use_sim_time` without a /clock."""


@dataclass(frozen=True, slots=True)
class ClockConverter:
    """Converts between the node's ROS time and a monotonic clock."""

    node: Node
    clock: Clock

    def ros_now_s(self) -> float:
        """Return ROS time now."""
        return float(self.node.get_clock().now().nanoseconds / 1e9)

    def to_ros_s(self, monotonic_s: float) -> float:
        """Return the ROS time of a monotonic time."""
        return self.ros_now_s() - (self.clock.now() - monotonic_s)

    def ahead_s(self, stamp_s: float) -> float:
        """Return how far a ROS stamp lies in the future; 0 while simulated time has not started."""
        now_s = self.ros_now_s()
        return stamp_s - now_s if now_s > 0 else 0.0

    def to_monotonic_s(self, ros_s: float) -> float:
        """Return the monotonic time of a ROS stamp."""
        return self.clock.now() - (self.ros_now_s() - ros_s)
