"""The fake robot's body: pose and velocity by arithmetic, discs that stop it, ranges to them.

Pure: time comes in with every call. Knows no states, postures or faults.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

Velocity = tuple[float, float, float]
"""Forward and left in m/s, to the left in rad/s."""

HULL_HALF_M = (0.35, 0.16)
"""Half length and half width of the body; ranges are measured from its edges."""

STEP_S = 0.005
STILL: Velocity = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class FakeBody:
    """How the body answers a velocity command."""

    delay_s: float = 0.03
    lag_s: float = 0.12
    accel_mps2: float = 4.0
    turn_accel_radps2: float = 14.0
    state_period_s: float = 0.02


@dataclass(frozen=True, slots=True)
class Disc:
    """An upright cylinder in the odometry frame."""

    x_m: float
    y_m: float
    radius_m: float = 0.2


@dataclass(slots=True)
class FakeMotion:
    """First-order lag after a command delay, with bounded acceleration; advanced to any later time."""

    body: FakeBody
    discs: tuple[Disc, ...]
    done_s: float
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    velocity: Velocity = STILL
    _target: Velocity = STILL
    _hold_until_s: float = math.inf
    _pending: deque[tuple[float, Velocity, float]] = field(default_factory=deque)

    def command(self, now_s: float, velocity: Velocity, hold_s: float) -> None:
        """Take a velocity that begins after the delay and ends by itself `hold_s` from now."""
        self._pending.append((now_s + self.body.delay_s, velocity, now_s + hold_s))

    def advance(self, now_s: float) -> None:
        """Let the time until `now_s` pass."""
        while now_s - self.done_s > 1e-9:
            dt_s = min(STEP_S, now_s - self.done_s)
            self.done_s += dt_s
            self._step(self.done_s, dt_s)

    def range_m(self, side: int) -> float:
        """Return what is free in front, left, behind or right (0 to 3), over the width of the body."""
        x, y, yaw = self.pose
        heading = yaw + side * math.pi / 2
        reach, half = HULL_HALF_M[side % 2], HULL_HALF_M[1 - side % 2]
        nearest = math.inf
        for disc in self.discs:
            dx, dy = disc.x_m - x, disc.y_m - y
            ahead = dx * math.cos(heading) + dy * math.sin(heading)
            off = max(0.0, abs(-dx * math.sin(heading) + dy * math.cos(heading)) - half)
            if ahead > 0 and off < disc.radius_m:
                gap = ahead - math.sqrt(disc.radius_m**2 - off**2) - reach
                nearest = min(nearest, max(0.0, gap))
        return nearest

    def _step(self, now_s: float, dt_s: float) -> None:
        while self._pending and self._pending[0][0] <= now_s + 1e-9:
            _, self._target, self._hold_until_s = self._pending.popleft()
        if now_s > self._hold_until_s:
            self._target = STILL
        share = min(1.0, dt_s / self.body.lag_s)
        limits = (self.body.accel_mps2, self.body.accel_mps2, self.body.turn_accel_radps2)
        moved = [
            v + min(max((target - v) * share, -limit * dt_s), limit * dt_s)
            for v, target, limit in zip(self.velocity, self._target, limits, strict=True)
        ]
        vx, vy, vyaw = (0.0 if abs(v) < 1e-4 else v for v in moved)
        if self._is_blocked(vx, vy):
            vx = vy = 0.0
        x, y, yaw = self.pose
        self.velocity = (vx, vy, vyaw)
        self.pose = (
            x + (vx * math.cos(yaw) - vy * math.sin(yaw)) * dt_s,
            y + (vx * math.sin(yaw) + vy * math.cos(yaw)) * dt_s,
            yaw + vyaw * dt_s,
        )

    def _is_blocked(self, vx_mps: float, vy_mps: float) -> bool:
        if not self.discs:
            return False
        sides = [0 if vx_mps > 0 else 2] * (vx_mps != 0) + [1 if vy_mps > 0 else 3] * (vy_mps != 0)
        return any(self.range_m(side) <= 0.001 for side in sides)
