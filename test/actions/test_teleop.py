"""A person at the controls: before language, behind the e-stop, within the limits, and ended by silence."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.control.executor import TELEOP_TIMEOUT_S
from vlm_spec_decode.robot.fake import Disc


def drive(rig: Rig, seconds: float, velocity: tuple[float, float, float] | None) -> None:
    for _ in range(round(seconds / rig.executor.period_s)):
        if velocity is not None:
            rig.executor.steer(velocity)
        rig.executor.tick()
        rig.clock.sleep(rig.executor.period_s)


def test_a_person_drives_within_speed_and_slew() -> None:
    rig = Rig()
    drive(rig, 2.0, (9.0, 0.0, -9.0))
    assert rig.executor.source == "teleop"
    limits = rig.limits
    assert rig.x_m**2 + rig.y_m**2 > 0.04
    for (t0, a), (t1, b) in pairwise(rig.moves()):
        assert math.hypot(b[0], b[1]) <= limits.max_speed_mps + 1e-9
        assert abs(b[2]) <= limits.max_turn_radps + 1e-9
        assert abs(b[0] - a[0]) <= limits.max_accel_mps2 * (t1 - t0) + 1e-6


def test_silence_stops_within_the_timeout() -> None:
    rig = Rig()
    drive(rig, 1.5, (0.5, 0.0, 0.0))
    silent_s = rig.clock.now()
    drive(rig, TELEOP_TIMEOUT_S + 0.6, None)
    assert rig.is_still
    stop_s = next(at_s for at_s, call in rig.robot.calls if call == "stop" and at_s >= silent_s - 0.03)
    assert stop_s - silent_s <= TELEOP_TIMEOUT_S + 2 * rig.executor.period_s
    assert rig.executor.source == "none"


def test_language_yields_at_once_and_does_not_come_back_by_itself() -> None:
    rig = Rig()
    sent = rig.plan("forward(3)")
    rig.executor.submit(sent)
    for _ in range(40):
        rig.executor.submit(sent)
        drive(rig, 0.025, None)
    assert rig.executor.source == "language"
    for _ in range(40):
        rig.executor.submit(sent)
        drive(rig, 0.025, (0.0, 0.0, 0.0))
    assert rig.is_still, "a zero velocity is a command, too"
    status = rig.executor.status()
    assert (status.state, status.reason) == ("stopped", "teleop")
    for _ in range(80):
        rig.executor.submit(sent)
        drive(rig, 0.025, None)
    assert rig.is_still
    assert rig.run("forward(0.3)", mission="new").state == "done"


def test_a_plan_that_comes_while_a_person_steers_is_turned_down_by_name() -> None:
    rig = Rig()
    drive(rig, 0.5, (0.2, 0.0, 0.0))
    for _ in range(4):
        rig.executor.submit(rig.plan("turn(90)", mission="late"))
        drive(rig, 0.025, (0.2, 0.0, 0.0))
    status = rig.executor.status()
    assert (status.mission, status.state, status.reason) == ("late", "stopped", "teleop")


def test_the_e_stop_goes_before_a_person() -> None:
    rig = Rig()
    drive(rig, 1.0, (0.5, 0.0, 0.0))
    rig.executor.estop(True)
    assert rig.executor.source == "estop"
    drive(rig, 1.0, (0.5, 0.0, 0.0))
    assert rig.is_still
    rig.executor.estop(False)
    # A stick that was held all the time moves nothing by the release; it has to be let go first.
    drive(rig, 1.0, (0.5, 0.0, 0.0))
    assert rig.is_still
    drive(rig, 0.1, (0.0, 0.0, 0.0))
    drive(rig, 1.0, (0.5, 0.0, 0.0))
    assert not rig.is_still


def test_a_stick_that_is_silent_or_ended_counts_as_let_go_after_an_e_stop() -> None:
    for let_go in (
        lambda rig: drive(rig, TELEOP_TIMEOUT_S + 0.1, None),
        lambda rig: rig.executor.end_steering(),
    ):
        rig = Rig()
        drive(rig, 1.0, (0.5, 0.0, 0.0))
        rig.executor.estop(True)
        drive(rig, 1.0, (0.5, 0.0, 0.0))
        rig.executor.estop(False)
        let_go(rig)
        drive(rig, 1.0, (0.5, 0.0, 0.0))
        assert not rig.is_still


def test_a_person_does_not_drive_into_an_obstacle_and_may_turn_away() -> None:
    rig = Rig(Disc(1.2, 0.0))
    drive(rig, 5.0, (0.5, 0.0, 0.0))
    gap_m = 1.2 - 0.2 - 0.35 - rig.x_m
    assert gap_m >= SafetyLimits().obstacle_stop_m - 0.03
    assert rig.is_still
    drive(rig, 1.0, (0.5, 0.0, 0.5))
    assert abs(rig.yaw_deg) > 10
    drive(rig, 1.5, (-0.5, 0.0, 0.0))
    assert rig.x_m < 0.5


@pytest.mark.parametrize("velocity", [(math.nan, 0, 0), (0, math.inf, 0), (0, 0, -math.inf)])
def test_what_is_no_velocity_is_dropped(velocity: tuple[float, float, float]) -> None:
    rig = Rig()
    assert not rig.executor.steer(velocity)
    drive(rig, 0.5, velocity)
    assert not rig.moves()
