"""Messages of `vlm_spec_decode_msgs` to the package's dataclasses, whoever has deserialised them.

They come from rclpy in the nodes, and from a bag's reader where no ROS is installed: both have the fields and
the constants of the `.msg` files, so nothing is imported here but what is made from them. What arrives is
checked as strictly as the JSON of older versions was. `ros.typed` is the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from vlm_spec_decode.actions.types import ACTION_TYPES, Action, format_action
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace
from vlm_spec_decode.mission import state as mission_state
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport, StartReport
from vlm_spec_decode.mission.state import MissionStatus

NANOSECONDS = 1_000_000_000


class Codes:
    """The constants of one message field: names of this package to numbers of the message and back."""

    def __init__(self, kind: Any, names: tuple[str, ...], prefix: str, none: str) -> None:
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


CONSTANTS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "action": (tuple(ACTION_TYPES), "", ""),
    "mission": (mission_state.STATES, "", ""),
    "plan": (STATES, "", ""),
    "plan start": (START_OUTCOMES, "START_", "none"),
    "origin": (ORIGINS, "ORIGIN_", ""),
    "ack": (("taken", "refused", "over"), "", ""),
    "fate": (("accepted", "target", "unverified"), "FATE_", ""),
    "answer start": (("", "confirmed", "corrected"), "START_", "none"),
}
"""Names of this package, how their constants begin, and the constant of ""."""


_CODES: dict[tuple[Any, str], Codes] = {}


def codes(kind: Any, what: str) -> Codes:
    """Return the constants of a message class; `what` is a key of `CONSTANTS`."""
    found = _CODES.get((kind, what))
    if found is None:
        found = _CODES[kind, what] = Codes(kind, *CONSTANTS[what])
    return found


def _seconds(stamp: Any) -> float:
    return float(stamp.sec + stamp.nanosec / NANOSECONDS)


TRACE_FIELDS = (
    *("mission", "strategy", "rule", "tokens", "drafted", "accepted", "acceptance_rate", "target_passes"),
    *("early_verdicts", "time_to_first_token_s", "total_s"),
)
"""Fields that `DecodeReport` and `DecodeTrace` have by the same names and in the same form."""


def action_from_message(message: Any) -> Action:
    """Return an action. Raises ActionParseError for one that the action language cannot say."""
    kind = ACTION_TYPES[codes(type(message), "action").name(message.kind)]
    action: Action = kind(*(float(getattr(message, each.name)) for each in fields(kind)))
    # By way of its text, so that numbers have the digits that texts in histories and reports have.
    return parse_action(format_action(action))


def request_from_message(message: Any) -> MissionRequest:
    """Return the request in a `Mission`, or in a goal of the action. Raises InstructionError.

    A goal is no reply, and has not its fields; nor has a `Mission` that was recorded before there were any.
    """
    names = (each.name for each in fields(MissionRequest))
    return MissionRequest(**{name: getattr(message, name) for name in names if hasattr(message, name)})


def mission_status_from_message(message: Any) -> MissionStatus:
    """Return the status in a `MissionStatus`. Raises ActionParseError for an unknown state."""
    return MissionStatus(
        state=codes(type(message), "mission").name(message.state),
        mission=message.mission,
        instruction=message.instruction,
        step=int(message.step),
        reason=message.reason,
        detail=message.detail,
    )


def plan_from_message(message: Any) -> Plan:
    """Return the plan in a `Plan`. Raises ActionParseError as `Plan.from_json` does."""
    origin: Any = codes(type(message), "origin").name(message.origin)
    plan = Plan(
        mission=message.mission,
        answer=int(message.answer),
        stamp_s=_seconds(message.stamp),
        sequence=int(message.sequence),
        actions=tuple(action_from_message(action) for action in message.actions),
        final=bool(message.final),
        verified=bool(message.verified),
        origin=origin,
        draft_start=bool(message.draft_start),
    )
    check_plan(plan)
    return plan


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
        state=codes(type(message), "plan").name(message.state),
        reason=message.reason,
        detail=message.detail,
        action=message.action,
        executed=tuple(message.executed),
        settling=bool(message.settling),
        start=codes(type(message), "plan start").name(message.start),
        start_detail=message.start_detail,
    )


def answer_from_message(message: Any) -> AnswerReport:
    """Return the report in an `Answer`. Raises ActionParseError for what is no action or no constant."""
    outcome = codes(type(message), "answer start").name(message.start_outcome)
    fates: Any = tuple(map(codes(type(message), "fate").name, message.token_fates))
    return AnswerReport(
        mission=message.mission,
        number=int(message.answer),
        instruction=message.instruction,
        history=tuple(message.history),
        stamp_s=_seconds(message.header.stamp),
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
