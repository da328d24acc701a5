"""A motion that began on a draft, and what is left of an answer's plan once the cloud has spoken.

The executor walks on a draft only from a plan with `draft_start`, by limits of their own. Where the committed
first action is the same motion, or a longer one, the way that was made counts and the body does not stop
(`StartedMotion.is_beginning_of`). Else the body stops, and the committed actions lead on from where it is
(`CorrectedCourse`): each one is re-projected by how far the body is from where the plan would have it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from vlm_spec_decode.actions.limits import START_DISTANCE_M, SafetyLimits
from vlm_spec_decode.actions.reprojection import end_of, reproject
from vlm_spec_decode.actions.types import Action, Forward, Strafe, Turn
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.robot import RobotState

OVERSHOOT_M, OVERSHOOT_DEG = 0.02, 1.5
"""By how much the motion made may exceed the committed one and still be its beginning: no body makes less."""


def pose_of(state: RobotState) -> Pose2D:
    """Return the body's pose in the odometry frame."""
    return Pose2D(state.x_m, state.y_m, state.yaw_rad)


@dataclass(slots=True)
class StartedMotion:
    """The first action of an answer, as its draft had it. `origin`: the state in which it began, None before.

    `is_over`: the motion has ended or was ended, and nothing more is done for it. `is_decided`: the answer's
    committed plan has come, and what becomes of the motion is to be settled in this control period.
    """

    action: Action | None
    origin: RobotState | None = None
    is_over: bool = False
    is_decided: bool = False

    def moved(self, state: RobotState) -> Pose2D:
        """Return how far the body has come, in its frame at the start (SE(2))."""
        return Pose2D(0.0, 0.0) if self.origin is None else pose_of(state).seen_from(pose_of(self.origin))

    def is_beginning_of(self, action: Action | None, state: RobotState) -> bool:
        """Whether what the body has done so far is the first part of `action`."""
        moved = self.moved(state)
        if isinstance(self.action, Turn) and isinstance(action, Turn):
            return _covers(
                action.angle_deg, self.action.angle_deg, math.degrees(moved.yaw_rad), OVERSHOOT_DEG
            )
        if isinstance(self.action, Forward) and isinstance(action, Forward):
            return _covers(action.distance_m, self.action.distance_m, moved.x_m, OVERSHOOT_M)
        return False


def _covers(whole: float, started: float, made: float, tolerance: float) -> bool:
    return whole * started > 0 and abs(made) <= abs(whole) + tolerance


@dataclass(slots=True)
class CorrectedCourse:
    """The committed actions of one answer, from where a wrong start has left the body.

    `planned` is where the plan would have the body before its next action, in the odometry frame: the pose
    of the frame, and after each action its end. `limits` bound the actions that are made.
    """

    planned: Pose2D
    limits: SafetyLimits
    _parts: deque[Action] = field(default_factory=deque)
    _is_begun: bool = False

    def part(self, action: Action, state: RobotState) -> Action | None:
        """Return what to do now for `action`, which may take several motions; None once it is complete."""
        if not self._is_begun:
            self._is_begun = True
            self._parts = deque(self._from(action, pose_of(state)))
        return self._parts[0] if self._parts else None

    def end_part(self) -> None:
        """Record that the present part has been carried out."""
        self._parts.popleft()

    def end_action(self, action: Action) -> None:
        """Record that all parts of `action` have been carried out."""
        self.planned, self._is_begun = end_of(self.planned, action), False

    def _from(self, action: Action, here: Pose2D) -> tuple[Action, ...]:
        try:
            made = reproject((action,), here.seen_from(self.planned))
        except ActionRefused:
            # The end of the way lies beside or behind the body. It has come at most START_DISTANCE_M, so
            # that is nearer than START_DISTANCE_M / sin 60 deg: the action is as good as carried out.
            return ()
        return tuple(map(self._bounded, made))

    def _bounded(self, action: Action) -> Action:
        """Return a way that is not longer than one action may be: to go back adds at most the start's."""
        if isinstance(action, (Forward, Strafe)) and abs(action.distance_m) <= (
            self.limits.max_distance_m + START_DISTANCE_M
        ):
            longest_m = self.limits.max_distance_m
            return type(action)(min(max(action.distance_m, -longest_m), longest_m))
        return action
