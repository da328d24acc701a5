"""Plan messages as a best-effort topic delivers them: repeated, late, reordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Action, Done, Forward, Turn
from vlm_spec_decode.control.plan_queue import MAX_CLOSED_MISSIONS, PlanReceipt, PlanTracker
from vlm_spec_decode.core.errors import ActionRefused

ACTIONS: tuple[Action, ...] = (Turn(10), Forward(1), Turn(-5), Forward(2), Done())


def plan(count: int, *, mission: str = "m", answer: int = 0, sequence: int | None = None) -> Plan:
    order = count if sequence is None else sequence
    return Plan(mission, answer, 0.0, order, ACTIONS[:count], final=count == len(ACTIONS))


def test_receipts() -> None:
    inbox = PlanTracker()
    assert inbox.receive(plan(1), 1.0, 0.2) is PlanReceipt.NEW
    assert inbox.receive(plan(1), 2.0, 0.3) is PlanReceipt.BEAT
    assert inbox.receive(plan(3), 3.0, 0.4) is PlanReceipt.MORE
    assert inbox.receive(plan(1), 4.0, 0.5) is PlanReceipt.DROPPED
    assert inbox.receive(plan(1, answer=1), 5.0, 0.6) is PlanReceipt.NEW
    assert inbox.receive(plan(3), 6.0, 0.7) is PlanReceipt.DROPPED
    assert inbox.receive(plan(1, mission="n"), 7.0, 0.8) is PlanReceipt.NEW
    assert inbox.receive(plan(5, answer=9), 8.0, 0.9) is PlanReceipt.DROPPED
    assert inbox.received_s == 7.0
    assert inbox.dropped == 3


def test_a_frame_is_as_old_as_it_was_when_the_action_came() -> None:
    inbox = PlanTracker()
    inbox.receive(plan(1), 1.0, 0.2)
    inbox.receive(plan(1), 2.0, 1.2)
    inbox.receive(plan(3), 3.0, 2.2)
    assert inbox.action(0) == (Turn(10), 0.2)
    assert inbox.action(1) == (Forward(1), 2.2)
    assert inbox.action(3) is None


def test_what_was_announced_may_not_change() -> None:
    inbox = PlanTracker()
    inbox.receive(plan(2), 1.0, 0.0)
    with pytest.raises(ActionRefused, match="plan_changed"):
        inbox.receive(Plan("m", 0, 0.0, 5, (Turn(10), Forward(3)), False), 2.0, 0.0)
    inbox = PlanTracker()
    inbox.receive(plan(5), 1.0, 0.0)
    with pytest.raises(ActionRefused, match="plan_changed"):
        inbox.receive(Plan("m", 0, 0.0, 6, ACTIONS, False), 2.0, 0.0)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_any_order_of_messages_ends_with_the_longest_plan(counts: list[int]) -> None:
    inbox = PlanTracker()
    for at, count in enumerate(counts):
        inbox.receive(plan(count), float(at), 0.0)
    assert inbox.plan == plan(max(counts))
    assert all(inbox.action(i) is not None for i in range(max(counts)))


def test_barred_missions_are_forgotten_only_after_many_others() -> None:
    inbox = PlanTracker()
    inbox.close_mission("old", "cancelled")
    inbox.close_mission("old", "estop")
    for number in range(MAX_CLOSED_MISSIONS - 1):
        inbox.close_mission(str(number), "superseded")
    assert inbox.closed_reason("old") == "cancelled"
    assert inbox.receive(plan(1, mission="old"), 0.0, 0.0) is PlanReceipt.DROPPED
    inbox.close_mission("one more", "superseded")
    assert inbox.closed_reason("old") is None
