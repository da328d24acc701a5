"""The numbers of the safety gate, from YAML or defaults; unknown and impossible settings are refused.

Knows no actions and no robot. Defaults are for indoors beside people who know that a robot is there: they
follow from d = v x (watchdog + delays) + v^2 / 2a, 0.3 m at 0.5 m/s, and 0.6 m if this process dies (the
robot holds the last Move for 1 s).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlm_spec_decode.core.config import check_ranges, from_mapping, setting
from vlm_spec_decode.core.errors import ConfigError

Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) in metres in the odometry frame; the last joins the first."""

MAX_SPEED_MPS = 1.0
"""Upper bound of every configuration: after a process dies the robot then walks at most 1 m."""


START_DISTANCE_M, START_ANGLE_DEG = 0.3, 90.0
"""Longest motion that may begin on a draft, before the cloud has committed it. No setting widens it."""

START_CLEARANCE_M = 0.2
"""What such a motion keeps free beyond `obstacle_stop_m`, also around the body when it turns."""

START_FENCE_M = 0.3
"""Distance from the geofence's edge that such a motion keeps."""

NOT_ZERO = (
    *("max_speed_mps", "max_turn_radps", "max_accel_mps2", "max_turn_accel_radps2", "watchdog_s"),
    *("unverified_speed_mps", "unverified_turn_radps"),
)
"""Limits that would forbid everything at 0."""


@dataclass(frozen=True, slots=True)
class SafetyLimits:
    """Limits of the commands to the robot.

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

    max_speed_mps: float = setting(
        0.5, "Speed of walking. Holds for a person who steers, too.", 0, MAX_SPEED_MPS
    )
    max_turn_radps: float = setting(0.8, "Speed of turning.", 0)
    max_accel_mps2: float = setting(1.0, "Change of the commanded speed.", 0)
    max_turn_accel_radps2: float = setting(2.0, "Change of the commanded turning.", 0)
    max_distance_m: float = setting(3.0, "Way of one action.", 0)
    max_angle_deg: float = setting(180.0, "Turn of one action.", 0)
    max_look_pitch_deg: float = setting(20.0, "Tilt of the body up or down of one look.", 0)
    max_look_yaw_deg: float = setting(25.0, "Turn of the body to a side of one look.", 0)
    max_wait_s: float = setting(10.0, "Length of one wait.", 0)
    max_actions: int = setting(16, "Actions in one plan.", 0)
    max_frame_age_s: float = setting(
        5.0, "Age of the frame that a plan was decided on, when the plan arrives.", 0
    )
    max_state_age_s: float = setting(0.3, "Age of the robot's newest state.", 0)
    max_attitude_deg: float = setting(30.0, "Roll or pitch of the body beyond which nothing is begun.", 0)
    obstacle_stop_m: float = setting(
        0.10, "Gap kept between the body's edge and what a range sensor sees.", 0
    )
    min_battery_soc: float = setting(
        0.2, "Charge of the battery, 0 to 1, below which nothing is begun.", 0, 1
    )
    watchdog_s: float = setting(0.25, "Silence of the commander that stops the robot.", 0)
    unverified_speed_mps: float = setting(
        0.2, "As max_speed_mps, for plans that no cloud has verified, if that is less.", 0
    )
    unverified_turn_radps: float = setting(0.5, "As max_turn_radps, for such plans.", 0)
    unverified_distance_m: float = setting(0.5, "As max_distance_m, for such plans.", 0)
    unverified_angle_deg: float = setting(90.0, "As max_angle_deg, for such plans.", 0)
    unverified_actions: int = setting(4, "As max_actions, for such plans.", 0)
    modes: tuple[int, ...] = setting(
        (),
        "Codes of the robot's state machine in which it may walk, of those in which it can; empty: all.",
    )
    geofence: Polygon = setting(
        (),
        "Corners, pairs [x, y] in metres of odometry, that the robot leaves only inwards; empty: none.",
    )

    def __post_init__(self) -> None:
        """Check all limits. Raises ConfigError naming the setting."""
        check_ranges(self)
        for name in NOT_ZERO:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: must be above 0")
        if not all(math.isfinite(number) for corner in self.geofence for number in corner):
            raise ConfigError("geofence: a corner is a pair of finite numbers")
        if 0 < len(self.geofence) < 3:
            raise ConfigError("geofence: a polygon has three corners or more")

    def unverified(self) -> SafetyLimits:
        """Return the limits of a plan that no cloud has verified; never wider than these."""
        return replace(
            self,
            max_speed_mps=min(self.max_speed_mps, self.unverified_speed_mps),
            max_turn_radps=min(self.max_turn_radps, self.unverified_turn_radps),
            max_distance_m=min(self.max_distance_m, self.unverified_distance_m),
            max_angle_deg=min(self.max_angle_deg, self.unverified_angle_deg),
            max_actions=min(self.max_actions, self.unverified_actions),
        )

    def start(self) -> SafetyLimits:
        """Return the limits of a start on a draft: those of an unverified plan, and narrower."""
        limits = self.unverified()
        return replace(
            limits,
            max_distance_m=min(limits.max_distance_m, START_DISTANCE_M),
            max_angle_deg=min(limits.max_angle_deg, START_ANGLE_DEG),
            max_actions=1,
            obstacle_stop_m=limits.obstacle_stop_m + START_CLEARANCE_M,
        )

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> SafetyLimits:
        """Return limits from the content of a YAML file; missing ones have their defaults.

        Raises ConfigError on an unknown key, a wrong type or a value out of range.
        """
        return from_mapping(cls, data, "limits")
