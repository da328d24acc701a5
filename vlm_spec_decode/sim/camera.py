"""Offscreen drawing: one OpenGL context for any world, and the robot's front camera.

Making a context costs some 50 ms, a frame 2 to 4 ms; so a canvas outlives the worlds it draws. All models of
`sim.physics.room_model` share their textures and have no meshes, planes or height fields, which is what makes
a context of one model fit another.

A pinhole with 100 degrees of horizontal field of view (the vendor's figure) and square pixels, at the pose of
the vendor's URDF: x 0.327, z 0.043 m of the base frame, looking along x. A 16:9 pinhole of 100 degrees has
67.7 degrees vertically (2 atan(tan 50° · 9/16)); the vendor states 56, which only a lens with barrel
distortion gives. Distortion is not modelled: the horizontal figure, which steering depends on, is kept and
the vertical one is what a pinhole makes of it.
"""

from __future__ import annotations

import io
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.physics.room_model import (
    FRONT_CAMERA,
    GROUP_CEILING,
    GROUP_HULL,
    GROUP_ROBOT,
    WorldModel,
)
from vlm_spec_decode.sim.world import World

Rgb8 = npt.NDArray[np.uint8]
"""Image [H, W, 3], red green blue."""

QUALITIES = ("fast", "nice")
_MAX_GEOMS = 600


NO_RENDERER = "no offscreen OpenGL here (install libosmesa6, and unset MUJOCO_GL and PYOPENGL_PLATFORM): {}"


class Canvas:
    """Draws models into arrays of at most `max_width_px` x `max_height_px`.

    `quality` "fast" has neither shadows nor multisampling; "nice" has shadows and draws at twice the
    size, then averages. Use it from one thread at a time.
    """

    def __init__(
        self, model: mujoco.MjModel, max_width_px: int, max_height_px: int, quality: str = "fast"
    ) -> None:
        """Make the context. Raises ValueError for an unknown quality, ConfigError without a renderer."""
        if quality not in QUALITIES:
            raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, not {quality!r}")
        self._factor = 2 if quality == "nice" else 1
        self._size = (max_width_px, max_height_px)
        self._nice = quality == "nice"
        width, height = self._factor * max_width_px, self._factor * max_height_px
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 4096 if self._nice else 0
        self._gl, self._context = _contexts(model, width, height)
        # Runs at the interpreter's exit at the latest, while the OpenGL bindings still work.
        self._free = weakref.finalize(self, _free, self._gl, self._context)
        self._scene: mujoco.MjvScene | None = None
        self._model: mujoco.MjModel | None = None
        self._option = mujoco.MjvOption()

    def draw(
        self,
        built: WorldModel,
        data: mujoco.MjData,
        camera: mujoco.MjvCamera,
        width_px: int,
        height_px: int,
        *,
        robot: bool = False,
        ceiling: bool = True,
    ) -> Rgb8:
        """Return the camera's view [height, width, 3]."""
        scene = self._update(built, data, camera, robot, ceiling)
        flags = scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._nice
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = not ceiling
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        k = self._factor
        big = self._read(scene, k * width_px, k * height_px)
        if k == 1:
            return big
        mean = big.reshape(height_px, k, width_px, k, 3).mean(axis=(1, 3))
        small: Rgb8 = (mean + 0.5).astype(np.uint8)
        return small

    def draw_objects(
        self, built: WorldModel, data: mujoco.MjData, camera: mujoco.MjvCamera, width_px: int, height_px: int
    ) -> npt.NDArray[np.int32]:
        """Return which object each pixel shows [height, width]: an index into the scene's objects or -1."""
        scene = self._update(built, data, camera, robot=False, ceiling=True)
        flags = scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        ids = self._read(scene, width_px, height_px).astype(np.int32) @ np.array(
            [1, 256, 65536], dtype=np.int32
        )
        shown = np.full(_MAX_GEOMS + 1, -1, dtype=np.int32)
        for geom in scene.geoms[: scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                shown[geom.segid + 1] = built.geom_object[geom.objid]
        labels: npt.NDArray[np.int32] = shown[ids]
        return labels

    def close(self) -> None:
        """Free the context. Idempotent."""
        self._free()

    def _update(
        self, built: WorldModel, data: mujoco.MjData, camera: mujoco.MjvCamera, robot: bool, ceiling: bool
    ) -> mujoco.MjvScene:
        if not self._free.alive:
            raise ValueError("this canvas is closed")
        if self._scene is None or self._model is not built.model:
            self._scene, self._model = mujoco.MjvScene(built.model, maxgeom=_MAX_GEOMS), built.model
        groups = self._option.geomgroup
        groups[GROUP_ROBOT], groups[GROUP_CEILING], groups[GROUP_HULL] = robot, ceiling, False
        mujoco.mjv_updateScene(
            built.model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        if self._nice:
            for geom in self._scene.geoms[: self._scene.ngeom]:
                if geom.objid in built.shadowless:
                    # Walls, doors and ceiling cast no shadow: they must not block the lamp.
                    geom.category = mujoco.mjtCatBit.mjCAT_DECOR.value
        return self._scene

    def _read(self, scene: mujoco.MjvScene, width_px: int, height_px: int) -> Rgb8:
        most = (self._factor * self._size[0], self._factor * self._size[1])
        if width_px > most[0] or height_px > most[1]:
            raise ValueError(
                f"{width_px} x {height_px} px is larger than this canvas ({most[0]} x {most[1]})"
            )
        rect = mujoco.MjrRect(0, 0, width_px, height_px)
        out = np.empty((height_px, width_px, 3), dtype=np.uint8)
        # Current for no longer than it draws: a canvas may be freed by another thread (by the collector of
        # garbage, too), and a thread whose current context is freed elsewhere ends the process at its next.
        with _current(self._gl):
            mujoco.mjr_render(rect, scene, self._context)
            mujoco.mjr_readPixels(out, None, rect, self._context)
        return out[::-1]


def _contexts(model: mujoco.MjModel, width: int, height: int) -> tuple[mujoco.GLContext, mujoco.MjrContext]:
    """Return an OpenGL context and MuJoCo's in it, neither current. Raises ConfigError without a renderer."""
    try:
        gl = mujoco.GLContext(width, height)
        with _current(gl):
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
    # What MuJoCo and PyOpenGL raise without a display, a library or a device; AttributeError: MUJOCO_GL=off.
    except (mujoco.FatalError, ImportError, RuntimeError, AttributeError, OSError, TypeError) as error:
        raise ConfigError(NO_RENDERER.format(error)) from error
    return gl, context


@contextmanager
def _current(gl: mujoco.GLContext) -> Iterator[None]:
    """Make a context current for the block; MuJoCo before 4 cannot take that back, so there it stays so."""
    if hasattr(gl, "as_current"):
        with gl.as_current():
            yield
    else:
        gl.make_current()
        yield


def _free(gl: mujoco.GLContext, context: mujoco.MjrContext) -> None:
    with _current(gl):
        context.free()
    gl.free()


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
    """Renders the front camera's view. It has one GL context; `attach` moves it to another world.

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
        """Render another world from now on. Cheap: the GL context is kept."""
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
