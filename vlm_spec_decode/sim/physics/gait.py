"""Leg kinematics and a visible trot: where the feet are, and which joint angles put them there.

Pure functions of posture, velocity and phase; nothing feeds back into how the base moves.
"""

from __future__ import annotations

import math

from vlm_spec_decode.sim.physics.base import Shape
from vlm_spec_decode.sim.physics.room_model import (
    ABDUCTION_M,
    CALF_M,
    FOOT_RADIUS_M,
    HIP_X_M,
    HIP_Y_M,
    LEGS,
    THIGH_M,
)

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
    """Return how a body holds itself in that phase of its trot, for the eye alone.

    The trunk bobs twice a stride and rolls once, by a few millimetres and less than a degree.
    """
    roll, pitch, yaw = tilt
    vigour = min(1.0, (math.hypot(*velocity[:2]) + 0.3 * abs(velocity[2])) / 0.5)
    angle = 2 * math.pi * phase
    height = height_m + 0.004 * vigour * math.sin(2 * angle)
    joints = joint_angles(height, tilt, velocity, phase)
    return Shape(height, roll + 0.010 * vigour * math.sin(angle), pitch, yaw, joints)


def _foot_on_floor(leg: str, height_m: float, velocity: Vec3, phase: float) -> Vec3:
    """Return a foot's place in the stance frame (origin on the floor under the base)."""
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
