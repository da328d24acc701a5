"""Closed-loop motions: from odometry to the next body velocity, one step per control period.

Walking a distance and turning an angle share one profile, which works on one number, metres or radians: at
the velocity limit, then braking along v = sqrt(2 a r) for the rest r, computed ahead by the robot's delay;
then waiting for standstill and correcting the remaining error. A motion returns a velocity until it returns
None. Commands are slew-limited, because the robot does not smooth Move. Pure: no driver, no threads, no
limits of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.robot import RobotState


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionTuning:
    """How the loop is closed. The defaults hold for a robot that lags by 0.05 to 0.3 s.

    A motion ends where it stands still within the tolerance, after at most `corrections` new approaches.
    `creep_*` are the slowest speeds commanded: below them a walking robot may not move at all.
    """

    latency_s: float = 0.16
    brake_share: float = 0.6
    creep_mps: float = 0.07
    creep_radps: float = 0.15
    tolerance_m: float = 0.03
    tolerance_rad: float = math.radians(1.0)
    accepted_m: float = 0.05
    accepted_rad: float = math.radians(1.5)
    corrections: int = 2
    still_s: float = 0.15
    settle_timeout_s: float = 2.0
    heading_gain: float = 1.5
    heading_radps_max: float = 0.4
    stall_s: float = 1.5
    stall_m: float = 0.02
    stall_rad: float = math.radians(1.0)


@dataclass(slots=True)
class MotionProfile:
    """What walking a distance and turning an angle share: profile, braking, settling, correcting, stalling.

    Works on one number, what remains (signed: positive ahead), in metres or radians.
    """

    speed_max: float
    brake: float
    creep: float
    tolerance: float
    accepted: float
    stall: float
    tuning: MotionTuning
    flows: bool = False
    """Whether another motion follows at once: this one then ends where it arrives, without coming to rest."""
    _corrections: int = 0
    _settling_s: float | None = None
    _still_since_s: float | None = None
    _best: float = math.inf
    _best_s: float | None = None

    def speed(self, remaining: float, rate: float, is_still: bool, now_s: float) -> float | None:
        """Return the signed speed wanted, or None at the end. `rate` is the measured signed speed."""
        if self._settling_s is None and not self._arrives(remaining, rate):
            self._check_stall(abs(remaining), now_s)
            ahead = remaining - rate * self.tuning.latency_s
            size = min(self.speed_max, math.sqrt(2 * self.brake * abs(ahead)))
            return math.copysign(max(size, self.creep), remaining)
        if self.flows and (self._settling_s is None or abs(remaining) <= self.accepted):
            return None
        return self._settle(remaining, is_still, now_s)

    def _arrives(self, remaining: float, rate: float) -> bool:
        """Whether coasting alone brings the body to the goal, or past it."""
        coasting = remaining - rate * self.tuning.latency_s
        return abs(remaining) <= self.tolerance or coasting * remaining <= 0

    def _settle(self, remaining: float, is_still: bool, now_s: float) -> float | None:
        if self._settling_s is None:
            self._settling_s, self._still_since_s = now_s, None
        if not is_still:
            self._still_since_s = None
        elif self._still_since_s is None:
            self._still_since_s = now_s
        rested = self._still_since_s is not None and now_s - self._still_since_s >= self.tuning.still_s
        if not rested and now_s - self._settling_s < self.tuning.settle_timeout_s:
            return 0.0
        if abs(remaining) <= self.accepted or self._corrections >= self.tuning.corrections:
            return None
        self._corrections += 1
        self._settling_s, self._best_s = None, None
        return 0.0

    def _check_stall(self, remaining: float, now_s: float) -> None:
        if self._best_s is None or remaining <= self._best - self.stall:
            self._best, self._best_s = remaining, now_s
        elif now_s - self._best_s > self.tuning.stall_s:
            raise ActionRefused("blocked", f"no progress for {self.tuning.stall_s} s")


Velocity = tuple[float, float, float]
"""Forward and left in m/s, to the left in rad/s."""

STILL: Velocity = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class MotionInput:
    """The input of a motion: `room_m` is how far the body may go before an obstacle's stop distance."""

    state: RobotState
    now_s: float
    room_m: float = math.inf


class Motion(Protocol):
    """One motion that is being carried out."""

    def step(self, motion_input: MotionInput) -> Velocity | None:
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
        """Return the next command towards `wanted`, within the limits of speed and acceleration."""
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
        """Start again from standstill, as after a stop."""
        self.velocity, self._last_s = STILL, None


@dataclass(slots=True)
class StraightMotion:
    """Walk `distance_m` along the heading at the start, or sideways. The heading is kept.

    `heading_rad` is the heading to keep where the body still turns at the start, by an earlier motion.
    """

    distance_m: float
    sideways: bool
    limits: SafetyLimits
    tuning: MotionTuning
    start: RobotState
    heading_rad: float = math.nan
    _approach: MotionProfile = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the profile."""
        tuning = self.tuning
        if math.isnan(self.heading_rad):
            self.heading_rad = self.start.yaw_rad
        self._approach = MotionProfile(
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
        heading = self.heading_rad + (math.pi / 2 if self.sideways else 0.0)
        gone = (state.x_m - self.start.x_m) * math.cos(heading) + (state.y_m - self.start.y_m) * math.sin(
            heading
        )
        return self.distance_m - gone

    def flow(self, onward: bool) -> None:
        """Say whether another motion follows at once."""
        self._approach.flows = onward

    def step(self, motion_input: MotionInput) -> Velocity | None:
        """See `Motion`. Slows down before an obstacle as before the end."""
        state = motion_input.state
        rate = state.vy_mps if self.sideways else state.vx_mps
        speed = self._approach.speed(self.remaining(state), rate, state.is_still, motion_input.now_s)
        if speed is None:
            return None
        room = max(0.0, motion_input.room_m - abs(rate) * self.tuning.latency_s)
        cap = max(math.sqrt(2 * self._approach.brake * room), self._approach.creep)
        speed = math.copysign(min(abs(speed), cap), speed)
        off = math.remainder(self.heading_rad - state.yaw_rad, 2 * math.pi)
        bound = self.tuning.heading_radps_max
        turn = min(max(self.tuning.heading_gain * off, -bound), bound) if speed else 0.0
        return (0.0, speed, turn) if self.sideways else (speed, 0.0, turn)


@dataclass(slots=True)
class TurnMotion:
    """Turn on the spot by `angle_rad`. The yaw is unwrapped, so turns of half a circle and more work."""

    angle_rad: float
    limits: SafetyLimits
    tuning: MotionTuning
    start: RobotState
    _approach: MotionProfile = field(init=False)
    _yaw_rad: float = field(init=False)
    _turned_rad: float = 0.0

    def __post_init__(self) -> None:
        """Prepare the profile."""
        tuning = self.tuning
        self._yaw_rad = self.start.yaw_rad
        self._approach = MotionProfile(
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

    @property
    def heading_rad(self) -> float:
        """The heading that it turns to."""
        return self.start.yaw_rad + self.angle_rad

    def flow(self, onward: bool) -> None:
        """Say whether another motion follows at once."""
        self._approach.flows = onward

    def step(self, motion_input: MotionInput) -> Velocity | None:
        """See `Motion`; a turn on the spot needs no room."""
        state = motion_input.state
        remaining = self.remaining(state)
        speed = self._approach.speed(remaining, state.vyaw_radps, state.is_still, motion_input.now_s)
        return None if speed is None else (0.0, 0.0, speed)


@dataclass(frozen=True, slots=True)
class Pause:
    """Stand still until `until_s`."""

    until_s: float

    def step(self, motion_input: MotionInput) -> Velocity | None:
        """See `Motion`."""
        return STILL if motion_input.now_s < self.until_s else None


def _approach(value: float, target: float, step: float) -> float:
    return value + min(max(target - value, -step), step)
