"""Odometry that a bag's velocities lead to, for whoever draws the way of a replay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geometry_msgs.msg import Quaternion
from nav_msgs.msg import Odometry

from vlm_spec_decode.bag.events import NANOSECONDS, Moved

LONGEST_STEP_S = 1.0
"""A gap longer than this counts as standing."""


@dataclass(slots=True)
class Reckoning:
    """Where the body is, from where the bag began."""

    x_m: float = 0.0
    y_m: float = 0.0
    yaw_rad: float = 0.0
    last_ns: int = 0

    def after(self, moved: Moved) -> Odometry:
        """Go on with one velocity; return the message."""
        step_s = (moved.at_ns - self.last_ns) / NANOSECONDS if self.last_ns else 0.0
        step_s = min(LONGEST_STEP_S, max(0.0, step_s))
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        self.x_m += step_s * (cos * moved.vx_mps - sin * moved.vy_mps)
        self.y_m += step_s * (sin * moved.vx_mps + cos * moved.vy_mps)
        self.yaw_rad = math.remainder(self.yaw_rad + step_s * moved.vyaw_radps, 2 * math.pi)
        self.last_ns = moved.at_ns
        return self._message(moved)

    def _message(self, moved: Moved) -> Odometry:
        message = Odometry()
        message.header.frame_id, message.child_frame_id = "odom", "base_link"
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(moved.at_ns, NANOSECONDS)
        message.pose.pose.position.x, message.pose.pose.position.y = self.x_m, self.y_m
        half = self.yaw_rad / 2
        message.pose.pose.orientation = Quaternion(z=math.sin(half), w=math.cos(half))
        message.twist.twist.linear.x, message.twist.twist.linear.y = moved.vx_mps, moved.vy_mps
        message.twist.twist.angular.z = moved.vyaw_radps
        return message
