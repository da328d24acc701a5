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
class QueuedOrders:
    """All that came since the last tick. `void` came before a cancel or during an e-stop."""

    drop_reason: str
    void: tuple[TimedPlan, ...]
    letters: tuple[TimedPlan, ...]


class PlanMailbox:
    """Plans and the order to drop everything, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drop_reason = ""
        self._void: list[TimedPlan] = []
        self._letters: list[TimedPlan] = []

    def post(self, letter: TimedPlan, *, void: bool) -> None:
        """Leave a plan; a void one is only answered, never carried out."""
        with self._lock:
            (self._void if void else self._letters).append(letter)

    def drop(self, reason: str) -> None:
        """Void what was posted so far, and tell the control thread to drop what it does."""
        with self._lock:
            self._drop_reason = reason
            self._void += self._letters
            self._letters.clear()

    def take(self) -> QueuedOrders:
        """Return everything and empty the box."""
        with self._lock:
            orders = QueuedOrders(self._drop_reason, tuple(self._void), tuple(self._letters))
            self._drop_reason = ""
            self._void.clear()
            self._letters.clear()
        return orders


BARRED_MISSIONS = 64
"""How many closed missions are remembered."""


class PlanReceipt(Enum):
    """What became of a plan message."""

    NEW = "new"
    MORE = "more"
    BEAT = "beat"
    DROPPED = "dropped"


@dataclass(slots=True)
class PlanTracker:
    """The newest plan, when its source last sent one, and how old the frame of each action was."""

    plan: Plan | None = None
    heard_s: float = 0.0
    dropped: int = 0
    _frame_ages_s: tuple[float, ...] = ()
    _barred: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def receive(self, plan: Plan, now_s: float, frame_age_s: float) -> PlanReceipt:
        """Take a plan that arrived at `now_s`.

        Raises ActionRefused with `plan_changed` if an action that was already announced reads otherwise now:
        drafts may be wrong, plans hold committed actions only.
        """
        known = self.plan
        if self._is_outdated(plan):
            self.dropped += 1
            return PlanReceipt.DROPPED
        self.plan, self.heard_s = plan, now_s
        if known is None or (plan.mission, plan.answer) != (known.mission, known.answer):
            if known is not None and plan.mission != known.mission:
                self.bar(known.mission, "superseded")
            self._frame_ages_s = (frame_age_s,) * len(plan.actions)
            return PlanReceipt.NEW
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

    def action(self, index: int) -> tuple[Action, float] | None:
        """Return the action at `index` and its frame's age at arrival in seconds, if it is known yet."""
        if self.plan is None or index >= len(self.plan.actions):
            return None
        return self.plan.actions[index], self._frame_ages_s[index]

    def bar(self, mission: str, reason: str) -> None:
        """Never listen to `mission` again; the first reason stays."""
        self._barred.setdefault(mission, reason)
        if len(self._barred) > BARRED_MISSIONS:
            self._barred.popitem(last=False)

    def barred(self, mission: str) -> str | None:
        """Return why `mission` is closed, or None if it is not."""
        return self._barred.get(mission)

    def _is_outdated(self, plan: Plan) -> bool:
        known = self.plan
        if plan.mission in self._barred:
            return True
        if known is None or plan.mission != known.mission:
            return False
        return (plan.answer, plan.sequence) < (known.answer, known.sequence)


@dataclass(slots=True)
class PlanQueue:
    """`post` and `drop` may be called from any thread; `take` and `inbox` belong to the control thread."""

    inbox: PlanTracker = field(default_factory=PlanTracker)
    _mailbox: PlanMailbox = field(default_factory=PlanMailbox)

    def post(self, letter: TimedPlan, *, void: bool) -> None:
        """Leave a plan; a void one is only answered, never carried out."""
        self._mailbox.post(letter, void=void)

    def drop(self, reason: str) -> None:
        """Void what was posted so far, and tell the control thread to drop what it does."""
        self._mailbox.drop(reason)

    def take(self, drop_now: str) -> tuple[str, tuple[TimedPlan, ...]]:
        """Return why to drop what is under way, if so, and the letters to answer; `drop_now` drops all."""
        if drop_now:
            self._mailbox.drop(drop_now)
        orders = self._mailbox.take()
        reason = orders.drop_reason
        for letter in orders.void:
            self.inbox.bar(letter.plan.mission, reason or "estop")
        if reason and self.inbox.plan is not None:
            self.inbox.bar(self.inbox.plan.mission, reason)
        return reason, (*orders.void, *orders.letters)
