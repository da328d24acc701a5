"""Pictures of the world for people: from above with labels and path, and from behind the robot.

Not part of the robot: nothing here is ever an input of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as iio
import mujoco
import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw

from vlm_spec_decode.sim.canvas import Canvas, Rgb8
from vlm_spec_decode.sim.floor_plan import (
    FloorPlan,
    draw_doors,
    draw_frame,
    draw_label,
    draw_path,
    draw_robot,
    draw_scale,
)
from vlm_spec_decode.sim.mjcf import WALL_NAMES
from vlm_spec_decode.sim.scene import Pose2D
from vlm_spec_decode.sim.world import World

_MARGIN_M = 0.45


class Views:
    """Draws pictures of worlds; one GL context for its life. `close` frees it."""

    def __init__(
        self, world: World, *, width_px: int = 960, height_px: int = 960, quality: str = "nice"
    ) -> None:
        """Make the context; `width_px` x `height_px` bounds every picture."""
        self._bounds = (width_px, height_px)
        self._canvas = Canvas(world.model, width_px, height_px, quality)

    def top_down(
        self, world: World, path: Sequence[Pose2D] = (), *, target: str | None = None, width_px: int = 800
    ) -> Rgb8:
        """Return the room from above with labels, scale bar, robot outline, the path and where it began.

        `target` names an object to ring. The height follows from the room's shape.
        """
        scene = world.scene
        across, along = scene.length_m + 2 * _MARGIN_M, scene.width_m + 2 * _MARGIN_M
        scale = min(min(width_px, self._bounds[0]) / across, self._bounds[1] / along)
        plan = FloorPlan(scene, scale, int(across * scale), int(along * scale))
        picture = PilImage.fromarray(self._from_above(world, plan))
        picture = picture.resize((2 * plan.width_px, 2 * plan.height_px), PilImage.Resampling.BICUBIC)
        small, plan = plan, FloorPlan(scene, 2 * scale, 2 * plan.width_px, 2 * plan.height_px)
        draw = ImageDraw.Draw(picture, "RGBA")
        draw_frame(draw, plan)
        draw_doors(draw, plan)
        draw_path(draw, plan, path)
        draw_robot(draw, plan, world.pose)
        for item in scene.objects:
            draw_label(draw, plan, item, ringed=item.name == target)
        draw_scale(draw, plan)
        return np.asarray(picture.resize((small.width_px, small.height_px), PilImage.Resampling.LANCZOS))

    def third_person(
        self,
        world: World,
        *,
        width_px: int = 800,
        height_px: int = 500,
        distance_m: float = 2.3,
        turn_deg: float = 28.0,
        elevation_deg: float = 24.0,
    ) -> Rgb8:
        """Return the robot from behind, `turn_deg` to its right; walls in front of the lens are left out."""
        world.sync()
        heading = math.degrees(world.pose.yaw_rad)
        camera = mujoco.MjvCamera()
        ahead = 0.35
        camera.lookat[:] = (
            world.pose.x_m + ahead * math.cos(world.pose.yaw_rad),
            world.pose.y_m + ahead * math.sin(world.pose.yaw_rad),
            0.30,
        )
        camera.distance, camera.azimuth, camera.elevation = distance_m, heading + turn_deg, -elevation_deg
        world.model.vis.global_.fovy, world.model.vis.global_.orthographic = 50.0, 0
        with _without_walls_before(world, camera):
            return self._canvas.draw(
                world.built, world.data, camera, width_px, height_px, robot=True, ceiling=False
            )

    def close(self) -> None:
        """Free the GL context. Idempotent."""
        self._canvas.close()

    def _from_above(self, world: World, plan: FloorPlan) -> Rgb8:
        world.sync()
        camera = mujoco.MjvCamera()
        camera.lookat[:] = (0.0, 0.0, 0.0)
        camera.distance, camera.azimuth, camera.elevation = 4.0, 90.0, -90.0
        view = world.model.vis.global_
        view.fovy, view.orthographic = plan.height_px / plan.px_per_m, 1
        camera.orthographic = 1
        return self._canvas.draw(
            world.built, world.data, camera, plan.width_px, plan.height_px, robot=True, ceiling=False
        )


def top_down(
    world: World, path: Sequence[Pose2D] = (), *, target: str | None = None, width_px: int = 800
) -> Rgb8:
    """Return one picture from above; see `Views.top_down`, which is cheaper for many."""
    views = Views(world, width_px=width_px, height_px=2 * width_px)
    try:
        return views.top_down(world, path, target=target, width_px=width_px)
    finally:
        views.close()


def third_person(world: World, *, width_px: int = 800, height_px: int = 500) -> Rgb8:
    """Return one picture from behind the robot; see `Views.third_person`, which is cheaper for many."""
    views = Views(world, width_px=width_px, height_px=height_px)
    try:
        return views.third_person(world, width_px=width_px, height_px=height_px)
    finally:
        views.close()


def save_gif(frames: Sequence[Rgb8], path: str | Path, *, fps: float = 10.0) -> None:
    """Write frames of one size as an endless GIF."""
    iio.imwrite(path, np.stack(frames), extension=".gif", duration=1000.0 / fps, loop=0)


def save_png(picture: Rgb8, path: str | Path) -> None:
    """Write one picture."""
    iio.imwrite(path, picture, extension=".png")


@contextmanager
def _without_walls_before(world: World, camera: mujoco.MjvCamera) -> Iterator[None]:
    """Make the walls that the camera stands behind invisible meanwhile."""
    flat = camera.distance * math.cos(math.radians(camera.elevation))
    x = camera.lookat[0] - flat * math.cos(math.radians(camera.azimuth))
    y = camera.lookat[1] - flat * math.sin(math.radians(camera.azimuth))
    half_x, half_y = world.scene.length_m / 2, world.scene.width_m / 2
    outside = (x > half_x, y > half_y, x < -half_x, y < -half_y)
    hidden = [
        int(world.model.geom(name).id) + k
        for name, out in zip(WALL_NAMES, outside, strict=True)
        if out
        for k in (0, 1)
    ]
    world.model.geom_rgba[hidden, 3] = 0.0
    try:
        yield
    finally:
        world.model.geom_rgba[hidden, 3] = 1.0
