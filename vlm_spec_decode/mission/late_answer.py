"""An answer about a frame that the body has left behind by the time the answer comes.

Its plan was told for the frame, so it is told anew for where the body is (`actions.reprojection`) when the
first of it is carried out; what is committed after that is told with the same motion, so that the plan only
grows. The history has it in the answer's own words, since those are what the models know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.reprojection import PURE_TURN_M, reproject
from vlm_spec_decode.actions.types import MOTIONS, Action, format_action
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.pose import Pose2D, PoseHistory
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.mission.connection import TextUpdate
from vlm_spec_decode.mission.events import Frame

BELIEVED_M = 0.1
"""What does not walk (`done()`, a gesture, a refusal) is believed if the body has walked at most this far."""

TURNED_M = 0.3
"""How far its steps may carry a body aside that turns on the spot."""


Note = Callable[[str, int, Frame, str], None]
"""Tells what became of an answer: one of `LOOK_WORDS`, its number, its frame, and a sentence."""


def no_note(reason: str, number: int, frame: Frame, detail: str) -> None:
    """Tell nobody."""


def grown(plan: Plan, actions: tuple[Action, ...], final: bool) -> Plan:
    """Return `plan` with what has been committed since; the same object if that is nothing."""
    if (actions, final) == (plan.actions, plan.final):
        return plan
    return replace(plan, actions=actions, sequence=plan.sequence + 1, final=final)


@dataclass(slots=True)
class LateAnswer:
    """One frame, and what has been committed about it; `number` is that of its answer."""

    number: int
    frame: Frame
    observation: Observation
    text: str = ""
    actions: tuple[Action, ...] = ()
    is_whole: bool = False
    on_the_spot: bool = False
    """Whether the body has only turned since: what its steps carried it aside is then left out."""
    moved: Pose2D | None = None
    """How the body had moved since the frame when the plan was first told anew."""
    start: Pose2D | None = None
    """Where it was then, by odometry."""

    def take(self, update: TextUpdate) -> None:
        """Take in a commit."""
        self.text, self.actions = update.text, self.actions + update.actions
        self.is_whole = update.result is not None

    def retold(self, poses: PoseHistory) -> tuple[Action, ...] | None:
        """Return the plan as it leads on from the body's pose; None if more of it must be known first.

        Raises ActionRefused with `reprojection`, also if the odometry does not reach back to the frame.
        """
        if self.moved is None:
            taken, newest = poses.at(self.frame.stamp_s), poses.newest
            if taken is None or newest is None:
                raise ActionRefused("reprojection", "how far the body has moved since the frame is not known")
            moved = newest.seen_from(taken)
            if self.on_the_spot and math.hypot(moved.x_m, moved.y_m) <= TURNED_M:
                moved = Pose2D(0.0, 0.0, moved.yaw_rad)
            # After a way, a turn is told together with the way it leads to: alone it would read otherwise.
            waits = len(self.actions) < 2 and math.hypot(moved.x_m, moved.y_m) > PURE_TURN_M
            if not self.is_whole and (waits or not self.actions):
                return None
            self.moved, self.start = moved, newest
        return reproject(self.believed, self.moved)

    @property
    def believed(self) -> tuple[Action, ...]:
        """The actions up to the first that a body which has walked on does not believe."""
        if self.moved is None or math.hypot(self.moved.x_m, self.moved.y_m) <= BELIEVED_M:
            return self.actions
        ends = (index for index, action in enumerate(self.actions) if not isinstance(action, MOTIONS))
        return self.actions[: next(ends, len(self.actions))]

    def told(self, executed: tuple[str, ...], planned: tuple[Action, ...]) -> tuple[str, ...]:
        """Return what has been carried out of `planned`, in the words of the answer.

        The plan was told anew: it has a turn more at its front, or one fewer, or another one.
        """
        said = self.believed
        more = len(planned) - len(said)
        return tuple(format_action(action) for action in said[: max(0, len(executed) - more)])
