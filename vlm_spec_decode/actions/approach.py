"""Reaching a value and stopping there: the profile that walking a way and turning an angle share.

Trapezoidal: at the limit, then braking along sqrt(2 a r), with a look ahead by the robot's own delay, so
that it brakes in time; then standstill is waited for, and what is missing corrected. Works on one number,
metres or radians; knows no robot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_spec_decode.core.errors import ActionRefused


@dataclass(frozen=True, slots=True)
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
class Approach:
    """What walking a way and turning an angle share: profile, braking, settling, correcting, stalling.

    Works on one number, what remains (signed: positive ahead), in metres or radians.
    """

    speed_max: float
    brake: float
    creep: float
    tolerance: float
    accepted: float
    stall: float
    tuning: MotionTuning
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
        return self._settle(remaining, is_still, now_s)

    def _arrives(self, remaining: float, rate: float) -> bool:
        """Whether what the body still coasts brings it there, or beyond."""
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
