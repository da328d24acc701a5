"""Scene files: YAML with one mapping per object, checked key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.yaml_file import read_yaml
from vlm_spec_decode.sim.objects import COLOURS, KINDS, Rgb, SceneObject
from vlm_spec_decode.sim.scene import FLOORS, Light, Pose2D, Scene

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
    # Nine decimals undo what degrees and back cost, so that a written scene reads back equal.
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
