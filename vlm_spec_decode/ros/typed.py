"""The package's dataclasses to messages of `vlm_spec_decode_msgs` and back: nothing else knows their fields.

Pure functions: no node, no clock, no state. Both ways nothing is lost, with two limits of ROS: stamps are
whole nanoseconds, and a NUL ends a string. The way back is `mission.messages`, which bags use, too. Importing
this raises MissingExtra where the messages are not built (`vsd build-msgs`, or a workspace).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import ACTION_NAMES, Action
from vlm_spec_decode.core.extras import missing_extra
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace
from vlm_spec_decode.mission.messages import (
    TRACE_FIELDS,
    action_from_message,
    answer_from_message,
    codes,
    mission_status_from_message,
    plan_from_message,
    plan_status_from_message,
    request_from_message,
    trace_from_message,
)
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.ros.convert import to_time
from vlm_spec_decode_msgs import msg

__all__ = [
    "READERS",
    "TOPICS",
    "ack_from_message",
    "ack_to_message",
    "action_from_message",
    "action_to_message",
    "answer_from_message",
    "answer_to_message",
    "from_message",
    "mission_status_from_message",
    "mission_status_to_message",
    "plan_from_message",
    "plan_status_from_message",
    "plan_status_to_message",
    "plan_to_message",
    "request_from_message",
    "request_to_message",
    "trace_from_message",
    "trace_to_message",
    "type_name",
]

if not hasattr(msg, "Plan"):
    # Beside a checkout the folder of the sources is found instead, as an empty namespace.
    raise missing_extra("vlm_spec_decode_msgs")


ACTIONS = codes(msg.RobotAction, "action")
MISSION_STATES = codes(msg.MissionStatus, "mission")
PLAN_STATES = codes(msg.PlanStatus, "plan")
PLAN_STARTS = codes(msg.PlanStatus, "plan start")
PLAN_ORIGINS = codes(msg.Plan, "origin")
ACK_STATES = codes(msg.MissionAck, "ack")
FATES = codes(msg.Answer, "fate")
ANSWER_STARTS = codes(msg.Answer, "answer start")


def action_to_message(action: Action) -> Any:
    """Return a `RobotAction`."""
    numbers = {each.name: float(getattr(action, each.name)) for each in fields(action)}
    return msg.RobotAction(kind=ACTIONS.number(ACTION_NAMES[type(action)]), **numbers)


def request_to_message(request: MissionRequest) -> Any:
    """Return a `Mission`."""
    return msg.Mission(**{each.name: getattr(request, each.name) for each in fields(MissionRequest)})


def ack_to_message(ack: Ack) -> Any:
    """Return a `MissionAck`."""
    return msg.MissionAck(
        state=ACK_STATES.number(ack.state),
        mission=ack.mission,
        topic=ack.topic,
        reason=ack.reason,
        detail=ack.detail,
        status=MISSION_STATES.number(ack.status) if ack.status else 0,
        listeners=ack.listeners,
        reply=ack.reply,
    )


def ack_from_message(message: Any) -> Ack:
    """Return the reply in a `MissionAck`. Raises ActionParseError for an unknown state."""
    state: Any = ACK_STATES.name(message.state)
    return Ack(
        state=state,
        mission=message.mission,
        topic=message.topic,
        reason=message.reason,
        detail=message.detail,
        status=MISSION_STATES.name(message.status) if message.status else "",
        listeners=int(message.listeners),
        reply=bool(message.reply),
    )


def mission_status_to_message(status: MissionStatus, stamp_s: float = 0.0) -> Any:
    """Return a `MissionStatus` that is published at `stamp_s`."""
    return msg.MissionStatus(
        stamp=to_time(stamp_s),
        state=MISSION_STATES.number(status.state),
        mission=status.mission,
        instruction=status.instruction,
        step=status.step,
        reason=status.reason,
        detail=status.detail,
    )


def plan_to_message(plan: Plan) -> Any:
    """Return a `Plan`."""
    return msg.Plan(
        mission=plan.mission,
        answer=plan.answer,
        stamp=to_time(plan.stamp_s),
        sequence=plan.sequence,
        actions=[action_to_message(action) for action in plan.actions],
        final=plan.final,
        verified=plan.verified,
        origin=PLAN_ORIGINS.number(plan.origin),
        draft_start=plan.draft_start,
    )


def plan_status_to_message(status: PlanStatus, stamp_s: float = 0.0) -> Any:
    """Return a `PlanStatus` that is published at `stamp_s`."""
    return msg.PlanStatus(
        stamp=to_time(stamp_s),
        mission=status.mission,
        answer=status.answer,
        actions_done=status.actions_done,
        state=PLAN_STATES.number(status.state),
        reason=status.reason,
        detail=status.detail,
        action=status.action,
        executed=list(status.executed),
        settling=status.settling,
        start=PLAN_STARTS.number(status.start),
        start_detail=status.start_detail,
    )


def answer_to_message(report: AnswerReport) -> Any:
    """Return an `Answer`."""
    message = msg.Answer(
        mission=report.mission,
        answer=report.number,
        final=report.final,
        instruction=report.instruction,
        history=list(report.history),
        image_width=report.image_width,
        image_digest=array("B", report.image_digest),
        text=report.text,
        token_ids=array("I", report.token_ids),
        token_fates=array("B", map(FATES.number, report.token_fates)),
        token_ends=array("I", report.token_ends),
        actions=[action_to_message(action) for action in report.actions],
        start_action=report.start.action if report.start else "",
        start_outcome=ANSWER_STARTS.number(report.start.outcome if report.start else ""),
    )
    message.header.stamp = to_time(report.stamp_s)
    message.header.frame_id = report.frame_id
    return message


def trace_to_message(report: DecodeReport, stamp_s: float = 0.0) -> Any:
    """Return a `DecodeTrace` that is published at `stamp_s`."""
    first_s = report.time_to_first_action_s
    return msg.DecodeTrace(
        stamp=to_time(stamp_s),
        answer=report.number,
        rounds=[
            msg.DecodeRound(**{each.name: getattr(one, each.name) for each in fields(RoundTrace)})
            for one in report.rounds
        ],
        time_to_first_action_s=math.nan if first_s is None else first_s,
        **{each.name: getattr(report.usage, each.name) for each in fields(LinkUsage)},
        **{name: getattr(report, name) for name in TRACE_FIELDS},
    )


TOPICS: Mapping[str, Any] = {
    "vlm/ack": msg.MissionAck,
    "vlm/answer/typed": msg.Answer,
    "vlm/plan": msg.Plan,
    "vlm/plan/status": msg.PlanStatus,
    "vlm/request": msg.Mission,
    "vlm/status": msg.MissionStatus,
    "vlm/trace": msg.DecodeTrace,
}
"""The topics with messages of this package, below the namespace, and their types."""

READERS: Mapping[Any, Callable[[Any], Any]] = {
    msg.Answer: answer_from_message,
    msg.DecodeTrace: trace_from_message,
    msg.Mission: request_from_message,
    msg.MissionAck: ack_from_message,
    msg.MissionStatus: mission_status_from_message,
    msg.Plan: plan_from_message,
    msg.PlanStatus: plan_status_from_message,
    msg.RobotAction: action_from_message,
}
"""What reads a message of each type."""


def type_name(kind: Any) -> str:
    """Return the name of a message class, such as `std_msgs/msg/String`."""
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"


def from_message(message: Any) -> Any:
    """Return the dataclass of a message. Raises KeyError for a type that is not of this package."""
    return READERS[type(message)](message)
