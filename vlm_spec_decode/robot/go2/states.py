"""What a state code means for a body: a table that a user can add to, as each firmware has codes of its own.

Everything else works with the codes of the vendor's published table; a code that another firmware uses for
the same thing is translated here. What is in no table is not guessed at: a robot in an unknown state may
walk, and a call that gets a lying robot up would make a walking one fall. Pure; knows neither SDK nor ROS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.codes import state_name

POSTURE_CODES: Mapping[str, int] = MappingProxyType(
    {
        "walk": 1015,
        "stand": 1013,
        "lock": 1002,
        "lie": 1004,
        "damp": 1001,
        "sit": 1007,
        "act": 1006,
        "pose": 1091,
        "busy": 1008,
    }
)
"""Words of `state_codes` and the published code each stands for; `busy` is an act that ends by itself."""

PUBLISHED = frozenset({100, 1001, 1002, 1004, 1006, 1007, 1013, 1015, 1016, 1017, 1091, 2006})
"""Codes that are what they say."""

BUSY = frozenset({1008, 1009, 2007, 2008, 2009, 2011, 2012, 2013, 2014, 2016, 2017, 2019})
"""Published acts and gaits in which nothing is sent to the robot: it must leave them by its remote or app."""

DEFAULT_CODES: Mapping[int, str] = MappingProxyType({2010: "walk"})
"""Codes of newer firmware: 2010, the classic gait, in which a Move has its effect."""

LOW_M, HIGH_M = 0.05, 0.14
"""A body between these heights lies (the lowest stance is 0.15 m); below is a field that nobody fills in."""
MOVING_MPS = 0.1
LOADED = 100
"""Sum of the feet's forces above which the legs carry the body."""

LYING_MODES = frozenset({0, 5, 7})
"""The older `mode` byte: idle (or not filled in), lying, damping."""

_ENTRY = re.compile(r"(\d{1,9})\s*[ :=]\s*(\w+)")


@dataclass(frozen=True, slots=True)
class StateTable:
    """Which published code a reported one stands for. `extra` comes from the user, and goes first."""

    extra: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> StateTable:
        """Read `2077 walk, 2078 lock`. Raises ConfigError naming what is known."""
        extra: dict[int, str] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = _ENTRY.fullmatch(entry)
            if match is None or match[2] not in POSTURE_CODES:
                known = ", ".join(POSTURE_CODES)
                raise ConfigError(
                    f"state_codes: {entry[:40]!r}; expected `CODE WORD, …` with a WORD of: {known}"
                )
            extra[int(match[1])] = match[2]
        return cls(extra)

    def canonical(self, reported: int) -> int | None:
        """Return the published code that `reported` stands for; None if nobody knows it."""
        word = self.extra.get(reported) or DEFAULT_CODES.get(reported)
        if word is not None:
            return POSTURE_CODES[word]
        return reported if reported in PUBLISHED | BUSY else None


def is_down(message: Any) -> bool:
    """Whether a SportModeState surely shows a body that lies and does not move; False in any doubt.

    Height, speed, gait and the older mode must agree. The feet's forces are zero since firmware 1.1.7, so
    they can only speak against it.
    """
    height_m, velocity = float(message.body_height), [float(value) for value in message.velocity]
    speed = math.hypot(velocity[0], velocity[1]) + abs(float(message.yaw_speed))
    carries = sum(abs(int(force)) for force in message.foot_force) > LOADED
    return (
        LOW_M <= height_m < HIGH_M
        and speed < MOVING_MPS
        and int(message.gait_type) == 0
        and int(message.mode) in LYING_MODES
        and not carries
    )


def unknown(state: RobotState) -> str:
    """Return what to tell of a robot to which nothing is sent, as its state leaves open what it would do."""
    reported = state.code if state.reported_code is None else state.reported_code
    if state.is_known:
        why = f"says state {state_name(reported)} and moves at {state.speed_mps:.2f} m/s"
    else:
        why = f"is in state {reported}, which this package does not know, and may stand or walk"
    return (
        f"the robot {why}: nothing was sent to it. Bring it to balance stand with its remote, or say "
        f"what the code means, state_codes:='{reported} walk' (one of {', '.join(POSTURE_CODES)})"
    )
