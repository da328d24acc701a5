"""Pictures for people: they show what they claim."""

import math
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.views import WorldViews, save_gif, save_png, third_person, top_down
from vlm_spec_decode.sim.world import World

pytestmark = pytest.mark.sim

SCENE = Scene(
    0,
    6.0,
    5.0,
    (SceneObject("red box", "box", "red", 2.0, 1.0), SceneObject("blue ball", "ball", "blue", -1.0, -1.5)),
    Pose2D(-1.0, 0.5, 0.0),
)
PX_PER_M = 400 / 6.9


@pytest.fixture(scope="module")
def views() -> Iterator[WorldViews]:
    made = WorldViews(World(SCENE), width_px=400, height_px=400, quality="fast")
    yield made
    made.close()


def pixel(picture: np.ndarray, x_m: float, y_m: float) -> np.ndarray:
    height, width = picture.shape[:2]
    return picture[round(height / 2 - y_m * PX_PER_M), round(width / 2 + x_m * PX_PER_M)].astype(int)


def test_things_are_where_they_are_seen_from_above(views: WorldViews) -> None:
    picture = views.top_down(World(SCENE), width_px=400)
    assert picture.shape == (int(5.9 * PX_PER_M), 400, 3)
    red, blue = pixel(picture, 2.0, 1.15), pixel(picture, -1.0, -1.5)
    assert red[0] > 2 * max(red[1], red[2])
    assert blue[2] > 2 * max(blue[0], blue[1])
    paper = picture[2, 2]
    assert paper.min() > 230


def test_path_and_robot_are_drawn_over_the_floor(views: WorldViews) -> None:
    world = World(SCENE, pose=Pose2D(0.5, -0.5, math.pi / 2))
    bare = views.top_down(world, width_px=400)
    path = [Pose2D(-2.0, 1.5), Pose2D(-0.5, 1.5), Pose2D(0.5, -0.5)]
    drawn = views.top_down(world, path, width_px=400)
    on_path = pixel(drawn, -1.2, 1.5)
    assert on_path[0] > 150 > on_path[1]
    assert np.array_equal(pixel(drawn, 0.0, -2.0), pixel(bare, 0.0, -2.0))
    arrow = pixel(bare, 0.5, -0.5 + 0.45)
    assert arrow.max() < 90, "the arrow points where the robot faces"


def test_target_gets_a_ring(views: WorldViews) -> None:
    world = World(SCENE)
    plain, ringed = (
        views.top_down(world, width_px=400),
        views.top_down(world, target="blue ball", width_px=400),
    )
    ys, xs = np.nonzero((plain != ringed).any(axis=2))
    assert xs.mean() == pytest.approx(400 / 2 - 1.0 * PX_PER_M, abs=2)
    assert ys.min() == pytest.approx(plain.shape[0] / 2 + (1.5 - 0.32) * PX_PER_M, abs=4)


def test_third_person_shows_the_robot_and_leaves_walls_behind_the_lens_out(views: WorldViews) -> None:
    world = World(SCENE, pose=Pose2D(-2.5, 0.0, 0.0))
    picture = views.third_person(world, width_px=300, height_px=200)
    assert picture.shape == (200, 300, 3)
    # The robot's white shell in the middle of the picture; a wall in the way would be one flat colour.
    middle = picture[60:140, 100:200].astype(int)
    assert middle.max() > 180
    assert middle.min() < 60
    assert (world.model.geom_rgba[world.built.shell, 3] == 1.0).all()


def test_files_hold_the_pictures(tmp_path: Path) -> None:
    world = World(SCENE)
    above, behind = top_down(world, width_px=200), third_person(world, width_px=200, height_px=120)
    save_png(above, tmp_path / "above.png")
    assert np.array_equal(iio.imread(tmp_path / "above.png"), above)
    world.command(0.5, 0.0, 0.0)
    world.step(1.0)
    save_gif([behind, third_person(world, width_px=200, height_px=120)], tmp_path / "run.gif", fps=5)
    frames = iio.imread(tmp_path / "run.gif", index=None)
    assert frames.shape[:3] == (2, 120, 200)
    assert iio.immeta(tmp_path / "run.gif")["duration"] == 200
