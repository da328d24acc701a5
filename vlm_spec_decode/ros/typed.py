"""The package's dataclasses to messages of `vlm_spec_decode_msgs` and back: nothing else knows their fields.

Pure functions: no node, no clock, no state. Both ways nothing is lost, with two limits of ROS: stamps are
whole nanoseconds, and a NUL ends a string. What arrives is checked as strictly as the JSON of older versions
was. Importing this raises MissingExtra where the messages are not built (`vsd build-msgs`, or a workspace).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.plan import (
    MAX_JSON_CHARS,
    MAX_NAME_CHARS,
    ORIGINS,
    START_OUTCOMES,
    STATES,
    Plan,
    PlanStatus,
    check_plan,
)
from vlm_spec_decode.actions.types import ACTION_NAMES, ACTION_TYPES, Action, format_action
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.extras import missing_extra
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace
from vlm_spec_decode.mission import state as mission_state
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport, StartReport
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.ros.convert import to_seconds, to_time
from vlm_spec_decode_msgs import msg

if not hasattr(msg, "Plan"):
    # Beside a checkout the folder of the sources is found instead, as an empty namespace.
    raise missing_extra("vlm_spec_decode_msgs")


class Codes:
    """The constants of one message field: names of this package to numbers of the message and back."""

    def __init__(self, kind: Any, names: tuple[str, ...], prefix: str = "", *, none: str = "") -> None:
        """`prefix` begins the constants' names; `none` is the name of "" if the field has such a constant."""
        self._what = kind.__name__
        spelled = {name: (name or none).upper() for name in names}
        self._numbers: Mapping[str, int] = {
            name: int(getattr(kind, f"{prefix}{constant}")) for name, constant in spelled.items()
        }
        self._names: Mapping[int, str] = {number: name for name, number in self._numbers.items()}

    def number(self, name: str) -> int:
        """Return the number of a name. Raises ValueError for one that the message does not know."""
        if name not in self._numbers:
            raise ValueError(f"{self._what}: {name!r} is none of {', '.join(filter(None, self._numbers))}")
        return self._numbers[name]

    def name(self, number: int) -> str:
        """Return the name of a number. Raises ActionParseError for one that is not a constant."""
        if number not in self._names:
            raise ActionParseError(f"{self._what}: {number} is none of its constants")
        return self._names[number]


ACTIONS = Codes(msg.RobotAction, tuple(ACTION_TYPES))
MISSION_STATES = Codes(msg.MissionStatus, mission_state.STATES)
PLAN_STATES = Codes(msg.PlanStatus, STATES)
PLAN_STARTS = Codes(msg.PlanStatus, START_OUTCOMES, "START_", none="none")
PLAN_ORIGINS = Codes(msg.Plan, ORIGINS, "ORIGIN_")
ACK_STATES = Codes(msg.MissionAck, ("taken", "refused", "over"))
FATES = Codes(msg.Answer, ("accepted", "target", "unverified"), "FATE_")
ANSWER_STARTS = Codes(msg.Answer, ("", "confirmed", "corrected"), "START_", none="none")


def action_to_message(action: Action) -> Any:
    """Return a `RobotAction`."""
    numbers = {each.name: float(getattr(action, each.name)) for each in fields(action)}
    return msg.RobotAction(kind=ACTIONS.number(ACTION_NAMES[type(action)]), **numbers)


def action_from_message(message: Any) -> Action:
    """Return an action. Raises ActionParseError for one that the action language cannot say."""
    kind = ACTION_TYPES[ACTIONS.name(message.kind)]
    action: Action = kind(*(float(getattr(message, each.name)) for each in fields(kind)))
    # By way of its text, so that numbers have the digits that texts in histories and reports have.
    return parse_action(format_action(action))


def request_to_message(request: MissionRequest) -> Any:
    """Return a `Mission`."""
    return msg.Mission(**{each.name: getattr(request, each.name) for each in fields(MissionRequest)})


def request_from_message(message: Any) -> MissionRequest:
    """Return the request in a `Mission`, or in a goal of the action. Raises InstructionError."""
    return MissionRequest(**{each.name: getattr(message, each.name) for each in fields(MissionRequest)})


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


def mission_status_from_message(message: Any) -> MissionStatus:
    """Return the status in a `MissionStatus`. Raises ActionParseError for an unknown state."""
    return MissionStatus(
        state=MISSION_STATES.name(message.state),
        mission=message.mission,
        instruction=message.instruction,
        step=int(message.step),
        reason=message.reason,
        detail=message.detail,
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


def plan_from_message(message: Any) -> Plan:
    """Return the plan in a `Plan`. Raises ActionParseError as `Plan.from_json` does."""
    origin: Any = PLAN_ORIGINS.name(message.origin)
    plan = Plan(
        mission=message.mission,
        answer=int(message.answer),
        stamp_s=to_seconds(message.stamp),
        sequence=int(message.sequence),
        actions=tuple(action_from_message(action) for action in message.actions),
        final=bool(message.final),
        verified=bool(message.verified),
        origin=origin,
        draft_start=bool(message.draft_start),
    )
    check_plan(plan)
    return plan


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


def plan_status_from_message(message: Any) -> PlanStatus:
    """Return the status in a `PlanStatus`. Raises ActionParseError as `PlanStatus.from_json` does."""
    limits = dict.fromkeys(("mission", "reason", "action"), MAX_NAME_CHARS)
    limits |= dict.fromkeys(("detail", "start_detail"), MAX_JSON_CHARS)
    for name, limit in limits.items():
        if len(getattr(message, name)) > limit:
            raise ActionParseError(f"{name}: expected a text of at most {limit} characters")
    return PlanStatus(
        mission=message.mission,
        answer=int(message.answer),
        actions_done=int(message.actions_done),
        state=PLAN_STATES.name(message.state),
        reason=message.reason,
        detail=message.detail,
        action=message.action,
        executed=tuple(message.executed),
        settling=bool(message.settling),
        start=PLAN_STARTS.name(message.start),
        start_detail=message.start_detail,
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


def answer_from_message(message: Any) -> AnswerReport:
    """Return the report in an `Answer`. Raises ActionParseError for what is no action or no constant."""
    outcome = ANSWER_STARTS.name(message.start_outcome)
    fates: Any = tuple(map(FATES.name, message.token_fates))
    return AnswerReport(
        mission=message.mission,
        number=int(message.answer),
        instruction=message.instruction,
        history=tuple(message.history),
        stamp_s=to_seconds(message.header.stamp),
        frame_id=message.header.frame_id,
        image_width=int(message.image_width),
        image_digest=bytes(message.image_digest),
        text=message.text,
        token_ids=tuple(map(int, message.token_ids)),
        token_fates=fates,
        token_ends=tuple(map(int, message.token_ends)),
        actions=tuple(action_from_message(action) for action in message.actions),
        start=StartReport(message.start_action, outcome) if outcome else None,
        final=bool(message.final),
    )


TRACE_FIELDS = (
    *("mission", "strategy", "rule", "tokens", "drafted", "accepted", "acceptance_rate", "target_passes"),
    *("early_verdicts", "time_to_first_token_s", "total_s"),
)
"""Fields that `DecodeReport` and `DecodeTrace` have by the same names and in the same form."""


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


def trace_from_message(message: Any) -> DecodeReport:
    """Return the report in a `DecodeTrace`."""
    first_s = float(message.time_to_first_action_s)
    return DecodeReport(
        number=int(message.answer),
        rounds=tuple(
            RoundTrace(**{each.name: getattr(one, each.name) for each in fields(RoundTrace)})
            for one in message.rounds
        ),
        time_to_first_action_s=None if math.isnan(first_s) else first_s,
        usage=LinkUsage(**{each.name: int(getattr(message, each.name)) for each in fields(LinkUsage)}),
        **{name: getattr(message, name) for name in TRACE_FIELDS},
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
