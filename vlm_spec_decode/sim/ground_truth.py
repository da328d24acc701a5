"""The ground truth of a run: path, collisions and distances, which no robot topic has, and its picture.

`--view` writes the room from above beside the robot from behind. A PNG shows the end of the run. A GIF is
rendered from the recorded path afterwards, so that recording costs the run nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.camera import Rgb8
from vlm_spec_decode.sim.physics.kinematic_body import Shape
from vlm_spec_decode.sim.views import WorldViews, save_gif, save_png
from vlm_spec_decode.sim.world import World

PERIOD_S = 0.2


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The end of a run. `path` holds (time_s, x_m, y_m, yaw_rad) in the room's frame, five times a second."""

    scene_seed: int
    collisions: int
    touching: tuple[str, ...]
    x_m: float
    y_m: float
    yaw_rad: float
    distances_m: dict[str, float]
    path: tuple[tuple[float, float, float, float], ...]
    shapes: tuple[Shape, ...] = ()
    """The body's shape at each point of the path."""

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> GroundTruth:
        """Return the ground truth that `save` has written."""
        path = tuple(tuple(point) for point in data["path"])
        shapes = tuple(Shape(**{**s, "joints_rad": tuple(s["joints_rad"])}) for s in data["shapes"])
        return cls(**{**data, "touching": tuple(data["touching"]), "path": path, "shapes": shapes})

    def save(self, file: Path) -> None:
        """Write as JSON, atomically."""
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(file)


@dataclass(slots=True)
class PathRecorder:
    """Records the robot's path. `record` may be called at any rate."""

    _points: list[tuple[float, float, float, float]] = field(default_factory=list)
    _shapes: list[Shape] = field(default_factory=list)

    def record(self, world: World) -> None:
        """Store the pose if the last stored one is old enough."""
        if not self._points or world.time_s - self._points[-1][0] >= PERIOD_S:
            pose = world.pose
            self._points.append((world.time_s, pose.x_m, pose.y_m, pose.yaw_rad))
            self._shapes.append(world.shape)

    def finish(self, world: World) -> GroundTruth:
        """Return the ground truth of the run that ends now."""
        pose = world.pose
        return GroundTruth(
            scene_seed=world.scene.seed,
            collisions=world.collisions,
            touching=tuple(sorted(world.touching)),
            x_m=pose.x_m,
            y_m=pose.y_m,
            yaw_rad=pose.yaw_rad,
            distances_m={name: world.distance_to(name) for name in world.scene.names},
            path=tuple(self._points),
            shapes=tuple(self._shapes),
        )


SUFFIXES = (".png", ".gif")
PANEL_PX = 480
MAX_FRAMES = 24
GIF_FPS = 6.0


def check_view(file: Path) -> None:
    """Check before the run that the file can be written. Raises ConfigError."""
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"view: {file.name!r} ends in neither of {', '.join(SUFFIXES)}")
    if not file.parent.is_dir():
        raise ConfigError(f"view: there is no folder {str(file.parent)!r}")


def save_view(world: World, truth: GroundTruth, file: Path) -> None:
    """Write the picture of a run that has ended; a GIF leaves the world at the end of the path."""
    path = [Pose2D(x, y, yaw) for _, x, y, yaw in truth.path]
    still = file.suffix.lower() == ".png"
    quality = "nice" if still else "fast"
    views = WorldViews(world, width_px=PANEL_PX, height_px=2 * PANEL_PX, quality=quality)
    try:
        if still:
            save_png(_panels(views, world, path), file)
        else:
            save_gif(_frames(views, world, path, truth), file, fps=GIF_FPS)
    finally:
        views.close()


def _frames(views: WorldViews, world: World, path: list[Pose2D], truth: GroundTruth) -> list[Rgb8]:
    steps = np.linspace(0, len(path) - 1, min(MAX_FRAMES, len(path))).round().astype(int)
    frames = []
    for index in steps.tolist():
        world.show(path[index], truth.shapes[index])
        frames.append(_panels(views, world, path[: index + 1]))
    return frames or [_panels(views, world, path)]


def _panels(views: WorldViews, world: World, path: list[Pose2D]) -> Rgb8:
    above = views.top_down(world, path, width_px=PANEL_PX)
    behind = views.third_person(world, width_px=PANEL_PX, height_px=above.shape[0])
    return np.hstack([above, behind])
