"""Plays the executor where there is no robot: reports every plan as carried out, in its nominal time.

Plans in, statuses out, as of `actions.plan`; moves nothing. Knows neither ROS nor bags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Action, Done, Forward, Stop, Strafe, Turn, Wait, format_action

POSTURE_S = 1.5
"""Nominal time of sitting down, of a greeting, and the like."""


def nominal_s(action: Action, limits: SafetyLimits) -> float:
    """Return how long an action takes at the highest speed allowed."""
    if isinstance(action, (Forward, Strafe)):
        return abs(action.distance_m) / limits.max_speed_mps
    if isinstance(action, Turn):
        return math.radians(abs(action.angle_deg)) / limits.max_turn_radps
    if isinstance(action, Wait):
        return action.duration_s
    return 0.0 if isinstance(action, (Done, Stop)) else POSTURE_S


@dataclass(slots=True)
class StandIn:
    """The newest plan and how far it would be by now; times are seconds of a clock that never goes back."""

    limits: SafetyLimits = field(default_factory=SafetyLimits)
    _plan: Plan | None = None
    _executed: int = 0
    _began_s: float = 0.0

    def take(self, plan: Plan, now_s: float) -> None:
        """Take a plan; another answer supersedes what is under way, older content of this one does not."""
        old = self._plan
        if old is None or (old.mission, old.answer) != (plan.mission, plan.answer):
            self._plan, self._executed, self._began_s = plan, 0, now_s
        elif plan.sequence >= old.sequence:
            if self._executed == len(old.actions):
                self._began_s = now_s
            self._plan = plan

    def status(self, now_s: float) -> PlanStatus | None:
        """Return where the plan stands; None before the first."""
        plan = self._plan
        if plan is None:
            return None
        texts = [format_action(action) for action in plan.actions]
        while self._executed < len(texts):
            ends_s = self._began_s + nominal_s(plan.actions[self._executed], self.limits)
            if now_s < ends_s:
                break
            self._executed, self._began_s = self._executed + 1, ends_s
        is_moving = self._executed < len(texts)
        state = "moving" if is_moving else "done" if plan.final else "idle"
        action = texts[self._executed] if is_moving else ""
        executed = tuple(texts[: self._executed])
        return PlanStatus(plan.mission, plan.answer, self._executed, state, action=action, executed=executed)
