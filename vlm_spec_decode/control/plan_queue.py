"""Plans from other threads to the control thread: queued, ordered, and distinguished from heartbeats.

Pure; independent of gate and robot, and nothing here blocks. Messages may be repeated, late or reordered (a
best-effort topic): a message older than the newest is dropped, and a mission that was superseded, cancelled
or ended by an e-stop never starts again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.errors import ActionRefused


@dataclass(frozen=True, slots=True)
class TimedPlan:
    """A plan, when it arrived, and how old its frame was then."""

    plan: Plan
    arrived_s: float
    frame_age_s: float


@dataclass(frozen=True, slots=True)
class QueuedPlans:
    """All plans since the last tick. Those in `void` arrived before a cancel or during an e-stop."""

    drop_reason: str
    void: tuple[TimedPlan, ...]
    plans: tuple[TimedPlan, ...]


class PlanBuffer:
    """Plans in the order of their arrival, and the reason if all of them are to be dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drop_reason = ""
        self._void: list[TimedPlan] = []
        self._plans: list[TimedPlan] = []

    def put(self, timed_plan: TimedPlan, *, void: bool) -> None:
        """Add a plan. A void one gets a status, but is never carried out."""
        with self._lock:
            (self._void if void else self._plans).append(timed_plan)

    def drop(self, reason: str) -> None:
        """Make all queued plans void, and have the control thread drop what it does."""
        with self._lock:
            self._drop_reason = reason
            self._void += self._plans
            self._plans.clear()

    def drain(self) -> QueuedPlans:
        """Return all plans and empty the buffer."""
        with self._lock:
            queued = QueuedPlans(self._drop_reason, tuple(self._void), tuple(self._plans))
            self._drop_reason = ""
            self._void.clear()
            self._plans.clear()
        return queued


MAX_CLOSED_MISSIONS = 64
"""How many closed missions are remembered."""


class PlanReceipt(Enum):
    """How a plan message was classified."""

    NEW = "new"
    MORE = "more"
    BEAT = "beat"
    START = "start"
    """The first action as a draft has it, before any that is committed."""
    WITHDRAWN = "withdrawn"
    """The draft takes its start back."""
    COMMITTED = "committed"
    """The first committed plan after a start: it replaces that."""
    DROPPED = "dropped"


@dataclass(slots=True)
class PlanTracker:
    """The newest plan, when its source last sent one, and how old the frame of each action was."""

    plan: Plan | None = None
    received_s: float = 0.0
    dropped: int = 0
    _frame_ages_s: tuple[float, ...] = ()
    _closed: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def receive(self, plan: Plan, now_s: float, frame_age_s: float) -> PlanReceipt:
        """Store a plan that arrived at `now_s`.

        Raises ActionRefused with `plan_changed` if an action that was already announced reads otherwise now:
        drafts may be wrong, plans hold committed actions only. A start on a draft is the one exception: the
        answer's committed plan replaces it.
        """
        known = self.plan
        if self._is_outdated(plan):
            self.dropped += 1
            return PlanReceipt.DROPPED
        if plan.draft_start and not plan.may_be_start:
            raise ActionRefused("start_action", "a start on a draft is one action that is not verified")
        self.plan, self.received_s = plan, now_s
        if known is None or (plan.mission, plan.answer) != (known.mission, known.answer):
            if known is not None and plan.mission != known.mission:
                self.close_mission(known.mission, "superseded")
            self._frame_ages_s = (frame_age_s,) * len(plan.actions)
            return PlanReceipt.NEW
        if plan.draft_start or known.draft_start:
            return self._receive_around_start(plan, known, frame_age_s)
        takes_back = known.final and not plan.final
        if (
            plan.actions[: len(known.actions)] != known.actions
            or takes_back
            or plan.verified != known.verified
        ):
            raise ActionRefused("plan_changed", f"answer {plan.answer} contradicts what it said before")
        fresh = len(plan.actions) - len(known.actions)
        self._frame_ages_s += (frame_age_s,) * fresh
        return PlanReceipt.MORE if fresh or plan.final != known.final else PlanReceipt.BEAT

    def _receive_around_start(self, plan: Plan, known: Plan, frame_age_s: float) -> PlanReceipt:
        """Classify a plan that is a start on a draft, or that follows one within its answer."""
        is_start, was_start = plan.draft_start, known.draft_start
        if is_start and was_start and plan.actions == known.actions:
            return PlanReceipt.BEAT
        self._frame_ages_s = (frame_age_s,) * len(plan.actions)
        if is_start and was_start and not plan.actions:
            return PlanReceipt.WITHDRAWN
        if was_start and not is_start and plan.verified:
            return PlanReceipt.COMMITTED
        if is_start and not was_start and not known.actions and not known.final:
            return PlanReceipt.START
        raise ActionRefused("plan_changed", f"answer {plan.answer} begins on a draft a second time, or late")

    def action(self, index: int) -> tuple[Action, float] | None:
        """Return the action at `index` and its frame's age at arrival in seconds, if it is known yet."""
        if self.plan is None or index >= len(self.plan.actions):
            return None
        return self.plan.actions[index], self._frame_ages_s[index]

    def close_mission(self, mission: str, reason: str) -> None:
        """Drop all further plans of `mission`. The first reason is kept."""
        self._closed.setdefault(mission, reason)
        if len(self._closed) > MAX_CLOSED_MISSIONS:
            self._closed.popitem(last=False)

    def closed_reason(self, mission: str) -> str | None:
        """Return why `mission` is closed, or None if it is not."""
        return self._closed.get(mission)

    def _is_outdated(self, plan: Plan) -> bool:
        known = self.plan
        if plan.mission in self._closed:
            return True
        if known is None or plan.mission != known.mission:
            return False
        return (plan.answer, plan.sequence) < (known.answer, known.sequence)


@dataclass(slots=True)
class PlanQueue:
    """`put` and `drop` may be called from any thread; `drain` and `tracker` belong to the control thread."""

    tracker: PlanTracker = field(default_factory=PlanTracker)
    _buffer: PlanBuffer = field(default_factory=PlanBuffer)

    def put(self, timed_plan: TimedPlan, *, void: bool) -> None:
        """Add a plan. A void one gets a status, but is never carried out."""
        self._buffer.put(timed_plan, void=void)

    def drop(self, reason: str) -> None:
        """Make all queued plans void, and have the control thread drop what it does."""
        self._buffer.drop(reason)

    def drain(self, drop_now: str) -> tuple[str, tuple[TimedPlan, ...]]:
        """Return the reason to drop the present plan ("" if none) and the new plans; `drop_now` drops all."""
        if drop_now:
            self._buffer.drop(drop_now)
        queued = self._buffer.drain()
        reason = queued.drop_reason
        for timed_plan in queued.void:
            self.tracker.close_mission(timed_plan.plan.mission, reason or "estop")
        if reason and self.tracker.plan is not None:
            self.tracker.close_mission(self.tracker.plan.mission, reason)
        return reason, (*queued.void, *queued.plans)
