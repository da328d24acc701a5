"""A room with objects as plain data, from a seed or from a YAML file.

Knows geometry and files; nothing of MuJoCo. The room is a rectangle centred on the origin, x along
its length, y along its width, metres and radians, yaw left positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from vlm_spec_decode.sim.objects import (
    COLOURS,
    DOOR_DEPTH_M,
    KINDS,
    PALETTE,
    Rgb,
    SceneObject,
    distance_to_footprint,
    footprint_radius_m,
)

__all__ = [
    "COLOURS",
    "DOOR_DEPTH_M",
    "FLOORS",
    "KINDS",
    "PALETTE",
    "Light",
    "Pose2D",
    "Rgb",
    "Scene",
    "SceneObject",
    "distance_to_footprint",
    "dump_scene",
    "footprint_radius_m",
    "load_scene",
    "random_scene",
]


@dataclass(frozen=True, slots=True)
class Pose2D:
    """Where something stands on the floor and where it faces."""

    x_m: float
    y_m: float
    yaw_rad: float = 0.0


FLOORS = ("tiles", "plain", "chequered", "speckled", "planks")
"""Patterns of a floor; its colour is the scene's."""


@dataclass(frozen=True, slots=True)
class Light:
    """One lamp far away: direction from which it shines, and brightness (1 = ordinary)."""

    azimuth_rad: float = 0.8
    elevation_rad: float = 1.0
    brightness: float = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A room, what stands in it, and where the robot starts."""

    seed: int
    length_m: float
    width_m: float
    objects: tuple[SceneObject, ...]
    start: Pose2D
    floor_rgb: Rgb = (0.60, 0.56, 0.50)
    wall_rgb: Rgb = (0.84, 0.83, 0.80)
    light: Light = field(default_factory=Light)
    name: str = "room"
    floor: str = "tiles"

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"two objects have the same name: {', '.join(names)}")
        if self.floor not in FLOORS:
            raise ValueError(f"unknown floor {self.floor!r}; known: {', '.join(FLOORS)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all objects, in the order of `objects`."""
        return tuple(item.name for item in self.objects)

    def clearance_m(self, x_m: float, y_m: float) -> float:
        """Metres from a point to the nearest wall or footprint; negative behind a wall."""
        walls = min(self.length_m / 2 - abs(x_m), self.width_m / 2 - abs(y_m))
        return min([walls, *(distance_to_footprint(item, x_m, y_m) for item in self.objects)])


def random_scene(
    seed: int, *, num_objects: tuple[int, int] = (2, 5), forbid: frozenset[str] = frozenset()
) -> Scene:
    """Return the scene of a seed; see `sim.scene_random` for what it promises."""
    from vlm_spec_decode.sim.scene_random import generate

    return generate(seed, num_objects=num_objects, forbid=forbid)


def load_scene(path: str | Path) -> Scene:
    """Read a scene file. Raises SceneError naming the offending key."""
    from vlm_spec_decode.sim.scene_file import read

    return read(Path(path))


def dump_scene(scene: Scene, path: str | Path) -> None:
    """Write a scene file that `load_scene` reads back to an equal scene."""
    from vlm_spec_decode.sim.scene_file import write

    write(scene, Path(path))


def facing(from_pose: Pose2D, x_m: float, y_m: float) -> float:
    """Bearing of a point relative to a pose, radians in (-pi, pi], left positive."""
    angle = math.atan2(y_m - from_pose.y_m, x_m - from_pose.x_m) - from_pose.yaw_rad
    return math.atan2(math.sin(angle), math.cos(angle))
