"""The motion that was broken off last, so that going on with it does not walk the whole way again.

A watchdog, something in the way or a lost cloud ends an answer in the middle of a motion. The mission looks
anew, and for a plain "walk forward 2.5 metres" the next answer is the same `forward(2.5)`: what has been
walked of it counts. An answer that says anything else is about what it sees now, and is carried out as it is.
Pure; measures by the odometry that the motion itself was steered by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vlm_spec_decode.actions.motion import Line, Motion, Rotation
from vlm_spec_decode.actions.types import Action, Forward, Strafe, Turn
from vlm_spec_decode.core.robot import RobotState


@dataclass(slots=True)
class Unfinished:
    """Knows at most one motion. What the body coasted after the break counts too: it is measured late."""

    _action: Action | None = None
    _motion: Line | Rotation | None = None

    def keep(self, action: Action | None, motion: Motion | None) -> None:
        """Remember a motion that was under way for `action`; anything but a motion changes nothing."""
        if isinstance(motion, (Line, Rotation)):
            self._action, self._motion = action, motion

    def forget(self) -> None:
        """Let whatever comes next be carried out in full."""
        self._action = self._motion = None

    def rest_of(self, action: Action, state: RobotState) -> Action:
        """Return what is left of `action` if it is the one broken off, else `action`; never more than it."""
        if self._motion is None or action != self._action:
            return action
        left = self._motion.remaining(state)
        if isinstance(action, (Forward, Strafe)):
            return replace(action, distance_m=_between(left, action.distance_m))
        if isinstance(action, Turn):
            return replace(action, angle_deg=_between(math.degrees(left), action.angle_deg))
        return action


def _between(left: float, whole: float) -> float:
    return min(max(left, min(0.0, whole)), max(0.0, whole))
