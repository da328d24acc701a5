"""Pictures of the world for people: from above with labels and path, and from behind the robot.

Sizes in pixels suit a picture of twice the final size, which the caller shrinks: Pillow's lines have hard
edges. Not part of the robot: nothing here is ever an input of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import imageio.v3 as iio
import mujoco
import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.camera import Canvas, Rgb8
from vlm_spec_decode.sim.objects import PALETTE, SceneObject, footprint_radius_m
from vlm_spec_decode.sim.physics.room_model import HULL_HALF_M, WALL_NAMES
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import World

_INK, _PAPER, _PATH, _PLAN = (32, 34, 40), (246, 246, 244), (226, 40, 120), (11, 95, 165)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """From the room's metres to pixels of a picture with x to the right and y up."""

    scene: Scene
    px_per_m: float
    width_px: int
    height_px: int

    def at(self, x_m: float, y_m: float) -> Point:
        """Return the pixel of a point on the floor."""
        return (self.width_px / 2 + x_m * self.px_per_m, self.height_px / 2 - y_m * self.px_per_m)


def draw_frame(draw: ImageDraw.ImageDraw, plan: FloorPlan) -> None:
    """Cover what lies outside the room and draw the walls."""
    x0, y1 = plan.at(-plan.scene.length_m / 2, -plan.scene.width_m / 2)
    x1, y0 = plan.at(plan.scene.length_m / 2, plan.scene.width_m / 2)
    for box in (
        (0, 0, plan.width_px, y0),
        (0, y1, plan.width_px, plan.height_px),
        (0, 0, x0, plan.height_px),
        (x1, 0, plan.width_px, plan.height_px),
    ):
        draw.rectangle(box, fill=_PAPER)
    wall = round(0.10 * plan.px_per_m)
    draw.rectangle((x0 - wall, y0 - wall, x1 + wall, y1 + wall), outline=(92, 94, 100), width=wall + 4)


def draw_doors(draw: ImageDraw.ImageDraw, plan: FloorPlan) -> None:
    """Mark doors as bars of their colour in the wall: from above only the lintel would be seen."""
    for item in plan.scene.objects:
        if item.kind == "door":
            cos, sin, half = math.cos(item.yaw_rad), math.sin(item.yaw_rad), 0.5 * item.scale
            ends = [
                plan.at(item.x_m - 0.06 * cos - s * half * sin, item.y_m - 0.06 * sin + s * half * cos)
                for s in (-1, 1)
            ]
            rgb = tuple(int(255 * c) for c in PALETTE[item.colour])
            draw.line(ends, fill=rgb, width=round(0.14 * plan.px_per_m))


def draw_path(draw: ImageDraw.ImageDraw, plan: FloorPlan, path: Sequence[Pose2D]) -> None:
    """Draw the robot's path and its start."""
    if len(path) < 2:
        return
    points = [plan.at(p.x_m, p.y_m) for p in path]
    draw.line(points, fill=(255, 255, 255, 170), width=16, joint="curve")
    draw.line(points, fill=(*_PATH, 255), width=8, joint="curve")
    x, y = points[0]
    draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=(255, 255, 255, 255), outline=_PATH, width=6)
    _text(draw, (x, y + 38), "start", 30)


def draw_plan(draw: ImageDraw.ImageDraw, plan: FloorPlan, poses: Sequence[Pose2D]) -> None:
    """Draw where the robot means to go: a dashed line, and a cross where it ends."""
    if len(poses) < 2:
        return
    for start, end in pairwise(poses):
        length_m = math.hypot(end.x_m - start.x_m, end.y_m - start.y_m)
        dashes = max(1, round(length_m / 0.12))
        for dash in range(dashes):
            ends = [
                plan.at(
                    start.x_m + (end.x_m - start.x_m) * share / dashes,
                    start.y_m + (end.y_m - start.y_m) * share / dashes,
                )
                for share in (dash, dash + 0.55)
            ]
            draw.line(ends, fill=(255, 255, 255, 200), width=14)
            draw.line(ends, fill=(*_PLAN, 255), width=8)
    x, y = plan.at(poses[-1].x_m, poses[-1].y_m)
    for way in (-1, 1):
        draw.line((x - 14, y - 14 * way, x + 14, y + 14 * way), fill=(*_PLAN, 255), width=8)


def draw_robot(draw: ImageDraw.ImageDraw, plan: FloorPlan, pose: Pose2D) -> None:
    """Outline of the 0.70 x 0.31 m body with an arrow for its heading."""
    cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)

    def at(fore: float, left: float) -> Point:
        return plan.at(pose.x_m + cos * fore - sin * left, pose.y_m + sin * fore + cos * left)

    hx, hy = HULL_HALF_M[:2]
    corners = [at(hx, hy), at(-hx, hy), at(-hx, -hy), at(hx, -hy)]
    draw.line([*corners, corners[0]], fill=(*_INK, 255), width=5, joint="curve")
    draw.polygon([at(hx + 0.20, 0.0), at(hx + 0.04, 0.10), at(hx + 0.04, -0.10)], fill=(*_INK, 255))


def draw_label(draw: ImageDraw.ImageDraw, plan: FloorPlan, item: SceneObject, *, ringed: bool) -> None:
    """Write an object's name below it (or above, at the lower edge); ring it if asked."""
    reach = footprint_radius_m(item.kind, item.scale)
    x, y = plan.at(item.x_m, item.y_m)
    if ringed:
        r = (reach + 0.12) * plan.px_per_m
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(*_PATH, 255), width=6)
    if item.kind == "door":
        # Into the room, further where the wall is upright and the plate would cover the door.
        inward = 0.28 + 0.36 * abs(math.cos(item.yaw_rad))
        at = plan.at(item.x_m + inward * math.cos(item.yaw_rad), item.y_m + inward * math.sin(item.yaw_rad))
    else:
        away = (reach + 0.16) * plan.px_per_m
        at = (min(max(x, 110), plan.width_px - 110), y + away if y + away < plan.height_px - 28 else y - away)
    rgb = PALETTE[item.colour]
    _text(draw, at, item.name, 32, dot=rgb)


def draw_scale(draw: ImageDraw.ImageDraw, plan: FloorPlan) -> None:
    """Draw a bar of 1 m in the lower left corner."""
    x0, y0 = 28, plan.height_px - 24
    x1 = x0 + plan.px_per_m
    draw.line((x0, y0, x1, y0), fill=_INK, width=6)
    for x in (x0, x1):
        draw.line((x, y0 - 10, x, y0 + 10), fill=_INK, width=6)
    draw.text((x1 + 16, y0), "1 m", fill=_INK, font=_font(30), anchor="lm")


def _text(
    draw: ImageDraw.ImageDraw,
    centre: Point,
    text: str,
    size_px: int,
    *,
    dot: tuple[float, float, float] | None = None,
) -> None:
    """Write dark text on a light plate, with a dot of a colour before it."""
    font = _font(size_px)
    width = font.getlength(text) + (size_px if dot else 0)
    x0, y0 = centre[0] - width / 2 - 6, centre[1] - size_px * 0.75
    draw.rounded_rectangle((x0, y0, x0 + width + 12, y0 + 1.5 * size_px), 6, fill=(255, 255, 255, 215))
    left = x0 + 6
    if dot:
        r, y = size_px * 0.34, centre[1]
        draw.ellipse((left, y - r, left + 2 * r, y + r), fill=tuple(int(255 * c) for c in dot))
        left += size_px
    draw.text((left, centre[1]), text, fill=_INK, font=font, anchor="lm")


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


_MARGIN_M = 0.45


class WorldViews:
    """Draws pictures of worlds; one GL context for its life. `close` frees it."""

    def __init__(
        self, world: World, *, width_px: int = 960, height_px: int = 960, quality: str = "nice"
    ) -> None:
        """Make the context; `width_px` x `height_px` bounds every picture."""
        self._bounds = (width_px, height_px)
        self._canvas = Canvas(world.model, width_px, height_px, quality)

    def top_down(
        self,
        world: World,
        path: Sequence[Pose2D] = (),
        *,
        target: str | None = None,
        width_px: int = 800,
        plan: Sequence[Pose2D] = (),
    ) -> Rgb8:
        """Return the room from above with labels, scale bar, robot outline, the path and where it began.

        `target` names an object to ring, `plan` are the poses that a dashed line leads through. The height
        follows from the room's shape.
        """
        scene = world.scene
        across, along = scene.length_m + 2 * _MARGIN_M, scene.width_m + 2 * _MARGIN_M
        scale = min(min(width_px, self._bounds[0]) / across, self._bounds[1] / along)
        floor = FloorPlan(scene, scale, int(across * scale), int(along * scale))
        picture = PilImage.fromarray(self._from_above(world, floor))
        picture = picture.resize((2 * floor.width_px, 2 * floor.height_px), PilImage.Resampling.BICUBIC)
        small, floor = floor, FloorPlan(scene, 2 * scale, 2 * floor.width_px, 2 * floor.height_px)
        draw = ImageDraw.Draw(picture, "RGBA")
        draw_frame(draw, floor)
        draw_doors(draw, floor)
        draw_path(draw, floor, path)
        draw_plan(draw, floor, plan)
        draw_robot(draw, floor, world.pose)
        for item in scene.objects:
            draw_label(draw, floor, item, ringed=item.name == target)
        draw_scale(draw, floor)
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
    """Return one picture from above; see `WorldViews.top_down`, which is cheaper for many."""
    views = WorldViews(world, width_px=width_px, height_px=2 * width_px)
    try:
        return views.top_down(world, path, target=target, width_px=width_px)
    finally:
        views.close()


def third_person(world: World, *, width_px: int = 800, height_px: int = 500) -> Rgb8:
    """Return one picture from behind the robot; see `WorldViews.third_person`, which is cheaper for many."""
    views = WorldViews(world, width_px=width_px, height_px=height_px)
    try:
        return views.third_person(world, width_px=width_px, height_px=height_px)
    finally:
        views.close()


def save_gif(frames: Sequence[Rgb8], path: str | Path, *, fps: float = 10.0) -> None:
    """Write frames of one size as a looping GIF."""
    iio.imwrite(path, np.stack(frames), extension=".gif", duration=1000.0 / fps, loop=0)


def save_png(picture: Rgb8, path: str | Path) -> None:
    """Write one picture."""
    iio.imwrite(path, picture, extension=".png")


@contextmanager
def _without_walls_before(world: World, camera: mujoco.MjvCamera) -> Iterator[None]:
    """Hide the walls between camera and room within the block."""
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
