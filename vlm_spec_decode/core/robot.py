"""What is known of the robot at one moment, and the postures it can be asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_PLACE = 1e6
"""No pose or speed is further from 0 (metres, radians, m/s): what is, is a damaged or an empty field."""

POSTURES = (
    "stand_up",
    "stand_down",
    "sit",
    "rise",
    "hello",
    "stretch",
    "recovery_stand",
    "balance_stand",
    "damp",
)
"""Names that `RobotDriver.posture` takes; `damp` is for the operator alone, never for a model."""

WALKING_STATES = frozenset({100, 1013, 1015, 1016, 1017})
"""Codes of the Go2's state machine in which Move has an effect (reference: vendor's sport V2.0)."""


@dataclass(frozen=True, slots=True)
class RobotState:
    """A state message in plain units.

    `stamp_s` is the robot's own stamp, `received_s` this machine's monotonic time of arrival.
    Position is in the odometry frame and drifts; velocity is in the body frame. `code` is the state
    machine's code (1013 balance stand, 1002 standing lock, 1007 sit, 1001 damping, …); `reported_code` is
    what the robot itself said, where its firmware has another number for that. A code that nobody knows is
    left as it is, with `is_known` false; `is_down` then says that the body surely lies.
    `range_obstacle_m` is front, left, rear, right; infinity where nothing is seen.
    """

    stamp_s: float
    received_s: float
    x_m: float
    y_m: float
    yaw_rad: float
    vx_mps: float
    vy_mps: float
    vyaw_radps: float
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    body_height_m: float = 0.31
    code: int = 1013
    battery_soc: float = 1.0
    range_obstacle_m: tuple[float, float, float, float] = (float("inf"),) * 4
    reported_code: int | None = None
    is_known: bool = True
    is_down: bool = False

    @property
    def speed_mps(self) -> float:
        """Horizontal speed."""
        return math.hypot(self.vx_mps, self.vy_mps)

    @property
    def is_still(self) -> bool:
        """Whether the body stands still within what odometry resolves."""
        return self.speed_mps < 0.03 and abs(self.vyaw_radps) < 0.05

    @property
    def can_walk(self) -> bool:
        """Whether a Move would have an effect."""
        return self.is_known and self.code in WALKING_STATES
