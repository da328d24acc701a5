"""The kinematic body: how its base answers commands, and a visible trot.

The base: pure arithmetic, independent of rooms and MuJoCo. No public step response of the Go2's Move exists,
so delay, lag and acceleration are parameters with plausible defaults.

The legs: pure functions of posture, velocity and phase, which give the positions of the feet and their joint
angles; they do not influence the base.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from vlm_spec_decode.sim.physics.room_model import (
    ABDUCTION_M,
    CALF_M,
    FOOT_RADIUS_M,
    HIP_X_M,
    HIP_Y_M,
    LEGS,
    THIGH_M,
)

STAND_HEIGHT_M = 0.32
"""Height of the base frame when standing."""

Velocity = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Imu:
    """The inertial sensor's measurement, in the trunk's frame."""

    turning_radps: tuple[float, float, float]
    acceleration_mps2: tuple[float, float, float]
    """Includes gravity: a level body at rest measures 9.81 upwards."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of the base; velocities beyond them are clamped."""

    vx_min_mps: float = -2.5
    vx_max_mps: float = 3.8
    vy_max_mps: float = 1.0
    vyaw_max_radps: float = 4.0
    command_delay_s: float = 0.030
    lag_s: float = 0.08
    accel_mps2: float = 4.0
    accel_yaw_radps2: float = 14.0
    height_rate_mps: float = 0.25
    tilt_rate_radps: float = 1.2

    def clamp(self, velocity: Velocity) -> Velocity:
        """Return the nearest velocity within the limits."""
        vx, vy, vyaw = velocity
        return (
            min(max(vx, self.vx_min_mps), self.vx_max_mps),
            min(max(vy, -self.vy_max_mps), self.vy_max_mps),
            min(max(vyaw, -self.vyaw_max_radps), self.vyaw_max_radps),
        )


GO2_LIMITS = BodyLimits()
"""Velocity limits as the vendor documents them for Move."""


class VelocityServo:
    """Follows velocity commands after a delay, by a first-order lag with bounded acceleration."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._pending: deque[tuple[float, Velocity]] = deque()
        self._target: Velocity = (0.0, 0.0, 0.0)
        self.velocity: Velocity = (0.0, 0.0, 0.0)

    def command(self, now_s: float, velocity: Velocity) -> None:
        """Set the target that takes effect one command delay from now."""
        wanted = self._limits.clamp(velocity)
        # A command that repeats the newest one changes nothing, so the queue stays short.
        newest = self._pending[-1][1] if self._pending else self._target
        if wanted != newest:
            self._pending.append((now_s + self._limits.command_delay_s, wanted))

    def halt(self) -> None:
        """Set the velocity to zero at once, as in a collision; commands are kept."""
        self.velocity = (0.0, 0.0, 0.0)

    def advance(self, now_s: float, dt_s: float) -> Velocity:
        """Advance by `dt_s` to `now_s` and return the velocity."""
        while self._pending and self._pending[0][0] <= now_s + 1e-9:
            self._target = self._pending.popleft()[1]
        if self.velocity == self._target:
            return self.velocity
        linear, yaw = self._limits.accel_mps2 * dt_s, self._limits.accel_yaw_radps2 * dt_s
        # First-order lag: dv = (target - v) dt / lag, bounded by the acceleration.
        fraction = min(1.0, dt_s / self._limits.lag_s)
        (vx, vy, vyaw), (tx, ty, tyaw) = self.velocity, self._target
        self.velocity = (
            _approach(vx, tx, fraction, linear),
            _approach(vy, ty, fraction, linear),
            _approach(vyaw, tyaw, fraction, yaw),
        )
        return self.velocity


class Posture:
    """Height and tilt of the trunk over its feet, slewed towards a target."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._target = (STAND_HEIGHT_M, 0.0, 0.0, 0.0)
        self._now = self._target

    def set_target(self, height_m: float, roll_rad: float, pitch_rad: float, yaw_rad: float) -> None:
        """Set the target posture."""
        self._target = (height_m, roll_rad, pitch_rad, yaw_rad)

    def begin_at(self, height_m: float) -> None:
        """Continue from another height, level, as after a fall."""
        self._now = (height_m, 0.0, 0.0, 0.0)

    def advance(self, dt_s: float) -> bool:
        """Advance by `dt_s`; return whether anything moved."""
        if self._now == self._target:
            return False
        # Height, roll, pitch and yaw each change by at most their rate per step and end exactly on the
        # target.
        steps = (self._limits.height_rate_mps * dt_s, *(self._limits.tilt_rate_radps * dt_s,) * 3)
        moved = [
            now + min(max(goal - now, -step), step)
            for now, goal, step in zip(self._now, self._target, steps, strict=True)
        ]
        self._now = (moved[0], moved[1], moved[2], moved[3])
        return True

    @property
    def is_settled(self) -> bool:
        """Whether the target posture is reached."""
        return self._now == self._target

    @property
    def height_m(self) -> float:
        """Height of the base frame over the floor."""
        return self._now[0]

    @property
    def tilt_rad(self) -> tuple[float, float, float]:
        """Roll, pitch and yaw of the trunk over its feet."""
        return self._now[1:]


@dataclass(frozen=True, slots=True)
class Shape:
    """A body's shape for drawing: trunk over the floor, and joints [12]."""

    height_m: float
    roll_rad: float
    pitch_rad: float
    yaw_rad: float
    joints_rad: tuple[float, ...]


def _approach(now: float, target: float, fraction: float, step_max: float) -> float:
    step = (target - now) * fraction
    moved = now + min(max(step, -step_max), step_max)
    return target if abs(target - moved) < 1e-4 else moved


STRIDE_HZ = 2.4
"""Full strides per second of the trot; at high speed the stride lengthens instead."""
LIFT_M = 0.07
_SWING_SHARE = 0.5
_MIN_REACH_M = 0.10
_MAX_REACH_M = THIGH_M + CALF_M - 0.004

Vec3 = tuple[float, float, float]


def leg_angles(foot: Vec3, side: int) -> Vec3:
    """Return (abduction, thigh, calf) that put the foot's centre at `foot` in the hip's frame, metres.

    `side` is 1 for left legs and -1 for right ones. A foot out of reach is pulled to the nearest reach;
    the knee bends backwards, as the Go2's do.
    """
    x, y, z = foot
    d = side * ABDUCTION_M
    down = math.sqrt(max(y * y + z * z - d * d, 1e-6))
    abduction = math.atan2(y, -z) - math.atan2(d, down)
    reach = min(max(math.hypot(x, down), _MIN_REACH_M), _MAX_REACH_M)
    bend = math.acos((THIGH_M**2 + CALF_M**2 - reach**2) / (2 * THIGH_M * CALF_M))
    lead = math.acos((THIGH_M**2 + reach**2 - CALF_M**2) / (2 * THIGH_M * reach))
    return (abduction, math.atan2(-x, down) + lead, bend - math.pi)


def foot_position(angles: Vec3, side: int) -> Vec3:
    """Return the foot's centre in the hip's frame, metres: the inverse of `leg_angles`."""
    abduction, thigh, calf = angles
    x = -THIGH_M * math.sin(thigh) - CALF_M * math.sin(thigh + calf)
    down = THIGH_M * math.cos(thigh) + CALF_M * math.cos(thigh + calf)
    d = side * ABDUCTION_M
    cos, sin = math.cos(abduction), math.sin(abduction)
    return (x, d * cos + down * sin, d * sin - down * cos)


def joint_angles(height_m: float, tilt: Vec3, velocity: Vec3, phase: float) -> tuple[float, ...]:
    """Return the 12 joint angles in the vendor's order (FR, FL, RR, RL x hip, thigh, calf).

    `tilt` is roll, pitch, yaw of the trunk over its feet; `velocity` vx, vy (m/s), vyaw (rad/s) of the
    body; `phase` counts strides. Diagonal legs swing together.
    """
    out: list[float] = []
    for leg in LEGS:
        fore, side = _signs(leg)
        on_floor = _foot_on_floor(leg, height_m, velocity, phase)
        x, y, z = _into_trunk(on_floor, height_m, tilt)
        out += leg_angles((x - fore * HIP_X_M, y - side * HIP_Y_M, z), side)
    return tuple(out)


def trotting(height_m: float, tilt: Vec3, velocity: Vec3, phase: float) -> Shape:
    """Return a body's shape in that phase of its trot, for drawing only.

    The trunk bobs twice a stride and rolls once, by a few millimetres and less than a degree.
    """
    roll, pitch, yaw = tilt
    vigour = min(1.0, (math.hypot(*velocity[:2]) + 0.3 * abs(velocity[2])) / 0.5)
    angle = 2 * math.pi * phase
    height = height_m + 0.004 * vigour * math.sin(2 * angle)
    joints = joint_angles(height, tilt, velocity, phase)
    return Shape(height, roll + 0.010 * vigour * math.sin(angle), pitch, yaw, joints)


def _foot_on_floor(leg: str, height_m: float, velocity: Vec3, phase: float) -> Vec3:
    """Return a foot's position in the stance frame (origin on the floor under the base)."""
    fore, side = _signs(leg)
    home_x, home_y = fore * HIP_X_M, side * (HIP_Y_M + ABDUCTION_M)
    # A trunk near the floor leaves no room for straight legs: the feet slide forward.
    room = height_m - FOOT_RADIUS_M
    home_x += math.sqrt(max(0.0, 0.13**2 - room * room))
    vx, vy, vyaw = velocity
    foot_vx, foot_vy = vx - vyaw * home_y, vy + vyaw * home_x
    speed = math.hypot(foot_vx, foot_vy)
    t = (phase + (0.5 if leg in ("FR", "RL") else 0.0)) % 1.0
    reach = min(1.0, 0.24 * STRIDE_HZ / (speed + 1e-9)) / STRIDE_HZ * (1 - _SWING_SHARE)
    if t < _SWING_SHARE:
        s = t / _SWING_SHARE
        along, lift = 0.5 - 0.5 * math.cos(math.pi * s) - 0.5, math.sin(math.pi * s)
    else:
        along, lift = 0.5 - (t - _SWING_SHARE) / (1 - _SWING_SHARE), 0.0
    up = LIFT_M * min(1.0, speed / 0.25) * lift
    return (home_x + foot_vx * reach * along, home_y + foot_vy * reach * along, FOOT_RADIUS_M + up)


def _signs(leg: str) -> tuple[int, int]:
    """Return 1 or -1 for fore or aft, and for left or right."""
    return (1 if leg[0] == "F" else -1), (1 if leg[1] == "L" else -1)


def _into_trunk(point: Vec3, height_m: float, tilt: Vec3) -> Vec3:
    """Express a point of the stance frame in the trunk's frame (z-y-x order of yaw, pitch, roll)."""
    roll, pitch, yaw = tilt
    x, y, z = point[0], point[1], point[2] - height_m
    x, y = math.cos(yaw) * x + math.sin(yaw) * y, -math.sin(yaw) * x + math.cos(yaw) * y
    x, z = math.cos(pitch) * x - math.sin(pitch) * z, math.sin(pitch) * x + math.cos(pitch) * z
    y, z = math.cos(roll) * y + math.sin(roll) * z, -math.sin(roll) * y + math.cos(roll) * z
    return (x, y, z)
