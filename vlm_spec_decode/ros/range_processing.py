"""Range messages to the free distance on the robot's four sides. Pure numpy: no node, no clock, no state.

A side is the corridor that the body would sweep in that direction; free distance is measured from the body's
edge, as the robot's own `range_obstacle` is.

A sensor without usable data is not the same as free space. So every message is read cell by cell (beam,
pixel, point): a cell is a point, or nothing within reach (+inf, by REP 117 and 118), or unusable (NaN, 0,
out of bounds, the robot itself). A side with too few usable cells is blind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
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
DEPTH_NEAR_M = 0.3
"""A point that a depth camera reports as too near is nearer than this."""

RETURN_MAX_M = 300.0
"""A point farther away is not valid: damaged bytes, or a field without data."""

MIN_SHARE = 0.05
CONE_COS = math.cos(math.radians(25.0))
"""A cell belongs to a side if it points within 25 degrees of it."""

Bools: TypeAlias = npt.NDArray[np.bool_]

SIDES = ("front", "left", "rear", "right")
AXES = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class SensorMount:
    """Pose of a sensor on the body: metres, and z-y-x angles in radians."""

    x_m: float = 0.0
    y_m: float = 0.0
    z_m: float = 0.0
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    yaw_rad: float = 0.0

    @classmethod
    def parse(cls, text: str) -> SensorMount:
        """Read `x y z roll pitch yaw`; missing numbers are 0. Raises ConfigError."""
        try:
            numbers = [float(part) for part in text.replace(",", " ").split()]
        except ValueError:
            numbers = [math.nan]
        if len(numbers) > 6 or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"mount {text!r}: expected `x y z roll pitch yaw` in metres and radians")
        return cls(*numbers)

    def to_body(self, points: Points) -> Points:
        """Transform points from the sensor's frame into the body's."""
        shift = np.array([self.x_m, self.y_m, self.z_m], dtype=np.float32)
        placed: Points = points @ self.rotation.T + shift
        return placed

    @property
    def rotation(self) -> Points:
        """The rotation [3, 3] from the sensor's frame to the body's."""
        cr, sr = math.cos(self.roll_rad), math.sin(self.roll_rad)
        cp, sp = math.cos(self.pitch_rad), math.sin(self.pitch_rad)
        cy, sy = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        turn: Points = np.array(
            [
                [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
                [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
                [-sp, cp * sr, cp * cr],
            ],
            dtype=np.float32,
        )
        return turn

    @property
    def faces(self) -> tuple[int, ...]:
        """The sides (0 front, 1 left, 2 rear, 3 right) that a sensor pointing along its x axis covers."""
        towards = AXES @ self.rotation[:, 0]
        least = min(float(towards.max()), math.cos(math.radians(50.0)))
        return tuple(side for side in range(4) if towards[side] >= least - 1e-6)


@dataclass(frozen=True, slots=True)
class Cells:
    """One message of a sensor, cell by cell, in the sensor's own frame.

    `points` [n, 3] is NaN where there was no return; `is_clear` [n]: the cell reports nothing within reach;
    `is_near` [n]: something is nearer than the given point; `aims` [n, 3] are unit vectors of the cells'
    directions, None if cells without a return have no known direction.
    """

    points: Points
    is_clear: Bools
    is_near: Bools
    aims: Points | None

    @property
    def returns(self) -> Points:
        """The points of the cells that returned something."""
        found: Points = self.points[np.isfinite(self.points.sum(axis=1))]
        return found


@dataclass(frozen=True, slots=True)
class Sight:
    """The free distances of a sensor on the four sides, and how much of its message is usable.

    `blind` are the covered sides without usable data; their range is 0. `is_empty`: not one cell returned
    anything; that is valid, but a covered sensor reports the same.
    """

    ranges: Ranges
    valid_share: float
    cells: int
    blind: tuple[int, ...]
    is_empty: bool


def sight_of(
    cells: Cells, mount: SensorMount, watched: tuple[int, ...], count: int = 1, min_share: float = MIN_SHARE
) -> Sight:
    """Return the free distances that a message shows, at most the `count`-th nearest return of each side.

    A covered side is blind if fewer than `min_share` of its cells are usable. All sides are blind if this is
    so for the whole message, or if fewer than `count` cells are usable.
    """
    with np.errstate(all="ignore"):
        points = _pulled_in(mount.to_body(cells.points), cells.is_near, mount)
        # A point is NaN in all three coordinates or in none, so a finite sum means a valid point.
        is_return = np.isfinite(points.sum(axis=1)) & ~_is_own(points)
        usable = is_return | cells.is_clear
        total, num_usable = int(usable.size), int(usable.sum())
        share = num_usable / total if total else 0.0
        blind = set(watched) if num_usable < count or share < min_share else set()
        if cells.aims is not None and not blind:
            towards = cells.aims @ (AXES[list(watched)] @ mount.rotation).T >= CONE_COS
            seen, total_by_side = (towards & usable[:, None]).sum(axis=0), towards.sum(axis=0)
            blind = {side for i, side in enumerate(watched) if seen[i] < min_share * total_by_side[i]}
        free = list(free_ranges(points[is_return], count))
    for side in blind:
        free[side] = 0.0
    is_empty = bool(num_usable) and not is_return.any()
    return Sight((free[0], free[1], free[2], free[3]), share, total, tuple(sorted(blind)), is_empty)


def _is_own(points: Points) -> Bools:
    """Whether a point lies on the body itself."""
    inside = (np.abs(points[:, 0]) < HULL_HALF_M[0]) & (np.abs(points[:, 1]) < HULL_HALF_M[1])
    own: Bools = inside & (points[:, 2] > FLOOR_M) & (points[:, 2] < BACK_M)
    return own


def _pulled_in(points: Points, is_near: Bools, mount: SensorMount) -> Points:
    """Move points that are only upper bounds (`is_near`) to the body's edge, on the line to the sensor."""
    if not is_near.any():
        return points
    origin = np.array([mount.x_m, mount.y_m, mount.z_m], dtype=np.float32)
    parts = np.linspace(0.05, 1.0, 20, dtype=np.float32)
    positions = origin + parts[:, None, None] * (points[is_near] - origin)
    outside = ~_is_own(positions.reshape(-1, 3)).reshape(positions.shape[:2])
    first = np.where(outside.any(axis=0), outside.argmax(axis=0), parts.size - 1)
    pulled: Points = points.copy()
    pulled[is_near] = positions[first, np.arange(first.size)]
    return pulled


def free_ranges(points: Points, count: int = 1) -> Ranges:
    """Return the free distance on each side, by the `count`-th nearest point: a single speck is ignored."""
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


def less_travel(free_m: float, travelled_m: float) -> float:
    """Return a range reduced by the distance travelled since (`travelled_m`); 0 if it is not a number."""
    return max(0.0, free_m - travelled_m) if math.isfinite(travelled_m) else 0.0


def scan_points(message: Any) -> Points:
    """Return the points of a LaserScan in its own frame. Raises ImageError."""
    return scan_cells(message).returns


def cloud_points(message: Any) -> Points:
    """Return the finite points of a PointCloud2 in its own frame. Raises ImageError if it cannot be read."""
    return cloud_cells(message).returns


def depth_points(message: Any, hfov_rad: float) -> Points:
    """Return the points of a depth image in the camera's own x-forward frame. Raises ImageError."""
    return depth_cells(message, hfov_rad).returns


def scan_cells(message: Any) -> Cells:
    """Read a LaserScan. Raises ImageError if its angles or ranges are inconsistent.

    By REP 117 +inf means nothing within reach and -inf something nearer than `range_min`; a value below
    `range_min` is used as it is. Many drivers report 0 for no return; such a beam is unusable.
    """
    ranges = np.asarray(message.ranges, dtype=np.float32)
    least_m = _check_scan(message, ranges.size)
    with np.errstate(all="ignore"):
        angles = message.angle_min + np.arange(ranges.size, dtype=np.float64) * message.angle_increment
        aims = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1).astype(np.float32)
        most_m = min(float(message.range_max), RETURN_MAX_M)
        is_near = np.isneginf(ranges) & (least_m > 0)
        is_good = (ranges > 0) & (ranges <= most_m) | is_near
        distances = np.where(is_near, np.float32(least_m), ranges)
        points = aims * np.where(is_good, distances, np.float32(math.nan))[:, None]
    return Cells(points, np.isposinf(ranges), is_near, aims)


def _check_scan(message: Any, count: int) -> float:
    """Return `range_min`, 0 or more. Raises ImageError for an inconsistent header."""
    first, step, last = message.angle_min, message.angle_increment, message.angle_max
    least_m, most_m = max(0.0, message.range_min), message.range_max
    if not count:
        raise ImageError("a scan without ranges")
    if not (math.isfinite(message.range_min) and most_m > least_m):
        raise ImageError(f"a scan with range_min {message.range_min:g} and range_max {most_m:g}")
    if not (math.isfinite(first) and math.isfinite(step)) or (step == 0 and count > 1):
        raise ImageError(f"a scan with angle_min {first:g} and angle_increment {step:g}")
    span, slack = (count - 1) * abs(step), 2 * abs(step)
    if span > 2 * math.pi + slack:
        raise ImageError(f"a scan of {count} ranges {step:g} rad apart goes round more than once")
    # An unset angle_max is 0. Any other mismatch leaves the beams' directions unknown.
    if last != 0 and not abs(first + (count - 1) * step - last) <= slack + 0.02 * span:
        raise ImageError(f"a scan of {count} ranges {step:g} rad apart does not end at angle_max {last:g}")
    return float(least_m)


_NUMBERS = {7: "f4", 8: "f8"}
"""PointField's datatypes of a coordinate in metres."""


def cloud_cells(message: Any) -> Cells:
    """Read a PointCloud2. Raises ImageError for one that cannot be read, or holds no point."""
    count, step, row = message.width * message.height, message.point_step, message.row_step
    offsets = {field.name: field for field in reversed(message.fields) if field.datatype in _NUMBERS}
    if not {"x", "y", "z"} <= set(offsets):
        raise ImageError("a point cloud without x, y, z as 32-bit or 64-bit floats")
    if not count:
        raise ImageError("an empty point cloud")
    kinds = [_NUMBERS[offsets[name].datatype] for name in "xyz"]
    ends = [offsets[name].offset + int(kind[1]) for name, kind in zip("xyz", kinds, strict=True)]
    if step < max(ends):
        raise ImageError(f"a point cloud whose point_step {step} is shorter than its fields ({max(ends)})")
    if row < message.width * step and (row or message.height > 1):
        raise ImageError(f"a point cloud whose row_step {row} is shorter than {message.width} points")
    row = max(row, message.width * step)
    needed = (message.height - 1) * row + message.width * step
    if len(message.data) < needed:
        raise ImageError(f"a point cloud of {count} points in {len(message.data)} bytes")
    order = ">" if message.is_bigendian else "<"
    layout = np.dtype(
        {
            "names": ["x", "y", "z"],
            "formats": [order + kind for kind in kinds],
            "offsets": [offsets[name].offset for name in "xyz"],
            "itemsize": step,
        }
    )
    cloud = np.ndarray((message.height, message.width), layout, bytes(message.data), 0, (row, step))
    with np.errstate(all="ignore"):
        points = np.stack([cloud[name].astype(np.float32).reshape(-1) for name in "xyz"], axis=1)
        points[~(np.abs(points) <= RETURN_MAX_M).all(axis=1)] = math.nan
    nothing = np.zeros(count, dtype=np.bool_)
    return Cells(points, nothing, nothing, None)


_DEPTHS = {"16UC1": ("u2", 0.001, 20.0), "mono16": ("u2", 0.001, 20.0), "32FC1": ("f4", 1.0, 50.0)}
"""For each encoding: the type, metres per unit, and the largest valid depth in metres. 65535 often means no
return, and numbers with swapped bytes are mostly large."""


def depth_cells(message: Any, hfov_rad: float) -> Cells:
    """Read a depth image (16UC1 in mm or 32FC1 in m). Raises ImageError for another, or too few bytes.

    By REP 118 0 and NaN are unusable, +inf means nothing within reach and -inf something too near.
    """
    if message.encoding not in _DEPTHS:
        raise ImageError(f"a depth image of encoding {message.encoding[:40]!r}; 16UC1 or 32FC1 are read")
    kind, scale, most_m = _DEPTHS[message.encoding]
    width, height, step = message.width, message.height, message.step
    if not (width and height):
        raise ImageError(f"a depth image of {width}x{height} pixels")
    if step < width * int(kind[1]) or len(message.data) < step * (height - 1) + width * int(kind[1]):
        raise ImageError("a depth image with fewer bytes than it says")
    order = ">" if message.is_bigendian else "<"
    image = np.ndarray((height, width), f"{order}{kind}", bytes(message.data), 0, (step, int(kind[1])))
    with np.errstate(all="ignore"):
        depth = image[::DEPTH_STRIDE, ::DEPTH_STRIDE].astype(np.float32) * np.float32(scale)
        rays, aims = _rays(width, height, hfov_rad)
        flat = depth.reshape(-1)
        is_near, is_good = np.isneginf(flat), (flat > 0) & (flat <= most_m)
        distances = np.where(is_near, np.float32(DEPTH_NEAR_M), flat)
        points = rays * np.where(is_good | is_near, distances, np.float32(math.nan))[:, None]
    return Cells(points, np.isposinf(flat), is_near, aims)


@lru_cache(maxsize=4)
def _rays(width: int, height: int, hfov_rad: float) -> tuple[Points, Points]:
    """Return the rays [n, 3] of the sampled pixels, with unit depth and with unit length."""
    focal = width / 2 / math.tan(hfov_rad / 2)
    across = (np.arange(0, width, DEPTH_STRIDE) + 0.5 - width / 2) / focal
    down = (np.arange(0, height, DEPTH_STRIDE) + 0.5 - height / 2) / focal
    columns, lines = np.meshgrid(across.astype(np.float32), down.astype(np.float32))
    rays = np.stack([np.ones_like(columns), -columns, -lines], axis=2).reshape(-1, 3)
    return rays, (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)
