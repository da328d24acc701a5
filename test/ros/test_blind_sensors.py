"""What sees nothing is not what sees that nothing is there: arbitrary scans, clouds and depth images."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sensor_msgs.msg import Image, LaserScan, PointCloud2, PointField

from test.ros.test_range_processing import cloud_of, scan_of
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.obstacle_sensors import ALL_ROUND, ObstacleSource
from vlm_spec_decode.ros.range_processing import (
    FREE,
    HULL_HALF_M,
    MARGIN_M,
    RETURN_MAX_M,
    SensorMount,
    cloud_cells,
    depth_cells,
    scan_cells,
    sight_of,
)

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
NASTY = st.sampled_from(
    [0.0, -0.0, math.nan, math.inf, -math.inf, -1.0, 1e-40, 3e38, 0.05, 0.4, 1.35, 9.9, 10.1]
)
NUMBERS = ANY | NASTY
FUZZ = settings(max_examples=150, deadline=None)


def sight_in(message, mount=None, count=1, watched=ALL_ROUND, share=0.05):
    return sight_of(scan_cells(message), mount or SensorMount(), watched, count, share)


# Whatever comes ------------------------------------------------------------------------------------


@given(
    ranges=st.lists(NUMBERS, max_size=80),
    header=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS) | st.just((-1.5, 0.0, 0.05, 0.1, 10.0)),
)
@FUZZ
def test_no_scan_raises_or_shows_more_than_its_nearest_return(ranges, header):
    first, last, step, least, most = header
    message = LaserScan(
        angle_min=first, angle_max=last, angle_increment=step, range_min=least, range_max=most, ranges=ranges
    )
    try:
        sight = sight_in(message)
    except ImageError:
        return
    assert all(free >= 0.0 for free in sight.ranges)
    assert 0.0 <= sight.valid_share <= 1.0
    for index, distance in enumerate(map(float, message.ranges)):
        if not (0.0 < distance <= min(most, RETURN_MAX_M)):
            continue
        angle = first + index * step
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        for side, (ahead, off) in enumerate(((x, y), (y, -x), (-x, -y), (-y, x))):
            long, wide = HULL_HALF_M[side % 2], HULL_HALF_M[1 - side % 2]
            if ahead > long + 1e-3 and abs(off) < wide + MARGIN_M - 1e-3:
                assert sight.ranges[side] <= ahead - long + 1e-3


@given(
    points=arrays.arrays(np.float32, st.tuples(st.integers(0, 40), st.just(3)), elements=NUMBERS),
    count=st.integers(1, 4),
)
@FUZZ
def test_no_cloud_raises_or_shows_more_than_its_nearest_returns(points, count):
    message = cloud_of([tuple(map(float, point)) for point in points])
    try:
        sight = sight_of(cloud_cells(message), SensorMount(), ALL_ROUND, count)
    except ImageError:
        assert not len(points)
        return
    ahead = sorted(
        x - HULL_HALF_M[0]
        for x, y, z in points.astype(float)
        if HULL_HALF_M[0] + 1e-3 < x <= RETURN_MAX_M
        and abs(y) < HULL_HALF_M[1] + MARGIN_M - 1e-3
        and -0.23 < z < 0.15
    )
    if len(ahead) >= count:
        assert sight.ranges[0] <= ahead[count - 1] + 1e-3


@given(
    values=arrays.arrays(np.float32, st.tuples(st.integers(1, 16), st.integers(1, 20)), elements=NUMBERS),
    pad=st.integers(0, 5),
)
@FUZZ
def test_no_depth_image_raises(values, pad):
    rows = np.pad(values.astype("<f4").view(np.uint8), ((0, 0), (0, pad)))
    height, width = values.shape
    message = Image(height=height, width=width, encoding="32FC1", step=rows.shape[1], data=rows.tobytes())
    sight = sight_of(depth_cells(message, 1.5), SensorMount(0.4), (0,), 1)
    assert all(free >= 0.0 for free in sight.ranges)
    seen = values[::4, ::4]
    if not (np.isposinf(seen) | np.isneginf(seen) | ((seen > 0) & (seen <= 50.0))).any():
        assert sight.blind == (0,)


HEADER = st.integers(0, 2**32 - 1) | st.integers(0, 40)


@given(
    size=st.tuples(HEADER, HEADER, HEADER, HEADER),
    data=st.binary(max_size=200),
    fields=st.lists(
        st.tuples(st.sampled_from(["x", "y", "z", "rgb"]), HEADER, st.integers(0, 255)), max_size=5
    ),
    big=st.booleans(),
)
@FUZZ
def test_no_header_of_a_cloud_raises_anything_but_by_name(size, data, fields, big):
    height, width, step, row = size
    message = PointCloud2(
        height=height, width=width, point_step=step, row_step=row, is_bigendian=big, data=data
    )
    message.fields = [PointField(name=n, offset=o, datatype=d, count=1) for n, o, d in fields]
    with contextlib.suppress(ImageError):
        sight_of(cloud_cells(message), SensorMount(), ALL_ROUND, 3)


@given(
    size=st.tuples(HEADER, HEADER, HEADER),
    data=st.binary(max_size=200),
    encoding=st.sampled_from(["16UC1", "32FC1", "mono16", "rgb8", ""]),
    big=st.integers(0, 255),
)
@FUZZ
def test_no_header_of_a_depth_image_raises_anything_but_by_name(size, data, encoding, big):
    height, width, step = size
    message = Image(height=height, width=width, step=step, encoding=encoding, is_bigendian=big, data=data)
    with contextlib.suppress(ImageError):
        sight_of(depth_cells(message, 1.5), SensorMount(), (0,), 5)


# What is blind, and what is free -------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, math.nan, -1.0, 10.5, 3e38, 1e-40, 0.1])
def test_a_scan_of_one_useless_value_is_blind_all_round(value):
    scan = scan_of((math.inf,) * 4)
    scan.ranges = [value] * len(scan.ranges)
    sight = sight_in(scan)
    assert (sight.blind, sight.ranges, sight.valid_share) == ((0, 1, 2, 3), (0.0,) * 4, 0.0)


def test_nothing_within_reach_is_legal_and_told():
    sight = sight_in(scan_of((math.inf,) * 4))
    assert (sight.blind, sight.ranges, sight.is_empty) == ((), FREE, True)


def test_a_scanner_that_is_blind_ahead_alone_blocks_that_side_alone():
    scan = scan_of((2.0, 2.0, 2.0, 2.0))
    scan.ranges = [0.0 if 300 <= i < 420 else r for i, r in enumerate(scan.ranges)]
    sight = sight_in(scan)
    assert sight.blind == (0,)
    assert sight.ranges[0] == 0.0
    assert min(sight.ranges[1:]) > 1.5
    assert sight_in(scan, SensorMount(yaw_rad=math.pi / 2)).blind == (1,)


def test_what_is_nearer_than_the_scanner_can_measure_stands_at_the_body():
    scan = scan_of((math.inf,) * 4)
    scan.range_min = 5.0
    scan.ranges = [-math.inf if i == 360 else math.inf for i in range(len(scan.ranges))]
    assert sight_in(scan).ranges[0] < 0.25
    scan.ranges = [0.6 if i == 360 else math.inf for i in range(len(scan.ranges))]
    assert sight_in(scan).ranges[0] == pytest.approx(0.25, abs=0.01)


def test_the_side_that_a_depth_camera_watches_is_where_it_looks():
    assert SensorMount().faces == (0,)
    assert SensorMount(pitch_rad=0.5).faces == (0,)
    assert SensorMount(yaw_rad=math.pi).faces == (2,)
    assert SensorMount(yaw_rad=-math.pi / 2).faces == (3,)
    assert SensorMount(yaw_rad=math.pi / 4).faces == (0, 1)
    assert len(SensorMount(pitch_rad=math.pi / 2).faces) >= 1


# A source over time --------------------------------------------------------------------------------


def source():
    return ObstacleSource("scan", scan_cells, SensorMount(), ALL_ROUND, 1, 0.05)


def test_a_glitch_costs_nothing_and_blindness_blocks_after_the_time_out():
    seeing, blind = scan_of((2.35, 2.16, 2.35, 2.16)), scan_of((2.35,) * 4)
    blind.ranges = [0.0] * len(blind.ranges)
    found = source()
    assert found.ranges(10.0, 0.0, 0.5) == (0.0,) * 4
    found.on_message(seeing, 10.0, 0.0)
    found.on_message(blind, 10.1, 0.1)
    assert found.ranges(10.2, 0.5, 0.5)[0] == pytest.approx(2.0 - 0.1, abs=0.02)
    line = found.line("node", 10.2, 0.5)
    assert line.level == diagnostics.ERROR
    assert "blind: 0 % of 720 returns are usable; front, left, rear, right: blocked" in line.message
    assert line.values["valid_share"] == "0.000"
    found.on_message(blind, 10.6, 0.6)
    assert found.ranges(10.6, 0.0, 0.5) == (0.0,) * 4
    found.on_message(seeing, 10.7, 0.7)
    assert min(found.ranges(10.7, 0.0, 0.5)) > 1.9
    assert found.line("node", 10.7, 0.5).level == diagnostics.WARN  # it is not stamped


def test_what_cannot_be_read_is_named_and_blocks():
    found = source()
    found.drop("a scan without ranges")
    line = found.line("node", 10.0, 0.5)
    assert line.level == diagnostics.ERROR
    assert "a scan without ranges; front, left, rear, right: blocked" in line.message
    assert line.values["unreadable"] == "1"


def test_a_stamp_of_another_clock_is_named():
    scan = scan_of((2.0,) * 4)
    scan.header.stamp.sec = 100
    with pytest.raises(ImageError, match="ahead of this clock: synchronise"):
        source().on_message(scan, 10.0, 98.0)
    source().on_message(scan, 10.0, 99.7)


def test_a_speed_that_is_no_number_leaves_nothing_free():
    found = source()
    found.on_message(scan_of((2.0,) * 4), 10.0, 0.0)
    assert found.ranges(10.1, math.nan, 0.5) == (0.0,) * 4
    assert found.ranges(10.1, math.inf, 0.5) == (0.0,) * 4
