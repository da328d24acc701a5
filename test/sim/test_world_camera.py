"""The front camera: where things land in the frame, and what it says is in view."""

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import closing

import mujoco
import numpy as np
import pytest
from PIL import Image as PilImage

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.objects import COLOURS, KINDS, PALETTE, SceneObject
from vlm_spec_decode.sim.scene import Scene, random_scene
from vlm_spec_decode.sim.world import World

pytestmark = pytest.mark.sim


def room(*objects: SceneObject) -> Scene:
    return Scene(0, 8.0, 8.0, objects, Pose2D(0.0, 0.0))


def test_object_on_the_axis_is_centred() -> None:
    world = World(room(SceneObject("red ball", "ball", "red", 2.5, 0.0)))
    camera = FrontCamera(world, 320, 180)
    ys, xs = np.nonzero(camera.label_map(320, 180) == 0)
    frame = camera.render()
    camera.close()
    assert abs(xs.mean() + 0.5 - camera.cx) < 1.0
    distance, drop = 2.5 - 0.327, 0.32 + 0.043 - 0.20
    assert abs(ys.mean() + 0.5 - (camera.cy + camera.fy * drop / distance)) < 1.0
    red, green, blue = frame[int(ys.mean()), int(xs.mean())].astype(int)
    assert red > 2 * green
    assert red > 2 * blue


@pytest.mark.parametrize("pose", [Pose2D(0, 0, 0), Pose2D(-1.5, 0.7, 0.4), Pose2D(0.5, -1.0, 0.1)])
@pytest.mark.parametrize("pitch_rad", [0.0, 0.25])
def test_small_object_is_drawn_where_it_projects(pose: Pose2D, pitch_rad: float) -> None:
    target = (2.6, 0.1)
    world = World(room(SceneObject("blue ball", "ball", "blue", *target, 0.0, 0.3)), pose=pose)
    world.set_posture(0.32, 0.0, pitch_rad, 0.1)
    world.step(1.0)
    camera = FrontCamera(world, 640, 360)
    ys, xs = np.nonzero(camera.label_map(640, 360) == 0)
    point = camera.project(*target, 0.06)
    camera.close()
    assert point is not None
    # The middle of the drawn disc is the projected centre, within a pixel.
    assert abs((xs.min() + xs.max() + 1) / 2 - point[0]) < 1.0
    assert abs((ys.min() + ys.max() + 1) / 2 - point[1]) < 1.0


def test_field_of_view_is_100_degrees() -> None:
    world = World(room())
    camera = FrontCamera(world, 640, 360)
    eye = np.array([0.327, 0.0, 0.363])
    edge = camera.project(eye[0] + 1.0, math.tan(math.radians(50)), eye[2])
    camera.close()
    assert edge is not None
    assert edge[0] == pytest.approx(0.0, abs=1e-3)
    assert edge[1] == pytest.approx(180.0, abs=1e-3)
    assert camera.vfov_deg == pytest.approx(67.7, abs=0.05)


def test_a_context_that_moves_between_worlds_draws_what_a_fresh_one_draws() -> None:
    worlds = [World(random_scene(seed, num_objects=(3, 5))) for seed in (1, 4, 8)]
    moved = FrontCamera(worlds[0], 192, 108)
    for world in (worlds[1], worlds[2], worlds[0]):
        moved.attach(world)
        fresh = FrontCamera(world, 192, 108)
        assert np.array_equal(moved.render(), fresh.render())
        assert np.array_equal(moved.label_map(), fresh.label_map())
        fresh.close()
    moved.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_of_every_kind_is_seen_as_that_colour(kind: str, colour: str, eye: FrontCamera) -> None:
    item = SceneObject(f"{colour} {kind}", kind, colour, 2.0, 0.3, 2.6)
    world = World(room(item))
    eye.attach(world)
    frame, labels = eye.render().astype(float), eye.label_map(eye.width_px, eye.height_px)
    pixels = frame[labels == 0]
    assert len(pixels) > 100
    light = np.maximum(pixels.max(axis=1, keepdims=True), 1.0)
    hues = pixels / light
    nearest = []
    for name, rgb in PALETTE.items():
        distance = np.abs(hues - np.array(rgb) / max(rgb)).sum(axis=1)
        nearest.append((int((distance < 0.25).sum()), name))
    assert max(nearest)[1] == colour or (kind == "plant" and sorted(nearest)[-2][1] == colour)


@pytest.fixture(scope="module")
def eye() -> Iterator[FrontCamera]:
    camera = FrontCamera(World(room()), 192, 108)
    yield camera
    camera.close()


def test_segments_name_what_is_in_view_and_where(eye: FrontCamera) -> None:
    left, right = (
        SceneObject("red box", "box", "red", 3.0, 1.2),
        SceneObject("blue cone", "cone", "blue", 3.0, -1.2),
    )
    behind = SceneObject("green ball", "ball", "green", -2.0, 0.0)
    hidden = SceneObject("yellow ball", "ball", "yellow", 3.7, 1.51, 0.0, 0.6)
    world = World(room(left, right, behind, hidden))
    eye.attach(world)
    segments = eye.segments()
    assert set(segments) == {"red box", "blue cone"}
    assert segments["red box"].x1 < 80 < segments["blue cone"].x0
    box = segments["red box"]
    assert 0 < box.pixels <= (box.x1 - box.x0) * (box.y1 - box.y0)
    assert eye.visible("red box")
    assert not eye.visible("green ball")
    assert not eye.visible("yellow ball", 1)
    with pytest.raises(SceneError, match="purple door"):
        eye.visible("purple door")


def test_label_map_takes_any_shape(eye: FrontCamera) -> None:
    eye.attach(World(room(SceneObject("red box", "box", "red", 1.5, 0.0))))
    full = eye.label_map(192, 108)
    square = eye.label_map(12, 12)
    assert full.shape == (108, 192)
    assert square.shape == (12, 12)
    assert square[6, 6] == full[54, 96] == 0
    assert (square == 0).mean() == pytest.approx((full == 0).mean(), abs=0.03)


def test_the_robot_does_not_see_itself(eye: FrontCamera) -> None:
    world = World(room())
    eye.attach(world)
    still = eye.render()
    rows = still[60:, :, :].astype(int)
    assert np.ptp(rows[..., 0]) < 90, "the lower half shows floor, skirting and nothing dark or bright"


def test_jpeg_is_the_frame(eye: FrontCamera) -> None:
    eye.attach(World(random_scene(8)))
    decoded = np.asarray(PilImage.open(io.BytesIO(eye.jpeg(95))))
    assert decoded.shape == (108, 192, 3)
    assert np.abs(decoded.astype(int) - eye.render().astype(int)).mean() < 3


def test_nice_frames_show_the_same_view_with_shadows() -> None:
    world = World(room(SceneObject("red box", "box", "red", 1.5, 0.0)))
    fast, nice = FrontCamera(world, 192, 108), FrontCamera(world, 192, 108, quality="nice")
    a, b = fast.render().astype(int), nice.render().astype(int)
    assert np.array_equal(fast.label_map(), nice.label_map())
    fast.close()
    nice.close()
    nice.close()
    assert np.median(np.abs(a - b)) <= 3
    assert (a.sum(axis=2) - b.sum(axis=2) > 60).mean() > 0.005, "some floor lies in the box's shadow"
    with pytest.raises(ValueError, match="closed"):
        nice.render()


def test_unknown_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="fast, nice"):
        FrontCamera(World(room()), 64, 36, quality="best")


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") != "osmesa", reason="asks OSMesa which context is current")
@pytest.mark.skipif(int(mujoco.__version__.split(".")[0]) < 4, reason="MuJoCo before 4 leaves it current")
def test_no_context_stays_current_for_another_thread_to_free() -> None:
    from OpenGL import osmesa

    world = World(room())
    camera = FrontCamera(world, 96, 54)
    assert not osmesa.OSMesaGetCurrentContext()
    camera.render()
    assert not osmesa.OSMesaGetCurrentContext()
    thread = threading.Thread(target=camera.close)
    thread.start()
    thread.join()
    assert not osmesa.OSMesaGetCurrentContext()
    with closing(FrontCamera(world, 96, 54)) as other:
        assert other.render().any()
