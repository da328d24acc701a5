"""Messages between the source of commands and the executor, as strict JSON.

`Plan` is the content of the topic `/vlm/plan`, `PlanStatus` the executor's report. Both are plain data;
`control.plan_queue` decides what a plan message means when it arrives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.reprojection import end_of
from vlm_spec_decode.actions.types import MOTIONS, Action, Done, format_action
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.pose import Pose2D

MAX_JSON_CHARS = 32_768
MAX_NAME_CHARS = 128

STATES = ("idle", "moving", "done", "refused", "stopped", "fault", "estop")
"""States of an executor.

`idle`: nothing to do (no plan yet, or all actions so far carried out and the answer still open);
`moving`: an action is under way; `done`: the answer is final and carried out; `refused`: the gate or the
world said no; `stopped`: watchdog, cancel or shutdown; `fault`: the robot does not answer as it must;
`estop`: latched until reset.
"""

TERMINAL_STATES = frozenset({"done", "refused", "stopped", "fault", "estop"})
"""States after which an answer does not move the robot any more."""

_PLAN_KEYS = ("mission", "answer", "stamp_s", "sequence", "actions", "final")
_PLAN_OPTIONS = {"verified": True, "origin": "answer", "draft_start": False}
"""Fields that a plan may omit, and their defaults. `to_json` omits `draft_start` where it is false."""

_STATUS_KEYS = ("mission", "answer", "actions_done", "state", "reason", "detail", "action", "executed")
_STATUS_OPTIONS = {"settling": False, "start": "", "start_detail": ""}
"""Fields that a status may omit. `to_json` omits the last two where no start on a draft was asked for."""

START_OUTCOMES = ("", "begun", "refused", "withdrawn", "confirmed", "corrected")
"""What became of a start on a draft: it is under way or waits for the cloud, the gate said no, the draft took
it back, the cloud's first action is the same motion or a longer one, or another one."""


Origin: TypeAlias = Literal["answer", "search", "reprojected"]
ORIGINS: tuple[Origin, ...] = ("answer", "search", "reprojected")


@dataclass(frozen=True, slots=True)
class Plan:
    """All actions of one answer known so far; repeated, it is the heartbeat of the source of commands.

    `mission` names one instruction, `answer` counts its answers from 0 upwards, `stamp_s` is the capture
    time of the answer's frame, `sequence` never falls within an answer and rises when the content changes.
    Within an answer `actions` only grows at its end; `final` says that no more will come. While an answer
    is under way the newest plan is republished at 10 Hz or more: silence of 0.25 s stops the robot. A new
    answer, or a new mission, supersedes the present one. An answer that begins with the same motion in
    which the mission's last answer was interrupted resumes it: the distance already moved counts.
    `verified` is False for a plan of the draft alone, without its cloud: reduced limits apply. `origin` says
    where the actions are from: `answer`, as they were committed; `search`, the committed turn of a search,
    gone on with (`mission.search`); `reprojected`, told anew from where the body was by then.
    `draft_start` marks an action that the draft expects and the cloud has not committed. It comes before any
    action of its answer, alone and not verified; the answer's committed plan replaces it, and one without an
    action takes it back.
    """

    mission: str
    answer: int
    stamp_s: float
    sequence: int
    actions: tuple[Action, ...] = ()
    final: bool = False
    verified: bool = True
    origin: Origin = "answer"
    draft_start: bool = False

    @property
    def begins_with_motion(self) -> bool:
        """Whether its first action walks or turns."""
        return bool(self.actions) and isinstance(self.actions[0], MOTIONS)

    def to_json(self) -> str:
        """Return one line of JSON; actions are texts of the action language."""
        marked = {"draft_start": True} if self.draft_start else {}
        return json.dumps(
            {
                "mission": self.mission,
                "answer": self.answer,
                "stamp_s": self.stamp_s,
                "sequence": self.sequence,
                "actions": [format_action(action) for action in self.actions],
                "final": self.final,
                "verified": self.verified,
                "origin": self.origin,
                **marked,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan in `text`.

        Raises ActionParseError on anything but exactly these keys with these types (`verified`, `origin` and
        `draft_start` may be left out), on a number that is negative or not finite where it may not be, on an
        action after `done()`, and on a start on a draft that is final, verified, or more than one action.
        """
        data = _load(text, _PLAN_KEYS, _PLAN_OPTIONS)
        plan = cls(
            mission=_text(data, "mission"),
            answer=_count(data, "answer"),
            stamp_s=_seconds(data, "stamp_s"),
            sequence=_count(data, "sequence"),
            actions=tuple(parse_action(item) for item in _texts(data, "actions")),
            final=_flag(data, "final"),
            verified=_flag(data, "verified"),
            origin=_origin(data),
            draft_start=_flag(data, "draft_start"),
        )
        check_plan(plan)
        return plan

    @property
    def may_be_start(self) -> bool:
        """Whether this has the form of a start on a draft."""
        return not (self.verified or self.final) and len(self.actions) <= 1


def check_plan(plan: Plan) -> None:
    """Raise ActionParseError for a plan that no source of commands may send, however it travelled."""
    if len(plan.mission) > MAX_NAME_CHARS:
        raise ActionParseError(f"mission: expected a text of at most {MAX_NAME_CHARS} characters")
    if any(isinstance(action, Done) for action in plan.actions[:-1]):
        raise ActionParseError("actions: an action after done(): nothing may follow")
    if plan.draft_start and not plan.may_be_start:
        raise ActionParseError("draft_start: one action at most, neither final nor verified")


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """Status of one answer at the executor.

    `reason` is a stable name (`obstacle`, `watchdog`, `limit_distance`, …; empty while all is well),
    `detail` a sentence for people. `action` is the text of the action under way or last refused;
    `executed` holds the texts of all carried out for this answer, in order. `settling`: the last motion of
    the whole answer is all but over, and a frame taken since it is said shows what one at rest will show; at
    the end it is still true if the body has come to rest there. `start` is what became of a start on a draft,
    one of `START_OUTCOMES`, with a sentence in `start_detail`; its motion is in `executed` only once the
    cloud has committed it.
    """

    mission: str = ""
    answer: int = 0
    actions_done: int = 0
    state: str = "idle"
    reason: str = ""
    detail: str = ""
    action: str = ""
    executed: tuple[str, ...] = ()
    settling: bool = False
    start: str = ""
    start_detail: str = ""

    @property
    def is_terminal(self) -> bool:
        """Whether this answer does not move the robot any more."""
        return self.state in TERMINAL_STATES

    def to_json(self) -> str:
        """Return one line of JSON."""
        keys = (*_STATUS_KEYS, "settling", *(("start", "start_detail") if self.start else ()))
        return json.dumps({key: getattr(self, key) for key in keys})

    @classmethod
    def from_json(cls, text: str) -> PlanStatus:
        """Return the status in `text`. Raises ActionParseError as `Plan.from_json` does."""
        data = _load(text, _STATUS_KEYS, _STATUS_OPTIONS)
        state, start = _text(data, "state"), _text(data, "start")
        if state not in STATES:
            raise ActionParseError(f"state: {state!r} is none of {', '.join(STATES)}")
        if start not in START_OUTCOMES:
            raise ActionParseError(f"start: {start!r} is none of {', '.join(filter(None, START_OUTCOMES))}")
        return cls(
            mission=_text(data, "mission"),
            answer=_count(data, "answer"),
            actions_done=_count(data, "actions_done"),
            state=state,
            reason=_text(data, "reason"),
            detail=_text(data, "detail", MAX_JSON_CHARS),
            action=_text(data, "action"),
            executed=_texts(data, "executed"),
            settling=_flag(data, "settling"),
            start=start,
            start_detail=_text(data, "start_detail", MAX_JSON_CHARS),
        )


def _origin(data: Mapping[str, Any]) -> Origin:
    for origin in ORIGINS:
        if data["origin"] == origin:
            return origin
    raise ActionParseError(f"origin: {str(data['origin'])[:40]!r} is none of {', '.join(ORIGINS)}")


def _load(text: str, keys: tuple[str, ...], options: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    if len(text) > MAX_JSON_CHARS:
        raise ActionParseError(f"message longer than {MAX_JSON_CHARS} characters")
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ActionParseError(f"not JSON: {error}") from error
    if not isinstance(pairs, tuple):
        raise ActionParseError("not a JSON object")
    absent = {key: value for key, value in (options or {}).items() if key not in dict(pairs)}
    keys = (*keys, *(key for key in options or {} if key not in absent))
    names = [str(name)[:40] for name, _ in pairs]
    if sorted(names) != sorted(keys):
        wrong = sorted(set(names) ^ set(keys)) or sorted(names)
        raise ActionParseError(f"keys are unknown, missing or repeated: {', '.join(wrong)}")
    return {**absent, **dict(pairs)}


def _text(data: Mapping[str, Any], key: str, limit: int = MAX_NAME_CHARS) -> str:
    value = data[key]
    if not isinstance(value, str) or len(value) > limit:
        raise ActionParseError(f"{key}: expected a text of at most {limit} characters")
    return value


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ActionParseError(f"{key}: expected a list of texts")
    return tuple(value)


def _count(data: Mapping[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ActionParseError(f"{key}: expected a whole number from 0 upwards")
    return value


def _seconds(data: Mapping[str, Any], key: str) -> float:
    value = data[key]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ActionParseError(f"{key}: expected seconds")
    return float(value)


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data[key]
    if not isinstance(value, bool):
        raise ActionParseError(f"{key}: expected true or false")
    return value


Pose: TypeAlias = tuple[float, float, float]
"""x, y in metres and yaw in radians, in the odometry frame."""


def waypoints(start: Pose, actions: Iterable[Action]) -> list[tuple[Pose, Action]]:
    """Return the body's pose after each action, beginning at `start`."""
    at, found = Pose2D(*start), []
    for action in actions:
        at = end_of(at, action)
        found.append(((at.x_m, at.y_m, at.yaw_rad), action))
    return found
