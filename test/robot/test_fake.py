"""The kinematic robot keeps the drivers' contract, in virtual and in wall time, and its faults are faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from test.robot.contract import RobotDriverContract, ThreadedRobotDriverContract
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.robot.fake import Disc, FakeBody, FakeRobot


class TestFakeRobotInVirtualTime(RobotDriverContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return VirtualClock(5.0)

    @pytest.fixture
    def driver(self, clock: Clock) -> Iterator[RobotDriver]:
        robot = FakeRobot(clock)
        yield robot
        robot.close()


class TestFakeRobotInWallTime:
    """The part of the contract that only threads can show."""

    test_stop_does_not_wait_for_a_posture = ThreadedRobotDriverContract.test_stop_does_not_wait_for_a_posture
    until = RobotDriverContract.until

    @pytest.fixture
    def clock(self) -> Clock:
        return WallClock()

    @pytest.fixture
    def ready(self, clock: Clock) -> FakeRobot:
        robot = FakeRobot(clock)
        robot.set_pose(0, 0, 0)
        return robot


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def robot(clock: VirtualClock) -> FakeRobot:
    made = FakeRobot(clock)
    made.set_pose(0, 0, 0)
    return made


def test_velocity_follows_late_and_slowly(robot: FakeRobot, clock: VirtualClock) -> None:
    robot.move(0.5, 0, 0)
    clock.sleep(0.02)
    assert robot.true_pose[0] == 0
    clock.sleep(0.15)
    assert 0.2 < robot.state().vx_mps < 0.45
    clock.sleep(0.6)
    assert robot.state().vx_mps == pytest.approx(0.5, abs=0.01)


def test_a_disc_stops_the_body_and_is_seen_on_its_side(clock: VirtualClock) -> None:
    robot = FakeRobot(clock, discs=(Disc(1.0, 0.0, 0.25), Disc(0.0, 0.6, 0.2)))
    robot.set_pose(0, 0, 0)
    front, left, rear, right = robot.state().range_obstacle_m
    assert front == pytest.approx(0.4)
    assert left == pytest.approx(0.24)
    assert rear == right == float("inf")
    for _ in range(8):
        robot.move(0.5, 0, 0)
        clock.sleep(0.5)
    assert robot.true_pose[0] == pytest.approx(0.4, abs=0.01)


def test_a_frozen_stamp_is_stale_and_the_body_goes_on(robot: FakeRobot, clock: VirtualClock) -> None:
    robot.move(0.5, 0, 0)
    stamp_s = robot.state().stamp_s
    robot.faults.frozen_stamp = True
    clock.sleep(0.4)
    assert robot.state().stamp_s == stamp_s
    assert robot.true_pose[0] > 0.05
    clock.sleep(0.2)
    with pytest.raises(RobotStale):
        robot.state()
    robot.faults.frozen_stamp = False
    assert robot.state().stamp_s > stamp_s


def test_faults_by_name(robot: FakeRobot, clock: VirtualClock) -> None:
    robot.faults.stuck = True
    robot.move(0.5, 0, 0)
    clock.sleep(0.5)
    assert robot.true_pose[0] == 0
    robot.faults.stuck = False
    robot.faults.refuse = frozenset({"sit"})
    with pytest.raises(RobotRefused, match="posture unsuitable"):
        robot.posture("sit")
    robot.move(0.5, 0, 0)
    clock.sleep(0.5)
    robot.faults.deaf = True
    with pytest.raises(RobotRefused, match="still moves"):
        robot.stop()
    robot.faults.unreachable = True
    for call in (robot.stop, robot.state, lambda: robot.move(0, 0, 0), lambda: robot.posture("sit")):
        with pytest.raises(RobotUnreachable):
            call()


def test_a_fallen_robot_gets_up_only_by_recovery(robot: FakeRobot) -> None:
    robot.fall()
    assert robot.state().posture == "damp"
    assert robot.state().roll_rad > 1
    with pytest.raises(RobotRefused):
        robot.posture("balance_stand")
    robot.start()
    assert robot.state().can_walk
    assert robot.state().roll_rad == 0


def test_the_state_is_refreshed_at_its_rate(clock: VirtualClock) -> None:
    robot = FakeRobot(clock, FakeBody(state_period_s=0.05))
    stamps = []
    for _ in range(100):
        stamps.append(robot.state().stamp_s)
        clock.sleep(0.01)
    assert len(set(stamps)) == pytest.approx(20, abs=2)
