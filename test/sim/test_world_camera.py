"""The front camera: where things land in the frame, and what it says is in view."""

import math

import numpy as np
import pytest

from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import Pose2D, Scene, SceneObject
from vlm_spec_decode.sim.world import World

pytestmark = pytest.mark.sim


def room(*objects: SceneObject, start: Pose2D = Pose2D(0.0, 0.0)) -> Scene:
    return Scene(0, 8.0, 8.0, objects, start)


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
