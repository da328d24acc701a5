"""The numbers of the safety gate, from YAML or defaults; unknown and impossible settings are refused.

Knows no actions and no robot. Defaults are for indoors beside people who know that a robot is there: they
follow from d = v x (watchdog + delays) + v^2 / 2a, 0.3 m at 0.5 m/s, and 0.6 m if this process dies (the
robot holds the last Move for 1 s).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vlm_spec_decode.core.errors import ConfigError

Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) in metres in the odometry frame; the last joins the first."""

MAX_SPEED_MPS = 1.0
"""No configuration goes beyond it: what a dead process would let the robot walk is 1 m then."""

MEANINGS: Mapping[str, str] = {
    "max_speed_mps": f"Speed of walking, m/s; at most {MAX_SPEED_MPS:g}. Holds for a person who steers, too.",
    "max_turn_radps": "Speed of turning, rad/s.",
    "max_accel_mps2": "Change of the commanded speed, m/s^2.",
    "max_turn_accel_radps2": "Change of the commanded turning, rad/s^2.",
    "max_distance_m": "Way of one action, m.",
    "max_angle_deg": "Turn of one action, degrees.",
    "max_look_pitch_deg": "Tilt of the body up or down of one look, degrees.",
    "max_look_yaw_deg": "Turn of the body to a side of one look, degrees.",
    "max_wait_s": "Length of one wait, s.",
    "max_actions": "Actions in one plan.",
    "max_frame_age_s": "Age of the frame that a plan was decided on, when the plan arrives, s.",
    "max_state_age_s": "Age of the robot's newest state, s.",
    "max_attitude_deg": "Roll or pitch of the body beyond which nothing is begun, degrees.",
    "obstacle_stop_m": "Gap kept between the body's edge and what a range sensor sees, m.",
    "min_battery_soc": "Charge of the battery, 0 to 1, below which nothing is begun.",
    "watchdog_s": "Silence of the commander that stops the robot, s.",
    "unverified_speed_mps": "As max_speed_mps, for plans that no cloud has verified, if that is less.",
    "unverified_turn_radps": "As max_turn_radps, for such plans.",
    "unverified_distance_m": "As max_distance_m, for such plans.",
    "unverified_angle_deg": "As max_angle_deg, for such plans.",
    "unverified_actions": "As max_actions, for such plans.",
    "modes": "Codes of the robot's state machine in which it may walk, of those in which it can; empty: all.",
    "geofence": "Corners [x, y] in the odometry frame, m, that the robot leaves only inwards; empty: none.",
}
"""What each limit bounds, with its unit, for docs/parameters.md."""


@dataclass(frozen=True, slots=True)
class SafetyLimits:
    """What may be asked of the robot, and when.

    `obstacle_stop_m` is the gap that is kept between the body's own edge and what the range sensor sees in
    the direction of motion. The range is measured from the nose (0.35 m before the base's centre), so
    the default of 0.10 m still lets the base's centre come within 0.45 m of a surface. `max_frame_age_s`
    counts from the frame's capture to the arrival of the action decided on it; how long the actions before
    it took does not count, they are the same plan. At the latest `watchdog_s` after the last heartbeat the
    stop is commanded. `modes` are the codes of the robot's
    state machine in which it may walk, of those in which it can; empty allows all. `geofence`,
    if not empty, is left only inwards; odometry drifts, so leave it a margin. `unverified_*` replace their
    namesakes, where those are wider, for plans that no cloud has verified.
    """

    max_speed_mps: float = 0.5
    max_turn_radps: float = 0.8
    max_accel_mps2: float = 1.0
    max_turn_accel_radps2: float = 2.0
    max_distance_m: float = 3.0
    max_angle_deg: float = 180.0
    max_look_pitch_deg: float = 20.0
    max_look_yaw_deg: float = 25.0
    max_wait_s: float = 10.0
    max_actions: int = 16
    max_frame_age_s: float = 5.0
    max_state_age_s: float = 0.3
    max_attitude_deg: float = 30.0
    obstacle_stop_m: float = 0.10
    min_battery_soc: float = 0.2
    watchdog_s: float = 0.25
    unverified_speed_mps: float = 0.2
    unverified_turn_radps: float = 0.5
    unverified_distance_m: float = 0.5
    unverified_angle_deg: float = 90.0
    unverified_actions: int = 4
    modes: tuple[int, ...] = ()
    geofence: Polygon = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises ConfigError naming the setting."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{field.name}: {value} is not a number from 0 upwards")
        if not 0 < self.max_speed_mps <= MAX_SPEED_MPS:
            raise ConfigError(f"max_speed_mps: {self.max_speed_mps} is not within 0 to {MAX_SPEED_MPS}")
        for name in ("max_turn_radps", "max_accel_mps2", "max_turn_accel_radps2", "watchdog_s",
                     "unverified_speed_mps", "unverified_turn_radps"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: must be above 0")
        if 0 < len(self.geofence) < 3:
            raise ConfigError("geofence: a polygon has three corners or more")

    def unverified(self) -> SafetyLimits:
        """Return what holds for a plan that no cloud has verified: never wider than these limits."""
        return replace(
            self,
            max_speed_mps=min(self.max_speed_mps, self.unverified_speed_mps),
            max_turn_radps=min(self.max_turn_radps, self.unverified_turn_radps),
            max_distance_m=min(self.max_distance_m, self.unverified_distance_m),
            max_angle_deg=min(self.max_angle_deg, self.unverified_angle_deg),
            max_actions=min(self.max_actions, self.unverified_actions),
        )

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> SafetyLimits:
        """Return limits from what a YAML file says; what it does not say stays the default.

        Raises ConfigError on an unknown key, a wrong type or a value out of range.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        unknown = sorted(str(key) for key in data if key not in kinds)
        if unknown:
            raise ConfigError(f"unknown safety setting(s): {', '.join(unknown)}; known: {', '.join(kinds)}")
        return cls(**{key: _convert(key, str(kinds[key]), value) for key, value in data.items()})


def _convert(key: str, kind: str, value: Any) -> Any:
    if key == "geofence":
        return tuple(_corner(corner) for corner in _list(key, value))
    if key == "modes":
        return tuple(_number(key, item, int) for item in _list(key, value))
    return _number(key, value, int if kind == "int" else float)


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}: expected a list")
    return list(value)


def _number(key: str, value: Any, kind: type[int] | type[float]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise ConfigError(f"{key}: expected {'a whole number' if kind is int else 'a number'}")
    return kind(value)


def _corner(value: Any) -> tuple[float, float]:
    pair = [_number("geofence", item, float) for item in _list("geofence", value)]
    if len(pair) != 2 or not all(map(math.isfinite, pair)):
        raise ConfigError("geofence: a corner is a pair of finite numbers")
    return (pair[0], pair[1])
