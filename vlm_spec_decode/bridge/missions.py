"""What a mission is asked, how it may end, and when it gives up: plain data of the mission runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.actions.types import Action, Look, Turn, action_numbers, format_action
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.edge.mission import Status

WHY = {
    "estop": "the e-stop is engaged; the e_stop service releases it",
    "cancelled": "somebody asked for it",
    "teleop": "a person has taken the controls",
    "watchdog": "the plan's heartbeat was lost",
}
"""What a reason means for a person, where the executor has not said more."""

Fallback: TypeAlias = Literal["hold", "stop", "draft_only"]

ALIKE_M, ALIKE_DEG = 0.2, 10.0
"""How little an answer to a newer frame may differ from the plan that a person has approved."""


ENDED = frozenset({"done", "step_limit", "refused", "cancelled", "failed"})
"""States of `vlm/status` after which the mission will not move the robot any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """An instruction, the name of its mission, and what stands between its plans and the robot."""

    mission: str
    instruction: str
    approve: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """When a mission gives up, and what it does without its cloud.

    `fallback`: `stop` ends the mission; `hold` keeps the robot standing and goes on with a new look when the
    cloud is back, for at most `hold_s`; `draft_only` goes on with the draft alone, at reduced limits, until
    then. A plan that was approved on a frame older than `fresh_s` is looked at anew before it is sent. After
    a silence of commander or robot the robot stands for `listen_s` before the next look.
    """

    max_steps: int = 24
    ready_s: float = 2.0
    frame_s: float = 5.0
    silence_s: float = 2.0
    act_s: float = 120.0
    fallback: Fallback = "hold"
    hold_s: float = 30.0
    approve_s: float = 120.0
    fresh_s: float = 3.0
    listen_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Ending:
    """How a mission ended, and why if not by `done()`."""

    status: Status
    reason: str = ""
    detail: str = ""


def failure(error: VsdError) -> Ending:
    """Return the ending that an error makes."""
    return Ending("failed", type(error).__name__, str(error))


def said(actions: tuple[Action, ...]) -> str:
    """Return actions as text."""
    return " ".join(format_action(action) for action in actions) or "no action"


def alike(one: tuple[Action, ...], other: tuple[Action, ...]) -> bool:
    """Whether two plans are the same actions with nearly the same numbers."""
    if [type(action) for action in one] != [type(action) for action in other]:
        return False
    return all(
        abs(a - b) <= (ALIKE_DEG if isinstance(x, (Turn, Look)) else ALIKE_M)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(action_numbers(x), action_numbers(y), strict=True)
    )


def ending_of(status: PlanStatus) -> Ending:
    """Return what an executor's breaking off means for the mission."""
    said = status.detail or WHY.get(status.reason, "")
    detail = f"{status.action}: {said}" if status.action else said
    meaning: dict[str, Status] = {"refused": "refused", "fault": "failed"}
    return Ending(meaning.get(status.state, "cancelled"), status.reason or status.state, detail)
