"""Each way to wait less, with late, unordered and repeated messages, a jumping odometry and a slow camera, in
small: benchmarks/robot.py counts what must not happen, and here it is shown that it counts."""

from __future__ import annotations

import math
import random
from types import ModuleType

import pytest

from test.benchmark_module import benchmark
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Forward, Turn
from vlm_spec_decode.control.action_runner import ODOMETRY_JUMP


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    return benchmark("robot_faults")


def test_nothing_that_must_not_happen_does_in_any_way_to_wait_less(faults: ModuleType) -> None:
    figures = {figure.name: figure for figure in faults.faults(1, 5)}
    assert all(figure.holds for figure in figures.values()), figures
    tried = figures["faults_beyond_limits"].note.split("; ")[1].split(", ")
    assert all(int(part.split()[0]) > 0 for part in tried), tried


def test_what_ends_a_mission_ends_it_in_every_state_within_its_bar(faults: ModuleType) -> None:
    figures = faults.states(1, 5)
    assert all(figure.holds for figure in figures), figures
    assert "3 searching, 3 settling, 3 replanning, 3 started" in figures[0].note


def world(faults: ModuleType, mode: str = "default"):  # type: ignore[no-untyped-def]
    return faults.World(random.Random(3), faults.MODES[mode], faults.Faults())


def walk(at, plan: Plan, seconds: float) -> None:  # type: ignore[no-untyped-def]
    """Have the world carry out a plan that no mission made."""
    at.hear(None, plan)
    until_s = at.clock.now() + seconds
    while at.clock.now() < until_s:
        at.tick()


def test_a_plan_that_nobody_committed_is_counted(faults: ModuleType) -> None:
    at = world(faults)
    walk(at, Plan("m", 1, at.clock.now(), 0, (Forward(0.5),), True), 1.0)
    assert at.counts.uncommitted


@pytest.mark.parametrize("age_s", [6.0, 0.2])
def test_a_plan_on_an_old_frame_is_counted_if_the_gate_lets_it_pass(
    faults: ModuleType, monkeypatch: pytest.MonkeyPatch, age_s: float
) -> None:
    from vlm_spec_decode.control.safety import SafetyGate

    monkeypatch.setattr(SafetyGate, "_check_freshness", lambda *_: None)
    at = world(faults)
    while not at._taken:
        at.tick()
    stamp_s = min(at._taken)
    while at.clock.now() < stamp_s + age_s:
        at.tick()
    walk(at, Plan("m", 1, stamp_s, 0, (Forward(0.5),), True), 1.0)
    assert bool(at.counts.too_old) == (age_s > 5)


@pytest.mark.parametrize(
    ("action", "back"),
    [(Forward(0.3), (-1.5, 0.0, 0.0)), (Turn(60.0), (0.0, 0.0, -2.0))],
    ids=["way", "turn"],
)
def test_a_motion_that_follows_a_jump_of_the_odometry_is_counted(
    faults: ModuleType, monkeypatch: pytest.MonkeyPatch, action: Forward | Turn, back: tuple[float, ...]
) -> None:
    at = world(faults)
    plan = Plan("m", 1, at.clock.now(), 0, (action,), True)
    walk(at, plan, 0.7)
    at.robot.jump(*back)
    walk(at, plan, 6.0)
    assert at.executor.status().reason == ODOMETRY_JUMP
    assert not at.counts.beyond
    # Without the executor's look at it the same jump is walked, and turned, on.
    monkeypatch.setattr("vlm_spec_decode.control.action_runner.has_jumped", lambda *_: False)
    at = world(faults)
    walk(at, plan := Plan("m", 1, at.clock.now(), 0, (action,), True), 0.7)
    at.robot.jump(*back)
    walk(at, plan, 6.0)
    assert at.counts.beyond


def test_a_jump_leaves_the_true_pose_alone(faults: ModuleType) -> None:
    at = world(faults)
    walk(at, Plan("m", 1, at.clock.now(), 0, (Turn(30.0), Forward(0.5)), True), 5.0)
    true, told = at.robot.true_pose, at.robot.state()
    at.robot.jump(1.0, -2.0, 0.5)
    now = at.robot.state()
    assert at.robot.true_pose == pytest.approx(true)
    assert (now.x_m - told.x_m, now.y_m - told.y_m) == pytest.approx((1.0, -2.0))
    assert math.remainder(now.yaw_rad - told.yaw_rad - 0.5, 2 * math.pi) == pytest.approx(0, abs=1e-9)
