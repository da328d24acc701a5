"""The objects in view of one frame: their description in words, and where they are by geometry alone.

Uses the ground truth of a frame; no instructions and no actions.

`project_objects` computes by geometry alone what the robot's camera would show: no picture is drawn. Objects
are upright plates as wide as their footprint and as high as their shape, seen by the pinhole of
`sim.camera`. It depends on the room and the pose only, not on words or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.edge.told_numbers import rounded_m
from vlm_spec_decode.models.tiny import IMAGE_PX
from vlm_spec_decode.sim.objects import COLOURS, DOOR_DEPTH_M, KINDS, SHAPES, SceneObject, footprint_radius_m
from vlm_spec_decode.sim.physics.kinematic_body import STAND_HEIGHT_M
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.frames import object_rows

MIN_PIXELS = 24
"""An object with fewer pixels than this, of 16,384, does not count as visible."""

MAX_DESCRIBED = 4
"""Largest number of objects in a description."""

AHEAD_DEG = 12
"""Bearings smaller than this are called ahead."""


@dataclass(frozen=True, slots=True)
class VisibleObject:
    """One object as seen from the robot."""

    kind: str
    colour: str
    bearing_deg: float
    distance_m: float
    centre_m: float
    pixels: int

    @property
    def name(self) -> str:
        """Colour and kind."""
        return f"{self.colour} {self.kind}"

    @property
    def is_visible(self) -> bool:
        """Whether enough pixels of it are in view."""
        return self.pixels >= MIN_PIXELS


def read_objects(rows: npt.NDArray[np.float32]) -> tuple[VisibleObject, ...]:
    """Read the objects of one frame [8, 6] (see `train.frames.Column`)."""
    return tuple(
        VisibleObject(KINDS[int(k)], COLOURS[int(c)], float(b), float(d), float(m), int(p))
        for k, c, b, d, m, p in rows
        if k >= 0
    )


def describe(view: tuple[VisibleObject, ...], with_distance: bool = False) -> str:
    """Return the objects in view as text, left to right: at most the `MAX_DESCRIBED` largest."""
    described = sorted((t for t in view if t.is_visible), key=lambda t: -t.pixels)[:MAX_DESCRIBED]
    parts = [
        f"a {t.name} {direction_word(t)}"
        + (f" at {format_metres(rounded_m(t.distance_m))} m" if with_distance else "")
        for t in sorted(described, key=lambda t: -t.bearing_deg)
    ]
    return "i see " + (" , ".join(parts) or "nothing")


def describe_briefly(
    view: tuple[VisibleObject, ...], things: tuple[str, ...], with_distance: bool = False
) -> str:
    """Return the names of the objects in view that share a word with `things`, left to right.

    All objects are named if `things` are empty; an empty text says that there is none.
    """
    words = {word for thing in things for word in thing.split()}
    seen = [t for t in view if t.is_visible and (not words or words & {t.kind, t.colour})]
    named = sorted(seen, key=lambda t: -t.pixels)[:MAX_DESCRIBED]
    return " , ".join(
        t.name + (f" {format_metres(rounded_m(t.distance_m))} m" if with_distance else "")
        for t in sorted(named, key=lambda t: -t.bearing_deg)
    )


def direction_word(thing: VisibleObject) -> str:
    """Return the direction of an object as a word."""
    if abs(thing.bearing_deg) <= AHEAD_DEG:
        return "ahead"
    return "left" if thing.bearing_deg > 0 else "right"


def format_metres(distance_m: float) -> str:
    """Return a distance as a number word of the vocabulary."""
    return f"{min(5.0, max(0.1, distance_m)):.1f}"


def related(relation: str, fits: list[VisibleObject], other: VisibleObject) -> VisibleObject | None:
    """Return which of `fits` is beside, behind, left or right of `other`, as seen from the robot."""
    fits = [t for t in fits if t is not other]
    if relation == "left":
        fits = [t for t in fits if t.bearing_deg > other.bearing_deg]
        return min(fits, key=lambda t: t.bearing_deg, default=None)
    if relation == "right":
        fits = [t for t in fits if t.bearing_deg < other.bearing_deg]
        return max(fits, key=lambda t: t.bearing_deg, default=None)
    if relation == "behind":
        fits = [t for t in fits if t.distance_m > other.distance_m]
        return min(fits, key=lambda t: abs(t.bearing_deg - other.bearing_deg), default=None)
    return min(fits, key=lambda t: _apart_m(t, other), default=None)


def _apart_m(one: VisibleObject, other: VisibleObject) -> float:
    """Return the distance between the centres of two objects, by the law of cosines."""
    angle = math.radians(one.bearing_deg - other.bearing_deg)
    square = one.centre_m**2 + other.centre_m**2 - 2 * one.centre_m * other.centre_m * math.cos(angle)
    return math.sqrt(max(0.0, square))


CAMERA_AHEAD_M = 0.327
CAMERA_HEIGHT_M = STAND_HEIGHT_M + 0.043
HALF_WIDTH = math.tan(math.radians(50.0))
"""Half the image's width at a depth of 1 m; its height is 9/16 of it."""

NEAREST_M = 0.05
FILLED = 0.6
"""Share of its plate that a shape fills, on average."""


@cache
def height_m(kind: str) -> float:
    """Return how high a kind is at scale 1."""
    return max(p.pos[2] + p.size[-1] for p in SHAPES[kind])


def project_objects(world: World) -> npt.NDArray[np.float32]:
    """Return what `train.frames.observe` returns [8, 6], with the pixels of each object estimated.

    Nearer objects hide farther ones, column by column, up to their own height. Compared with the renderer,
    the visibility of 97 of 100 objects is estimated correctly.
    """
    return object_rows(world, _pixels(world))


def _pixels(world: World) -> list[int]:
    """Return how many of 128 x 128 pixels show each object of the room."""
    plates = [_plate(world, item) for item in world.scene.objects]
    covered = np.full(IMAGE_PX, float(IMAGE_PX))  # topmost row, counted from above, that something covers
    shown = [0] * len(plates)
    for i in sorted(range(len(plates)), key=lambda k: plates[k][0]):
        depth, left, right, top, bottom = plates[i]
        if depth < NEAREST_M or right <= left:
            continue
        columns = slice(left, right)
        free = np.clip(np.minimum(bottom, covered[columns]) - top, 0.0, None)
        shown[i] = int(FILLED * free.sum())
        covered[columns] = np.minimum(covered[columns], top)
    return shown


def _plate(world: World, item: SceneObject) -> tuple[float, int, int, float, float]:
    """Return depth in metres, first and last column, first and last row of `item`'s plate."""
    pose = world.pose
    along, aside = _ahead(world, item.x_m, item.y_m)
    along -= CAMERA_AHEAD_M
    if along < NEAREST_M:
        return 0.0, 0, 0, 0.0, 0.0
    half = footprint_radius_m(item.kind, item.scale)
    if item.kind == "door":
        # A door is flat: from the side little of it is wide.
        turned = item.yaw_rad - pose.yaw_rad
        half = half * abs(math.cos(turned)) + DOOR_DEPTH_M * abs(math.sin(turned))
    scale = IMAGE_PX / 2 / HALF_WIDTH / along
    columns = [IMAGE_PX / 2 - scale * (aside + sign * half) for sign in (1, -1)]
    down = scale * 16 / 9
    height = item.scale * height_m(item.kind)
    ends = [IMAGE_PX / 2 + down * (CAMERA_HEIGHT_M - z) for z in (height, 0.0)]
    left, right = (min(IMAGE_PX, max(0, round(c))) for c in columns)
    top, bottom = (min(float(IMAGE_PX), max(0.0, e)) for e in ends)
    return along, left, right, top, bottom


def _ahead(world: World, x_m: float, y_m: float) -> tuple[float, float]:
    """Return how far a point lies ahead of the base and to its left."""
    dx, dy, yaw = x_m - world.pose.x_m, y_m - world.pose.y_m, world.pose.yaw_rad
    return dx * math.cos(yaw) + dy * math.sin(yaw), dy * math.cos(yaw) - dx * math.sin(yaw)
