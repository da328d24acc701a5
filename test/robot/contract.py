"""What every `RobotDriver` promises, as tests to inherit.

::

    class TestMyDriver(RobotDriverContract):
        @pytest.fixture
        def clock(self) -> Clock: ...           # the clock that the robot lives in

        @pytest.fixture
        def driver(self, clock) -> Iterator[RobotDriver]: ...   # not started; closed by the fixture

The robot needs free ground: half a metre each way. A driver that several threads may use, as the executor
does, inherits `ThreadedRobotDriverContract` instead.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import pytest

from vlm_spec_decode.core.errors import Cancelled, RobotError, RobotRefused
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.robot import RobotState

RESEND_S = 0.04


class RobotDriverContract:
    """Tests of a driver; subclasses bring the fixtures `driver` and `clock`."""

    min_range_m = 0.2
    """How far the test ground is free in front."""

    @pytest.fixture
    def ready(self, driver: RobotDriver) -> RobotDriver:
        driver.start()
        return driver

    def drive(
        self, driver: RobotDriver, clock: Clock, velocity: tuple[float, float, float], for_s: float
    ) -> None:
        """Resend a velocity as the executor does."""
        end_s = clock.now() + for_s
        while clock.now() < end_s:
            driver.move(*velocity)
            clock.sleep(RESEND_S)

    def until(
        self, driver: RobotDriver, clock: Clock, done: Callable[[RobotState], bool], within_s: float = 20.0
    ) -> RobotState:
        """Wait for a state."""
        end_s = clock.now() + within_s
        while not done(state := driver.state()):
            assert clock.now() < end_s, state
            clock.sleep(0.02)
        return state

    def test_start_leads_to_a_state_that_walks(self, ready: RobotDriver) -> None:
        state = ready.state()
        assert state.can_walk
        assert state.is_still
        assert state.body_height_m > 0.2
        assert 0 < state.battery_soc <= 1
        assert state.range_obstacle_m[0] > self.min_range_m

    def test_start_again_is_harmless(self, ready: RobotDriver) -> None:
        ready.start()
        assert ready.state().can_walk

    def test_the_stamp_goes_on(self, ready: RobotDriver, clock: Clock) -> None:
        """Ten states a second or more, or the executor takes the robot for frozen."""
        seen = set()
        for _ in range(25):
            seen.add(ready.state().stamp_s)
            clock.sleep(0.04)
        assert len(seen) >= 10
        assert ready.state().stamp_s == max(ready.state().stamp_s, *seen)

    @pytest.mark.parametrize(
        ("velocity", "axis"),
        [((0.3, 0.0, 0.0), 0), ((-0.3, 0.0, 0.0), 0), ((0.0, 0.3, 0.0), 1), ((0.0, 0.0, 0.6), 2)],
    )
    def test_moves_go_where_they_say(
        self, ready: RobotDriver, clock: Clock, velocity: tuple[float, float, float], axis: int
    ) -> None:
        """Forward, left and a turn to the left are positive, in velocity and in odometry."""
        before, began_s = ready.state(), clock.now()
        self.drive(ready, clock, velocity, 0.8)
        during = ready.state()
        ready.stop()
        # What a machine that starves this process adds is driven, too.
        most_s = clock.now() - began_s
        after = ready.state()
        heading = before.yaw_rad
        dx, dy = after.x_m - before.x_m, after.y_m - before.y_m
        moved = (
            dx * math.cos(heading) + dy * math.sin(heading),
            -dx * math.sin(heading) + dy * math.cos(heading),
            math.remainder(after.yaw_rad - before.yaw_rad, 2 * math.pi),
        )
        speeds = (during.vx_mps, during.vy_mps, during.vyaw_radps)
        assert speeds[axis] == pytest.approx(velocity[axis], rel=0.4)
        assert 0.4 <= moved[axis] / velocity[axis] <= max(1.2, most_s + 0.1)
        assert math.hypot(*(0.0 if i == axis else way for i, way in enumerate(moved))) < 0.1

    def test_one_move_holds_for_about_a_second(self, ready: RobotDriver, clock: Clock) -> None:
        for _ in range(10):
            ready.move(0.2, 0.0, 0.0)
            sent_s = clock.now()
            clock.sleep(0.6)
            speed_mps = ready.state().vx_mps
            if clock.now() - sent_s < 0.85:  # else the machine has starved this process beyond the hold
                break
        assert speed_mps > 0.1
        clock.sleep(1.4)
        self.until(ready, clock, lambda state: state.is_still)

    def test_stop_returns_at_standstill(self, ready: RobotDriver, clock: Clock) -> None:
        self.drive(ready, clock, (0.3, 0.0, 0.3), 0.7)
        before_s = clock.now()
        ready.stop()
        assert clock.now() - before_s < 1.5 + 1.0
        assert ready.state().is_still
        there = ready.state()
        clock.sleep(0.5)
        now = ready.state()
        assert math.hypot(now.x_m - there.x_m, now.y_m - there.y_m) < 0.05

    def test_stop_of_a_standing_robot_is_harmless(self, ready: RobotDriver) -> None:
        ready.stop()
        ready.stop()
        assert ready.state().can_walk

    def test_moving_again_after_a_stop(self, ready: RobotDriver, clock: Clock) -> None:
        ready.stop()

        def walks(state: RobotState) -> bool:
            self.drive(ready, clock, (0.2, 0.0, 0.0), 0.2)
            return state.vx_mps > 0.1

        self.until(ready, clock, walks)
        ready.stop()

    def test_lying_down_and_getting_up(self, ready: RobotDriver, clock: Clock) -> None:
        ready.posture("stand_down")
        lying = ready.state()
        assert not lying.can_walk
        assert lying.body_height_m < 0.2
        self.drive(ready, clock, (0.3, 0.0, 0.0), 0.5)
        assert math.hypot(ready.state().x_m - lying.x_m, ready.state().y_m - lying.y_m) < 0.03
        ready.posture("stand_up")
        assert not ready.state().can_walk
        ready.posture("balance_stand")
        assert ready.state().can_walk

    def test_sitting_is_left_by_rising(self, ready: RobotDriver) -> None:
        ready.posture("sit")
        assert ready.state().posture == "sit"
        ready.posture("rise")
        assert ready.state().can_walk

    def test_hello_ends_in_a_state_that_walks(self, ready: RobotDriver) -> None:
        ready.posture("hello")
        assert ready.state().can_walk

    @pytest.mark.parametrize("name", ["backflip", "", "BalanceStand"])
    def test_unknown_postures_are_refused(self, ready: RobotDriver, name: str) -> None:
        with pytest.raises(RobotRefused):
            ready.posture(name)
        assert ready.state().can_walk

    def test_a_posture_that_does_not_suit_is_refused(self, ready: RobotDriver) -> None:
        ready.posture("sit")
        with pytest.raises(RobotError):
            ready.posture("hello")

    def test_look_tilts_the_body_down_for_positive_pitch(self, ready: RobotDriver, clock: Clock) -> None:
        ready.look(0.25, 0.1)
        self.until(ready, clock, lambda state: abs(state.pitch_rad - 0.25) < 0.07)
        ready.look(0.0, 0.0)
        self.until(ready, clock, lambda state: abs(state.pitch_rad) < 0.07)
        assert ready.state().can_walk

    def test_after_close_nothing_answers(self, ready: RobotDriver) -> None:
        ready.close()
        ready.close()
        with pytest.raises(RobotError):
            ready.state()


class ThreadedRobotDriverContract(RobotDriverContract):
    """The same, and that other threads may call `stop` and `state` while one is inside `posture`."""

    def test_stop_does_not_wait_for_a_posture(self, ready: RobotDriver, clock: Clock) -> None:
        errors: list[Exception] = []

        def stretch() -> None:
            try:
                ready.posture("stretch")
            except (RobotError, Cancelled) as problem:
                errors.append(problem)

        acting = threading.Thread(target=stretch)
        acting.start()
        try:
            self.until(ready, clock, lambda state: state.posture == "act")
            before_s = time.monotonic()
            ready.stop()
            assert time.monotonic() - before_s < 2.5
        finally:
            acting.join(timeout=20)
        assert not acting.is_alive()
        assert all(isinstance(problem, Cancelled) for problem in errors)
