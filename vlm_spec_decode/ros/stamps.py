"""Which clock a number of seconds belongs to: this machine's monotonic clock, or ROS time.

Control compares ages on the monotonic clock; messages carry ROS time, which may jump or be simulated.
Both are read at one moment to carry a stamp from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node

from vlm_spec_decode.core.ports import Clock

STEADY = RosClock(clock_type=ClockType.STEADY_TIME)
"""Drives every timer, so that a robot under `use_sim_time` with no /clock is still watched over."""


@dataclass(frozen=True, slots=True)
class ClockConverter:
    """Converts between the node's ROS time and a monotonic clock."""

    node: Node
    clock: Clock

    def ros_now_s(self) -> float:
        """Return ROS time now."""
        return float(self.node.get_clock().now().nanoseconds / 1e9)

    def to_ros_s(self, monotonic_s: float) -> float:
        """Return the ROS time of a moment of the monotonic clock."""
        return self.ros_now_s() - (self.clock.now() - monotonic_s)

    def ahead_s(self, stamp_s: float) -> float:
        """Return how far a ROS stamp lies in the future; 0 while there is no time at all yet (simulated)."""
        now_s = self.ros_now_s()
        return stamp_s - now_s if now_s > 0 else 0.0

    def to_monotonic_s(self, ros_s: float) -> float:
        """Return the monotonic moment of a ROS stamp."""
        return self.clock.now() - (self.ros_now_s() - ros_s)
