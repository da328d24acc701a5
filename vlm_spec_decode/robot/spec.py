"""The facts about a kind of robot: its body, postures, sensors, and limits.

Everything above the driver that differs between robots is a field here, so no other module contains numbers
of one robot. Units are metres, seconds and radians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.errors import ConfigError

Sensor: TypeAlias = Literal["camera", "ranges", "battery"]
"""Sensors that a robot may have, besides its odometry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hull:
    """The standing body's box, centred on the base."""

    length_m: float
    width_m: float
    height_m: float

    @property
    def half_m(self) -> tuple[float, float]:
        """Half length and half width; free ranges are measured from these edges."""
        return (self.length_m / 2, self.width_m / 2)


LEG_NAMES = ("FR", "FL", "RR", "RL")
"""Order of the legs in `RobotState.joints_rad`, the vendor's: front or rear, right before left."""

LEG_JOINTS = ("hip", "thigh", "calf")
"""Order of a leg's joints: abduction about x, then two about y. At 0 the leg hangs straight down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Legs:
    """Four equal legs, in metres. A hip lies `hip_x_m` and `hip_y_m` from the base's centre.

    The thigh turns `abduction_m` further out; `standing_rad` are the three angles of a standing leg.
    """

    hip_x_m: float
    hip_y_m: float
    abduction_m: float
    thigh_m: float
    calf_m: float
    foot_radius_m: float
    standing_rad: tuple[float, float, float]

    @property
    def standing_height_m(self) -> float:
        """Height of the base over the floor while all legs stand: thigh, calf, and the foot's radius."""
        _, thigh_rad, calf_rad = self.standing_rad
        down_m = self.thigh_m * math.cos(thigh_rad) + self.calf_m * math.cos(thigh_rad + calf_rad)
        return down_m + self.foot_radius_m


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotSpec:
    """The facts of one kind of robot.

    `max_speed_mps` and `max_turn_radps` are what the body can do; the gate's limits may be narrower, never
    wider. `postures` are those of the action language (`core.robot.POSTURES`) that it can take, `gestures`
    those of them that end by themselves. `tilts`: whether the body can look up and down.
    `walking_codes` are the codes of its state machine's walking states; empty: it has none.
    `legs` are for displays; None: it has none.
    `settings` are the names of what `connect` takes besides interface and domain, with a description each.
    """

    name: str
    title: str
    hull: Hull
    max_speed_mps: float
    max_turn_radps: float
    postures: tuple[str, ...] = ()
    gestures: tuple[str, ...] = ()
    tilts: bool = False
    sensors: frozenset[Sensor] = frozenset()
    walking_codes: frozenset[int] = frozenset()
    legs: Legs | None = None
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Raise ConfigError for a gesture that is no posture, or a limit that is not positive."""
        if not set(self.gestures) <= set(self.postures):
            raise ConfigError(f"robot {self.name!r}: every gesture is one of its postures")
        if not (self.max_speed_mps > 0 and self.max_turn_radps > 0):
            raise ConfigError(f"robot {self.name!r}: its speeds are above 0")

    def narrowed(self, limits: SafetyLimits) -> SafetyLimits:
        """Return the gate's limits on this robot: `limits`, with speeds at most the body's.

        Raises ConfigError for `modes` that are no walking states of this robot.
        """
        if wrong := sorted(set(limits.modes) - self.walking_codes):
            known = ", ".join(map(str, sorted(self.walking_codes))) or "it has no such codes"
            raise ConfigError(f"modes: {wrong} do not walk on {self.name!r}: {known}")
        return replace(
            limits,
            max_speed_mps=min(limits.max_speed_mps, self.max_speed_mps),
            max_turn_radps=min(limits.max_turn_radps, self.max_turn_radps),
        )
