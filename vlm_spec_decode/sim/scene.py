"""Rooms as plain data: types, random rooms from a seed, and YAML files.

Geometry and files; nothing of MuJoCo. The room is a rectangle centred on the origin, x along its length, y
along its width, metres and radians, yaw left positive.

Random rooms guarantee: the same seed gives the same scene; every (colour, kind) occurs once; footprints are
at least `GAP_M` apart, so that the robot passes between any two objects; the start has `START_CLEARANCE_M`
all around and an object ahead of it. About one scene in three holds a pair that shares a kind or a colour,
so that both words of a name matter; in the others all kinds and colours differ.

Scene files are YAML with one mapping per object, checked key by key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlm_spec_decode.core.config import read_yaml
from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.objects import (
    COLOURS,
    DOOR_DEPTH_M,
    KINDS,
    Rgb,
    SceneObject,
    distance_to_footprint,
    footprint_radius_m,
)

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
    """A room, its objects, and the robot's start."""

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
    """Return the scene of a seed; the module's docstring lists its guarantees."""
    return generate(seed, num_objects=num_objects, forbid=forbid)


def load_scene(path: str | Path) -> Scene:
    """Read a scene file. Raises SceneError naming the offending key."""
    return read(Path(path))


def dump_scene(scene: Scene, path: str | Path) -> None:
    """Write a scene file that `load_scene` reads back to an equal scene."""
    write(scene, Path(path))


def facing(from_pose: Pose2D, x_m: float, y_m: float) -> float:
    """Bearing of a point relative to a pose, radians in (-pi, pi], left positive."""
    angle = math.atan2(y_m - from_pose.y_m, x_m - from_pose.x_m) - from_pose.yaw_rad
    return math.atan2(math.sin(angle), math.cos(angle))


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
    # A room that is too full is drawn again as a whole, so that no object is favoured.
    for _ in range(200):
        length, width = (round(float(rng.uniform(5.0, 8.0)), 2) for _ in range(2))
        placed = _place_all(rng, names, length, width)
        start = placed and _choose_start(rng, Scene(seed, length, width, placed, Pose2D(0, 0)))
        if placed and start:
            floor, wall, light, pattern = _appearance(rng)
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
        # At most one pair shares a word: a red ball beside a red box needs both words to be told apart.
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
    """Place every object, or return () if the room is too full."""
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
    # d - r_a - r_b: the circles contain the footprints, so a gap between circles is one between footprints.
    between = math.hypot(a.x_m - b.x_m, a.y_m - b.y_m)
    return between - footprint_radius_m(a.kind, a.scale) - footprint_radius_m(b.kind, b.scale)


def _choose_start(rng: np.random.Generator, scene: Scene) -> Pose2D | None:
    """Draw a free pose from which one of the objects is ahead within 40 degrees."""
    for _ in range(_TRIES):
        x = round(float(rng.uniform(-0.5, 0.5)) * scene.length_m, 3)
        y = round(float(rng.uniform(-0.5, 0.5)) * scene.width_m, 3)
        if scene.clearance_m(x, y) < START_CLEARANCE_M:
            continue
        item = scene.objects[int(rng.integers(len(scene.objects)))]
        # 0.7 rad to either side keep the object within the camera's 100 degrees.
        yaw = facing(Pose2D(x, y), item.x_m, item.y_m) + float(rng.uniform(-0.7, 0.7))
        return Pose2D(x, y, round(math.atan2(math.sin(yaw), math.cos(yaw)), 3))
    return None


def _appearance(rng: np.random.Generator) -> tuple[Rgb, Rgb, Light, str]:
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


TOP_KEYS = (
    *("name", "seed", "length_m", "width_m"),
    *("floor", "floor_rgb", "wall_rgb", "light", "start", "objects"),
)
"""Keys of a scene file."""

PART_KEYS: Mapping[str, tuple[str, ...]] = {
    "start": ("x_m", "y_m", "yaw_deg"),
    "light": ("azimuth_deg", "elevation_deg", "brightness"),
    "objects": ("kind", "colour", "x_m", "y_m", "yaw_deg", "scale"),
}
"""Keys of its parts, and of each of its objects."""


def read(path: Path) -> Scene:
    """Read and check a scene file. Raises SceneError with file and key."""
    data = read_yaml(path, SceneError)
    try:
        return parse(data)
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from error


def parse(data: object) -> Scene:
    """Build a scene from a file's content. Raises SceneError with the key."""
    top = _mapping(data, "scene", TOP_KEYS)
    length, width = (_number(top, key, "", low=2.0, high=50.0) for key in ("length_m", "width_m"))
    items = top.get("objects", [])
    if not isinstance(items, list):
        raise SceneError("objects: must be a list")
    objects = tuple(_object(item, f"objects[{i}]") for i, item in enumerate(items))
    for i, item in enumerate(objects):
        if abs(item.x_m) > length / 2 or abs(item.y_m) > width / 2:
            raise SceneError(f"objects[{i}]: {item.name} lies outside the room")
        if item.name in {other.name for other in objects[:i]}:
            raise SceneError(f"objects[{i}]: a second {item.name}; colour and kind together must be unique")
    start = _mapping(top.get("start", {}), "start", PART_KEYS["start"])
    x, y = (_number(start, key, "start.", default=0.0) for key in ("x_m", "y_m"))
    pose = Pose2D(x, y, _yaw(start, "start."))
    if abs(pose.x_m) > length / 2 or abs(pose.y_m) > width / 2:
        raise SceneError("start: lies outside the room")
    plain = Scene(0, length, width, objects, pose)
    return Scene(
        int(_number(top, "seed", "", default=0.0)),
        length,
        width,
        objects,
        pose,
        _rgb(top, "floor_rgb", plain.floor_rgb),
        _rgb(top, "wall_rgb", plain.wall_rgb),
        _light(top.get("light", {})),
        str(top.get("name", plain.name)),
        _word({"floor": plain.floor, **top}, "floor", "", FLOORS),
    )


def write(scene: Scene, path: Path) -> None:
    """Write `scene` so that `read` gives an equal one."""
    light = scene.light
    data: dict[str, Any] = {
        "name": scene.name,
        "seed": scene.seed,
        "length_m": scene.length_m,
        "width_m": scene.width_m,
        "floor": scene.floor,
        "floor_rgb": list(scene.floor_rgb),
        "wall_rgb": list(scene.wall_rgb),
        "light": {
            "azimuth_deg": math.degrees(light.azimuth_rad),
            "elevation_deg": math.degrees(light.elevation_rad),
            "brightness": light.brightness,
        },
        "start": {
            "x_m": scene.start.x_m,
            "y_m": scene.start.y_m,
            "yaw_deg": math.degrees(scene.start.yaw_rad),
        },
        "objects": [
            {
                "kind": item.kind,
                "colour": item.colour,
                "x_m": item.x_m,
                "y_m": item.y_m,
                "yaw_deg": math.degrees(item.yaw_rad),
                "scale": item.scale,
            }
            for item in scene.objects
        ],
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def _object(value: object, where: str) -> SceneObject:
    data = _mapping(value, where, PART_KEYS["objects"])
    kind = _word(data, "kind", f"{where}.", KINDS)
    colour = _word(data, "colour", f"{where}.", COLOURS)
    x, y = (_number(data, key, f"{where}.") for key in ("x_m", "y_m"))
    scale = _number(data, "scale", f"{where}.", default=1.0, low=0.3, high=3.0)
    return SceneObject(f"{colour} {kind}", kind, colour, x, y, _yaw(data, f"{where}."), scale)


def _light(value: object) -> Light:
    data = _mapping(value, "light", PART_KEYS["light"])
    plain = Light()
    azimuth = _number(data, "azimuth_deg", "light.", default=math.degrees(plain.azimuth_rad))
    elevation = _number(
        data, "elevation_deg", "light.", default=math.degrees(plain.elevation_rad), low=5.0, high=90.0
    )
    brightness = _number(data, "brightness", "light.", default=plain.brightness, low=0.1, high=2.0)
    return Light(round(math.radians(azimuth), 9), round(math.radians(elevation), 9), brightness)


def _mapping(value: object, where: str, known: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise SceneError(f"{where}: must be a mapping with {', '.join(known)}")
    for key in value:
        if key not in known:
            raise SceneError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
    return value


def _number(
    data: Mapping[str, object],
    key: str,
    where: str,
    *,
    default: float | None = None,
    low: float = -1e9,
    high: float = 1e9,
) -> float:
    value = data.get(key, default)
    if value is None:
        raise SceneError(f"{where}{key}: missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        bounds = f" from {low:g} to {high:g}" if low > -1e9 else ""
        raise SceneError(f"{where}{key}: must be a number{bounds}, not {value!r}")
    return float(value)


def _yaw(data: Mapping[str, object], where: str) -> float:
    # Rounding to nine decimals undoes the conversion to degrees, so that a written scene reads back equal.
    return round(math.radians(_number(data, "yaw_deg", where, default=0.0)), 9)


def _word(data: Mapping[str, object], key: str, where: str, known: tuple[str, ...]) -> str:
    value = data.get(key)
    if not isinstance(value, str) or value not in known:
        raise SceneError(f"{where}{key}: must be one of {', '.join(known)}, not {value!r}")
    return value


def _rgb(data: Mapping[str, object], key: str, default: Rgb) -> Rgb:
    value = data.get(key, list(default))
    if not isinstance(value, list) or len(value) != 3:
        raise SceneError(f"{key}: must be three numbers from 0 to 1")
    channels = dict(zip("rgb", value, strict=True))
    red, green, blue = (_number(channels, c, f"{key}.", low=0.0, high=1.0) for c in "rgb")
    return (red, green, blue)
