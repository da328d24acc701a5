"""What is known of a robot at one moment, in the terms of no particular robot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

MAX_ABS_VALUE = 1e6
"""Largest valid absolute value of a pose or speed (m, rad, m/s); beyond it a field is damaged or empty."""

POSTURES = ("stand_up", "stand_down", "sit", "rise", "hello", "stretch")
"""Postures of the action language. A robot has some of them, and may have others for its operator."""

Posture: TypeAlias = Literal["walk", "stand", "lock", "lie", "damp", "sit", "act", "pose", "busy", "unknown"]
"""What a body does, as far as it matters for moving it.

`walk` and `stand` take velocities. `lock` stands with locked joints and takes none. `damp` has sunk down
without force. `act` is a greeting or another gesture, `pose` a body that holds a tilt, `busy` something that
nothing may interrupt. A robot on wheels is always in `stand` or `walk`.
"""

WALKING: frozenset[Posture] = frozenset({"walk", "stand"})
"""Postures in which a velocity has an effect."""


@dataclass(frozen=True, slots=True)
class RobotState:
    """A state message in plain units.

    `stamp_s` is the robot's own stamp, `received_s` this machine's monotonic time of arrival.
    Position is in the odometry frame and drifts; velocity is in the body frame. `range_obstacle_m` is front,
    left, rear, right; infinity where nothing is seen. `body_height_m` is NaN for a robot that reports none.
    `joints_rad` are the legs' angles in the order of `robot.spec.LEG_NAMES`; empty for one that reports none.

    `posture` is what everything decides on. `code` is the number that the robot's own state machine has for
    it, None for a robot without numbers; `reported_code` is what the robot itself said, where its firmware
    has another number for that; `description` names it for people. A state that nobody knows has the posture
    `unknown`; `is_down` then says that the body surely lies.
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
    body_height_m: float = math.nan
    posture: Posture = "stand"
    battery_soc: float = 1.0
    range_obstacle_m: tuple[float, float, float, float] = (float("inf"),) * 4
    code: int | None = None
    reported_code: int | None = None
    description: str = ""
    is_down: bool = False
    joints_rad: tuple[float, ...] = ()

    @property
    def speed_mps(self) -> float:
        """Horizontal speed."""
        return math.hypot(self.vx_mps, self.vy_mps)

    @property
    def is_still(self) -> bool:
        """Whether the body stands still within what odometry resolves."""
        return self.speed_mps < 0.03 and abs(self.vyaw_radps) < 0.05

    @property
    def is_known(self) -> bool:
        """Whether the posture is known."""
        return self.posture != "unknown"

    @property
    def can_walk(self) -> bool:
        """Whether a velocity would have an effect."""
        return self.posture in WALKING

    @property
    def label(self) -> str:
        """Return what the state is called in messages: the robot's own words, its number, or the posture."""
        if self.description:
            return self.description
        return self.posture if self.code is None else f"{self.code} {self.posture}"
