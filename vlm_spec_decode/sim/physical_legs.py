"""What the legs do: hold a posture, walk, or hang limp. Torques out, from what the body feels.

Every 20 ms it is decided what the joints shall do, every physics step a torque follows from it. Knows the
walking policy and leg kinematics; nothing of MuJoCo, rooms or commands' timing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from vlm_spec_decode.sim.gait import joint_angles
from vlm_spec_decode.sim.walking_policy import (
    DAMPING,
    NEUTRAL_RAD,
    STIFFNESS,
    Vector,
    VelocityTrim,
    WalkingPolicy,
)

HOLD_STIFFNESS, HOLD_DAMPING = 80.0, 3.0
LIMP_DAMPING = 1.5
"""Of joints without a target: the body sinks in about half a second instead of falling."""

ENGAGE_S = 0.5
"""From limp to a posture."""
PLANT_S = 3.0
"""From where the feet stood at the end of a walk to the posture; slow enough to count as standing still."""
BRAKE_MPS, BRAKE_RADPS, BRAKE_S = 0.25, 0.6, 0.6
"""Below these speeds, or after this time at the latest, the feet stay where they are."""


LOW_M, LYING_M = 0.16, 0.10
"""Between these heights of the trunk the legs fold; below, the trunk lies on the floor."""
FOLDED_RAD: Vector = np.array([0.0, 1.36, -2.65] * 4)


class Mode(Enum):
    """What the legs are doing."""

    LIMP = "limp"
    HOLD = "hold"
    WALK = "walk"


@dataclass(frozen=True, slots=True)
class Feeling:
    """What the body feels: directions in the trunk's frame, `velocity` is vx, vy, vyaw in the heading's.

    `carry` [12] are the torques with which standing legs carry the weight; `feet_down` how many touch.
    """

    joints: Vector
    speeds: Vector
    turning: Vector
    down: Vector
    velocity: Vector
    carry: Vector
    feet_down: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What the legs are asked for: a velocity, and the trunk's posture while there is none."""

    velocity: tuple[float, float, float]
    height_m: float
    tilt_rad: tuple[float, float, float]
    limp: bool = False


def stance(height_m: float, tilt_rad: tuple[float, float, float]) -> Vector:
    """Return the joint angles [12] of a standing body; one near the floor folds its legs under it."""
    standing = np.array(joint_angles(max(height_m, LOW_M), tilt_rad, (0.0, 0.0, 0.0), 0.0))
    share = min(1.0, max(0.0, (LOW_M - height_m) / (LOW_M - LYING_M)))
    folded: Vector = standing + share * (FOLDED_RAD - standing)
    return folded


class Legs:
    """Twelve joints under control. It begins holding a posture; `reset` says from which angles."""

    def __init__(self, policy: WalkingPolicy, torque_max: Vector) -> None:
        self._policy = policy
        self._trim = VelocityTrim()
        self._torque_max = torque_max
        self.reset(NEUTRAL_RAD)

    def reset(self, joints: Vector) -> None:
        """Hold from these angles on, as if for ever."""
        self.mode = Mode.HOLD
        self._from = joints.copy()
        self._since_s, self._blend_s = -math.inf, 1.0
        self._still_s = -math.inf
        self._target: Vector = joints.copy()
        self._carry: Vector = np.zeros(12)

    def decide(self, now_s: float, felt: Feeling, wish: Wish) -> None:
        """Choose what to do for the next 20 ms."""
        if wish.limp:
            self.mode = Mode.LIMP
        elif self.mode is Mode.LIMP:
            self._hold(now_s, felt.joints, ENGAGE_S)
        moving = any(wish.velocity)
        if moving and self.mode is Mode.HOLD:
            self.mode = Mode.WALK
            self._policy.reset()
            self._trim.reset()
        if self.mode is Mode.WALK:
            self._walk(now_s, felt, np.array(wish.velocity), moving)
        if self.mode is Mode.HOLD:
            self._stand(now_s, felt, wish)

    def torque(self, joints: Vector, speeds: Vector) -> Vector:
        """Return the torques for the present angles and speeds, within what the motors give."""
        if self.mode is Mode.LIMP:
            torque = -LIMP_DAMPING * speeds
        elif self.mode is Mode.WALK:
            torque = STIFFNESS * (self._target - joints) - DAMPING * speeds
        else:
            torque = HOLD_STIFFNESS * (self._target - joints) - HOLD_DAMPING * speeds + self._carry
        limited: Vector = np.clip(torque, -self._torque_max, self._torque_max)
        return limited

    def _walk(self, now_s: float, felt: Feeling, asked: Vector, moving: bool) -> None:
        if moving:
            self._still_s = now_s
            asked = self._trim.correct(asked, felt.velocity)
        else:
            self._trim.reset()
            slow = math.hypot(*felt.velocity[:2]) < BRAKE_MPS and abs(felt.velocity[2]) < BRAKE_RADPS
            if (slow and felt.feet_down >= 3) or now_s - self._still_s > BRAKE_S:
                self._hold(now_s, felt.joints, PLANT_S)
                return
        self._target = self._policy.targets(felt.turning, felt.down, felt.joints, felt.speeds, asked)

    def _hold(self, now_s: float, joints: Vector, blend_s: float) -> None:
        self.mode = Mode.HOLD
        self._from, self._since_s, self._blend_s = joints.copy(), now_s, blend_s

    def _stand(self, now_s: float, felt: Feeling, wish: Wish) -> None:
        share = min(1.0, max(0.0, (now_s - self._since_s) / self._blend_s))
        share *= share * (3.0 - 2.0 * share)
        goal = stance(wish.height_m, wish.tilt_rad)
        self._target = self._from + share * (goal - self._from)
        self._carry = felt.carry
