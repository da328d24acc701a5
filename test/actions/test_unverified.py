"""What the draft alone has said: reduced limits, and no way to become verified afterwards."""

from __future__ import annotations

import math

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.core.errors import ConfigError


def plan(text: str, rig: Rig, *, verified: bool, answer: int = 0, sequence: int = 0) -> Plan:
    return Plan("m", answer, rig.clock.now(), sequence, parse_answer(text), True, verified)


def carry_out(rig: Rig, sent: Plan) -> str:
    rig.executor.submit(sent)
    for _ in range(2000):
        rig.executor.submit(sent)
        rig.executor.tick()
        rig.clock.sleep(rig.executor.period_s)
        status = rig.executor.status()
        if (status.answer, status.is_terminal) == (sent.answer, True):
            return f"{status.state} {status.reason}".strip()
    raise AssertionError(rig.executor.status())


def fastest(rig: Rig) -> float:
    return max(math.hypot(vx, vy) for _, (vx, vy, _) in rig.moves())


def test_reduced_limits_hold_for_it_and_the_full_ones_for_the_next_verified_answer() -> None:
    rig = Rig()
    assert carry_out(rig, plan("forward(0.5)", rig, verified=False)) == "done"
    assert fastest(rig) <= rig.limits.unverified_speed_mps + 1e-9
    assert carry_out(rig, plan("forward(0.6)", rig, verified=False, answer=1)) == "refused limit_distance"
    assert carry_out(rig, plan("forward(1.5)", rig, verified=True, answer=2)) == "done"
    assert fastest(rig) > rig.limits.unverified_speed_mps + 0.1


@pytest.mark.parametrize(
    ("text", "reason"), [("turn(120)", "limit_angle"), ("wait(1) " * 5, "too_many_actions")]
)
def test_what_is_too_much_for_a_draft_is_refused_by_name(text: str, reason: str) -> None:
    rig = Rig()
    assert carry_out(rig, plan(text, rig, verified=False)) == f"refused {reason}"
    assert carry_out(rig, plan(text, rig, verified=True, answer=1)) == "done"


def test_an_answer_cannot_become_verified_on_the_way() -> None:
    rig = Rig()
    rig.executor.submit(plan("forward(0.5)", rig, verified=False))
    rig.executor.tick()
    rig.executor.submit(plan("forward(0.5)", rig, verified=True, sequence=1))
    rig.executor.tick()
    assert rig.executor.status().reason == "plan_changed"


def test_reduced_limits_are_never_wider() -> None:
    narrow = SafetyLimits(
        max_speed_mps=0.1, max_turn_radps=0.1, max_distance_m=0.2, max_angle_deg=10.0, max_actions=1
    )
    assert narrow.unverified() == narrow
    with pytest.raises(ConfigError, match="unverified_speed_mps"):
        SafetyLimits(unverified_speed_mps=0.0)
