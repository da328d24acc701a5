"""What really happened in the room: the path, collisions and distances that no topic of the robot tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_spec_decode.sim.body import Shape
from vlm_spec_decode.sim.world import World

PERIOD_S = 0.2


@dataclass(frozen=True, slots=True)
class Truth:
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
    """How the body held itself at each point of the path."""

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Truth:
        """Return what `save` has written."""
        path = tuple(tuple(point) for point in data["path"])
        shapes = tuple(Shape(**{**s, "joints_rad": tuple(s["joints_rad"])}) for s in data["shapes"])
        return cls(**{**data, "touching": tuple(data["touching"]), "path": path, "shapes": shapes})

    def save(self, file: Path) -> None:
        """Write as JSON, complete or not at all."""
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(file)


@dataclass(slots=True)
class PathRecorder:
    """Notes where the robot is; `note` as often as you like."""

    _points: list[tuple[float, float, float, float]] = field(default_factory=list)
    _shapes: list[Shape] = field(default_factory=list)

    def note(self, world: World) -> None:
        """Keep the pose if the last one kept is old enough."""
        if not self._points or world.time_s - self._points[-1][0] >= PERIOD_S:
            pose = world.pose
            self._points.append((world.time_s, pose.x_m, pose.y_m, pose.yaw_rad))
            self._shapes.append(world.shape)

    def finish(self, world: World) -> Truth:
        """Return the truth of the run that ends now."""
        pose = world.pose
        return Truth(
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
