"""The headless Go2 behind the driver and camera ports, in virtual time."""

import io
import math
import time

import pytest
from PIL import Image as PilImage

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import RobotRefused, RobotUnreachable
from vlm_spec_decode.core.ports import Camera, RobotDriver
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.scene import Scene, random_scene
from vlm_spec_decode.sim.world import World

pytestmark = pytest.mark.sim


def robot(pose: Pose2D = Pose2D(1.0, -1.0, 0.5)) -> HeadlessGo2:  # noqa: B008
    return HeadlessGo2(World(Scene(0, 8.0, 8.0, (), pose)))


def test_it_is_both_ports() -> None:
    driver: RobotDriver = robot()
    camera: Camera = robot()
    driver.start()
    assert driver.state().can_walk
    camera.close()


def test_move_before_start_is_ignored_and_after_it_holds_one_second() -> None:
    go2 = robot()
    go2.move(0.5, 0.0, 0.0)
    go2.clock.sleep(0.5)
    assert go2.state().x_m == 0.0
    go2.start()
    go2.move(0.5, 0.0, 0.0)
    go2.clock.sleep(0.9)
    assert go2.state().vx_mps == pytest.approx(0.5)
    go2.clock.sleep(0.7)
    state = go2.state()
    assert state.is_still
    assert 0.4 < state.x_m < 0.55
    assert abs(state.y_m) < 1e-6, "odometry is in the frame of the start, not of the room"


def test_stop_returns_at_standstill() -> None:
    go2 = robot()
    go2.start()
    go2.move(0.0, 0.0, 1.5)
    go2.clock.sleep(0.5)
    asked_s = go2.clock.now()
    go2.stop()
    assert go2.state().is_still
    assert 0.05 < go2.clock.now() - asked_s < 0.5


def test_postures_wait_for_the_state_and_refuse_from_a_wrong_one() -> None:
    go2 = robot()
    go2.start()
    go2.posture("sit")
    state = go2.state()
    assert (state.code, state.can_walk) == (1007, False)
    assert state.pitch_rad < -0.4
    with pytest.raises(RobotRefused, match="4206"):
        go2.posture("hello")
    with pytest.raises(RobotRefused, match="3203"):
        go2.posture("backflip")
    go2.posture("rise")
    go2.posture("hello")
    go2.posture("stand_down")
    assert go2.state().body_height_m < 0.15
    go2.posture("stand_up")
    assert go2.state().code == 1002
    go2.move(0.5, 0.0, 0.0)
    go2.clock.sleep(0.5)
    assert go2.state().is_still, "standing lock ignores Move"
    go2.posture("balance_stand")
    assert go2.state().can_walk


def test_look_tilts_and_needs_legs() -> None:
    go2 = robot()
    with pytest.raises(RobotRefused, match="look"):
        go2.look(0.2, 0.0)
    go2.start()
    go2.look(0.3, -0.2)
    go2.clock.sleep(1.5)
    assert go2.state().pitch_rad == pytest.approx(0.3)
    assert go2.state().yaw_rad == pytest.approx(0.0)


def test_frames_are_jpegs_stamped_by_the_clock() -> None:
    world = World(random_scene(1))
    go2 = HeadlessGo2(world, VirtualClock(5.0), camera=FrontCamera(world, 96, 54))
    go2.clock.sleep(1.0)
    image, stamp_s = go2.frame()
    assert (image.width, image.height) == PilImage.open(io.BytesIO(image.jpeg)).size == (96, 54)
    assert stamp_s == 6.0
    go2.close()
    go2.close()
    with pytest.raises(RobotUnreachable):
        go2.state()
    with pytest.raises(RobotUnreachable):
        go2.frame()


def test_episodes_repeat_exactly_and_a_new_world_starts_afresh() -> None:
    world = World(random_scene(2))
    go2 = HeadlessGo2(world, camera=FrontCamera(world, 96, 54))

    def episode() -> list[object]:
        go2.start()
        out: list[object] = []
        for _ in range(20):
            go2.move(0.4, 0.0, 0.3)
            go2.clock.sleep(0.1)
            state = go2.state()
            out.append((state.x_m, state.y_m, state.yaw_rad, state.range_obstacle_m))
        return [*out, go2.frame()[0].digest]

    first = episode()
    go2.attach(World(random_scene(2)))
    assert not go2.state().can_walk
    again = episode()
    go2.close()
    assert first == again


def test_bumping_into_something_shows_in_the_world_and_in_the_range() -> None:
    scene = Scene(0, 8.0, 8.0, (SceneObject("red box", "box", "red", 1.6, 0.0),), Pose2D(0.0, 0.0))
    go2 = HeadlessGo2(World(scene))
    go2.start()
    assert go2.state().range_obstacle_m[0] == pytest.approx(1.6 - 0.2225 - 0.35)
    for _ in range(40):
        go2.move(0.6, 0.0, 0.0)
        go2.clock.sleep(0.1)
    state = go2.state()
    assert go2.world.collisions == 1
    assert state.range_obstacle_m[0] < 0.02
    assert state.speed_mps < 0.05
    assert math.isclose(go2.world.distance_to("red box"), 0.35, abs_tol=0.02)


def test_it_runs_much_faster_than_real_time() -> None:
    go2 = HeadlessGo2(World(random_scene(5)))
    go2.start()
    began_s, wall_s = go2.clock.now(), time.process_time()
    for _ in range(200):
        go2.move(0.2, 0.0, 0.6)
        go2.clock.sleep(0.05)
        go2.state()
    # Measured: some 70 times; 5 leaves room for a busy machine.
    assert (go2.clock.now() - began_s) / (time.process_time() - wall_s) > 5
