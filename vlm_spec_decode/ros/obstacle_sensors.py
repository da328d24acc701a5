"""Obstacle sensors beside the robot's own: each topic that a parameter names narrows the free distances.

A configured sensor that falls silent, or has no usable data, counts as no free distance on the sides that
it covers, so a robot does not walk in directions that its sensors do not see. A message without usable data
for a side counts as missing for that side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, LaserScan, PointCloud2

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.types import FUTURE_TOLERANCE_S
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import ClockConverter, to_seconds
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.range_processing import (
    FREE,
    MIN_SHARE,
    SIDES,
    Cells,
    Ranges,
    SensorMount,
    Sight,
    cloud_cells,
    depth_cells,
    less_travel,
    nearest,
    scan_cells,
    sight_of,
)
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S, subscribe

ALL_ROUND = (0, 1, 2, 3)
"""Sides that a scan or a point cloud covers; a depth image covers those that its mount faces."""


PARAMETERS = (
    Setting("scan_topic", "", "LaserScan that narrows what is free; empty: none."),
    Setting("scan_mount", "", "Its place on base_link: x y z roll pitch yaw, in metres and radians."),
    Setting("points_topic", "", "PointCloud2 that narrows what is free; empty: none."),
    Setting("points_mount", "", "Its place on base_link: x y z roll pitch yaw, in metres and radians."),
    Setting("depth_topic", "", "Depth image (16UC1 or 32FC1) that narrows what is free ahead; empty: none."),
    Setting("depth_mount", "0.327 0 0.043", "Its place on base_link: x y z roll pitch yaw."),
    Setting("depth_hfov_deg", 87.0, "Horizontal field of view of the depth image.", 10.0, 170.0),
    Setting("obstacle_timeout_s", 0.5, "Age of an obstacle sensor's newest that blocks its sides.", 0.1, 5.0),
    Setting(
        "obstacle_valid_share",
        MIN_SHARE,
        "Share of an obstacle sensor's beams, pixels or points that must say something usable.",
        0.0,
        1.0,
    ),
)


class ObstacleSource:
    """One sensor: its last range on each side, with the time. One callback writes, any thread reads."""

    def __init__(
        self,
        name: str,
        read: Callable[[Any], Cells],
        mount: SensorMount,
        watched: tuple[int, ...],
        count: int,
        min_share: float,
    ) -> None:
        """`read` turns a message into cells; an obstacle counts if at least `count` of them show it."""
        self.name, self.watched = name, watched
        self._read, self._mount, self._count, self._min_share = read, mount, count, min_share
        self._sides = [(math.inf, -math.inf)] * 4
        self._sight: Sight | None = None
        self._problem = ""
        self._received_s = -math.inf
        self._is_unstamped = False
        self._unreadable = 0

    def on_message(self, message: Any, now_s: float, ros_now_s: float) -> None:
        """Process a message that arrived now. Raises ImageError if it cannot be read."""
        stamp_s = to_seconds(message.header.stamp)
        self._is_unstamped = not stamp_s
        if stamp_s > ros_now_s + FUTURE_TOLERANCE_S:
            raise ImageError(f"stamped {stamp_s - ros_now_s:.1f} s ahead of this clock: synchronise them")
        sight = sight_of(self._read(message), self._mount, self.watched, self._count, self._min_share)
        # A message that waited in a queue is as old as its stamp; without a stamp its age counts from here.
        seen_s = min(now_s, now_s - (ros_now_s - stamp_s)) if stamp_s else now_s
        for side in range(4):
            if side not in sight.blind:
                self._sides[side] = (sight.ranges[side], seen_s)
        self._sight, self._received_s, self._problem = sight, seen_s, ""

    def drop(self, problem: str) -> None:
        """Record that a message could not be used; such a sensor counts as silent."""
        self._problem = problem
        self._unreadable += 1

    def ranges(self, now_s: float, speed_mps: float, timeout_s: float) -> Ranges:
        """Return the free distance on each side: the last range less the travel since; 0 if it is too old."""
        free = [math.inf] * 4
        for side in range(4):
            free_m, seen_s = self._sides[side]
            if now_s - seen_s <= timeout_s:
                free[side] = less_travel(free_m, speed_mps * (now_s - seen_s))
            elif side in self.watched:
                free[side] = 0.0
        return (free[0], free[1], free[2], free[3])

    def line(self, name: str, now_s: float, timeout_s: float) -> diagnostics.Health:
        """Return the sensor's health: silent, unreadable, blind, or working."""
        sight = self._sight
        age_s = None if math.isinf(self._received_s) else now_s - self._received_s
        free = self.ranges(now_s, 0.0, timeout_s)
        values = {side + "_m": f"{free[index]:.2f}" for index, side in enumerate(SIDES)}
        values |= {"unreadable": str(self._unreadable)}
        if sight is not None:
            values |= {"valid_share": f"{sight.valid_share:.3f}", "cells": str(sight.cells)}
        label, sides = f"{name}: {self.name}", ", ".join(SIDES[side] for side in self.watched)
        if self._problem:
            message = f"{self._problem}; {sides}: blocked"
            return diagnostics.Health(label, diagnostics.ERROR, message, values | {"problem": self._problem})
        if sight is None or age_s is None or age_s > timeout_s:
            return diagnostics.rate(label, age_s, timeout_s, values)
        if sight.blind:
            message = (
                f"blind: {100 * sight.valid_share:.0f} % of {sight.cells} returns are usable; "
                f"{', '.join(SIDES[side] for side in sight.blind)}: blocked"
            )
            return diagnostics.Health(label, diagnostics.ERROR, message, values)
        if sight.is_empty:
            message = "nothing within reach on any side, which a covered sensor says, too"
            return diagnostics.Health(label, diagnostics.WARN, message, values)
        if self._is_unstamped:
            return diagnostics.Health(label, diagnostics.WARN, "no stamps: its age is not known", values)
        return diagnostics.rate(label, age_s, timeout_s, values)


class ObstacleSensors:
    """Subscribes to the sensors that the parameters name."""

    def __init__(self, node: Node, clock: Clock) -> None:
        values = Parameters(node, PARAMETERS)
        self._node, self._clock, self._stamps = node, clock, ClockConverter(node, clock)
        self._timeout_s = values.real("obstacle_timeout_s")
        self._sources: list[ObstacleSource] = []
        hfov_rad, share = math.radians(values.real("depth_hfov_deg")), values.real("obstacle_valid_share")
        kinds: tuple[tuple[str, Any, Callable[[Any], Cells], int], ...] = (
            ("scan", LaserScan, scan_cells, 1),
            ("points", PointCloud2, cloud_cells, 3),
            ("depth", Image, lambda message: depth_cells(message, hfov_rad), 5),
        )
        for name, kind, read, count in kinds:
            topic, mount = values.text(f"{name}_topic"), SensorMount.parse(values.text(f"{name}_mount"))
            if topic:
                watched = mount.faces if name == "depth" else ALL_ROUND
                source = ObstacleSource(name, read, mount, watched, count, share)
                self._sources.append(source)
                subscribe(
                    node,
                    kind,
                    topic,
                    partial(self.on_message, source),
                    qos_profile_sensor_data,
                    on_fault=source.drop,
                    callback_group=MutuallyExclusiveCallbackGroup(),
                )

    @property
    def is_needed(self) -> bool:
        """Whether any sensor is configured."""
        return bool(self._sources)

    @property
    def sources(self) -> tuple[ObstacleSource, ...]:
        """The configured sensors."""
        return tuple(self._sources)

    def on_message(self, source: ObstacleSource, message: Any) -> None:
        """Process one message of a sensor; one that cannot be read counts as not received."""
        try:
            source.on_message(message, self._clock.now(), self._stamps.ros_now_s())
        except ImageError as error:
            source.drop(str(error))
            self._node.get_logger().warning(
                f"{source.name}: {error}; it counts as silent", throttle_duration_sec=WARN_EVERY_S
            )

    def ranges(self, speed_mps: float = 0.0) -> Ranges:
        """Return the free distances by all sensors, less the travel at this speed since each measurement."""
        now_s = self._clock.now()
        seen = (source.ranges(now_s, speed_mps, self._timeout_s) for source in self._sources)
        return nearest(FREE, *seen)

    def lines(self, name: str) -> list[diagnostics.Health]:
        """Return the health of each sensor."""
        now_s = self._clock.now()
        return [source.line(name, now_s, self._timeout_s) for source in self._sources]


class SensingDriver:
    """A `RobotDriver` whose state includes other sensors' free distances; the rest is the robot's own."""

    def __init__(self, driver: RobotDriver, sensors: ObstacleSensors) -> None:
        self._driver = driver
        self._sensors = sensors
        self.start, self.move, self.stop = driver.start, driver.move, driver.stop
        self.posture, self.look, self.close = driver.posture, driver.look, driver.close

    def state(self) -> RobotState:
        """Return the robot's state, with ranges reduced by the sensors."""
        state = self._driver.state()
        seen = self._sensors.ranges(state.speed_mps)
        return replace(state, range_obstacle_m=nearest(state.range_obstacle_m, seen))
