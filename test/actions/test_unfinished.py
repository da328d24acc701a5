"""A motion that was broken off is gone on with, not begun anew."""

from __future__ import annotations

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.actions.types import Forward, Strafe, Turn
from vlm_spec_decode.control.action_runner import ResumableMotion
from vlm_spec_decode.robot.fake import Disc


def go_on(rig: Rig, text: str, answer: int) -> None:
    rig.send(text, answer=answer)
    assert rig.go(12.0).state == "done"


def far(rig: Rig, axis: str) -> float:
    return {"forward": rig.x_m, "strafe": rig.y_m, "turn": rig.yaw_deg}[axis]


@pytest.mark.parametrize(
    ("axis", "whole", "tolerance"), [("forward", 2.5, 0.1), ("forward", -2.5, 0.1), ("strafe", 2.0, 0.1),
                                     ("turn", 170.0, 3.0), ("turn", -170.0, 3.0)]
)  # fmt: skip
def test_what_the_watchdog_broke_off_is_gone_on_with(axis: str, whole: float, tolerance: float) -> None:
    rig, text = Rig(), f"{axis}({whole})"
    rig.send(text)
    rig.go(2.5)
    assert rig.go(1.5, heartbeat=False).reason == "watchdog"
    assert 0.2 * abs(whole) < abs(far(rig, axis)) < 0.8 * abs(whole)
    go_on(rig, text, answer=1)
    assert far(rig, axis) == pytest.approx(whole, abs=tolerance)
    assert rig.executor.status().executed == (text.replace(".0)", ")"),)


def test_it_may_be_broken_off_more_than_once() -> None:
    rig = Rig()
    for answer in range(3):
        rig.send("forward(2.5)", answer=answer)
        rig.go(1.5)
        assert rig.go(1.0, heartbeat=False).reason == "watchdog"
    go_on(rig, "forward(2.5)", answer=3)
    assert rig.x_m == pytest.approx(2.5, abs=0.1)


def test_what_stood_in_the_way_and_left_again_costs_nothing() -> None:
    rig = Rig()
    rig.send("forward(2.5)")
    rig.go(1.0)
    rig.robot.set_discs(Disc(1.5, 0.0, 0.2))
    assert rig.go(4.0).reason == "obstacle"
    rig.robot.set_discs()
    go_on(rig, "forward(2.5)", answer=1)
    assert rig.x_m == pytest.approx(2.5, abs=0.1)


def test_a_plan_without_actions_breaks_off_and_what_was_walked_counts() -> None:
    """So a mission stops the robot that has lost its cloud."""
    rig = Rig()
    rig.send("forward(2.5)", final=False)
    rig.go(2.0)
    rig.send("", answer=1, final=False)
    rig.go(1.0)
    assert rig.is_still
    go_on(rig, "forward(2.5)", answer=2)
    assert rig.x_m == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize(
    ("text", "mission"), [("forward(2.4)", "m"), ("forward(2.5)", "another")], ids=["other words", "mission"]
)
def test_another_answer_or_another_mission_is_carried_out_in_full(text: str, mission: str) -> None:
    rig = Rig()
    rig.send("forward(2.5)")
    rig.go(2.5)
    rig.go(1.0, heartbeat=False)
    before_m = rig.x_m
    rig.send(text, answer=1, mission=mission)
    assert rig.go(12.0).state == "done"
    assert rig.x_m - before_m == pytest.approx(float(text[8:-1]), abs=0.1)


def test_another_motion_in_between_makes_it_a_new_one() -> None:
    rig = Rig()
    rig.send("forward(1)")
    rig.go(1.5)
    rig.go(1.0, heartbeat=False)
    before_m = rig.x_m
    go_on(rig, "turn(20) turn(-20) forward(1)", answer=1)
    assert rig.x_m - before_m == pytest.approx(1.0, abs=0.1)


def test_an_answer_that_supersedes_a_walking_robot_means_what_it_says() -> None:
    rig = Rig()
    rig.send("forward(2)")
    rig.go(1.5)
    before_m = rig.x_m
    go_on(rig, "forward(2)", answer=1)
    assert rig.x_m - before_m == pytest.approx(2.0, abs=0.25)


@pytest.mark.parametrize("action", [Forward(1.0), Strafe(-1.0), Turn(90.0)])
def test_nothing_unfinished_changes_nothing(action: Forward | Strafe | Turn) -> None:
    assert ResumableMotion().remaining_of(action, Rig().robot.state()) is action
