"""The Go2 driver meets a faulty robot: every stop is confirmed or a named error, within its deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from test.robot.go2_support import driver, wait
from test.simulator import dds_domain, simulator
from vlm_spec_decode.core.errors import RobotError, RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver

pytestmark = [pytest.mark.dds, pytest.mark.sim]


def turn_until(robot: Go2Driver, kind: type[RobotError], within_s: float) -> float:
    """Turn on the spot until `kind` is raised; how long that took."""
    begin_s = time.monotonic()
    while (passed_s := time.monotonic() - begin_s) < within_s:
        try:
            robot.state()
            robot.move(0.0, 0.0, 0.5)
        except kind:
            return passed_s
        time.sleep(0.05)
    raise AssertionError(f"no {kind.__name__} within {within_s} s")


def test_no_sport_service_is_unreachable() -> None:
    with simulator(faults=["sport_off"]):
        robot = Go2Driver(Go2Config(domain=dds_domain(), first_state_s=1.0))
        with pytest.raises(RobotUnreachable, match="rt/lf/sportmodestate"):
            robot.start()


@pytest.mark.parametrize("fault", ["link_loss@0.5", "frozen_stamp@0.5"])
def test_a_stamp_that_stands_still_is_stale(fault: str) -> None:
    with simulator(start="standing", faults=[fault]), driver(stop_s=1.0) as robot:
        took_s = turn_until(robot, RobotStale, 10.0)
        assert took_s < 0.5 + 0.5 + 1.5, "the fault, the age that is stale, and a machine that starves this"
        begin_s = time.monotonic()
        with pytest.raises(RobotStale):
            robot.stop()
        assert time.monotonic() - begin_s < 1.0 + 1.5


@pytest.mark.parametrize("fault", ["burst_3104@0.3", "burst_3102@0.3"])
def test_a_stop_is_confirmed_through_a_burst(fault: str) -> None:
    with simulator(start="standing", faults=[fault]), driver() as robot:
        robot.stop()
        end_s = time.monotonic() + 0.5
        while time.monotonic() < end_s:
            with suppress(RobotRefused):
                robot.move(0.0, 0.0, 0.8)
            time.sleep(0.05)
        begin_s = time.monotonic()
        robot.stop()
        assert time.monotonic() - begin_s < 2.5 + 1.5
        time.sleep(0.4)
        assert robot.state().is_still


def test_a_fall_shows_and_start_recovers_from_it() -> None:
    with simulator(start="standing", faults=["fall@0.5"]), driver() as robot:
        robot.stop()
        assert wait(robot, lambda state: abs(state.roll_rad) > 0.8 and state.code == 1001, 20.0)
        robot.start()
        assert robot.state().can_walk
        assert abs(robot.state().roll_rad) < 0.1


def test_a_killed_robot_is_stale_and_one_that_comes_back_is_driven_again() -> None:
    with driver_of_killed_robot() as robot:
        with pytest.raises(RobotStale):
            robot.stop()
        with pytest.raises(RobotUnreachable, match="rt/lf/sportmodestate"):
            robot.start()
        with simulator(start="lying"):
            robot.start()

            def turns(state: RobotState) -> bool:
                robot.move(0.0, 0.0, 0.5)
                return state.vyaw_radps > 0.3

            assert wait(robot, turns, 20.0)
            robot.stop()


@contextmanager
def driver_of_killed_robot() -> Iterator[Go2Driver]:
    with simulator(start="standing") as process, driver(stop_s=0.8, first_state_s=1.0) as robot:
        robot.move(0.0, 0.0, 0.5)
        process.kill()
        process.wait()
        turn_until(robot, RobotStale, 10.0)
        yield robot
