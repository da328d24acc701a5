"""The objects in a room: their kinds, colours, shapes and footprints.

Geometry only, independent of MuJoCo and rooms. Every kind is a few primitives in the object's own
frame: origin on the floor, x towards the object's front, z up, metres at scale 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

Rgb: TypeAlias = tuple[float, float, float]
Vec3: TypeAlias = tuple[float, float, float]

PALETTE: dict[str, Rgb] = {
    "red": (0.82, 0.07, 0.07),
    "green": (0.06, 0.56, 0.14),
    "blue": (0.07, 0.22, 0.80),
    "yellow": (0.95, 0.82, 0.05),
    "orange": (0.97, 0.45, 0.02),
    "purple": (0.50, 0.12, 0.62),
    "pink": (0.98, 0.48, 0.68),
    "cyan": (0.08, 0.72, 0.76),
}
COLOURS = tuple(PALETTE)
"""Eight distinct hues. Rooms are desaturated, so a saturated hue always belongs to an object."""

MATERIALS: dict[str, Rgb] = {
    "white": (0.92, 0.92, 0.90),
    "dark": (0.13, 0.13, 0.15),
    "steel": (0.55, 0.57, 0.60),
    "skin": (0.80, 0.60, 0.48),
    "hair": (0.20, 0.13, 0.08),
    "jeans": (0.22, 0.25, 0.32),
    "leaf": (0.20, 0.38, 0.16),
    "stem": (0.36, 0.26, 0.14),
    "tape": (0.76, 0.66, 0.48),
}


@dataclass(frozen=True, slots=True)
class Primitive:
    """One geom: `size` are MuJoCo's half sizes; `paint` a material's name, or "own" for the object's colour.

    Primitives that are not `solid` (leaves, arms) are visible, but do not collide and are not part of the
    footprint; solids are boxes, spheres and upright cylinders and capsules.
    `turn_deg` are roll, pitch and yaw about the fixed axes; only what is not solid may be turned.
    """

    shape: str
    size: tuple[float, ...]
    pos: Vec3
    paint: str = "own"
    solid: bool = True
    turn_deg: Vec3 = (0.0, 0.0, 0.0)
    shade: float = 1.0


def _chair() -> tuple[Primitive, ...]:
    # The seat is lower than the robot's back even at the largest scale: it cannot walk underneath.
    legs = tuple(
        Primitive("box", (0.02, 0.02, 0.17), (sx * 0.18, sy * 0.18, 0.17), shade=0.75)
        for sx in (-1, 1)
        for sy in (-1, 1)
    )
    posts = tuple(Primitive("box", (0.02, 0.02, 0.25), (-0.19, sy * 0.18, 0.65)) for sy in (-1, 1))
    rails = tuple(Primitive("box", (0.015, 0.17, 0.055), (-0.19, 0.0, z)) for z in (0.65, 0.83))
    return (*legs, Primitive("box", (0.215, 0.215, 0.03), (0.0, 0.0, 0.37)), *posts, *rails)


def _ball() -> tuple[Primitive, ...]:
    return (Primitive("sphere", (0.20,), (0.0, 0.0, 0.20)),)


def _box() -> tuple[Primitive, ...]:
    return (
        Primitive("box", (0.22, 0.22, 0.19), (0.0, 0.0, 0.19)),
        Primitive("box", (0.2225, 0.035, 0.1925), (0.0, 0.0, 0.19), "tape"),
    )


def _cone() -> tuple[Primitive, ...]:
    plate = Primitive("box", (0.20, 0.20, 0.02), (0.0, 0.0, 0.02))
    steps, foot_m, tip_m, height_m = 20, 0.155, 0.03, 0.62
    rings = []
    for i in range(steps):
        radius = foot_m + (tip_m - foot_m) * (i + 0.5) / steps
        half = height_m / steps / 2
        rings.append(
            Primitive(
                "cylinder",
                (radius, half),
                (0.0, 0.0, 0.04 + half * (2 * i + 1)),
                "white" if i in (6, 7, 8, 9, 13, 14) else "own",
            )
        )
    return (plate, *rings)


def _person() -> tuple[Primitive, ...]:
    # A knee-long coat: the camera sees little above it from near by, and the colour must still be seen.
    parts = []
    for s in (-1, 1):
        parts += [
            Primitive("box", (0.12, 0.045, 0.04), (0.04, s * 0.10, 0.04), "dark"),
            Primitive("capsule", (0.075, 0.33), (0.0, s * 0.10, 0.45), "jeans"),
            Primitive(
                "capsule", (0.05, 0.22), (0.0, s * 0.255, 1.14), solid=False, turn_deg=(s * 8.0, 0.0, 0.0)
            ),
            Primitive("sphere", (0.052,), (0.0, s * 0.29, 0.88), "skin", solid=False),
        ]
    return (
        *parts,
        Primitive("cylinder", (0.195, 0.10), (0.0, 0.0, 0.58)),
        Primitive("cylinder", (0.180, 0.10), (0.0, 0.0, 0.76)),
        Primitive("cylinder", (0.165, 0.07), (0.0, 0.0, 0.90)),
        Primitive("ellipsoid", (0.14, 0.22, 0.36), (0.0, 0.0, 1.12), solid=False),
        Primitive("cylinder", (0.055, 0.05), (0.0, 0.0, 1.45), "skin"),
        Primitive("ellipsoid", (0.105, 0.095, 0.125), (0.0, 0.0, 1.58), "skin", solid=False),
        Primitive("ellipsoid", (0.110, 0.102, 0.09), (-0.02, 0.0, 1.65), "hair", solid=False),
    )


def _table() -> tuple[Primitive, ...]:
    legs = tuple(
        Primitive("box", (0.03, 0.03, 0.31), (sx * 0.40, sy * 0.26, 0.31), shade=0.8)
        for sx in (-1, 1)
        for sy in (-1, 1)
    )
    # The shelf keeps a robot that is lower than the table top from walking underneath.
    shelf = Primitive("box", (0.39, 0.25, 0.03), (0.0, 0.0, 0.20), shade=0.9)
    return (*legs, shelf, Primitive("box", (0.46, 0.32, 0.03), (0.0, 0.0, 0.65)))


def _plant() -> tuple[Primitive, ...]:
    pot = tuple(Primitive("cylinder", (0.15 + 0.02 * i, 0.05), (0.0, 0.0, 0.05 + 0.10 * i)) for i in range(3))
    rim = Primitive("cylinder", (0.215, 0.03), (0.0, 0.0, 0.33))
    soil = Primitive("cylinder", (0.19, 0.005), (0.0, 0.0, 0.362), "stem")
    stem = Primitive("cylinder", (0.018, 0.22), (0.0, 0.0, 0.56), "stem")
    leaves = []
    for i in range(11):
        yaw_deg = i * 137.5
        pitch_deg = -75.0 + 6.0 * i
        reach = 0.22 * math.cos(math.radians(pitch_deg))
        yaw = math.radians(yaw_deg)
        pos = (reach * math.cos(yaw), reach * math.sin(yaw), 0.92 - 0.042 * i)
        shade = 0.85 + 0.08 * (i % 4)
        leaves.append(
            Primitive("ellipsoid", (0.20, 0.065, 0.02), pos, "leaf", False, (0.0, pitch_deg, yaw_deg), shade)
        )
    return (*pot, rim, soil, stem, *leaves)


def _door() -> tuple[Primitive, ...]:
    frame = [Primitive("box", (0.03, 0.05, 1.04), (0.0, s * 0.49, 1.04), "white") for s in (-1, 1)]
    lintel = Primitive("box", (0.03, 0.54, 0.05), (0.0, 0.0, 2.10), "white")
    panels = tuple(
        Primitive("box", (0.026, 0.30, 0.38), (0.0, 0.0, z), solid=False, shade=0.72) for z in (0.55, 1.50)
    )
    knob = (
        Primitive("sphere", (0.035,), (0.05, 0.35, 1.02), "steel", solid=False),
        Primitive("box", (0.024, 0.03, 0.09), (0.004, 0.35, 1.02), "steel", solid=False),
    )
    return (*frame, lintel, Primitive("box", (0.022, 0.44, 1.03), (0.0, 0.0, 1.03)), *panels, *knob)


SHAPES: dict[str, tuple[Primitive, ...]] = {
    "chair": _chair(),
    "ball": _ball(),
    "box": _box(),
    "cone": _cone(),
    "person": _person(),
    "table": _table(),
    "plant": _plant(),
    "door": _door(),
}
KINDS = tuple(SHAPES)

DOOR_DEPTH_M = 0.06
"""Depth of a door with its frame; its back is in the wall's surface."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One named object in a room; `yaw_rad` turns its front (x) from the room's x axis, left positive."""

    name: str
    kind: str
    colour: str
    x_m: float
    y_m: float
    yaw_rad: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ValueError(f"unknown kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.colour not in PALETTE:
            raise ValueError(f"unknown colour {self.colour!r}; known: {', '.join(COLOURS)}")
        if self.name != f"{self.colour} {self.kind}":
            raise ValueError(f"name {self.name!r} must be '{self.colour} {self.kind}'")

    @property
    def primitives(self) -> tuple[Primitive, ...]:
        """The shape at scale 1 in the object's frame."""
        return SHAPES[self.kind]


def footprint_radius_m(kind: str, scale: float = 1.0) -> float:
    """Radius of the circle around the origin that holds the footprint of a kind."""
    return scale * max(
        math.hypot(p.pos[0], p.pos[1])
        + (math.hypot(*_half_extent(p)) if p.shape == "box" else max(_half_extent(p)))
        for p in SHAPES[kind]
        if p.solid
    )


def distance_to_footprint(item: SceneObject, x_m: float, y_m: float) -> float:
    """Metres from a point on the floor to the nearest point of the object's footprint; 0 inside it."""
    cos, sin = math.cos(item.yaw_rad), math.sin(item.yaw_rad)
    dx, dy = (x_m - item.x_m) / item.scale, (y_m - item.y_m) / item.scale
    lx, ly = cos * dx + sin * dy, -sin * dx + cos * dy
    return item.scale * min(_distance_to(p, lx, ly) for p in item.primitives if p.solid)


def _half_extent(p: Primitive) -> tuple[float, float]:
    """Half sizes along x and y of the primitive's projection on the floor."""
    return (p.size[0], p.size[1]) if p.shape == "box" else (p.size[0], p.size[0])


def _distance_to(p: Primitive, x: float, y: float) -> float:
    dx, dy = abs(x - p.pos[0]), abs(y - p.pos[1])
    hx, hy = _half_extent(p)
    if p.shape == "box":
        return math.hypot(max(0.0, dx - hx), max(0.0, dy - hy))
    return max(0.0, math.hypot(dx, dy) - hx)
