"""The robot's front camera: frames, JPEGs, and what is in view.

A pinhole with 100 degrees of horizontal field of view (the vendor's figure) and square pixels, at the
pose of the vendor's URDF: x 0.327, z 0.043 m of the base frame, looking along x. A 16:9 pinhole of 100
degrees has 67.7 degrees vertically (2 atan(tan 50° · 9/16)); the vendor states 56, which only a lens with
barrel distortion gives. Distortion is not modelled: the horizontal figure, which steering depends on, is
kept and the vertical one is what a pinhole makes of it.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from vlm_spec_decode.sim.physics.room_model import FRONT_CAMERA
from vlm_spec_decode.sim.render.canvas import Canvas, Rgb8
from vlm_spec_decode.sim.world import World

_LABEL_WIDTH_PX = 160


@dataclass(frozen=True, slots=True)
class Segment:
    """An object in view: its pixels and its bounding box, x0 <= x < x1 and y0 <= y < y1."""

    pixels: int
    x0: int
    y0: int
    x1: int
    y1: int


class FrontCamera:
    """Renders what the robot sees. One GL context for its life; `attach` moves it to another world.

    `fx`, `fy`, `cx`, `cy` are the intrinsics in pixels of a `width_px` x `height_px` frame; pixel centres
    lie at whole numbers plus a half.
    """

    def __init__(
        self,
        world: World,
        width_px: int = 640,
        height_px: int = 360,
        hfov_deg: float = 100.0,
        *,
        quality: str = "fast",
    ) -> None:
        self.width_px, self.height_px = width_px, height_px
        self.fx = self.fy = width_px / 2 / math.tan(math.radians(hfov_deg) / 2)
        self.cx, self.cy = width_px / 2, height_px / 2
        self._canvas = Canvas(world.model, width_px, height_px, quality)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        self.attach(world)

    @property
    def vfov_deg(self) -> float:
        """Vertical field of view."""
        return math.degrees(2 * math.atan(self.height_px / 2 / self.fy))

    def attach(self, world: World) -> None:
        """Look at another world from now on; cheap, the GL context stays."""
        self._world = world
        self._camera.fixedcamid = int(world.model.camera(FRONT_CAMERA).id)

    def render(self) -> Rgb8:
        """Return the present view [height_px, width_px, 3], uint8 RGB."""
        self._aim()
        return self._canvas.draw(
            self._world.built, self._world.data, self._camera, self.width_px, self.height_px
        )

    def jpeg(self, quality: int = 85) -> bytes:
        """Return the present view as a JPEG."""
        buffer = io.BytesIO()
        PilImage.fromarray(self.render()).save(buffer, format="JPEG", quality=quality)
        return buffer.getvalue()

    def label_map(self, width: int = _LABEL_WIDTH_PX, height: int | None = None) -> npt.NDArray[np.int32]:
        """Return which object each pixel shows [height, width]: an index into `scene.objects` or -1.

        Without `height` the frame's aspect is kept. Another aspect samples the same view, stretched.
        """
        rows = height or max(1, round(width * self.height_px / self.width_px))
        full = (min(self.width_px, width), min(self.height_px, rows))
        if (width, rows) != full or width * self.height_px != rows * self.width_px:
            full = (self.width_px, self.height_px)
        self._aim()
        labels = self._canvas.draw_objects(self._world.built, self._world.data, self._camera, *full)
        if full == (width, rows):
            return labels
        ys = ((np.arange(rows) + 0.5) * full[1] / rows).astype(int)
        xs = ((np.arange(width) + 0.5) * full[0] / width).astype(int)
        sampled: npt.NDArray[np.int32] = labels[np.ix_(ys, xs)]
        return sampled

    def segments(self) -> dict[str, Segment]:
        """Return what is in view by name, on a map 160 px wide with the frame's aspect."""
        labels = self.label_map()
        out: dict[str, Segment] = {}
        for index in np.unique(labels[labels >= 0]).tolist():
            ys, xs = np.nonzero(labels == index)
            box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            out[self._world.scene.objects[index].name] = Segment(len(xs), *box)
        return out

    def visible(self, name: str, min_pixels: int = 12) -> bool:
        """Whether at least `min_pixels` of some 14,400 show the object. Raises SceneError if unknown."""
        self._world.object(name)
        segment = self.segments().get(name)
        return segment is not None and segment.pixels >= min_pixels

    def project(self, x_m: float, y_m: float, z_m: float) -> tuple[float, float] | None:
        """Return the pixel (u, v) of a point in the room, or None behind the camera; occlusion is ignored."""
        self._world.sync()
        data, cam = self._world.data, self._camera.fixedcamid
        ray = np.array([x_m, y_m, z_m]) - data.cam_xpos[cam]
        right, up, back = data.cam_xmat[cam].reshape(3, 3).T @ ray
        if back >= -1e-6:
            return None
        return (self.cx + self.fx * float(right / -back), self.cy - self.fy * float(up / -back))

    def close(self) -> None:
        """Free the GL context. Idempotent."""
        self._canvas.close()

    def _aim(self) -> None:
        self._world.sync()
        self._world.model.cam_fovy[self._camera.fixedcamid] = self.vfov_deg
