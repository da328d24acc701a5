"""Every report as its message and back, over the wire; the types' hashes, which other computers compare."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.plan import ORIGINS, START_OUTCOMES, STATES, Plan, PlanStatus
from vlm_spec_decode.actions.types import ACTION_TYPES, Ask, Done, Forward, Turn, arity, format_action
from vlm_spec_decode.core.errors import ActionParseError, InstructionError
from vlm_spec_decode.core.interfaces import message_definitions
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace
from vlm_spec_decode.mission import state as mission_state
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport, StartReport
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.ros import typed
from vlm_spec_decode_msgs import msg

HASHES = {
    "msg/Answer": "2c51a24925b41691a5340e9556752a27871a72d47ffe6343ae99715098e90b05",
    "msg/DecodeRound": "d77345a442f00816648f7d3874cb607cfd44e4a0fd807d1b987aec3967fe4236",
    "msg/DecodeTrace": "54334d5985bd0adcbf46b4eac8c7e1cfaf37cd8529e565de16d158d85e4ec4ab",
    "msg/Mission": "dc620865b49384973e307607e62ff4ad75f04218053df72b730cb22eb15d3f30",
    "msg/MissionAck": "a31462bc947e2a9167bdbc8e5b0b9468bc54a1cf90ba8cb9920b5f4e6849b2fd",
    "msg/MissionStatus": "68aa67ad7fe24ff103f74eb7e208e7b2dfc74037fb75956023c2bd1b08d12622",
    "msg/Plan": "74a29a0f143806f441ca8100fd3742925f02ab02b00219c14ce24b1303e86179",
    "msg/PlanStatus": "38314196baec66db1c3d750c4bac74f6333bfb3aad0c986ad51753bfb02b54d5",
    "msg/RobotAction": "5f5fb2f2b130da5b4c8bff916e936d221c770a052fefe03e677a390d18443573",
    "srv/Approve": "09ab696a622d62d845378b3258ff7c3a92c01c092332c813e64b037cf7b9d3a4",
    "action/ExecuteInstruction": "16c80ed3a49ba9c89391e5dcc200d47345900f372c89cf7bf6d0820b09c54989",
}
"""The hash (RIHS01) of every type: another one is another type, with which older nodes do not speak."""

TF_HASH = "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
"""The hash of tf2_msgs/msg/TFMessage in every ROS installation since Iron."""

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**32 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
NANOSECONDS = st.integers(0, (2**31 - 1) * 10**9).map(lambda nanoseconds: nanoseconds / 1e9)
STAMP = st.one_of(st.just(0.0), st.integers(0, 2**31 - 1).map(float), NANOSECONDS)


@st.composite
def actions(draw: Any) -> Any:
    name = draw(st.sampled_from([name for name, kind in ACTION_TYPES.items() if not issubclass(kind, Done)]))
    number = st.decimals(-9999, 9999, places=4).map(float)
    return parse_action(format_action(ACTION_TYPES[name](*(draw(number) for _ in range(arity(name))))))


@st.composite
def plans(draw: Any) -> Plan:
    is_start = draw(st.booleans())
    done = () if is_start else draw(st.sampled_from([(), (Done(),), (Ask(),)]))
    return Plan(
        mission=draw(TEXT),
        answer=draw(COUNT),
        stamp_s=draw(STAMP),
        sequence=draw(COUNT),
        actions=(*draw(st.lists(actions(), max_size=1 if is_start else 5)), *done),
        final=not is_start and draw(st.booleans()),
        verified=not is_start and draw(st.booleans()),
        origin=draw(st.sampled_from(ORIGINS)),
        draft_start=is_start,
    )


texts = st.lists(TEXT, max_size=3).map(tuple)
named = {
    "instruction": st.text("abc é", min_size=1).filter(str.strip),
    "mission": st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
}
requests = st.builds(
    MissionRequest,
    **named,
    **dict.fromkeys(("approve", "dry_run", "queue"), st.booleans()),
    lease_s=st.one_of(st.just(0.0), st.floats(0.2, 60.0)),
) | st.builds(MissionRequest, **named, reply=st.just(True), step=COUNT)
acks = st.builds(
    Ack,
    state=st.sampled_from(["taken", "refused", "over"]),
    **dict.fromkeys(("mission", "topic", "reason", "detail"), TEXT),
    status=st.sampled_from(["", *mission_state.STATES]),
    listeners=COUNT,
    reply=st.booleans(),
)
mission_statuses = st.builds(
    MissionStatus,
    state=st.sampled_from(mission_state.STATES),
    **dict.fromkeys(("mission", "instruction", "reason", "detail"), TEXT),
    step=COUNT,
)
plan_statuses = st.builds(
    PlanStatus,
    **dict.fromkeys(("mission", "reason", "detail", "action", "start_detail"), TEXT),
    **dict.fromkeys(("answer", "actions_done"), COUNT),
    state=st.sampled_from(STATES),
    executed=texts,
    settling=st.booleans(),
    start=st.sampled_from(START_OUTCOMES),
)
answers = st.builds(
    AnswerReport,
    **dict.fromkeys(("mission", "instruction", "frame_id", "text"), TEXT),
    **dict.fromkeys(("number", "image_width"), COUNT),
    history=texts,
    stamp_s=STAMP,
    image_digest=st.sampled_from([b"", bytes(range(32))]),
    **dict.fromkeys(("token_ids", "token_ends"), st.lists(COUNT, max_size=5).map(tuple)),
    token_fates=st.lists(st.sampled_from(["accepted", "target", "unverified"]), max_size=5).map(tuple),
    actions=st.lists(actions(), max_size=4).map(tuple),
    start=st.one_of(st.none(), st.builds(StartReport, TEXT, st.sampled_from(["confirmed", "corrected"]))),
    final=st.booleans(),
)
rounds = st.builds(
    RoundTrace,
    **dict.fromkeys(("start", "drafted", "accepted", "committed"), COUNT),
    **dict.fromkeys(("draft_s", "wait_s", "verify_s", "at_s"), REAL),
    why=TEXT,
)
traces = st.builds(
    DecodeReport,
    **dict.fromkeys(("mission", "strategy", "rule"), TEXT),
    **dict.fromkeys(("number", "tokens", "drafted", "accepted", "target_passes", "early_verdicts"), COUNT),
    rounds=st.lists(rounds, max_size=3).map(tuple),
    **dict.fromkeys(("acceptance_rate", "time_to_first_token_s", "total_s"), REAL),
    time_to_first_action_s=st.one_of(st.none(), REAL),
    usage=st.builds(LinkUsage, *(st.integers(0, 2**63) for _ in range(3))),
)

CASES = {
    "action": (actions(), typed.action_to_message),
    "plan": (plans(), typed.plan_to_message),
    "request": (requests, typed.request_to_message),
    "ack": (acks, typed.ack_to_message),
    "status": (mission_statuses, typed.mission_status_to_message),
    "plan status": (plan_statuses, typed.plan_status_to_message),
    "answer": (answers, typed.answer_to_message),
    "trace": (traces, typed.trace_to_message),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_on_the_way(case: str, data: Any) -> None:
    strategy, to_message = CASES[case]
    report = data.draw(strategy)
    message = to_message(report)
    arrived = deserialize_message(serialize_message(message), type(message))
    assert typed.from_message(arrived) == report


@pytest.mark.parametrize("case", ["plan", "answer", "trace"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_json_of_older_versions_says_the_same(case: str, data: Any) -> None:
    report = data.draw(CASES[case][0])
    if case == "answer":
        bare = {"token_fates": (), "token_ends": (), "final": True}
        report = AnswerReport(**{name: bare.get(name, getattr(report, name)) for name in report.__slots__})
    assert type(report).from_json(report.to_json()) == report


def test_every_state_and_every_message_has_its_constant_and_reader() -> None:
    for codes in (typed.MISSION_STATES, typed.PLAN_STATES, typed.ACTIONS, typed.FATES, typed.ACK_STATES):
        with pytest.raises(ActionParseError, match="is none of its constants"):
            codes.name(0)
        with pytest.raises(ValueError, match="flying"):
            codes.number("flying")
    assert set(mission_state.STATES) > mission_state.END_STATES
    own = {getattr(msg, name.rsplit("/", 1)[1]) for name in message_definitions()}
    assert own - set(typed.READERS) == {msg.DecodeRound}, "which is read with its trace"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mission": "m" * 129}, "at most 128"),
        ({"actions": [msg.RobotAction(kind=13), msg.RobotAction(kind=1, distance_m=1.0)]}, "after done"),
        ({"actions": [msg.RobotAction(kind=1, distance_m=math.nan)]}, "nan"),
        ({"actions": [msg.RobotAction(kind=1, distance_m=1e5)]}, "100000"),
        ({"actions": [msg.RobotAction(kind=99)]}, "constants"),
        ({"actions": [msg.RobotAction()]}, "constants"),
        ({"origin": 3}, "constants"),
        ({"draft_start": True}, "draft_start"),
    ],
)
def test_a_plan_that_may_not_be_sent_is_refused(change: dict[str, Any], why: str) -> None:
    message = typed.plan_to_message(Plan("m", 1, 2.5, 3, (Forward(1.0), Turn(-10.0))))
    assert typed.plan_from_message(message).actions == (Forward(1.0), Turn(-10.0))
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ActionParseError, match=f"(?i){why}"):
        typed.plan_from_message(message)


def test_what_nobody_has_set_moves_nothing_and_is_not_verified() -> None:
    plan = typed.plan_from_message(msg.Plan())
    assert (plan.actions, plan.verified, plan.final) == ((), False, False)
    with pytest.raises(InstructionError, match="empty"):
        typed.request_from_message(msg.Mission())
    with pytest.raises(ActionParseError, match="detail"):
        typed.plan_status_from_message(msg.PlanStatus(state=1, detail="x" * 40_000))


def test_numbers_of_an_action_have_the_digits_of_the_language() -> None:
    message = msg.RobotAction(kind=msg.RobotAction.FORWARD, distance_m=1.23456789, yaw_deg=7.0)
    assert typed.action_from_message(message) == Forward(1.2346)


def test_the_hashes_of_the_types_have_not_changed() -> None:
    share = Path(str(files("vlm_spec_decode_msgs"))).parents[3] / "share"
    found = {}
    for name in HASHES:
        kinds = json.loads((share / "vlm_spec_decode_msgs" / f"{name}.json").read_text())["type_hashes"]
        found[name] = next(
            one["hash_string"] for one in kinds if one["type_name"] == f"vlm_spec_decode_msgs/{name}"
        )
    assert found == {name: f"RIHS01_{value}" for name, value in HASHES.items()}
    types: dict[str, Any] = {}
    for name, text in message_definitions().items():
        types |= get_types_from_msg(text, name)
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(types)
    for name in types:
        assert store.hash_rihs01(name) == f"RIHS01_{HASHES[name.split('/', 1)[1]]}", "as bags have it"


def test_transforms_are_those_of_every_ros_installation() -> None:
    import tf2_msgs

    share = Path(str(files(tf2_msgs))).parents[3] / "share" / "tf2_msgs" / "msg" / "TFMessage.json"
    kinds = json.loads(share.read_text())["type_hashes"]
    assert f"RIHS01_{TF_HASH}" in {one["hash_string"] for one in kinds}
