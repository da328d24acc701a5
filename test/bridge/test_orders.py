import json

import pytest

from vlm_spec_decode.bridge.orders import MAX_WAITING, Orders
from vlm_spec_decode.bridge.requests import Request
from vlm_spec_decode.core.errors import InstructionError


@pytest.mark.parametrize(
    "request_",
    [
        Request("go"),
        Request('say "hello" \n ü', "m-1", approve=True),
        Request("x" * 2000, queue=True, dry_run=True),
        Request("\u0000" * 2000),
    ],
)
def test_round_trip(request_):
    assert Request.from_json(request_.to_json()) == request_


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("{}", "instruction"),
        ("[" * 10_000, "JSON"),
        (" " * 50_000, "longer"),
        (json.dumps({"instruction": ""}), "empty"),
        (json.dumps({"instruction": 3}), "instruction"),
        (json.dumps({"instruction": "go", "approve": "no"}), "approve"),
        (json.dumps({"instruction": "go", "max_speed_mps": 9}), "max_speed_mps"),
        (json.dumps({"instruction": "go", "mission": "a b"}), "mission"),
    ],
)
def test_what_is_no_request_is_refused_by_name(text, complaint):
    with pytest.raises(InstructionError, match=complaint):
        Request.from_json(text)


def test_a_name_is_used_once_and_the_node_makes_its_own():
    orders = Orders("n")
    assert orders.job(Request("go", "mine")).mission == "mine"
    with pytest.raises(InstructionError, match="mine"):
        orders.job(Request("go", "mine"))
    assert orders.job(Request("go")).mission != orders.job(Request("go")).mission


def test_the_queue_is_bounded_in_order_and_can_be_left():
    orders = Orders("n")
    jobs = [orders.job(Request("go")) for _ in range(MAX_WAITING + 1)]
    for job in jobs[:-1]:
        orders.enqueue(job)
    with pytest.raises(InstructionError, match="wait"):
        orders.enqueue(jobs[-1])
    assert orders.withdraw(jobs[3].mission) == jobs[3]
    assert orders.withdraw(jobs[3].mission) is None
    assert orders.drop_waiting() == [*jobs[:3], *jobs[4:-1]]
    assert not orders.waiting
