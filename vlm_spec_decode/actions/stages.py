"""What carrying out each action consists of: motions under control, and calls that take seconds.

The one place that knows what an action means to a robot. A stage is made when its turn comes, so a motion
starts from the state of that moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vlm_spec_decode.actions.approach import MotionTuning
from vlm_spec_decode.actions.jobs import Call
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.motion import Line, Moment, Motion, Pause, Rotation
from vlm_spec_decode.actions.stopping import Stopper
from vlm_spec_decode.actions.types import Action, Done, Forward, Look, Stop, Strafe, Turn, Wait, format_action
from vlm_spec_decode.core.ports import RobotDriver

LOOK_SETTLE_S = 0.6
"""From the request to tilt until the body holds still enough for a picture."""

Stage = Callable[[Moment], Motion | Call]


@dataclass(slots=True)
class StageMaker:
    """Turns actions into stages for one robot; remembers whether its body is tilted."""

    driver: RobotDriver
    stopper: Stopper
    limits: SafetyLimits
    tuning: MotionTuning
    is_tilted: bool = False

    def stages(self, action: Action) -> list[Stage]:
        """Return what `action` consists of, in order."""
        if isinstance(action, (Forward, Strafe)):
            sideways = isinstance(action, Strafe)
            distance_m = action.distance_m
            return [
                *self._level(),
                lambda at: Line(distance_m, sideways, self.limits, self.tuning, at.state),
            ]
        if isinstance(action, Turn):
            angle_rad = math.radians(action.angle_deg)
            return [*self._level(), lambda at: Rotation(angle_rad, self.limits, self.tuning, at.state)]
        if isinstance(action, Wait):
            return [self._pause(action.duration_s)]
        if isinstance(action, Look):
            return self._look(action.pitch_deg, action.yaw_deg)
        if isinstance(action, Done):
            return []
        if isinstance(action, Stop):
            return [self._call("stop", self._stop)]
        return self._posture(format_action(action).removesuffix("()"))

    def _posture(self, name: str) -> list[Stage]:
        """Getting up ends in balance stand: in the locked stand a Move would be ignored."""
        self.is_tilted = False
        names = (name, "balance_stand") if name == "stand_up" else (name,)
        return [self._call(each, partial(self.driver.posture, each)) for each in names]

    def _look(self, pitch_deg: float, yaw_deg: float) -> list[Stage]:
        self.is_tilted = bool(pitch_deg or yaw_deg)
        pitch_rad, yaw_rad = math.radians(pitch_deg), math.radians(yaw_deg)
        return [
            self._call("look", lambda: self.driver.look(pitch_rad, yaw_rad)),
            self._pause(LOOK_SETTLE_S),
        ]

    def _level(self) -> list[Stage]:
        """Walk with a level body: a tilted one walks badly, and its yaw is not where it heads."""
        return self._look(0.0, 0.0) if self.is_tilted else []

    def _call(self, name: str, call: Callable[[], None]) -> Stage:
        return lambda _: Call(name, call)

    @staticmethod
    def _pause(duration_s: float) -> Stage:
        return lambda at: Pause(at.now_s + duration_s)

    def _stop(self) -> None:
        self.stopper.stop("action").check()
