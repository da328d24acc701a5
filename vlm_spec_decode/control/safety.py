"""The safety gate that every action passes, before and during its motion, and its geofence geometry.

Pure: an action, the robot's newest state and two ages in, nothing or a named refusal out. Independent of
models and drivers, so no model output can change it. The reasons are stable names that are published:
`limit_distance`, `limit_angle`, `limit_tilt`, `limit_duration`, `stale_frame`, `stale_state`, `obstacle`,
`geofence`, `battery`, `mode`, `too_many_actions`; the executor adds `estop`, `blocked`, `plan_changed` and
`odometry_jump`. A start on a draft has `start_action`, `start_obstacle` and `start_geofence` besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from vlm_spec_decode.actions.limits import START_FENCE_M, SafetyLimits
from vlm_spec_decode.actions.types import (
    MOTIONS,
    Action,
    Done,
    Forward,
    Hello,
    Look,
    Rise,
    Sit,
    StandDown,
    Stop,
    Strafe,
    Stretch,
    Turn,
    Wait,
)
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.robot import MAX_ABS_VALUE, RobotState
from vlm_spec_decode.core.types import FUTURE_TOLERANCE_S

Point = tuple[float, float]


def contains(polygon: tuple[Point, ...], point: Point) -> bool:
    """Return whether `point` lies inside `polygon` (even-odd rule; on the edge is either)."""
    x, y = point
    inside = False
    for (ax, ay), (bx, by) in pairwise((*polygon, polygon[0])):
        if (ay > y) != (by > y) and x < ax + (bx - ax) * (y - ay) / (by - ay):
            inside = not inside
    return inside


def crosses(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Return whether the segments ab and cd cross properly (touching at an end does not count)."""
    return _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0


def path_stays_inside(polygon: tuple[Point, ...], start: Point, end: Point) -> bool:
    """Return whether the straight way from `start` stays inside; from outside, whether it leads inside."""
    if not contains(polygon, end):
        # Already outside, a short step may still be on its way in: allowed if it nears the fence.
        return not contains(polygon, start) and distance(polygon, end) < distance(polygon, start)
    if not contains(polygon, start):
        return True
    return not any(crosses(start, end, c, d) for c, d in pairwise((*polygon, polygon[0])))


def distance(polygon: tuple[Point, ...], point: Point) -> float:
    """Return the distance from `point` to the polygon's edge."""
    return min(_to_segment(point, c, d) for c, d in pairwise((*polygon, polygon[0])))


def _side(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _to_segment(point: Point, a: Point, b: Point) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    px, py = point[0] - a[0], point[1] - a[1]
    length2 = dx * dx + dy * dy
    fraction = 0.0 if length2 == 0 else min(1.0, max(0.0, (px * dx + py * dy) / length2))
    ex, ey = px - fraction * dx, py - fraction * dy
    return float((ex * ex + ey * ey) ** 0.5)


_HARMLESS = (Stop, Done, Wait)
"""Always allowed, whatever the robot's state: they only end motion."""

_SAVES_POWER = (*_HARMLESS, StandDown, Sit)
_AROUND = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
_NEEDS_STANDING = (*MOTIONS, Look, Hello, Stretch)

OBSTACLE_MARGIN_M = 0.02
"""Below this much room over `obstacle_stop_m` a motion does not begin: it would stop again at once."""


@dataclass(frozen=True, slots=True)
class SafetyGate:
    """Decides on one action at a time. Stateless; may be used from any thread."""

    limits: SafetyLimits = field(default_factory=SafetyLimits)

    def check_plan(self, actions: tuple[Action, ...]) -> None:
        """Refuse a plan as a whole before any of it moves. Raises ActionRefused."""
        if len(actions) > self.limits.max_actions:
            raise ActionRefused(
                "too_many_actions", f"{len(actions)} actions, at most {self.limits.max_actions}"
            )
        for action in actions:
            self.check_limits(action)

    def check(self, action: Action, state: RobotState, frame_age_s: float, state_age_s: float = 0.0) -> None:
        """Check whether `action` may begin now. Raises ActionRefused if not.

        `frame_age_s` is the age that the frame had when the action decided on it arrived, `state_age_s` the
        time since the robot's own stamp last moved.
        """
        self.check_limits(action)
        if isinstance(action, _HARMLESS):
            return
        self._check_freshness(state, frame_age_s, state_age_s)
        if not isinstance(action, _SAVES_POWER):
            self._check_battery(state.battery_soc)
        self._check_mode(action, state)
        direction = motion_direction(action)
        if direction is not None and self.room_m(state, *direction) <= OBSTACLE_MARGIN_M:
            raise ActionRefused("obstacle", f"{self.clearance_m(state, *direction):.2f} m ahead of the body")
        self._check_geofence(action, state)

    def check_start(self, action: Action, state: RobotState) -> None:
        """Check what a motion on a draft needs beside `check`; for the gate of `SafetyLimits.start`.

        Only a walk ahead or a turn may begin. A walk must have room to its end, and end well inside the
        geofence; a turn on the spot sweeps around the body, so nothing may be near on any side. Raises
        ActionRefused.
        """
        if isinstance(action, Turn):
            room_m = min(self.room_m(state, vx, vy) for vx, vy in _AROUND)
        elif isinstance(action, Forward) and action.distance_m > 0:
            room_m = self.room_m(state, 1.0, 0.0) - action.distance_m
        else:
            raise ActionRefused("start_action", "only a walk ahead or a turn may begin on a draft")
        if room_m <= 0:
            raise ActionRefused("start_obstacle", f"{-room_m:.2f} m too near for a motion on a draft")
        fence = self.limits.geofence
        if fence and isinstance(action, Forward):
            ends = (state.x_m, state.y_m), _ahead(action, state, action.distance_m)
            if not path_stays_inside(fence, *ends) or distance(fence, ends[1]) < START_FENCE_M:
                raise ActionRefused("start_geofence", f"would end within {START_FENCE_M} m of the geofence")

    def check_limits(self, action: Action) -> None:
        """Refuse numbers out of limits, whatever the robot's state. Raises ActionRefused."""
        limits = self.limits
        if isinstance(action, (Forward, Strafe)):
            _within("limit_distance", action.distance_m, limits.max_distance_m, "m")
        elif isinstance(action, Turn):
            _within("limit_angle", action.angle_deg, limits.max_angle_deg, "deg")
        elif isinstance(action, Look):
            _within("limit_tilt", action.pitch_deg, limits.max_look_pitch_deg, "deg of pitch")
            _within("limit_tilt", action.yaw_deg, limits.max_look_yaw_deg, "deg of yaw")
        elif isinstance(action, Wait):
            _within("limit_duration", action.duration_s, limits.max_wait_s, "s")
            if action.duration_s < 0:
                raise ActionRefused("limit_duration", f"{action.duration_s} s is negative")

    def check_motion(self, action: Action, state: RobotState, state_age_s: float) -> None:
        """Check `action` again while it is carried out.

        Raises ActionRefused; the executor then stops at once.
        """
        if not isinstance(action, MOTIONS):
            return
        self._check_freshness(state, 0.0, state_age_s)
        self._check_mode(action, state)
        if self.limits.geofence and not isinstance(action, Turn):
            here = (state.x_m, state.y_m)
            ahead = _ahead(action, state, math.copysign(0.05, action.distance_m))
            if not path_stays_inside(self.limits.geofence, here, ahead):
                raise ActionRefused("geofence", f"at ({state.x_m:.2f}, {state.y_m:.2f}), heading out")

    def clearance_m(self, state: RobotState, vx_mps: float, vy_mps: float) -> float:
        """Return what is free in the direction of a body velocity; infinity when there is none.

        A range that is no number counts as nothing free.
        """
        front, left, rear, right = state.range_obstacle_m
        ranges = [math.inf]
        if vx_mps:
            ranges.append(front if vx_mps > 0 else rear)
        if vy_mps:
            ranges.append(left if vy_mps > 0 else right)
        return min(0.0 if math.isnan(value) else value for value in ranges)

    def room_m(self, state: RobotState, vx_mps: float, vy_mps: float) -> float:
        """Return how far the body may still go that way before `obstacle_stop_m` is reached."""
        return self.clearance_m(state, vx_mps, vy_mps) - self.limits.obstacle_stop_m

    def may_walk(self, state: RobotState) -> bool:
        """Whether the robot takes velocities in this state, and `limits.modes` allows them in it."""
        modes = self.limits.modes
        return state.can_walk and (not modes or state.code in modes)

    def _check_freshness(self, state: RobotState, frame_age_s: float, state_age_s: float) -> None:
        if not -FUTURE_TOLERANCE_S <= frame_age_s <= self.limits.max_frame_age_s:
            raise ActionRefused("stale_frame", f"decided on a frame {frame_age_s:.2f} s old")
        if not 0 <= state_age_s <= self.limits.max_state_age_s:
            raise ActionRefused("stale_state", f"the robot's state is {state_age_s:.2f} s old")
        pose = (state.x_m, state.y_m, state.yaw_rad, state.roll_rad, state.pitch_rad)
        # Written so that NaN fails too.
        if not all(abs(value) <= MAX_ABS_VALUE for value in pose):
            raise ActionRefused("stale_state", "the robot's pose is no number")
        if not all(abs(value) <= MAX_ABS_VALUE for value in (state.vx_mps, state.vy_mps, state.vyaw_radps)):
            raise ActionRefused("stale_state", "the robot's speed is no number")

    def _check_battery(self, soc: float) -> None:
        if not 0.0 <= soc <= 1.0:
            raise ActionRefused("battery", "charge unknown")
        if soc < self.limits.min_battery_soc:
            raise ActionRefused("battery", f"{100 * soc:.0f} % left")

    def _check_mode(self, action: Action, state: RobotState) -> None:
        if not state.is_known:
            raise ActionRefused("mode", f"state {state.code} is not known: name it in `state_codes`")
        if isinstance(action, Rise):
            if state.posture != "sit":
                raise ActionRefused("mode", f"rise needs a sitting robot, not state {state.label}")
            return
        if state.posture == "sit" and not isinstance(action, Sit):
            raise ActionRefused("mode", "sitting: only rise() leads out of it")
        if isinstance(action, _NEEDS_STANDING):
            self._check_can_walk(state)
        elif isinstance(action, Sit) and not (self.may_walk(state) or state.posture in ("lock", "sit")):
            raise ActionRefused("mode", f"sit needs a standing robot, not state {state.label}")

    def _check_can_walk(self, state: RobotState) -> None:
        if not self.may_walk(state):
            raise ActionRefused("mode", f"state {state.label} does not walk: stand_up() first")
        tilt_deg = math.degrees(max(abs(state.roll_rad), abs(state.pitch_rad)))
        if tilt_deg > self.limits.max_attitude_deg:
            raise ActionRefused("mode", f"the body is tilted by {tilt_deg:.0f} deg: fallen?")

    def _check_geofence(self, action: Action, state: RobotState) -> None:
        if not self.limits.geofence or not isinstance(action, (Forward, Strafe)):
            return
        x, y = _ahead(action, state, action.distance_m)
        if not path_stays_inside(self.limits.geofence, (state.x_m, state.y_m), (x, y)):
            raise ActionRefused("geofence", f"would lead to ({x:.2f}, {y:.2f})")


def motion_direction(action: Action) -> tuple[float, float] | None:
    """Return the sign of the body velocity (x, y) that `action` asks for; None if it goes nowhere."""
    if isinstance(action, Forward) and action.distance_m:
        return (math.copysign(1.0, action.distance_m), 0.0)
    if isinstance(action, Strafe) and action.distance_m:
        return (0.0, math.copysign(1.0, action.distance_m))
    return None


def _ahead(action: Forward | Strafe, state: RobotState, distance_m: float) -> tuple[float, float]:
    heading_rad = state.yaw_rad + (math.pi / 2 if isinstance(action, Strafe) else 0.0)
    return (
        state.x_m + distance_m * math.cos(heading_rad),
        state.y_m + distance_m * math.sin(heading_rad),
    )


def _within(reason: str, value: float, limit: float, unit: str) -> None:
    # Written so that NaN fails too.
    if not abs(value) <= limit:
        raise ActionRefused(reason, f"{value:g} {unit}, at most {limit:g}")
