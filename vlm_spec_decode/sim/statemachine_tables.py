"""What the simulated Go2's state machine is made of: codes, postures, limits, transitions.

Codes, limits and hazards are the vendor's (sport services V2.0). Durations, body heights and what is
refused in which state are not published; the values here are choices of this simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Code(IntEnum):
    """State codes as `SportModeState_.error_code` carries them on firmware 1.1.6 and later."""

    AGILE = 100
    DAMPING = 1001
    STANDING_LOCK = 1002
    CROUCH = 1004
    ACTING = 1006
    SIT = 1007
    BALANCE_STAND = 1013
    WALK = 1015
    RUN = 1016
    ENDURANCE = 1017
    POSE = 1091
    CLASSIC = 2010


class Ask(Enum):
    """Requests that lead from one state to another."""

    DAMP = "damp"
    STAND_UP = "stand_up"
    BALANCE_STAND = "balance_stand"
    STAND_DOWN = "stand_down"
    RECOVERY_STAND = "recovery_stand"
    SIT = "sit"
    RISE_SIT = "rise_sit"
    HELLO = "hello"
    STRETCH = "stretch"
    CONTENT = "content"
    DANCE1 = "dance1"
    DANCE2 = "dance2"
    SCRAPE = "scrape"
    HEART = "heart"
    POSE_ON = "pose_on"
    POSE_OFF = "pose_off"


WALKING = frozenset({Code.AGILE, Code.BALANCE_STAND, Code.WALK, Code.RUN, Code.ENDURANCE, Code.CLASSIC})
"""States in which Move has an effect."""

STANDING = WALKING | {Code.STANDING_LOCK}
LYING = frozenset({Code.DAMPING, Code.CROUCH})


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the state machine: from any of `sources` to `target` in `duration_s`.

    While it lasts the code is `during`, or still the old state's if that is None.
    """

    sources: frozenset[Code]
    target: Code
    duration_s: float
    during: Code | None = None


def _act(duration_s: float) -> Rule:
    return Rule(WALKING, Code.BALANCE_STAND, duration_s, Code.ACTING)


RULES: dict[Ask, Rule] = {
    Ask.DAMP: Rule(frozenset(Code), Code.DAMPING, 0.6, Code.DAMPING),
    Ask.STAND_UP: Rule(LYING | STANDING, Code.STANDING_LOCK, 1.2),
    Ask.BALANCE_STAND: Rule(STANDING, Code.BALANCE_STAND, 0.3),
    Ask.STAND_DOWN: Rule(LYING | STANDING, Code.CROUCH, 1.2),
    Ask.RECOVERY_STAND: Rule(LYING | STANDING, Code.BALANCE_STAND, 1.5),
    Ask.SIT: Rule(STANDING | {Code.SIT}, Code.SIT, 1.0),
    Ask.RISE_SIT: Rule(frozenset({Code.SIT}), Code.BALANCE_STAND, 1.0),
    Ask.HELLO: _act(3.0),
    Ask.STRETCH: _act(4.0),
    Ask.CONTENT: _act(3.0),
    Ask.DANCE1: _act(8.0),
    Ask.DANCE2: _act(8.0),
    Ask.SCRAPE: _act(4.0),
    Ask.HEART: _act(4.0),
    Ask.POSE_ON: Rule(WALKING, Code.POSE, 0.5),
    Ask.POSE_OFF: Rule(frozenset({Code.POSE}), Code.BALANCE_STAND, 0.5),
}


@dataclass(frozen=True, slots=True)
class Attitude:
    """Trunk height above the floor and the body's angles (roll, pitch down positive, yaw)."""

    height_m: float
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    yaw_rad: float = 0.0

    def towards(self, other: Attitude, share: float) -> Attitude:
        """Return the attitude at `share` (0 to 1) of the way to `other`."""
        return Attitude(
            *(
                a + (b - a) * share
                for a, b in (
                    (self.height_m, other.height_m),
                    (self.roll_rad, other.roll_rad),
                    (self.pitch_rad, other.pitch_rad),
                    (self.yaw_rad, other.yaw_rad),
                )
            )
        )


STAND = Attitude(0.32)
FALLEN = Attitude(0.10, roll_rad=1.2)
ATTITUDES: dict[Code, Attitude] = {
    Code.DAMPING: Attitude(0.10),
    Code.STANDING_LOCK: Attitude(0.33),
    Code.CROUCH: Attitude(0.10),
    Code.SIT: Attitude(0.25, pitch_rad=-0.5),
    Code.POSE: Attitude(0.27),
}
"""Attitude of each state; states that are missing stand."""

LEGACY_MODE: dict[Code, int] = {
    Code.BALANCE_STAND: 1,
    Code.POSE: 2,
    Code.WALK: 3,
    Code.RUN: 3,
    Code.ENDURANCE: 3,
    Code.CLASSIC: 3,
    Code.AGILE: 3,
    Code.CROUCH: 5,
    Code.STANDING_LOCK: 6,
    Code.DAMPING: 7,
    Code.SIT: 10,
}
"""The older `mode` byte; states that are missing are 0 (idle)."""

VX_LIMITS_MPS = (-2.5, 3.8)
VY_LIMITS_MPS = (-1.0, 1.0)
VYAW_LIMITS_RADPS = (-4.0, 4.0)
ROLL_PITCH_LIMIT_RAD = 0.75
YAW_LIMIT_RAD = 0.6
MOVE_HOLD_S = 1.0
SETTLE_S = 0.3
"""From the end of a Move until the code is back at balance stand."""
LOOK_S = 0.3
BODY_WAIT_S = 5.0
"""How long a change of state waits for a body that is late."""
SPEED_SHARE = {-1: 0.4, 0: 1.0, 1: 1.0}
"""Share of the velocity limits at each speed level."""
