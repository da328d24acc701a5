"""The robot's services by plain calls, in virtual time: ids, JSON, return codes, and what the body does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.go2.robot import FaultSchedule, SimulatedRobot, parse_fault
from vlm_spec_decode.sim.go2.services import AvoidService, SportService, SwitcherService
from vlm_spec_decode.sim.go2.state_machine import StateCode
from vlm_spec_decode.sim.ground_truth import PathRecorder, save_view
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import World

pytestmark = pytest.mark.sim


class Bench:
    """A standing robot in an empty room, or one with a box 2 m ahead, and its services."""

    def __init__(
        self, *faults: str, box: bool = False, code: StateCode = StateCode.BALANCE_STAND, drift: float = 0.0
    ) -> None:
        objects = (SceneObject("red box", "box", "red", 2.0, 0.0),) if box else ()
        scene = Scene(0, 10.0, 10.0, objects, Pose2D(0.0, 0.0, 0.5 if not box else 0.0))
        self.clock = VirtualClock()
        self.world = World(scene)
        schedule = FaultSchedule([parse_fault(text) for text in faults], 0.0)
        self.robot = SimulatedRobot(self.world, self.clock, schedule, code=code, drift=drift)
        self.sport = SportService(self.robot)
        self.avoid = AvoidService(self.robot)
        self.switcher = SwitcherService(self.robot)

    def pass_time(self, duration_s: float) -> None:
        for _ in range(round(duration_s / 0.02)):
            self.clock.sleep(0.02)
            self.avoid.drive()
            self.robot.tick()

    def call(self, api_id: int, **parameters: object) -> int:
        return self.sport.call(api_id, json.dumps(parameters)).code

    def walk(self, duration_s: float, **velocity: float) -> None:
        for _ in range(round(duration_s / 0.1)):
            self.call(1008, **{"x": 0.0, "y": 0.0, "z": 0.0, **velocity})
            self.pass_time(0.1)


@pytest.mark.parametrize("api_id", [0, 1011, 1013, 1034, 2041, 2044, 99999])
def test_what_is_not_served_returns_3203(api_id: int) -> None:
    bench = Bench()
    assert bench.call(api_id) == 3203
    assert bench.avoid.call(2000, "{}").code == 3203
    assert bench.switcher.call(2000, "{}").code == 3203


@pytest.mark.parametrize(
    ("api_id", "parameter"),
    [
        (1003, "{"),
        (1003, "[]"),
        (1003, "[" * 100_000),
        (1008, "{}"),
        (1008, '{"x": "fast", "y": 0.0, "z": 0.0}'),
        (1008, '{"x": true, "y": 0.0, "z": 0.0}'),
        (1008, '{"x": NaN, "y": 0.0, "z": 0.0}'),
        (1007, '{"x": 0.0, "y": 1e999, "z": 0.0}'),
        (1015, '{"data": 7}'),
        (1027, '{"data": 1}'),
        (1028, "{}"),
    ],
)
def test_bad_parameters_return_3204_and_change_nothing(api_id: int, parameter: str) -> None:
    bench = Bench()
    before = bench.robot.snapshot()
    assert bench.sport.call(api_id, parameter).code == 3204
    assert bench.robot.snapshot() == before


def test_a_posture_from_the_wrong_state_returns_4206() -> None:
    bench = Bench(code=StateCode.SIT)
    assert bench.call(1004) == 4206
    assert bench.call(1010) == 0
    bench.pass_time(1.2)
    assert bench.robot.snapshot().code == 1013


def test_move_walks_the_odometry_which_starts_at_zero() -> None:
    bench = Bench()
    bench.walk(2.0, x=0.5)
    bench.pass_time(2.0)
    state = bench.robot.snapshot()
    assert state.odometry.x_m == pytest.approx(1.4, abs=0.15)
    assert state.odometry.y_m == pytest.approx(0.0, abs=0.02)
    assert bench.world.pose.y_m > 0.5
    assert state.velocity == (0.0, 0.0, 0.0)
    assert state.code == 1013


def test_odometry_drifts_by_its_scale_error_only() -> None:
    true, drifting = Bench(), Bench(drift=0.05)
    for bench in (true, drifting):
        bench.walk(2.0, x=0.5, z=0.4)
    a, b = true.robot.snapshot().odometry, drifting.robot.snapshot().odometry
    assert b.yaw_rad == pytest.approx(1.05 * a.yaw_rad)
    assert true.world.pose == drifting.world.pose


def test_euler_tilts_the_reported_attitude() -> None:
    bench = Bench()
    assert bench.call(1007, x=0.0, y=0.3, z=0.2) == 0
    bench.pass_time(1.0)
    state = bench.robot.snapshot()
    assert state.pitch_rad == pytest.approx(0.3, abs=0.01)
    assert state.yaw_rad == pytest.approx(0.2, abs=0.01)
    assert state.odometry.yaw_rad == 0.0


def test_release_takes_the_sport_service_away_and_select_waits_ten_seconds() -> None:
    bench = Bench()
    mode = json.loads(bench.switcher.call(1001, "{}").data)
    assert mode["name"]
    assert bench.switcher.call(1003, "{}").code == 0
    assert not bench.robot.sport_on
    assert bench.switcher.call(1002, '{"name": "normal"}').code == 7002
    bench.pass_time(10.1)
    assert bench.switcher.call(1002, '{"name": "nonsense"}').code == 3204
    assert bench.switcher.call(1002, '{"name": "normal"}').code == 0
    assert bench.robot.sport_on


def avoid_move(bench: Bench, x: float, y: float, yaw: float, mode: int) -> int:
    return bench.avoid.call(1003, json.dumps({"x": x, "y": y, "yaw": yaw, "mode": mode})).code


def test_obstacle_avoidance_moves_nothing_without_api_authority() -> None:
    bench = Bench()
    assert avoid_move(bench, 0.5, 0.0, 0.0, 0) == 0
    bench.pass_time(1.0)
    assert bench.robot.snapshot().odometry.x_m == 0.0
    assert bench.avoid.call(1004, '{"is_remote_commands_from_api": true}').code == 0
    assert avoid_move(bench, 0.5, 0.0, 0.0, 0) == 0
    bench.pass_time(1.0)
    assert bench.robot.snapshot().odometry.x_m > 0.3


@pytest.mark.parametrize("enabled", [True, False])
def test_obstacle_avoidance_keeps_clear_of_the_box_only_while_switched_on(enabled: bool) -> None:
    bench = Bench(box=True)
    bench.avoid.call(1004, '{"is_remote_commands_from_api": true}')
    bench.avoid.call(1001, json.dumps({"enable": enabled}))
    assert json.loads(bench.avoid.call(1002, "").data) == {"enable": enabled}
    for _ in range(60):
        avoid_move(bench, 0.5, 0.0, 0.0, 0)
        bench.pass_time(0.1)
    assert bench.world.collisions == (0 if enabled else 1)


def test_goals_are_driven_to_in_the_odometry_frame() -> None:
    bench = Bench()
    bench.avoid.call(1004, '{"is_remote_commands_from_api": true}')
    avoid_move(bench, 1.0, 0.5, 1.0, 1)
    bench.pass_time(8.0)
    there = bench.robot.snapshot().odometry
    assert (there.x_m, there.y_m) == pytest.approx((1.0, 0.5), abs=0.08)
    assert there.yaw_rad == pytest.approx(1.0, abs=0.08)
    avoid_move(bench, 0.0, 0.0, 0.0, 2)
    bench.pass_time(8.0)
    home = bench.robot.snapshot().odometry
    assert math.hypot(home.x_m, home.y_m) < 0.08


def test_a_frozen_robot_takes_every_call_and_does_nothing() -> None:
    bench = Bench("frozen_stamp@0.5")
    bench.walk(1.0, x=0.5)
    frozen = bench.robot.snapshot()
    assert bench.call(1009) == 0
    bench.walk(2.0, x=0.5)
    assert bench.robot.snapshot() == frozen
    assert bench.world.velocity == (0.0, 0.0, 0.0)


def test_faults_count_from_the_first_sport_request() -> None:
    bench = Bench("fall@1")
    bench.pass_time(3.0)
    assert bench.robot.snapshot().code == 1013
    bench.call(1003)
    bench.pass_time(1.7)
    state = bench.robot.snapshot()
    assert state.code == 1001
    assert abs(state.roll_rad) > 0.5
    assert bench.call(1004) == 4206
    assert bench.call(1006) == 0
    bench.pass_time(2.0)
    assert bench.robot.snapshot().code == 1013


def test_a_low_battery_is_low_and_falls_and_a_healthy_one_falls_slowly() -> None:
    low, healthy = Bench("low_battery"), Bench()
    for bench in (low, healthy):
        bench.call(1003)
        bench.pass_time(5.0)
    assert low.robot.snapshot().battery_soc == pytest.approx(0.04, abs=0.005)
    assert 0.93 < healthy.robot.snapshot().battery_soc < 0.94


def test_bursts_come_and_go() -> None:
    schedule = FaultSchedule([parse_fault("burst_3104@1")], 0.0)
    assert not schedule.active("burst_3104", 1.5)
    schedule.arm(10.0)
    seen = [schedule.active("burst_3104", 10.0 + t) for t in (0.9, 1.1, 1.7, 1.9, 4.9, 5.1)]
    assert seen == [False, True, True, False, False, True]


@pytest.mark.parametrize(("name", "frames"), [("run.png", 1), ("run.gif", 5)])
def test_the_view_shows_the_run(name: str, frames: int, tmp_path: Path) -> None:
    bench, path = Bench(box=True), PathRecorder()
    for _ in range(10):
        path.record(bench.world)
        bench.walk(0.2, x=0.3, z=0.5)
    path.record(bench.world)
    truth = path.finish(bench.world)
    assert truth.distances_m.keys() == {"red box"}
    save_view(bench.world, truth, tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert getattr(picture, "n_frames", 1) >= frames
        assert np.asarray(picture.convert("RGB")).std() > 20


@pytest.mark.parametrize("text", ["", "meteor", "fall@", "fall@x", "fall@1+", "fall@-1", "fall 1"])
def test_unknown_faults_are_named_errors(text: str) -> None:
    with pytest.raises(ConfigError, match="low_battery"):
        parse_fault(text)
