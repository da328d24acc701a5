"""A newer answer replaces the rest of an older plan without a stop, and everything that stops still does."""

import itertools

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.robot.fake import Disc


def stops(rig: Rig) -> int:
    return sum(call.startswith("stop") for _, call in rig.robot.calls)


def smallest_change_is_smooth(rig: Rig) -> bool:
    """Whether no two Moves in a row differ by more than the limits of acceleration allow in two periods."""
    limits, period_s = rig.limits, rig.executor.period_s
    moves = rig.moves()
    for (before_s, before), (after_s, after) in itertools.pairwise(moves):
        dt_s = max(after_s - before_s, period_s) + period_s
        if abs(after[0] - before[0]) > limits.max_accel_mps2 * dt_s + 1e-6:
            return False
        if abs(after[2] - before[2]) > limits.max_turn_accel_radps2 * dt_s + 1e-6:
            return False
    return True


def test_walking_goes_on_at_full_speed() -> None:
    rig = Rig()
    rig.send("forward(1.5)", final=False)
    rig.go(1.5)
    before, at_m = stops(rig), rig.x_m
    rig.send("forward(1.0)", answer=1)
    rig.go(0.3)
    assert stops(rig) == before
    assert all(velocity[0] > 0.4 for _, velocity in rig.moves()[-8:])
    status = rig.go(6.0)
    assert status.state == "done"
    assert rig.x_m == pytest.approx(at_m + 1.0, abs=0.08)
    assert smallest_change_is_smooth(rig)


def test_a_turn_is_turned_back_through_rest_without_a_jump() -> None:
    rig = Rig()
    rig.send("turn(180)", final=False)
    rig.go(2.0)
    before, at_deg = stops(rig), rig.yaw_deg
    rig.send("turn(-60) forward(0.5)", answer=1)
    rig.go(1.0)
    assert stops(rig) == before
    rig.go(6.0)
    assert rig.yaw_deg == pytest.approx(at_deg - 60, abs=3)
    assert smallest_change_is_smooth(rig)


@pytest.mark.parametrize("text", ["", "stop()", "wait(1.0)", "sit()", "done()"])
def test_what_does_not_walk_stops_the_robot_first(text: str) -> None:
    rig = Rig()
    rig.send("forward(2.0)", final=False)
    rig.go(1.5)
    before = stops(rig)
    rig.send(text, answer=1)
    rig.go(0.1)
    assert stops(rig) > before


def test_another_mission_stops_the_robot_first() -> None:
    rig = Rig()
    rig.send("forward(2.0)", final=False)
    rig.go(1.5)
    before = stops(rig)
    rig.send("forward(2.0)", mission="other")
    rig.go(0.1)
    assert stops(rig) > before


def test_a_walk_that_the_gate_refuses_is_stopped() -> None:
    rig = Rig()
    rig.send("forward(2.0)", final=False)
    rig.go(1.5)
    rig.send("forward(9.0)", answer=1)
    status = rig.go(0.1)
    assert (status.state, status.reason) == ("refused", "limit_distance")
    rig.go(1.0)
    assert rig.is_still


def test_a_walk_on_a_frame_that_is_too_old_is_stopped() -> None:
    rig = Rig()
    rig.send("forward(2.0)", final=False)
    rig.go(1.5)
    plan = rig.plan("forward(1.0)", answer=1)
    rig.clock.sleep(0.01)
    old = type(plan)(plan.mission, 1, plan.stamp_s - 6.0, 0, plan.actions, final=True)
    rig.executor.submit(old)
    rig.executor.tick()
    assert rig.executor.status().reason == "stale_frame"


def test_an_obstacle_stops_the_robot_that_goes_on() -> None:
    rig = Rig(Disc(2.0, 0.0, 0.2))
    rig.send("forward(1.0)", final=False)
    rig.go(1.2)
    rig.send("forward(3.0)", answer=1)
    status = rig.go(6.0)
    assert status.reason == "obstacle"
    assert rig.x_m < 1.6


def test_e_stop_and_cancel_stop_a_robot_that_goes_on() -> None:
    for act, reason in (
        (lambda rig: rig.executor.estop(True), "estop"),
        (lambda r: r.executor.cancel(), "cancelled"),
    ):
        rig = Rig()
        rig.send("forward(2.0)", final=False)
        rig.go(1.0)
        rig.send("forward(2.0)", answer=1)
        rig.go(0.2)
        act(rig)
        assert rig.go(1.0).reason == reason
        assert rig.is_still
