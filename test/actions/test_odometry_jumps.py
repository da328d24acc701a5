"""A motion is measured by the odometry: when that jumps the robot stops, and nothing is resumed across it."""

from __future__ import annotations

import math

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.control.action_runner import JUMP_M, JUMP_RAD


def jump(rig: Rig, x_m: float = 0.0, y_m: float = 0.0, yaw_rad: float = 0.0) -> None:
    x, y, yaw = rig.robot.true_pose
    rig.robot.set_pose(x + x_m, y + y_m, yaw + yaw_rad)


@pytest.mark.parametrize("text", ["forward(1.5)", "strafe(0.5)", "turn(120)", "turn(60) forward(1)"])
@pytest.mark.parametrize("by", [(-3.0, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 2.0), (1.0, 1.0, -0.5)])
def test_a_jump_ends_the_motion_where_the_body_is(text: str, by: tuple[float, float, float]) -> None:
    rig = Rig()
    rig.send(text)
    rig.go(0.9)
    assert not rig.is_still
    jump(rig, *by)
    here = rig.robot.true_pose
    status = rig.go(1.5)
    assert (status.state, status.reason) == ("refused", "odometry_jump")
    assert "jumped by" in status.detail
    assert rig.is_still
    assert math.dist(here[:2], rig.robot.true_pose[:2]) < 0.15
    assert abs(rig.robot.true_pose[2] - here[2]) < 0.25


def test_what_was_interrupted_is_not_resumed_across_a_jump() -> None:
    rig = Rig()
    rig.send("forward(1)")
    rig.go(1.2)
    rig.go(1.0, heartbeat=False)
    jump(rig, -2.0)
    before_m = rig.x_m
    rig.send("forward(1)", answer=1)
    assert rig.go(6.0).state == "done"
    assert rig.x_m - before_m == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("by", [(0.9 * JUMP_M, 0.0, 0.0), (0.0, 0.0, 0.9 * JUMP_RAD)])
def test_a_small_correction_of_the_odometry_ends_nothing(by: tuple[float, float, float]) -> None:
    rig = Rig()
    rig.send("turn(90) forward(1)")
    rig.go(0.6)
    jump(rig, *by)
    assert rig.go(8.0).state == "done"


def test_a_jump_at_rest_ends_nothing() -> None:
    rig = Rig()
    rig.send("forward(0.3)", final=False)
    rig.go(3.0)
    jump(rig, 5.0, 1.0, 2.0)
    before = rig.robot.true_pose
    rig.send("forward(0.3) forward(0.5)", sequence=1)
    assert rig.go(5.0).state == "done"
    assert math.dist(before[:2], rig.robot.true_pose[:2]) == pytest.approx(0.5, abs=0.06)


def test_a_start_on_a_draft_ends_with_its_answer() -> None:
    from vlm_spec_decode.actions.plan import Plan
    from vlm_spec_decode.actions.types import Turn

    rig = Rig()
    start = Plan("m", 0, rig.clock.now(), 1, (Turn(60.0),), verified=False, draft_start=True)
    rig._sent = start
    assert rig.go(0.8).start == "begun"
    jump(rig, 0.0, 0.0, 1.0)
    status = rig.go(0.5)
    assert (status.state, status.reason) == ("refused", "odometry_jump")
    turned = rig.robot.true_pose[2]
    rig.send("turn(60)", sequence=2)
    rig.go(2.0)
    assert rig.robot.true_pose[2] == pytest.approx(turned, abs=0.02)
