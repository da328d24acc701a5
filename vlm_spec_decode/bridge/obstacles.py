"""Range messages to what is free on the robot's four sides. Pure numpy: no node, no clock, no state.

A side is the corridor that the body would sweep going that way; what is free is measured from the body's
edge, as the robot's own `range_obstacle` is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import ConfigError, ImageError

Points: TypeAlias = npt.NDArray[np.float32]
"""Points [n, 3] in metres, in the body's frame: x forward, y left, z up from the base."""

Ranges: TypeAlias = tuple[float, float, float, float]
"""Free metres in front, left, behind, right; infinity where nothing is seen."""

FREE: Ranges = (math.inf,) * 4
HULL_HALF_M = (0.35, 0.16)
"""Half length and half width of the standing body."""

MARGIN_M = 0.04
FLOOR_M, BACK_M = -0.24, 0.16
"""Heights over the base between which something is in the way: 7 cm over the floor up to above the back."""

DEPTH_STRIDE = 4
DEPTH_MAX_M = 10.0


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a sensor sits on the body: metres, and z-y-x angles in radians."""

    x_m: float = 0.0
    y_m: float = 0.0
    z_m: float = 0.0
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    yaw_rad: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Mount:
        """Read `x y z roll pitch yaw`; fewer numbers leave the rest 0. Raises ConfigError."""
        try:
            numbers = [float(part) for part in text.replace(",", " ").split()]
        except ValueError:
            numbers = [math.nan]
        if len(numbers) > 6 or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"mount {text!r}: expected `x y z roll pitch yaw` in metres and radians")
        return cls(*numbers)

    def place(self, points: Points) -> Points:
        """Return points of the sensor's frame in the body's."""
        cr, sr = math.cos(self.roll_rad), math.sin(self.roll_rad)
        cp, sp = math.cos(self.pitch_rad), math.sin(self.pitch_rad)
        cy, sy = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        turn = np.array(
            [
                [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
                [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
                [-sp, cp * sr, cp * cr],
            ],
            dtype=np.float32,
        )
        shift = np.array([self.x_m, self.y_m, self.z_m], dtype=np.float32)
        placed: Points = points @ turn.T + shift
        return placed


def free_ranges(points: Points, count: int = 1) -> Ranges:
    """Return what is free on each side; `count` points must agree on it, so that one speck is not enough."""
    inside = (np.abs(points[:, 0]) < HULL_HALF_M[0]) & (np.abs(points[:, 1]) < HULL_HALF_M[1])
    tall = (points[:, 2] > FLOOR_M) & (points[:, 2] < BACK_M)
    seen = points[tall & ~inside]
    along, across = seen[:, 0], seen[:, 1]
    sides = ((along, across), (across, -along), (-along, -across), (-across, along))
    found = [
        _nearest(ahead[(np.abs(off) < HULL_HALF_M[1 - i % 2] + MARGIN_M) & (ahead > 0)], i, count)
        for i, (ahead, off) in enumerate(sides)
    ]
    return (found[0], found[1], found[2], found[3])


def _nearest(distances_m: npt.NDArray[np.float32], side: int, count: int) -> float:
    if distances_m.size < count:
        return math.inf
    return max(0.0, float(np.partition(distances_m, count - 1)[count - 1]) - HULL_HALF_M[side % 2])


def nearest(*all_ranges: Ranges) -> Ranges:
    """Return the smallest of several on each side."""
    front, left, rear, right = (min(each) for each in zip(*all_ranges, strict=True))
    return (front, left, rear, right)


def after(ranges: Ranges, way_m: float) -> Ranges:
    """Return ranges as they may be by now, if the body has gone up to `way_m` since they were seen."""
    front, left, rear, right = (max(0.0, free_m - way_m) for free_m in ranges)
    return (front, left, rear, right)


def scan_points(message: Any) -> Points:
    """Return the points of a LaserScan in its own frame; what is no range, or beyond its bounds, is left out.

    Nearer than `range_min` counts as an obstacle there, but 0 is how drivers say that nothing came back.
    """
    ranges = np.asarray(message.ranges, dtype=np.float32)
    angles = message.angle_min + np.arange(ranges.size, dtype=np.float32) * message.angle_increment
    near = np.isneginf(ranges) | ((ranges > 0) & (ranges < message.range_min))
    ranges = np.where(near, np.float32(message.range_min), ranges)
    good = np.isfinite(ranges) & (ranges > 0) & (ranges <= message.range_max)
    ranges, angles = ranges[good], angles[good]
    return np.stack([ranges * np.cos(angles), ranges * np.sin(angles), np.zeros_like(ranges)], axis=1)


def cloud_points(message: Any) -> Points:
    """Return the finite points of a PointCloud2 in its own frame. Raises ImageError if it cannot be read."""
    offsets = {field.name: field.offset for field in message.fields if field.datatype == field.FLOAT32}
    if not {"x", "y", "z"} <= set(offsets):
        raise ImageError("a point cloud without x, y, z as 32-bit floats")
    order = ">" if message.is_bigendian else "<"
    layout = np.dtype(
        {
            "names": ["x", "y", "z"],
            "formats": [f"{order}f4"] * 3,
            "offsets": [offsets[name] for name in "xyz"],
            "itemsize": message.point_step,
        }
    )
    count = message.width * message.height
    if len(message.data) < count * message.point_step:
        raise ImageError(f"a point cloud of {count} points in {len(message.data)} bytes")
    cloud = np.frombuffer(bytes(message.data), dtype=layout, count=count)
    points = np.stack([cloud[name].astype(np.float32) for name in "xyz"], axis=1)
    return points[np.isfinite(points).all(axis=1)]


def depth_points(message: Any, hfov_rad: float) -> Points:
    """Return points of a depth image (16UC1 in mm or 32FC1 in m) in the camera's own x-forward frame.

    Raises ImageError for another encoding, or too few bytes.
    """
    kinds = {"16UC1": ("u2", 0.001), "mono16": ("u2", 0.001), "32FC1": ("f4", 1.0)}
    if message.encoding not in kinds:
        raise ImageError(f"a depth image of encoding {message.encoding!r}; 16UC1 or 32FC1 are read")
    kind, scale = kinds[message.encoding]
    size = np.dtype(kind).itemsize
    if message.step < message.width * size or len(message.data) < message.step * message.height:
        raise ImageError("a depth image with fewer bytes than it says")
    order = ">" if message.is_bigendian else "<"
    rows = np.frombuffer(bytes(message.data), np.uint8)[: message.step * message.height]
    table = rows.reshape(message.height, message.step)[:, : message.width * size]
    depth = (
        np.ascontiguousarray(table).view(f"{order}{kind}")[::DEPTH_STRIDE, ::DEPTH_STRIDE].astype(np.float32)
    )
    depth *= scale
    focal = message.width / 2 / math.tan(hfov_rad / 2)
    across = (np.arange(0, message.width, DEPTH_STRIDE) + 0.5 - message.width / 2) / focal
    down = (np.arange(0, message.height, DEPTH_STRIDE) + 0.5 - message.height / 2) / focal
    good = np.isfinite(depth) & (depth > 0.05) & (depth < DEPTH_MAX_M)
    columns, lines = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
    return np.stack([depth[good], -columns[good] * depth[good], -lines[good] * depth[good]], axis=1)
