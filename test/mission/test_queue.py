import json

import pytest

from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.mission.queue import MAX_WAITING, MissionQueue, MissionRequest
from vlm_spec_decode.mission.state import MissionStatus


@pytest.mark.parametrize(
    "request_",
    [
        MissionRequest(instruction="go"),
        MissionRequest(instruction='say "hello" \n ü', mission="m-1", approve=True),
        MissionRequest(instruction="x" * 2000, queue=True, dry_run=True),
        MissionRequest(instruction="\u0000" * 2000),
        MissionRequest(instruction="go", mission="m-1", lease_s=0.7),
        MissionRequest(instruction="the red one", mission="m-1", reply=True, step=2),
    ],
)
def test_round_trip(request_):
    assert MissionRequest.from_json(request_.to_json()) == request_


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
        (json.dumps({"instruction": "go", "mission": "m", "lease_s": "1"}), "lease_s"),
        (json.dumps({"instruction": "go", "mission": "m", "lease_s": True}), "lease_s"),
        (json.dumps({"instruction": "go", "mission": "m", "lease_s": 0.01}), "lease_s"),
        (json.dumps({"instruction": "go", "mission": "m", "lease_s": -1}), "lease_s"),
        ('{"instruction": "go", "mission": "m", "lease_s": NaN}', "lease_s"),
        ('{"instruction": "go", "mission": "m", "lease_s": 1e999}', "lease_s"),
        (json.dumps({"instruction": "go", "lease_s": 1}), "name"),
        (json.dumps({"instruction": "go", "reply": 1}), "reply"),
        (json.dumps({"instruction": "go", "reply": True, "queue": True}), "options"),
        (json.dumps({"instruction": "go", "mission": "m", "reply": True, "lease_s": 1}), "options"),
        (json.dumps({"instruction": "go", "reply": True, "step": True}), "step"),
        (json.dumps({"instruction": "go", "reply": True, "step": -1}), "step"),
        (json.dumps({"instruction": "go", "step": 1}), "step"),
    ],
)
def test_what_is_no_request_is_refused_by_name(text, complaint):
    with pytest.raises(InstructionError, match=complaint):
        MissionRequest.from_json(text)


def test_a_name_is_used_once_and_the_node_makes_its_own():
    orders = MissionQueue("n")
    assert orders.new_job(MissionRequest(instruction="go", mission="mine")).mission == "mine"
    with pytest.raises(InstructionError, match="mine"):
        orders.new_job(MissionRequest(instruction="go", mission="mine"))
    assert (
        orders.new_job(MissionRequest(instruction="go")).mission
        != orders.new_job(MissionRequest(instruction="go")).mission
    )


def test_the_queue_is_bounded_in_order_and_can_be_left():
    orders = MissionQueue("n")
    jobs = [orders.new_job(MissionRequest(instruction="go")) for _ in range(MAX_WAITING + 1)]
    for job in jobs[:-1]:
        orders.enqueue(job)
    with pytest.raises(InstructionError, match="wait"):
        orders.enqueue(jobs[-1])
    assert orders.withdraw(jobs[3].mission) == jobs[3]
    assert orders.withdraw(jobs[3].mission) is None
    assert orders.drop_waiting() == [*jobs[:3], *jobs[4:-1]]
    assert not orders.waiting


def test_the_same_request_again_is_no_other_mission():
    orders = MissionQueue("n")
    request = MissionRequest(instruction="go", mission="mine", lease_s=1.0)
    assert not orders.is_repeat(request)
    orders.new_job(request)
    assert orders.is_repeat(request)
    assert not orders.is_repeat(MissionRequest(instruction="go elsewhere", mission="mine", lease_s=1.0))
    orders.new_job(MissionRequest(instruction="go"))
    assert not orders.is_repeat(MissionRequest(instruction="go")), "without a name every request is a new one"


def test_a_request_that_was_refused_is_not_taken_when_it_comes_again():
    orders = MissionQueue("n")
    for _ in range(MAX_WAITING):
        orders.enqueue(orders.new_job(MissionRequest(instruction="go")))
    request = MissionRequest(instruction="go", mission="mine")
    with pytest.raises(InstructionError):
        orders.enqueue(orders.new_job(request))
    assert not orders.is_repeat(request)


def test_a_withdrawal_that_overtakes_its_request_holds():
    orders = MissionQueue("n")
    assert orders.withdraw("mine") is None
    with pytest.raises(InstructionError, match="mine"):
        orders.new_job(MissionRequest(instruction="go", mission="mine"))
    orders.withdraw("no name at all")


def test_how_a_mission_ended_is_remembered():
    orders = MissionQueue("n")
    job = orders.new_job(MissionRequest(instruction="go", mission="mine"))
    orders.current = job
    assert orders.is_alive("mine")
    assert orders.end_status("mine") is None
    orders.current = None
    orders.end(MissionStatus(state="cancelled", mission="mine", detail="withdrawn"))
    assert not orders.is_alive("mine")
    assert orders.end_status("mine").detail == "withdrawn"
