"""What a plan message means when it arrives: a heartbeat, more of the same, or something new.

Pure; knows neither gate nor robot. Messages may be repeated, late or reordered (a best-effort topic): what is
older than what is known is dropped, and a mission that was superseded, cancelled or met an e-stop never
comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.errors import ActionRefused

BARRED_MISSIONS = 64
"""How many closed missions are remembered."""


class Receipt(Enum):
    """What became of a plan message."""

    NEW = "new"
    MORE = "more"
    BEAT = "beat"
    DROPPED = "dropped"


@dataclass(slots=True)
class PlanInbox:
    """The newest plan, when its commander was last heard, and how old the frame of each action was."""

    plan: Plan | None = None
    heard_s: float = 0.0
    dropped: int = 0
    _frame_ages_s: tuple[float, ...] = ()
    _barred: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def receive(self, plan: Plan, now_s: float, frame_age_s: float) -> Receipt:
        """Take a plan that arrived at `now_s`.

        Raises ActionRefused with `plan_changed` if an action that was already announced reads otherwise now:
        drafts may be wrong, plans hold committed actions only.
        """
        known = self.plan
        if self._is_outdated(plan):
            self.dropped += 1
            return Receipt.DROPPED
        self.plan, self.heard_s = plan, now_s
        if known is None or (plan.mission, plan.answer) != (known.mission, known.answer):
            if known is not None and plan.mission != known.mission:
                self.bar(known.mission, "superseded")
            self._frame_ages_s = (frame_age_s,) * len(plan.actions)
            return Receipt.NEW
        takes_back = known.final and not plan.final
        if (
            plan.actions[: len(known.actions)] != known.actions
            or takes_back
            or plan.verified != known.verified
        ):
            raise ActionRefused("plan_changed", f"answer {plan.answer} contradicts what it said before")
        fresh = len(plan.actions) - len(known.actions)
        self._frame_ages_s += (frame_age_s,) * fresh
        return Receipt.MORE if fresh or plan.final != known.final else Receipt.BEAT

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
