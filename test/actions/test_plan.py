"""Plan and status messages: what is written is read, what is not exactly right is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test.actions.strategies import actions
from vlm_spec_decode.actions.plan import MAX_JSON_CHARS, STATES, Plan, PlanStatus
from vlm_spec_decode.actions.types import Done, Forward, Turn
from vlm_spec_decode.core.errors import ActionParseError

PLAN = Plan("m1", 2, 12.5, 7, (Turn(-10), Forward(1.6), Done()), final=True)

plans = st.builds(
    Plan,
    mission=st.text(max_size=20),
    answer=st.integers(0, 999),
    stamp_s=st.floats(0, 1e10),
    sequence=st.integers(0, 2**53),
    actions=st.lists(actions(with_done=False), max_size=5).map(tuple),
    final=st.booleans(),
)


@given(plans)
def test_plan_round_trip(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan


@given(
    st.builds(
        PlanStatus,
        mission=st.text(max_size=20),
        answer=st.integers(0, 999),
        actions_done=st.integers(0, 99),
        state=st.sampled_from(STATES),
        reason=st.text(max_size=20),
        detail=st.text(max_size=200),
        action=st.text(max_size=20),
        executed=st.lists(st.text(max_size=9), max_size=4).map(tuple),
    )
)
def test_status_round_trip(status: PlanStatus) -> None:
    assert PlanStatus.from_json(status.to_json()) == status


def test_plan_json_is_readable() -> None:
    assert json.loads(PLAN.to_json()) == {
        "mission": "m1",
        "answer": 2,
        "stamp_s": 12.5,
        "sequence": 7,
        "actions": ["turn(-10)", "forward(1.6)", "done()"],
        "final": True,
        "verified": True,
        "origin": "answer",
    }


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("mission", 3, "mission"),
        ("mission", "x" * 500, "mission"),
        ("answer", -1, "answer"),
        ("answer", True, "answer"),
        ("answer", 1.0, "answer"),
        ("stamp_s", "now", "stamp_s"),
        ("stamp_s", float("nan"), "stamp_s"),
        ("stamp_s", float("inf"), "stamp_s"),
        ("sequence", None, "sequence"),
        ("actions", "forward(1)", "actions"),
        ("actions", [1], "actions"),
        ("actions", ["fly(1)"], "fly"),
        ("actions", ["go forward(1)"], "not one action|unknown action"),
        ("actions", ["done()", "forward(1)"], "done"),
        ("final", 1, "final"),
        ("verified", "no", "verified"),
        ("extra", 1, "extra"),
    ],
)
def test_wrong_plans_are_refused_by_name(key: str, value: object, complaint: str) -> None:
    data = json.loads(PLAN.to_json()) | {key: value}
    with pytest.raises(ActionParseError, match=complaint):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "3", '{"mission": "a"}', "[" * 30_000, "9" * 9_000])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ActionParseError):
        Plan.from_json(text)


def test_repeated_and_missing_keys_are_refused() -> None:
    with pytest.raises(ActionParseError, match="repeated"):
        Plan.from_json(PLAN.to_json().replace("{", '{"answer": 2, ', 1))
    data = json.loads(PLAN.to_json())
    del data["final"]
    with pytest.raises(ActionParseError, match="final"):
        Plan.from_json(json.dumps(data))


def test_only_what_says_so_is_unverified() -> None:
    data = json.loads(PLAN.to_json())
    del data["verified"]
    assert Plan.from_json(json.dumps(data)).verified
    assert not Plan.from_json(json.dumps(data | {"verified": False})).verified


def test_oversized_messages_are_refused_unread() -> None:
    with pytest.raises(ActionParseError, match="longer than"):
        Plan.from_json(" " * (MAX_JSON_CHARS + 1))


def test_unknown_state_is_refused() -> None:
    with pytest.raises(ActionParseError, match="flying"):
        PlanStatus.from_json(PlanStatus().to_json().replace("idle", "flying"))


@given(st.text(max_size=200))
def test_garbage_raises_only_parse_errors(text: str) -> None:
    with pytest.raises(ActionParseError):
        Plan.from_json(text)
