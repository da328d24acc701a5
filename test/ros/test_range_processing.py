"""Ranges from scans, clouds and depth images, against boxes whose distance is known."""

import math

import numpy as np
import pytest
from sensor_msgs.msg import Image, LaserScan, PointCloud2, PointField

from vlm_spec_decode.core.errors import ConfigError, ImageError
from vlm_spec_decode.ros.range_processing import (
    FREE,
    SensorMount,
    cloud_points,
    depth_points,
    free_ranges,
    less_travel,
    nearest,
    scan_points,
)


def scan_of(walls, beams=720, **fields):
    """Return a full turn that sees straight walls at x = +-a and y = +-b, inf where there is none."""
    message = LaserScan(
        angle_min=-math.pi, angle_increment=2 * math.pi / beams, range_min=0.05, range_max=10.0
    )
    ranges = []
    for i in range(beams):
        angle = -math.pi + i * 2 * math.pi / beams
        dx, dy = math.cos(angle), math.sin(angle)
        front, left, rear, right = walls
        hits = [front / dx if dx > 1e-9 else math.inf, rear / -dx if dx < -1e-9 else math.inf]
        hits += [left / dy if dy > 1e-9 else math.inf, right / -dy if dy < -1e-9 else math.inf]
        ranges.append(min(hits))
    message.ranges = [float(r) for r in ranges]
    for key, value in fields.items():
        setattr(message, key, value)
    return message


def test_a_scan_sees_walls_on_all_sides():
    found = free_ranges(scan_points(scan_of((1.35, 1.16, 2.35, 3.16))))
    assert found == pytest.approx((1.0, 1.0, 2.0, 3.0), abs=0.02)


def test_what_came_back_empty_is_free_and_what_is_too_near_is_not():
    scan = scan_of((math.inf,) * 4)
    assert free_ranges(scan_points(scan)) == FREE
    scan.ranges = [0.0] * len(scan.ranges)
    assert free_ranges(scan_points(scan)) == FREE
    scan.ranges = [math.nan] * len(scan.ranges)
    assert free_ranges(scan_points(scan)) == FREE
    scan.range_min = 0.4
    scan.ranges = [-math.inf] * len(scan.ranges)
    assert free_ranges(scan_points(scan))[0] <= 0.05 + 1e-6


def test_what_stands_beside_the_corridor_is_not_in_the_way():
    points = np.array([[1.0, 0.5, 0.0], [2.0, 0.15, 0.0]], np.float32)
    assert free_ranges(points)[0] == pytest.approx(2.0 - 0.35)


def test_the_floor_the_ceiling_and_the_body_itself_are_not_obstacles():
    points = np.array([[1.0, 0.0, -0.31], [1.0, 0.0, 0.5], [0.2, 0.0, 0.0]], np.float32)
    assert free_ranges(points) == FREE


def test_one_speck_is_not_enough_where_more_points_must_agree():
    points = np.array([[0.8, 0.0, 0.0], [1.5, 0.0, 0.0], [1.5, 0.1, 0.0], [1.5, -0.1, 0.0]], np.float32)
    assert free_ranges(points, 1)[0] == pytest.approx(0.45)
    assert free_ranges(points, 3)[0] == pytest.approx(1.15)


def test_a_mount_turns_and_shifts():
    ahead = np.array([[1.0, 0.0, 0.0]], np.float32)
    assert SensorMount.parse("0.1 0 0 0 0 1.5707963").to_body(ahead)[0] == pytest.approx(
        [0.1, 1.0, 0.0], abs=1e-6
    )
    assert SensorMount.parse("0 0 0.2 0 1.5707963").to_body(ahead)[0] == pytest.approx(
        [0.0, 0.0, -0.8], abs=1e-6
    )
    for wrong in ("x", "1 2 3 4 5 6 7", "nan"):
        with pytest.raises(ConfigError):
            SensorMount.parse(wrong)


def cloud_of(points, *, big=False, step=20, names="xyz"):
    dtype = np.dtype({"names": ["x", "y", "z"], "formats": [(">" if big else "<") + "f4"] * 3,
                      "offsets": [4, 8, 12], "itemsize": step})  # fmt: skip
    table = np.zeros(len(points), dtype)
    for index, name in enumerate("xyz"):
        table[name] = [point[index] for point in points]
    fields = [
        PointField(name=name, offset=4 + 4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(names)
    ]
    return PointCloud2(height=1, width=len(points), fields=fields, is_bigendian=big, point_step=step,
                       row_step=step * len(points), data=table.tobytes())  # fmt: skip


@pytest.mark.parametrize("big", [False, True])
def test_a_cloud_is_read_whatever_its_layout(big):
    points = [(1.35, 0.0, 0.0), (math.nan, 0.0, 0.0), (-2.35, 0.1, 0.0)]
    assert free_ranges(cloud_points(cloud_of(points, big=big)))[::2] == pytest.approx((1.0, 2.0))


def test_a_cloud_that_cannot_be_read_is_named():
    with pytest.raises(ImageError, match="x, y, z"):
        cloud_points(cloud_of([(1, 0, 0)], names="abc"))
    short = cloud_of([(1, 0, 0)] * 4)
    short.data = bytes(short.data)[:40]
    with pytest.raises(ImageError, match="bytes"):
        cloud_points(short)


@pytest.mark.parametrize(("encoding", "unit"), [("16UC1", 1000), ("32FC1", 1)])
def test_a_wall_in_a_depth_image_is_as_far_as_it_is(encoding, unit):
    depth = np.full((120, 160), 2.0 * unit, "<u2" if unit == 1000 else "<f4")
    message = Image(height=120, width=160, encoding=encoding, step=depth.strides[0], data=depth.tobytes())
    points = SensorMount.parse("0.327 0 0.043").to_body(depth_points(message, math.radians(87)))
    assert free_ranges(points, 5) == pytest.approx((2.327 - 0.35, *FREE[1:]), abs=0.01)
    message.data = depth.tobytes()[:100]
    with pytest.raises(ImageError):
        depth_points(message, 1.0)
    message.encoding = "rgb8"
    with pytest.raises(ImageError, match="rgb8"):
        depth_points(message, 1.0)


def test_the_nearest_of_several_counts():
    assert nearest(FREE, (1, 2, 3, 4), (4, 3, 2, 1)) == (1, 2, 2, 1)


def test_what_was_seen_a_while_ago_is_nearer_by_now():
    ranges = (1.0, 0.05, math.inf, 2.0)
    assert tuple(less_travel(free, 0.2) for free in ranges) == pytest.approx((0.8, 0.0, math.inf, 1.8))
    assert tuple(less_travel(free, 0.5) for free in FREE) == FREE
    assert less_travel(1.0, math.nan) == less_travel(math.inf, math.inf) == 0.0
