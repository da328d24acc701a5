"""How the base answers commands: delay, lag, slew and limits.

Pure arithmetic; knows nothing of rooms or MuJoCo. No public step response of the Go2's Move exists, so
delay, lag and acceleration are parameters with plausible defaults.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

STAND_HEIGHT_M = 0.32
"""Height of the base frame when standing."""

Velocity = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Imu:
    """What the body's inertial sensor measures, in the trunk's frame."""

    turning_radps: tuple[float, float, float]
    acceleration_mps2: tuple[float, float, float]
    """Of gravity, too: a level body at rest measures 9.81 upwards."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What the base can do; commands beyond the velocities are clamped."""

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
    """Velocity that follows commands after a delay, by a first-order lag with bounded acceleration."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._pending: deque[tuple[float, Velocity]] = deque()
        self._target: Velocity = (0.0, 0.0, 0.0)
        self.velocity: Velocity = (0.0, 0.0, 0.0)

    def command(self, now_s: float, velocity: Velocity) -> None:
        """Set the target that takes effect one command delay from now."""
        wanted = self._limits.clamp(velocity)
        newest = self._pending[-1][1] if self._pending else self._target
        if wanted != newest:
            self._pending.append((now_s + self._limits.command_delay_s, wanted))

    def halt(self) -> None:
        """Lose all speed at once, as on running into something; commands stay."""
        self.velocity = (0.0, 0.0, 0.0)

    def advance(self, now_s: float, dt_s: float) -> Velocity:
        """Advance by `dt_s` to `now_s` and return the velocity."""
        while self._pending and self._pending[0][0] <= now_s + 1e-9:
            self._target = self._pending.popleft()[1]
        if self.velocity == self._target:
            return self.velocity
        linear, yaw = self._limits.accel_mps2 * dt_s, self._limits.accel_yaw_radps2 * dt_s
        share = min(1.0, dt_s / self._limits.lag_s)
        (vx, vy, vyaw), (tx, ty, tyaw) = self.velocity, self._target
        self.velocity = (
            _approach(vx, tx, share, linear),
            _approach(vy, ty, share, linear),
            _approach(vyaw, tyaw, share, yaw),
        )
        return self.velocity


class Posture:
    """Height and tilt of the trunk over its feet, slewed towards what was asked for."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._target = (STAND_HEIGHT_M, 0.0, 0.0, 0.0)
        self._now = self._target

    def ask(self, height_m: float, roll_rad: float, pitch_rad: float, yaw_rad: float) -> None:
        """Set the posture to move to."""
        self._target = (height_m, roll_rad, pitch_rad, yaw_rad)

    def begin_at(self, height_m: float) -> None:
        """Go on from another height, level, as after a fall."""
        self._now = (height_m, 0.0, 0.0, 0.0)

    def advance(self, dt_s: float) -> bool:
        """Advance by `dt_s`; return whether anything moved."""
        if self._now == self._target:
            return False
        steps = (self._limits.height_rate_mps * dt_s, *(self._limits.tilt_rate_radps * dt_s,) * 3)
        moved = [
            now + min(max(goal - now, -step), step)
            for now, goal, step in zip(self._now, self._target, steps, strict=True)
        ]
        self._now = (moved[0], moved[1], moved[2], moved[3])
        return True

    @property
    def is_settled(self) -> bool:
        """Whether the posture asked for is reached."""
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
    """What a picture needs to know of a body beside its pose: trunk over the floor, and its joints [12]."""

    height_m: float
    roll_rad: float
    pitch_rad: float
    yaw_rad: float
    joints_rad: tuple[float, ...]


def _approach(now: float, target: float, share: float, step_max: float) -> float:
    step = (target - now) * share
    moved = now + min(max(step, -step_max), step_max)
    return target if abs(target - moved) < 1e-4 else moved
