"""Closed-loop motions: from odometry to the next body velocity, one step per control period.

Each motion is a small object that is asked for a velocity until it answers None. What is commanded is
slew-limited, because the robot does not smooth Move. Pure: no driver, no threads, no limits of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from vlm_spec_decode.actions.approach import Approach, MotionTuning
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.robot import RobotState

Velocity = tuple[float, float, float]
"""Forward and left in m/s, to the left in rad/s."""

STILL: Velocity = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a motion looks at: `room_m` is how far the body may go before an obstacle's stop distance."""

    state: RobotState
    now_s: float
    room_m: float = math.inf


class Motion(Protocol):
    """One action under way."""

    def step(self, moment: Moment) -> Velocity | None:
        """Return the velocity wanted now, or None once the motion has ended.

        Raises ActionRefused with `blocked` when nothing moves although it should.
        """
        ...


@dataclass(slots=True)
class Slew:
    """Limits how fast a commanded velocity changes."""

    limits: SafetyLimits
    velocity: Velocity = STILL
    _last_s: float | None = None

    def towards(self, wanted: Velocity, now_s: float) -> Velocity:
        """Return the next command on the way to `wanted`, within speed and acceleration limits."""
        dt_s = 0.0 if self._last_s is None else min(max(now_s - self._last_s, 0.0), 0.1)
        self._last_s = now_s
        limits = self.limits
        speed = math.hypot(wanted[0], wanted[1])
        scale = min(1.0, limits.max_speed_mps / speed) if speed > 0 else 1.0
        turn = min(max(wanted[2], -limits.max_turn_radps), limits.max_turn_radps)
        step = limits.max_accel_mps2 * dt_s
        vx, vy, vyaw = self.velocity
        self.velocity = (
            _approach(vx, wanted[0] * scale, step),
            _approach(vy, wanted[1] * scale, step),
            _approach(vyaw, turn, limits.max_turn_accel_radps2 * dt_s),
        )
        return self.velocity

    def reset(self) -> None:
        """Begin again from standstill, as after a stop."""
        self.velocity, self._last_s = STILL, None


@dataclass(slots=True)
class Line:
    """Walk `distance_m` along the heading at the start, or sideways; heading is held."""

    distance_m: float
    sideways: bool
    limits: SafetyLimits
    tuning: MotionTuning
    start: RobotState
    _approach: Approach = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the profile."""
        tuning = self.tuning
        self._approach = Approach(
            self.limits.max_speed_mps,
            tuning.brake_share * self.limits.max_accel_mps2,
            min(tuning.creep_mps, self.limits.max_speed_mps),
            tuning.tolerance_m,
            tuning.accepted_m,
            tuning.stall_m,
            tuning,
        )

    def remaining(self, state: RobotState) -> float:
        """Return the way left along the line in metres, signed as `distance_m` is."""
        heading = self.start.yaw_rad + (math.pi / 2 if self.sideways else 0.0)
        gone = (state.x_m - self.start.x_m) * math.cos(heading) + (state.y_m - self.start.y_m) * math.sin(
            heading
        )
        return self.distance_m - gone

    def step(self, moment: Moment) -> Velocity | None:
        """See `Motion`. Slows down before an obstacle as before the end."""
        state = moment.state
        rate = state.vy_mps if self.sideways else state.vx_mps
        speed = self._approach.speed(self.remaining(state), rate, state.is_still, moment.now_s)
        if speed is None:
            return None
        room = max(0.0, moment.room_m - abs(rate) * self.tuning.latency_s)
        cap = max(math.sqrt(2 * self._approach.brake * room), self._approach.creep)
        speed = math.copysign(min(abs(speed), cap), speed)
        off = math.remainder(self.start.yaw_rad - state.yaw_rad, 2 * math.pi)
        bound = self.tuning.heading_radps_max
        turn = min(max(self.tuning.heading_gain * off, -bound), bound) if speed else 0.0
        return (0.0, speed, turn) if self.sideways else (speed, 0.0, turn)


@dataclass(slots=True)
class Rotation:
    """Turn on the spot by `angle_rad`; the yaw is unwrapped on the way, so half a turn is no trouble."""

    angle_rad: float
    limits: SafetyLimits
    tuning: MotionTuning
    start: RobotState
    _approach: Approach = field(init=False)
    _yaw_rad: float = field(init=False)
    _turned_rad: float = 0.0

    def __post_init__(self) -> None:
        """Prepare the profile."""
        tuning = self.tuning
        self._yaw_rad = self.start.yaw_rad
        self._approach = Approach(
            self.limits.max_turn_radps,
            tuning.brake_share * self.limits.max_turn_accel_radps2,
            min(tuning.creep_radps, self.limits.max_turn_radps),
            tuning.tolerance_rad,
            tuning.accepted_rad,
            tuning.stall_rad,
            tuning,
        )

    def remaining(self, state: RobotState) -> float:
        """Return the angle left in radians, signed as `angle_rad` is."""
        self._turned_rad += math.remainder(state.yaw_rad - self._yaw_rad, 2 * math.pi)
        self._yaw_rad = state.yaw_rad
        return self.angle_rad - self._turned_rad

    def step(self, moment: Moment) -> Velocity | None:
        """See `Motion`; a turn on the spot needs no room."""
        state = moment.state
        remaining = self.remaining(state)
        speed = self._approach.speed(remaining, state.vyaw_radps, state.is_still, moment.now_s)
        return None if speed is None else (0.0, 0.0, speed)


@dataclass(frozen=True, slots=True)
class Pause:
    """Stand still until `until_s`."""

    until_s: float

    def step(self, moment: Moment) -> Velocity | None:
        """See `Motion`."""
        return STILL if moment.now_s < self.until_s else None


def _approach(value: float, target: float, step: float) -> float:
    return value + min(max(target - value, -step), step)
