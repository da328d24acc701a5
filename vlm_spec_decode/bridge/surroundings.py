"""Obstacle sensors beside the robot's own: each topic that a parameter names narrows what the gate sees.

A sensor that was asked for and falls silent counts as nothing free on the sides that it watches: a robot that
has gone blind there does not walk there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, LaserScan, PointCloud2

from vlm_spec_decode.bridge import diagnostics
from vlm_spec_decode.bridge.convert import to_seconds
from vlm_spec_decode.bridge.obstacles import (
    FREE,
    Mount,
    Points,
    Ranges,
    after,
    cloud_points,
    depth_points,
    free_ranges,
    nearest,
    scan_points,
)
from vlm_spec_decode.bridge.parameters import Parameter, Parameters
from vlm_spec_decode.bridge.stamps import Stamps
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.robot import RobotState

ALL_ROUND: Ranges = (0.0,) * 4
AHEAD: Ranges = (0.0, math.inf, math.inf, math.inf)
"""What is free while a sensor is silent: nothing on the sides that it watches."""

PARAMETERS = (
    Parameter("scan_topic", "", "LaserScan that narrows what is free; empty: none."),
    Parameter("scan_mount", "", "Its place on base_link: x y z roll pitch yaw, in metres and radians."),
    Parameter("points_topic", "", "PointCloud2 that narrows what is free; empty: none."),
    Parameter("points_mount", "", "Its place on base_link: x y z roll pitch yaw, in metres and radians."),
    Parameter(
        "depth_topic", "", "Depth image (16UC1 or 32FC1) that narrows what is free ahead; empty: none."
    ),
    Parameter("depth_mount", "0.327 0 0.043", "Its place on base_link: x y z roll pitch yaw."),
    Parameter("depth_hfov_deg", 87.0, "Horizontal field of view of the depth image.", 10.0, 170.0),
    Parameter(
        "obstacle_timeout_s", 0.5, "Age of an obstacle sensor's newest that blocks its sides.", 0.1, 5.0
    ),
)


@dataclass(slots=True)
class _Source:
    """One sensor: the newest it said, and when."""

    name: str
    silent: Ranges
    count: int
    ranges: Ranges = FREE
    heard_s: float = -math.inf
    unreadable: int = 0


class Surroundings:
    """Hears the sensors that the parameters name."""

    def __init__(self, node: Node, clock: Clock) -> None:
        values = Parameters(node, PARAMETERS)
        self._clock, self._stamps = clock, Stamps(node, clock)
        self._timeout_s = values.real("obstacle_timeout_s")
        self._sources: list[_Source] = []
        hfov_rad = math.radians(values.real("depth_hfov_deg"))
        kinds: tuple[tuple[str, Any, Callable[[Any], Points], Ranges, int], ...] = (
            ("scan", LaserScan, scan_points, ALL_ROUND, 1),
            ("points", PointCloud2, cloud_points, ALL_ROUND, 3),
            ("depth", Image, lambda message: depth_points(message, hfov_rad), AHEAD, 5),
        )
        for name, kind, read, silent, count in kinds:
            topic, mount = values.text(f"{name}_topic"), Mount.parse(values.text(f"{name}_mount"))
            if topic:
                source = _Source(name, silent, count)
                self._sources.append(source)
                take = self._taker(source, read, mount)
                group = MutuallyExclusiveCallbackGroup()
                node.create_subscription(kind, topic, take, qos_profile_sensor_data, callback_group=group)

    @property
    def is_needed(self) -> bool:
        """Whether any sensor is to be heard."""
        return bool(self._sources)

    def ranges(self, speed_mps: float = 0.0) -> Ranges:
        """Return what is free by all sensors, less what a body of this speed has gone since each looked."""
        now_s = self._clock.now()
        return nearest(FREE, *(self._now(source, now_s, speed_mps) for source in self._sources))

    def lines(self, name: str) -> list[diagnostics.Health]:
        """Judge each sensor."""
        now_s = self._clock.now()
        found = []
        for source in self._sources:
            age_s = None if math.isinf(source.heard_s) else now_s - source.heard_s
            values = {"front_m": f"{source.ranges[0]:.2f}", "unreadable": str(source.unreadable)}
            found.append(diagnostics.rate(f"{name}: {source.name}", age_s, self._timeout_s, values))
        return found

    def _now(self, source: _Source, now_s: float, speed_mps: float) -> Ranges:
        age_s = now_s - source.heard_s
        return after(source.ranges, speed_mps * age_s) if age_s <= self._timeout_s else source.silent

    def _taker(self, source: _Source, read: Callable[[Any], Points], mount: Mount) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            try:
                points = mount.place(read(message))
            except ImageError:
                # Not heard, then: a sensor that nobody understands is a silent one.
                source.unreadable += 1
                return
            now_s, stamp_s = self._clock.now(), to_seconds(message.header.stamp)
            # What has waited in a queue is as old as its stamp says; without a stamp it counts from here.
            seen_s = min(now_s, self._stamps.to_monotonic_s(stamp_s)) if stamp_s else now_s
            source.ranges, source.heard_s = free_ranges(points, source.count), seen_s

        return take


class SensingDriver:
    """A `RobotDriver` whose state also knows what other sensors see; all else is the robot's own."""

    def __init__(self, driver: RobotDriver, surroundings: Surroundings) -> None:
        self._driver = driver
        self._surroundings = surroundings
        self.start, self.move, self.stop = driver.start, driver.move, driver.stop
        self.posture, self.look, self.close = driver.posture, driver.look, driver.close

    def state(self) -> RobotState:
        """Return the robot's state, its ranges narrowed."""
        state = self._driver.state()
        seen = self._surroundings.ranges(state.speed_mps)
        return replace(state, range_obstacle_m=nearest(state.range_obstacle_m, seen))
