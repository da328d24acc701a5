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
    """The newest velocity from a person and when it arrived; passes it to the action runner.

    `put`, `is_live` and `clear` are safe for threads; `follow` and `was_live` belong to the control thread.
    """

    action_runner: ActionRunner
    emergency_stop: EmergencyStop
    timeout_s: float = TELEOP_TIMEOUT_S
    was_live: bool = False
    _velocity: Velocity = STILL
    _received_s: float = -math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, velocity: Velocity, now_s: float) -> bool:
        """Store a velocity. False, and nothing stored, if a number of it is not finite."""
        if not all(map(math.isfinite, velocity)):
            return False
        with self._lock:
            self._velocity, self._received_s = velocity, now_s
        return True

    def is_live(self, now_s: float) -> bool:
        """Whether a velocity arrived within the timeout."""
        with self._lock:
            return now_s - self._received_s <= self.timeout_s

    def clear(self) -> None:
        """Remove the velocity, as after an e-stop."""
        with self._lock:
            self._received_s = -math.inf

    def follow(self, now_s: float) -> bool:
        """Command the newest velocity; return whether there is one. When it times out, the robot is stopped.

        Raises RobotError if it does not stop, or takes no Moves.
        """
        was_live, self.was_live = self.was_live, self.is_live(now_s)
        if self.was_live:
            self.action_runner.steer(self._velocity)
        elif was_live:
            self.action_runner.abandon()
            self.emergency_stop.stop("teleop_silent").check()
        return self.was_live
