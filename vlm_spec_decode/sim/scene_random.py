"""Rooms from a seed.

Promises: the same seed gives the same scene; every (colour, kind) occurs once; footprints are at least
`GAP_M` apart, so that the robot passes between any two things; the start has `START_CLEARANCE_M` all
around and something lies ahead of it. About one scene in three holds a pair that shares a kind or a
colour, so that both words of a name matter; in the others all kinds and colours differ.
"""

from __future__ import annotations

import math

import numpy as np

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.sim.objects import COLOURS, DOOR_DEPTH_M, KINDS, Rgb, SceneObject, footprint_radius_m
from vlm_spec_decode.sim.scene import FLOORS, Light, Pose2D, Scene, facing

GAP_M = 0.9
START_CLEARANCE_M = 0.8
WALL_GAP_M = 0.25
PAIR_SHARE = 1 / 3
_TRIES = 60

Name = tuple[str, str]


def generate(
    seed: int, *, num_objects: tuple[int, int] = (2, 5), forbid: frozenset[str] = frozenset()
) -> Scene:
    """Return the scene of a seed; `forbid` holds names, kinds or colours that must not occur.

    Raises SceneError if the counts are impossible or too much is forbidden.
    """
    low, high = num_objects
    if not 1 <= low <= high <= 8:
        raise SceneError(f"num_objects must be 1 <= low <= high <= 8, not {low}, {high}")
    rng = np.random.default_rng([seed, 0x5CE7E])
    names = _choose_names(rng, int(rng.integers(low, high + 1)), forbid)
    for _ in range(200):
        length, width = (round(float(rng.uniform(5.0, 8.0)), 2) for _ in range(2))
        placed = _place_all(rng, names, length, width)
        start = placed and _choose_start(rng, Scene(seed, length, width, placed, Pose2D(0, 0)))
        if placed and start:
            floor, wall, light, pattern = _look(rng)
            return Scene(seed, length, width, placed, start, floor, wall, light, f"seed {seed}", pattern)
    raise SceneError(f"num_objects: {len(names)} objects do not fit into a room of at most 8 x 8 m")


def _choose_names(rng: np.random.Generator, count: int, forbid: frozenset[str]) -> list[Name]:
    """Draw (colour, kind) names: all different in both words, except perhaps one pair sharing a word."""
    pool = [(c, k) for c in COLOURS for k in KINDS if not forbid & {c, k, f"{c} {k}"}]
    if len(pool) < count:
        raise SceneError(f"forbid leaves {len(pool)} objects where {count} are needed")
    chosen: list[Name] = []
    pair = count >= 2 and rng.random() < PAIR_SHARE
    shared = int(rng.integers(2))
    while len(chosen) < count:
        fits = [n for n in pool if n not in chosen]
        if pair and len(chosen) == 1:
            fits = [n for n in fits if n[shared] == chosen[0][shared]] or fits
        else:
            fits = [n for n in fits if all(n[0] != c[0] and n[1] != c[1] for c in chosen)] or fits
        chosen.append(fits[int(rng.integers(len(fits)))])
    rng.shuffle(chosen)
    return [(str(c), str(k)) for c, k in chosen]


def _place_all(
    rng: np.random.Generator, names: list[Name], length: float, width: float
) -> tuple[SceneObject, ...]:
    """Place every object, or return () where the room is too full."""
    placed: list[SceneObject] = []
    for colour, kind in names:
        for _ in range(_TRIES):
            item = _place(rng, colour, kind, length, width)
            if all(_gap_m(item, other) >= GAP_M for other in placed):
                placed.append(item)
                break
        else:
            return ()
    return tuple(placed)


def _place(rng: np.random.Generator, colour: str, kind: str, length: float, width: float) -> SceneObject:
    scale = round(float(rng.uniform(0.92, 1.12)), 3)
    reach = footprint_radius_m(kind, scale)
    if kind == "door":
        return _place_door(rng, colour, scale, length, width)
    x, y = (float(rng.uniform(-1, 1)) * (side / 2 - reach - WALL_GAP_M) for side in (length, width))
    yaw = float(rng.uniform(-math.pi, math.pi))
    return SceneObject(f"{colour} {kind}", kind, colour, round(x, 3), round(y, 3), round(yaw, 3), scale)


def _place_door(
    rng: np.random.Generator, colour: str, scale: float, length: float, width: float
) -> SceneObject:
    """Put a door into one of the four walls, facing the room."""
    side = int(rng.integers(4))
    depth, along = (length, width) if side % 2 == 0 else (width, length)
    away = depth / 2 - scale * DOOR_DEPTH_M / 2
    slide = float(rng.uniform(-1, 1)) * (along / 2 - 1.0)
    # Sides are +x, +y, -x, -y; the door's front looks back into the room.
    x, y = ((away, slide), (slide, away), (-away, slide), (slide, -away))[side]
    yaw = round((math.pi, -math.pi / 2, 0.0, math.pi / 2)[side], 9)
    return SceneObject(f"{colour} door", "door", colour, round(x, 3), round(y, 3), yaw, scale)


def _gap_m(a: SceneObject, b: SceneObject) -> float:
    """At most the distance between two footprints: that of the circles around them."""
    between = math.hypot(a.x_m - b.x_m, a.y_m - b.y_m)
    return between - footprint_radius_m(a.kind, a.scale) - footprint_radius_m(b.kind, b.scale)


def _choose_start(rng: np.random.Generator, scene: Scene) -> Pose2D | None:
    """Draw a free place from which one of the objects is ahead within 40 degrees."""
    for _ in range(_TRIES):
        x = round(float(rng.uniform(-0.5, 0.5)) * scene.length_m, 3)
        y = round(float(rng.uniform(-0.5, 0.5)) * scene.width_m, 3)
        if scene.clearance_m(x, y) < START_CLEARANCE_M:
            continue
        item = scene.objects[int(rng.integers(len(scene.objects)))]
        yaw = facing(Pose2D(x, y), item.x_m, item.y_m) + float(rng.uniform(-0.7, 0.7))
        return Pose2D(x, y, round(math.atan2(math.sin(yaw), math.cos(yaw)), 3))
    return None


def _look(rng: np.random.Generator) -> tuple[Rgb, Rgb, Light, str]:
    """Draw desaturated floor and wall colours, a lamp and the floor's pattern."""
    floor = _greyish(rng, float(rng.uniform(0.38, 0.70)))
    wall = _greyish(rng, float(rng.uniform(0.68, 0.90)))
    light = Light(
        round(float(rng.uniform(-math.pi, math.pi)), 3),
        round(float(rng.uniform(0.6, 1.35)), 3),
        round(float(rng.uniform(0.72, 1.2)), 3),
    )
    return floor, wall, light, FLOORS[int(rng.integers(len(FLOORS)))]


def _greyish(rng: np.random.Generator, value: float) -> Rgb:
    red, green, blue = (round(value + float(rng.uniform(-0.04, 0.04)), 3) for _ in range(3))
    return (red, green, blue)
