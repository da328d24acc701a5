"""Invalid messages of every sensor to which the locomotion node subscribes; constructed, not recorded.

Each kind is a table of what may be wrong with one field, crossed with what may be wrong with another. Legal
messages that look odd (nothing within reach, an unknown frame, a padded row) are in tables of their own: what
a robot must still walk by, and what must stop it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import Twist
from nav_msgs.msg import Odometry
from sensor_msgs.msg import BatteryState, Image, LaserScan, PointCloud2, PointField

from vlm_spec_decode.ros.convert import to_time

NAN, INF = math.nan, math.inf
BAD = {"nan": NAN, "inf": INF, "-inf": -INF, "huge": 1e300, "-huge": -1e300}
FRAMES = ("", "base_link", "no/such frame", "\N{SNOWMAN}" * 40)


@dataclass(frozen=True, slots=True)
class Case:
    """A message by name. `stamp_s` is its age: 0 is now, NaN is never stamped, negative is in the future."""

    name: str
    message: Any
    age_s: float = 0.0

    def stamped(self, now_s: float) -> Any:
        """Return the message as it would be sent now."""
        header = getattr(self.message, "header", None)
        if header is not None and not math.isnan(self.age_s):
            header.stamp = to_time(max(1.0, now_s - self.age_s))
        return self.message


def scan(ranges: list[float], **fields: Any) -> LaserScan:
    """Return a scan of the front half: 181 beams, a degree apart, with `fields` replaced."""
    step = math.radians(1.0)
    message = LaserScan(
        angle_min=-math.pi / 2, angle_max=math.pi / 2, angle_increment=step, range_min=0.1, range_max=10.0
    )
    message.ranges = ranges
    for name, value in fields.items():
        if name == "frame_id":
            message.header.frame_id = value
        else:
            setattr(message, name, value)
    return message


BEAMS = 181
_BLIND = {"zero": 0.0, "nan": NAN, "negative": -1.0, "-huge": -3e38, "beyond": 10.5, "huge": 3e38,
          "denormal": 1e-40, "body": 0.12, "-inf": -INF}  # fmt: skip
_SCAN_HEADERS: dict[str, dict[str, float]] = {
    "range_max 0": {"range_max": 0.0},
    "range_max nan": {"range_max": NAN},
    "range_max negative": {"range_max": -1.0},
    "range_min nan": {"range_min": NAN},
    "range_min inf": {"range_min": INF},
    "range_min over range_max": {"range_min": 11.0},
    "angle_increment 0": {"angle_increment": 0.0},
    "angle_increment nan": {"angle_increment": NAN},
    "angle_increment inf": {"angle_increment": INF},
    "angle_increment too large": {"angle_increment": 1.0},
    "angle_min nan": {"angle_min": NAN},
    "angle_min inf": {"angle_min": -INF},
    "angle_max nan": {"angle_max": NAN},
    "angle_max of another scan": {"angle_max": 0.3},
}


def bad_scans() -> Iterator[Case]:
    """Yield scans without usable ranges ahead."""
    for (name, value), frame in itertools.product(_BLIND.items(), FRAMES):
        odd = {"intensities": [NAN, -1.0, INF], "time_increment": -1.0, "scan_time": NAN} if frame else {}
        yield Case(f"all {name} in {frame[:12]!r}", scan([value] * BEAMS, frame_id=frame, **odd))
    free = {"inf": INF, "5 m": 5.0, "zero": 0.0}
    for (name, fields), (description, value) in itertools.product(_SCAN_HEADERS.items(), free.items()):
        yield Case(f"{name}, all {description}", scan([value] * BEAMS, **fields))
    yield Case("no ranges", scan([]))
    yield Case("ranges cut off", scan([5.0] * 20))
    yield Case("ranges twice", scan([5.0] * 2 * BEAMS))
    for name, age_s in (("future", -30.0), ("far future", -1e6), ("stale", 30.0), ("of 1970", 1e12)):
        yield Case(f"stamped {name}", scan([5.0] * BEAMS), age_s)
    side = [5.0 if abs(i - 90) > 35 else 0.0 for i in range(BEAMS)]
    yield Case("zeros ahead alone", scan(side))
    yield Case("nan ahead alone", scan([NAN if value == 0.0 else value for value in side]))


def free_scans() -> Iterator[Case]:
    """Scans by which it may walk."""
    yield Case("5 m", scan([5.0] * BEAMS))
    yield Case("in an unknown frame", scan([5.0] * BEAMS, frame_id="no/such frame", intensities=[NAN]))
    yield Case("some holes", scan([0.0 if i % 3 else 5.0 for i in range(BEAMS)]))
    yield Case("no stamp", scan([5.0] * BEAMS), NAN)
    yield Case("range_max inf", scan([5.0] * BEAMS, range_max=INF))
    yield Case("upside down", scan([5.0] * BEAMS, angle_min=math.pi / 2, angle_max=-math.pi / 2,
                                   angle_increment=-math.radians(1.0)))  # fmt: skip
    yield Case("nothing within reach", scan([INF] * BEAMS))


def walls_in_scans() -> Iterator[Case]:
    """Scans that must stop it, however odd the rest."""
    for name, value in {"inf": INF, "nan": NAN, "zero": 0.0, "huge": 3e38}.items():
        yield Case(f"one beam at 0.4 m, else {name}", scan([0.4 if i == 90 else value for i in range(BEAMS)]))
    yield Case("all nearer than range_min", scan([0.4] * BEAMS, range_min=5.0))
    yield Case("all -inf", scan([-INF] * BEAMS, range_min=5.0))


def with_fields(message: Any, fields: Mapping[str, Any]) -> Any:
    """Return the message with other values in fields of it, or in its header's `frame_id`."""
    for name, what in fields.items():
        setattr(message.header if name == "frame_id" else message, name, what)
    return message


def depth(value: float, encoding: str = "32FC1", width: int = 64, height: int = 48, **fields: Any) -> Image:
    """Return a depth image of one value (in the encoding's unit); `fields` replace those of the message."""
    order = ">" if fields.pop("swapped", fields.get("is_bigendian", 0)) else "<"
    kind = f"{order}f4" if encoding == "32FC1" else f"{order}u2"
    pad = fields.pop("pad", 0)
    with np.errstate(all="ignore"):
        table = np.full((height, width), value, kind)
    rows = np.pad(table.view(np.uint8).reshape(height, -1), ((0, 0), (0, pad)))
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1], data=rows.tobytes())
    return with_fields(message, fields)


def bad_depths() -> Iterator[Case]:
    """Yield depth images without usable depths."""
    layouts: dict[str, dict[str, Any]] = {
        "": {}, "padded": {"pad": 24}, "big endian": {"is_bigendian": 1}, "odd": {"frame_id": FRAMES[2]},
    }  # fmt: skip
    floats = {"0": 0.0, "nan": NAN, "negative": -1.0, "huge": 1e30, "denormal": 1e-40, "body": 0.01}
    for (name, value), (how, fields) in itertools.product(floats.items(), layouts.items()):
        yield Case(f"32FC1 all {name} {how}", depth(value, **dict(fields)))
    whole = {"0": 0, "65535": 65535, "65534": 65534, "1 mm": 1}
    for encoding, (name, value), (how, fields) in itertools.product(
        ("16UC1", "mono16"), whole.items(), layouts.items()
    ):
        yield Case(f"{encoding} all {name} {how}", depth(value, encoding, **dict(fields)))
    for encoding in ("rgb8", "8UC1", "", "32FC2", "64FC1", "16SC1", "bayer_rggb8", "32fc1 ", "\N{SNOWMAN}"):
        message = depth(5.0)
        message.encoding = encoding
        yield Case(f"encoding {encoding!r}", message)
    for encoding, five in (("32FC1", 5.0), ("16UC1", 5000)):
        for name, broken in _broken_depths(encoding, five):
            yield Case(f"{encoding} {name}", broken)
        for age_s in (-30.0, 30.0, 1e12):
            yield Case(f"{encoding} stamped {-age_s:+g} s", depth(five, encoding), age_s)
        centre = np.full((48, 64), five, "<f4" if encoding == "32FC1" else "<u2")
        centre[6:42, 4:60] = 0
        hole = depth(five, encoding)
        hole.data = centre.tobytes()
        yield Case(f"{encoding} a hole where it looks", hole)


def _broken_depths(encoding: str, five: float) -> Iterator[tuple[str, Image]]:
    good = depth(five, encoding)
    yield "step 0", depth(five, encoding, step=0)
    yield "step of one pixel", depth(five, encoding, step=2)
    yield "step too large", depth(five, encoding, step=100_000)
    yield "no data", depth(five, encoding, data=b"")
    yield "data cut off", depth(five, encoding, data=bytes(good.data)[:-5])
    for name, size in itertools.product(("width", "height"), (0, 2**31)):
        message = depth(five, encoding)
        setattr(message, name, size)
        yield f"{name} {size}", message
    yield "bytes swapped", depth(five, encoding, is_bigendian=1, swapped=False)


def free_depths() -> Iterator[Case]:
    """Depth images by which it may walk."""
    yield Case("5 m in floats", depth(5.0))
    yield Case("5 m in mm, big endian, padded", depth(5000, "16UC1", is_bigendian=1, pad=6))
    yield Case("mono16", depth(5000, "mono16", frame_id="no/such frame"))
    yield Case("no stamp", depth(5.0), NAN)
    yield Case("nothing within reach", depth(INF))


def walls_in_depths() -> Iterator[Case]:
    """Depth images that must stop it."""
    yield Case("0.1 m", depth(0.1))
    yield Case("100 mm", depth(100, "16UC1"))
    yield Case("all -inf", depth(-INF, pad=8))
    near = np.full((48, 64), INF, "<f4")
    near[16:32, 24:40] = 0.1
    yield Case("a post", depth(5.0, data=near.tobytes()))


FIELDS = ("x", "y", "z")


def cloud(points: Any, kind: str = "f4", **fields: Any) -> PointCloud2:
    """Return a cloud of points [n, 3]; `fields` replace those of the message. `rows` splits it into rows."""
    big, swapped = fields.get("is_bigendian", False), fields.pop("swapped", None)
    order = ">" if (big if swapped is None else swapped) else "<"
    size, names, rows = int(kind[1]), fields.pop("names", FIELDS), fields.pop("rows", 1)
    datatype = fields.pop("datatype", {4: PointField.FLOAT32, 8: PointField.FLOAT64}[size])
    with np.errstate(all="ignore"):
        table = np.asarray(points, dtype=np.float64).reshape(-1, 3).astype(order + kind)
    message = PointCloud2(
        height=rows,
        width=len(table) // rows,
        is_bigendian=bool(big),
        point_step=3 * size,
        row_step=3 * size * (len(table) // rows),
        is_dense=True,
        data=table.tobytes(),
    )
    message.fields = [
        PointField(name=name, offset=i * size, datatype=datatype, count=1) for i, name in enumerate(names)
    ]
    return with_fields(message, fields)


def far_points(count: int = 120) -> Any:
    """Return points of a wall 5 m ahead."""
    return [(5.0, -1.0 + 2.0 * i / count, 0.05) for i in range(count)]


def bad_clouds() -> Iterator[Case]:
    """Yield clouds without usable points."""
    values = {"nan": NAN, "inf": INF, "-inf": -INF, "0": 0.0, "huge": 1e30, "denormal": 1e-40}
    layouts: dict[str, dict[str, Any]] = {
        "": {}, "rows": {"rows": 4}, "big endian": {"is_bigendian": True}, "not dense": {"is_dense": False},
    }  # fmt: skip
    for kind, (name, value), (how, fields) in itertools.product(
        ("f4", "f8"), values.items(), layouts.items()
    ):
        yield Case(f"{kind} all {name} {how}", cloud([(value,) * 3] * 120, kind, **dict(fields)))
    yield Case("one coordinate nan", cloud([(5.0, NAN, 0.0)] * 120))
    yield Case("the body itself", cloud([(0.1, 0.05, 0.0)] * 120))
    for count in (0, 1, 2):
        yield Case(f"{count} points", cloud(far_points(120)[:count]))
    for names in (("x", "y"), ("a", "b", "c"), (), ("X", "Y", "Z"), ("x", "x", "x")):
        yield Case(f"fields {names}", cloud(far_points(), names=names))
    for datatype in (0, 1, 2, 3, 4, 5, 6, 9, 255):
        yield Case(f"datatype {datatype}", cloud(far_points(), datatype=datatype))
    for step in (0, 1, 4, 11, 2**31):
        yield Case(f"point_step {step}", cloud(far_points(), point_step=step))
    for rows, row_step in ((4, 0), (4, 1), (4, 359), (1, 8), (4, 2**31)):
        yield Case(f"{rows} rows, row_step {row_step}", cloud(far_points(), rows=rows, row_step=row_step))
    yield Case("no data", cloud(far_points(), data=b""))
    yield Case("data cut off", cloud(far_points(), data=bytes(1000)))
    for name, size in (
        ("width", {"width": 2**32 - 1}),
        ("height", {"height": 2**32 - 1}),
        ("none", {"height": 0}),
    ):
        yield Case(f"{name} {size}", cloud(far_points(), **size))
    yield Case("bytes swapped", cloud(far_points(), is_bigendian=True, swapped=False))
    far = cloud(far_points())
    far.fields = [PointField(name=n, offset=4_000_000_000, datatype=7, count=1) for n in FIELDS]
    yield Case("offsets beyond the point", far)
    for age_s in (-30.0, 30.0, 1e12):
        yield Case(f"stamped {-age_s:+g} s", cloud(far_points()), age_s)


def free_clouds() -> Iterator[Case]:
    """Clouds by which it may walk."""
    yield Case("5 m", cloud(far_points()))
    yield Case("5 m in doubles, big endian, in rows", cloud(far_points(), "f8", is_bigendian=True, rows=4))
    yield Case("no row_step", cloud(far_points(), row_step=0))
    yield Case("no stamp, unknown frame", cloud(far_points(), frame_id="no/such frame"), NAN)
    yield Case("nans among them", cloud([*far_points(60), *[(NAN, NAN, NAN)] * 60]))


def walls_in_clouds() -> Iterator[Case]:
    """Clouds that must stop it."""
    yield Case("0.4 m", cloud([(0.4, 0.0, 0.0)] * 4 + far_points()))
    yield Case("0.4 m, else nan", cloud([(0.4, 0.0, 0.0)] * 8 + [(NAN, 0.0, 0.0)] * 100, is_dense=True))


def _quaternion(message: Odometry, value: float) -> None:
    turned = message.pose.pose.orientation
    turned.w = turned.x = turned.y = turned.z = value


Set = Callable[[Odometry, float], None]
ODOMETRY_FIELDS: dict[str, Set] = {
    "x": lambda m, v: setattr(m.pose.pose.position, "x", v),
    "y": lambda m, v: setattr(m.pose.pose.position, "y", v),
    "w": lambda m, v: setattr(m.pose.pose.orientation, "w", v),
    "z": lambda m, v: setattr(m.pose.pose.orientation, "z", v),
    "all of the quaternion": _quaternion,
    "vx": lambda m, v: setattr(m.twist.twist.linear, "x", v),
    "vy": lambda m, v: setattr(m.twist.twist.linear, "y", v),
    "vyaw": lambda m, v: setattr(m.twist.twist.angular, "z", v),
}


def odometry_damages() -> Iterator[tuple[str, Callable[[Odometry], None]]]:
    """Yield damages of an odometry message whose pose is else right."""
    for (field, change), (name, value) in itertools.product(ODOMETRY_FIELDS.items(), BAD.items()):
        yield f"{field} {name}", lambda m, change=change, value=value: change(m, value)
    for value in (0.0, 1e-9, 2.0, -3.0):
        yield f"quaternion of {value:g}", lambda m, value=value: _quaternion(m, value)
    pairs = itertools.combinations(("x", "y", "vx", "vyaw"), 2)
    for (a, b), (name, value) in itertools.product(pairs, BAD.items()):

        def change_both(message: Odometry, a: str = a, b: str = b, value: float = value) -> None:
            ODOMETRY_FIELDS[a](message, value)
            ODOMETRY_FIELDS[b](message, -value)

        yield f"{a} and {b} {name}", change_both


def bad_batteries() -> Iterator[Case]:
    """Yield charges at which walking is not allowed: invalid, or below the 20 % of the gate."""
    charges = [NAN, INF, -INF, -0.01, -1.0, -9.0, 0.0, 0.05, 0.19, 1.01, 1.5, 2.0, 5.0, 9.0, 12.5, 19.9,
            100.5, 255.0, 900.0, 3e38, -3e38]  # fmt: skip
    others: dict[str, dict[str, Any]] = {
        "": {}, "else nan": {"voltage": NAN, "charge": NAN, "current": NAN, "present": False},
        "full by its volts": {"voltage": 29.4, "charge": 8.0, "capacity": 8.0, "present": True},
    }  # fmt: skip
    for value, (name, fields) in itertools.product(charges, others.items()):
        yield Case(f"percentage {value:g} {name}", BatteryState(percentage=value, **fields))


def good_batteries() -> Iterator[Case]:
    """Charges by which it may walk."""
    for value in (0.2001, 0.5, 1.0, 21.0, 50.0, 100.0):
        yield Case(f"percentage {value:g}", BatteryState(percentage=value))


def bad_twists() -> Iterator[Case]:
    """A person's velocities of which a part is no number."""
    parts = (0.3, NAN, INF, -INF)
    for vx, vy, vyaw in itertools.product(parts, repeat=3):
        if not all(map(math.isfinite, (vx, vy, vyaw))):
            message = Twist()
            message.linear.x, message.linear.y, message.angular.z = vx, vy, vyaw
            yield Case(f"{vx:g} {vy:g} {vyaw:g}", message)
