"""Velocities from a person: the newest wins, silence ends them.

As in twist_mux, a source is active while it publishes. A zero velocity counts too: its publisher keeps
control of the robot.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from vlm_spec_decode.control.action_runner import ActionRunner
from vlm_spec_decode.control.emergency_stop import EmergencyStop
from vlm_spec_decode.control.motion_profile import STILL, Velocity

TELEOP_TIMEOUT_S = 0.5
"""What twist_mux usually gives a source."""


@dataclass(slots=True)
class Teleoperation:
    """The newest velocity, when it came, and its way to the robot.

    `put`, `is_live` and `drop` are safe for threads; `follow` and `was_live` belong to the control thread.
    """

    performer: ActionRunner
    stopper: EmergencyStop
    timeout_s: float = TELEOP_TIMEOUT_S
    was_live: bool = False
    _velocity: Velocity = STILL
    _heard_s: float = -math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, velocity: Velocity, now_s: float) -> bool:
        """Take a velocity; False, and nothing taken, if it is not one."""
        if not all(map(math.isfinite, velocity)):
            return False
        with self._lock:
            self._velocity, self._heard_s = velocity, now_s
        return True

    def is_live(self, now_s: float) -> bool:
        """Whether somebody steers."""
        with self._lock:
            return now_s - self._heard_s <= self.timeout_s

    def drop(self) -> None:
        """Forget what was wanted, as after an e-stop."""
        with self._lock:
            self._heard_s = -math.inf

    def follow(self, now_s: float) -> bool:
        """Follow a person; whether there is one. Where he falls silent, the robot is stopped.

        Raises RobotError if it does not stop, or takes no Moves.
        """
        was_live, self.was_live = self.was_live, self.is_live(now_s)
        if self.was_live:
            self.performer.steer(self._velocity)
        elif was_live:
            self.performer.abandon()
            self.stopper.stop("teleop_silent").check()
        return self.was_live
