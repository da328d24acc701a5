"""Frames from the simulator with their objects: written once, then memory-mapped for training.

A data folder holds `frames.npy` [n, 128, 128, 3] uint8, `patches.npy` [n, 64] int8 (object that a patch
of 16 pixels shows, -1 none), `objects.npy` [n, 8, 6] float32 (see `Column`) and `meta.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from enum import IntEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from tqdm import tqdm

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.models.tiny import IMAGE_PX, PATCHES_ACROSS
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.objects import COLOURS, KINDS, footprint_radius_m
from vlm_spec_decode.sim.scene import Scene, random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.config import DataConfig
from vlm_spec_decode.train.instructions import held_out

MAX_OBJECTS = 8
CHUNK_SCENES = 50
RENDER_PX = (256, 144)
DONE_FILE = "done.json"


class Column(IntEnum):
    """Columns of one object's row; distances in metres from the base, bearings in degrees, left positive.

    `DISTANCE` runs to the nearest point of the footprint, `CENTRE` to its centre; `KIND` is -1 in unused
    rows; `PIXELS` counts what shows on a map of 128 x 128.
    """

    KIND = 0
    COLOUR = 1
    BEARING = 2
    DISTANCE = 3
    CENTRE = 4
    PIXELS = 5


@dataclass(frozen=True, slots=True)
class FrameSet:
    """An open data folder. `dialogues` are those about each frame of a recorded walk, else empty."""

    frames: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.int8]
    objects: npt.NDArray[np.float32]
    digest: str
    dialogues: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.frames)


def open_frames(folder: Path) -> FrameSet:
    """Map a data folder. Raises ConfigError if it is missing or unfinished."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "patches", "objects")]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no finished frames ({error}); `vsd train data` makes them"
        ) from error
    file = folder / "talks.json"
    loaded = json.loads(file.read_text(encoding="utf-8")) if file.exists() else ()
    return FrameSet(arrays[0], arrays[1], arrays[2], meta["digest"], tuple(loaded))


def run_data(config: DataConfig) -> dict[str, Any]:
    """Render all frames; chunks that an interrupted run finished are not rendered again.

    Raises ConfigError rather than render a room that is held out, mix frames of other settings into the
    folder's, or begin what the disk cannot hold.
    """
    if config.first_seed + config.num_scenes > held_out().first_scene_seed:
        raise ConfigError(f"rooms from seed {held_out().first_scene_seed} on are held out: fewer --scenes")
    config.out.mkdir(parents=True, exist_ok=True)
    count = config.num_scenes * config.poses
    done = _finished(config)
    _allocate(config.out, count)
    firsts = [f for f in range(0, config.num_scenes, CHUNK_SCENES) if f not in done]
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        jobs = ((config, first) for first in firsts)
        for first in tqdm(pool.map(_render_chunk, jobs), total=len(firsts), unit="chunk", desc="frames"):
            done.add(first)
            _write_progress(config, done)
    return _finish(config, count)


def _finished(config: DataConfig) -> set[int]:
    """Return the finished chunks. Raises ConfigError if they were rendered with other settings."""
    file = config.out / DONE_FILE
    if not file.exists():
        return set()
    found = json.loads(file.read_text())
    if found["settings"] != _settings(config):
        raise ConfigError(f"{config.out} holds frames of other settings: name another folder, or remove it")
    return set(found["chunks"])


def _write_progress(config: DataConfig, done: set[int]) -> None:
    """Write which chunks are finished; if this is interrupted, the old list remains."""
    partial = config.out / f"{DONE_FILE}.partial"
    partial.write_text(json.dumps({"settings": _settings(config), "chunks": sorted(done)}))
    partial.replace(config.out / DONE_FILE)


def _settings(config: DataConfig) -> dict[str, str]:
    """Return the settings that decide the frames."""
    settings = {k: str(v) for k, v in asdict(config).items() if k not in {"out", "workers"}}
    return settings | {"never_shown": ", ".join(sorted(held_out().pairs))}


def observe(camera: FrontCamera, world: World) -> npt.NDArray[np.float32]:
    """Return the ground truth of every object from the camera's pose [8, 6]."""
    labels = camera.label_map(IMAGE_PX, IMAGE_PX)
    return object_rows(world, [int((labels == i).sum()) for i in range(len(world.scene.objects))])


def object_rows(world: World, pixels: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the rows of a frame's objects [8, 6] (`Column`), given each one's pixels; -1 where none."""
    rows = np.full((MAX_OBJECTS, len(Column)), -1, dtype=np.float32)
    pose = world.pose
    for i, item in enumerate(world.scene.objects):
        rows[i] = (
            KINDS.index(item.kind),
            COLOURS.index(item.colour),
            math.degrees(world.bearing_to(item.name)),
            world.distance_to(item.name),
            math.hypot(item.x_m - pose.x_m, item.y_m - pose.y_m),
            pixels[i],
        )
    return rows


def squash(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Bring a 16:9 frame to the models' 128 x 128 as their image processor does (bicubic, antialiased)."""
    image = PilImage.fromarray(rgb).resize((IMAGE_PX, IMAGE_PX), PilImage.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _patches(camera: FrontCamera) -> npt.NDArray[np.int8]:
    """Object of each patch [64]: whichever covers most of it, if it covers a tenth."""
    labels = camera.label_map(IMAGE_PX, IMAGE_PX)
    side = IMAGE_PX // PATCHES_ACROSS
    blocks = (
        labels.reshape(PATCHES_ACROSS, side, PATCHES_ACROSS, side).swapaxes(1, 2).reshape(-1, side * side)
    )
    counts = np.stack([(blocks == i).sum(1) for i in range(MAX_OBJECTS)], axis=1)
    best = counts.argmax(1)
    return np.where(counts.max(1) * 10 >= side * side, best, -1).astype(np.int8)


def _render_chunk(job: tuple[DataConfig, int]) -> int:
    config, first = job
    arrays = [
        np.load(config.out / f"{name}.npy", mmap_mode="r+") for name in ("frames", "patches", "objects")
    ]
    camera: FrontCamera | None = None
    for index in range(first, min(first + CHUNK_SCENES, config.num_scenes)):
        seed = config.first_seed + index
        world = World(random_scene(seed, num_objects=config.num_objects, forbid=held_out().pairs), seed=seed)
        if camera is None:
            camera = FrontCamera(world, *RENDER_PX, quality="fast")
        camera.attach(world)
        rng = np.random.default_rng([seed, 0xF2])
        for k in range(config.poses):
            world.teleport(sample_pose(world, rng))
            at = index * config.poses + k
            arrays[0][at] = squash(camera.render())
            arrays[1][at] = _patches(camera)
            arrays[2][at] = observe(camera, world)
    if camera:
        camera.close()
    return first


def sample_pose(world: World, rng: np.random.Generator) -> Pose2D:
    """Draw a camera pose: near an object (at any distance of an approach) or anywhere."""
    scene = world.scene
    for _ in range(100):
        if rng.random() < 0.65:
            pose = _approach(scene, rng)
        else:
            x = rng.uniform(-0.5, 0.5) * (scene.length_m - 1.0)
            y = rng.uniform(-0.5, 0.5) * (scene.width_m - 1.0)
            pose = Pose2D(float(x), float(y), float(rng.uniform(-math.pi, math.pi)))
        if world.is_free(pose):
            return pose
    return scene.start


def _approach(scene: Scene, rng: np.random.Generator) -> Pose2D:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    gap = rng.uniform(0.38, 0.9) if rng.random() < 0.45 else rng.uniform(0.5, 4.2)
    reach = float(gap) + footprint_radius_m(item.kind, item.scale)
    angle = rng.uniform(-math.pi, math.pi)
    x, y = item.x_m + reach * math.cos(angle), item.y_m + reach * math.sin(angle)
    off = rng.normal(0.0, math.radians(25.0))
    return Pose2D(float(x), float(y), float(angle + math.pi + off))


def _allocate(folder: Path, count: int) -> None:
    """Reserve the space of all frames at once: a full disk under a mapped file would kill the process."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "frames": ((count, IMAGE_PX, IMAGE_PX, 3), np.uint8),
        "patches": ((count, PATCHES_ACROSS**2), np.int8),
        "objects": ((count, MAX_OBJECTS, len(Column)), np.float32),
    }
    for name, (shape, dtype) in shapes.items():
        path = folder / f"{name}.npy"
        if path.exists() and np.load(path, mmap_mode="r").shape == shape:
            continue
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
        size_bytes = path.stat().st_size
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
        except OSError as error:
            path.unlink()
            raise ConfigError(
                f"no room for {size_bytes / 1e6:.0f} MB in {folder}: {error.strerror}"
            ) from error


def _finish(config: DataConfig, count: int) -> dict[str, Any]:
    objects = np.load(config.out / "objects.npy", mmap_mode="r")
    settings = _settings(config)
    content = json.dumps(settings, sort_keys=True).encode()
    digest = hashlib.sha256(content + objects.tobytes()).hexdigest()[:16]
    meta = {"digest": digest, "frames": count, **settings}
    (config.out / "meta.json").write_text(json.dumps(meta, indent=1))
    return meta
