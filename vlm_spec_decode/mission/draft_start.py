"""A start on the draft: an answer's first turn or 0.3 m may begin before the cloud has committed it.

Only if the operator has set `start: draft`. What the draft expects as the first action (`DraftedAction`) is
cut to a small motion and sent as a plan with `draft_start`; the executor and the gate decide whether the body
may make it. When the cloud's first action is committed, the executor goes on or corrects, and the draft is
judged here (`is_right`). Nothing begins on a draft that was wrong where the robot is (`Room`), or that is
wrong too often (`DraftTrust`); it is judged on all the same, so that it can come back. No walk begins where a
person was spoken of; a turn on the spot leads towards nobody.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vlm_spec_decode.actions.limits import START_ANGLE_DEG, START_DISTANCE_M
from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.reprojection import end_of
from vlm_spec_decode.actions.types import Action, Done, Forward, Turn, format_action
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.edge.engine import DraftedAction
from vlm_spec_decode.mission.reports import StartReport
from vlm_spec_decode.mission.state import MissionJob, RunnerConfig
from vlm_spec_decode.strategies.estimators import RunningMean

LEAST_M, LEAST_DEG = 0.1, 5.0
"""Smaller motions are not begun on a draft: they would be over before they have gained anything."""

LEAST_CHANCE = 0.8
"""Chance of the drafted text up to the action's end from which on it may begin. The shipped pair's draft
named 106 first motions on the Go2 profile: 87 % were right, 94 % with this chance, 99 % with one of 0.9."""

WITHDRAWN_CHANCE = 0.5
"""Chance of another motion from which on the draft takes back what it has begun."""

SAME_M, SAME_DEG = 0.1, 10.0
"""By how much a motion on the draft may be longer than the committed one and the draft still be right."""

PERSONS = re.compile(
    r"\b(person|persons|people|somebody|someone|human|humans|man|men|woman|women|child|children|kid|kids|boy|boys"
    r"|girl|girls|baby|toddler|pedestrian|pedestrians|worker|workers|passenger|passengers|me|him|her|them)\b",
    re.IGNORECASE,
)
"""Words of a description or an instruction after which no walk begins on a draft."""

Notice = Callable[[str, str], None]
"""Publishes a reason (`START_WORDS`) and a sentence."""


def startable(action: Action) -> Forward | Turn | None:
    """Return the part of a drafted action that may begin; None for what is no walk ahead and no turn."""
    if isinstance(action, Forward) and action.distance_m >= LEAST_M:
        return Forward(min(action.distance_m, START_DISTANCE_M))
    if isinstance(action, Turn) and abs(action.angle_deg) >= LEAST_DEG:
        return Turn(math.copysign(min(abs(action.angle_deg), START_ANGLE_DEG), action.angle_deg))
    return None


def is_right(started: Action, said: Action | None) -> bool:
    """Whether a motion on the draft begins the committed action: same kind, same sign, no longer."""
    if isinstance(started, Turn) and isinstance(said, Turn):
        return _covers(said.angle_deg, started.angle_deg, SAME_DEG)
    if isinstance(started, Forward) and isinstance(said, Forward):
        return _covers(said.distance_m, started.distance_m, SAME_M)
    return False


def _covers(whole: float, part: float, tolerance: float) -> bool:
    return whole * part > 0 and abs(part) <= abs(whole) + tolerance


def _leads_on(started: Forward | Turn, drafted: Action) -> bool:
    """Whether a newer draft still asks for the motion that it began: the same way, and half of it or more."""
    if isinstance(started, Turn):
        return isinstance(drafted, Turn) and drafted.angle_deg / started.angle_deg >= 0.5
    return isinstance(drafted, Forward) and drafted.distance_m / started.distance_m >= 0.5


OFF_BELOW, ON_ABOVE = 0.6, 0.75
"""Share of drafts that are right below which none is started on, and above which it is again."""

TRUST_RATE, TRUST_PRIOR = 0.1, 5
"""Weight of the newest draft in that share, and how many drafts the first value counts for."""


@dataclass(slots=True)
class DraftTrust:
    """How often the draft's first action was right, over all missions: an exponentially forgetting mean."""

    is_on: bool = True
    right: RunningMean = field(
        default_factory=lambda: RunningMean(ON_ABOVE, rate=TRUST_RATE, trust=TRUST_PRIOR)
    )

    def learn(self, was_right: bool) -> bool:
        """Take one draft that was judged; return whether that switches starts off or on."""
        self.right.learn(float(was_right))
        before = self.is_on
        # Two thresholds, so that one more answer does not switch back and forth.
        self.is_on = self.right.value >= (OFF_BELOW if before else ON_ABOVE)
        return self.is_on != before


LEFT_ROOM_M = 6.0
"""Distance from where the draft was wrong, as the crow flies, from which on the robot is elsewhere."""


@dataclass(slots=True)
class Room:
    """Whether the draft was wrong near here. The way since then is that of the actions carried out.

    Where a person steered or carried the robot it has not come further by this count: the draft stays barred.
    """

    was_wrong: bool = False
    _since: Pose2D = field(default_factory=lambda: Pose2D(0.0, 0.0))

    def on_wrong(self) -> None:
        """Record that the draft was wrong here."""
        self.was_wrong, self._since = True, Pose2D(0.0, 0.0)

    def on_executed(self, executed: Iterable[str]) -> None:
        """Record actions, as text, that were carried out."""
        for text in executed:
            self._since = end_of(self._since, parse_action(text))
        if math.hypot(self._since.x_m, self._since.y_m) > LEFT_ROOM_M:
            self.was_wrong = False


class DraftStarts:
    """What the drafts of this robot have been worth, over all missions; the start of the present answer."""

    def __init__(self) -> None:
        self.trust, self.room = DraftTrust(), Room()
        self.described = ""
        """The last committed answer, which may speak of a person."""
        self.present = AnswerStart(self, is_wanted=False)

    def begin(self, config: RunnerConfig, job: MissionJob, verified: bool, notice: Notice) -> AnswerStart:
        """Begin with an answer; with another setting than `draft`, or a person to ask, nothing starts."""
        is_wanted = config.start == "draft" and verified and not (job.approve or job.dry_run)
        self.present = AnswerStart(self, is_wanted=is_wanted, instruction=job.instruction, notice=notice)
        return self.present

    def on_executed(self, status: PlanStatus, executed: Iterable[str], planned: tuple[Action, ...]) -> bool:
        """Record a finished answer; return whether its end is to be believed.

        An answer that ends the mission was decided on a frame from before the start. If the body has walked
        on since, on a draft that was wrong, the answer was about another place: the robot looks again.
        """
        self.room.on_executed(executed)
        ends = not planned or isinstance(planned[-1], Done)
        return not (ends and status.start == "corrected" and isinstance(self.present.started, Forward))


@dataclass(slots=True)
class AnswerStart:
    """The start of one answer. `is_wanted`: the engine is to show its draft."""

    starts: DraftStarts
    is_wanted: bool
    instruction: str = ""
    notice: Notice = lambda *_: None
    started: Forward | Turn | None = None
    """The motion that was sent to the executor."""
    _expected: Forward | Turn | None = None
    """The first motion that the draft has named, sent or not: what it is judged by."""
    _is_withdrawn: bool = False
    _is_judged: bool = False

    def on_draft(self, drafted: DraftedAction, plan: Plan) -> Plan | None:
        """Return the plan to send for what the draft says now, after `plan`; None if nothing changes.

        It begins a motion once, and takes it back if the draft names another one before the cloud does.
        """
        if plan.actions or not self.is_wanted:
            return None
        part = startable(drafted.action)
        after = Plan(
            plan.mission, plan.answer, plan.stamp_s, plan.sequence + 1, verified=False, draft_start=True
        )
        if self.started is not None:
            is_unsure = drafted.chance < WITHDRAWN_CHANCE
            if self._is_withdrawn or is_unsure or _leads_on(self.started, drafted.action):
                return None
            self._is_withdrawn = True
            self.notice("start_withdrawn", f"the draft says {format_action(drafted.action)} by now")
            return after
        if part is None or drafted.chance < LEAST_CHANCE:
            return None
        is_first, self._expected = self._expected is None, self._expected or part
        if why := self._objection(part, drafted):
            if is_first:
                self.notice("start_refused", why)
            return None
        self.started = self._expected = part
        self.notice("start_begun", f"{format_action(part)}, not verified")
        return Plan(
            plan.mission,
            plan.answer,
            plan.stamp_s,
            after.sequence,
            (part,),
            verified=False,
            draft_start=True,
        )

    def on_committed(self, actions: tuple[Action, ...], status: PlanStatus | None) -> None:
        """Judge the draft by the first committed action, once; `status` is the executor's newest."""
        if self._is_judged or self._expected is None:
            return
        self._is_judged = True
        said = actions[0] if actions else None
        was_right = is_right(self._expected, said)
        if self.started is not None:
            refused = status is not None and status.start == "refused"
            outcome = "start_refused" if refused else "start_confirmed" if was_right else "start_corrected"
            heard = format_action(said) if said else "no action"
            self.notice(outcome, status.start_detail if refused and status else f"the cloud says {heard}")
        if not was_right:
            self.starts.room.on_wrong()
        trust = self.starts.trust
        if trust.learn(was_right):
            share = f"{100 * trust.right.value:.0f} % of its first actions were right lately"
            self.notice("start_on" if trust.is_on else "start_off", share)

    def report(self, actions: tuple[Action, ...]) -> StartReport | None:
        """Return what became of the start, for the finished answer; None if nothing was begun."""
        if self.started is None:
            return None
        right = is_right(self.started, actions[0] if actions else None)
        return StartReport(format_action(self.started), "confirmed" if right else "corrected")

    def _objection(self, part: Forward | Turn, drafted: DraftedAction) -> str:
        """Return why `part` may not begin on this draft; "" if it may."""
        starts = self.starts
        if not starts.trust.is_on:
            return f"start_record: {100 * starts.trust.right.value:.0f} % of its first actions were right"
        if starts.room.was_wrong:
            return "start_room: the draft was wrong here"
        for text in (drafted.text, starts.described, self.instruction) * isinstance(part, Forward):
            if found := PERSONS.search(text):
                return f"start_person: {found.group()!r} was spoken of"
        return ""
