"""The benchmark's own adversary, in small: what it counts is found when there, and is not when it is not."""

from __future__ import annotations

import random

import pytest

from test.benchmark_module import benchmark
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.types import Forward, Look, Turn, Wait
from vlm_spec_decode.core.robot import RobotState


@pytest.fixture(scope="module")
def gate():
    return benchmark("robot_gate")


def test_no_plan_gets_through_beyond_a_limit(gate) -> None:
    figure = gate.plans(1500, 7)
    assert figure.value == 0, figure.note
    assert int(figure.note.split("; ")[1].split()[0]) > 100, (
        "too few got through for the figure to mean anything"
    )


def test_nothing_in_the_way_is_touched(gate) -> None:
    assert gate.obstacles(4, 7).value == 0


@pytest.mark.parametrize(
    ("action", "changes", "age_s"),
    [
        (Forward(3.5), {}, 0.1),
        (Forward(float("nan")), {}, 0.1),
        (Forward(1.0), {"range_obstacle_m": (0.05, 9.0, 9.0, 9.0)}, 0.1),
        (Forward(1.0), {"x_m": 1.5}, 0.1),
        (Forward(1.0), {"battery_soc": 0.1}, 0.1),
        (Forward(1.0), {}, 9.0),
        (Turn(200.0), {}, 0.1),
        (Turn(10.0), {"posture": "damp"}, 0.1),
        (Look(30.0, 0.0), {}, 0.1),
        (Wait(-1.0), {}, 0.1),
    ],
)
def test_the_adversary_sees_what_exceeds(gate, action, changes, age_s) -> None:
    limits = SafetyLimits(geofence=gate.FENCE)
    plain = {"stamp_s": 0.0, "received_s": 0.0, "x_m": 0.0, "y_m": 0.0, "yaw_rad": 0.0, "vx_mps": 0.0,
             "vy_mps": 0.0, "vyaw_radps": 0.0}  # fmt: skip
    assert gate.exceeds(action, RobotState(**plain | changes), age_s, limits)
    assert not gate.exceeds(Forward(1.0), RobotState(**plain), 0.1, limits)


def test_garbled_plans_are_garbled(gate) -> None:
    rng = random.Random(1)
    text = '{"actions": ["forward(1)"], "final": true}'
    assert len({gate.garbled(text, rng) for _ in range(200)}) > 5


@pytest.fixture(scope="module")
def start():
    return benchmark("robot_start")


def test_starts_on_drafts_that_err_are_late_or_stand_before_something_stay_within_their_bars(start) -> None:
    found = {figure.name: figure for figure in start.starts(30, 7)}
    assert all(figure.value <= figure.bar for figure in found.values()), found
    note = found["start_beyond_limits"].note
    assert all(int(part.split()[0]) > 0 for part in note.split(": ")[1].split(", ")), note
    assert int(found["start_contacts"].note.split(", ")[1].split()[0]) > 10, "nothing was begun"


@pytest.mark.parametrize(
    ("drafted", "moved"),
    [("forward(0.3)", (0.4, 0.0, 0.0)), ("forward(0.3)", (0.0, 0.0, 20.0)), ("turn(20)", (0.0, 0.0, 40.0)),
     ("turn(20)", (0.3, 0.0, 20.0))],
)  # fmt: skip
def test_a_start_that_goes_too_far_is_counted(start, drafted, moved) -> None:
    from vlm_spec_decode.actions.parser import parse_action

    trial = start.Trial(random.Random(3))
    trial.robot.set_pose(0.0, 0.0, 0.0)
    began, action = trial.pose, parse_action(drafted)
    assert not start.is_beyond(trial, began, trial.clock.now(), action)
    trial.robot.set_pose(moved[0], moved[1], moved[2] * 3.14159 / 180)
    assert start.is_beyond(trial, began, trial.clock.now(), action)
