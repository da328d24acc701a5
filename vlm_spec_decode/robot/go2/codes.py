"""The Go2's numbers and what they mean: return codes, state codes, and the calls that lead to each posture.

From the vendor's documentation and the public SDK's constants. All other modules use the state codes of the
vendor's published table. Codes that other firmware uses for the same states are translated here; a user can
add to that table. A code that is in no table is not guessed: a robot in an unknown state may walk, and a
call that gets a lying robot up would make a walking one fall. Pure; independent of SDK and ROS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

from vlm_spec_decode.core.errors import ConfigError, RobotRefused
from vlm_spec_decode.core.robot import Posture, RobotState

OK = 0
CLIENT_SEND = 3102
TIMEOUT = 3104
NOT_IMPLEMENTED = 3203
BAD_PARAMETER = 3204

UNCERTAIN = frozenset({CLIENT_SEND, TIMEOUT})
"""Codes after which it is unknown whether the robot received the call; its state shows it."""

RETURN_CODES: dict[int, str] = {
    OK: "ok",
    3001: "unknown error",
    CLIENT_SEND: "could not send: no service listens (sport service off, wrong interface or domain)",
    3103: "api id not registered in the client",
    TIMEOUT: "no reply in time",
    3105: "the reply belongs to another api",
    3106: "the reply's data cannot be read",
    3107: "lease invalid",
    3201: "the service could not send",
    3202: "the service failed inside",
    NOT_IMPLEMENTED: "not implemented by this robot's firmware",
    BAD_PARAMETER: "bad parameter",
    3205: "lease denied: another client holds the robot",
    3206: "no such lease",
    3207: "lease already held",
    4101: "wrong number of path points",
    4201: "the action took too long",
    4202: "state machine not initialised",
    4205: "state machine not initialised",
    4206: "posture unsuitable for the action",
    5201: "the service cannot be switched",
    5202: "the service is protected",
    7002: "mode selected too soon after a release; wait 10 s",
}

STATE_CODES: dict[int, str] = {
    100: "agile",
    1001: "damping",
    1002: "standing lock",
    1004: "crouch",
    1006: "acting (greeting, stretch, dance)",
    1007: "sit",
    1008: "front jump",
    1009: "pounce",
    1013: "balance stand",
    1015: "regular walk",
    1016: "regular run",
    1017: "endurance gait",
    1091: "pose",
    2006: "crouch",
    2007: "dodge",
    2008: "bound",
    2009: "jump-run",
    2010: "classic",
    2011: "handstand",
    2016: "cross-step",
    2017: "upright",
    2019: "towing",
}


def meaning(code: int) -> str:
    """Return the meaning of a return code."""
    return RETURN_CODES.get(code, "code unknown to this package")


def state_name(code: int) -> str:
    """Return a state code and its meaning, for messages: `1002 standing lock`."""
    return f"{code} {STATE_CODES.get(code, 'unknown state')}"


def refusal(call: str, code: int) -> RobotRefused:
    """Return the error for a call that returned `code`."""
    return RobotRefused(call, meaning(code), code)


def check(call: str, code: int) -> None:
    """Raise RobotRefused unless `code` is 0."""
    if code != OK:
        raise refusal(call, code)


POSTURE_CODES: Mapping[Posture, int] = MappingProxyType(
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
"""Words of `state_codes` and the published code of each; `busy` is an act that ends by itself."""

PUBLISHED = frozenset({100, 1001, 1002, 1004, 1006, 1007, 1013, 1015, 1016, 1017, 1091, 2006})
"""Codes that keep their published meaning."""

WALKING_CODES = frozenset({100, 1013, 1015, 1016, 1017})
"""Codes of the Go2's state machine in which Move has an effect (reference: vendor's sport V2.0)."""

BUSY = frozenset({1008, 1009, 2007, 2008, 2009, 2011, 2012, 2013, 2014, 2016, 2017, 2019})
"""Published acts and gaits in which the robot is sent nothing; only its remote or app ends them."""

_CLASSIC: Posture = "walk"
DEFAULT_CODES: Mapping[int, Posture] = MappingProxyType({2010: _CLASSIC})
"""Codes of newer firmware: 2010, the classic gait, in which a Move has its effect."""

_CROUCHES = frozenset({1004, 2006})
_BY_CODE: Mapping[int, Posture] = MappingProxyType({code: word for word, code in POSTURE_CODES.items()})


def posture_of(code: int) -> Posture:
    """Return the posture that a published code stands for; `unknown` for every other number."""
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code in WALKING_CODES:
        return "walk"
    if code in DEFAULT_CODES:
        return DEFAULT_CODES[code]
    if code in _CROUCHES:
        return "lie"
    return "busy" if code in BUSY else "unknown"


LOW_M, HIGH_M = 0.05, 0.14
"""A body between these heights lies (the lowest stance is 0.15 m). A lower value means an unset field."""
MOVING_MPS = 0.1
LOADED = 100
"""Sum of the feet's forces above which the legs carry the body."""

LYING_MODES = frozenset({0, 5, 7})
"""The older `mode` byte: idle (or not filled in), lying, damping."""

_ENTRY = re.compile(r"(\d{1,9})\s*[ :=]\s*(\w+)")


@dataclass(frozen=True, slots=True)
class StateTable:
    """Translates reported codes to published ones. `extra` comes from the user and takes precedence."""

    extra: Mapping[int, Posture] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> StateTable:
        """Read `2077 walk, 2078 lock`. Raises ConfigError that names the known words."""
        extra: dict[int, Posture] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = _ENTRY.fullmatch(entry)
            if match is None or match[2] not in POSTURE_CODES:
                known = ", ".join(POSTURE_CODES)
                raise ConfigError(
                    f"state_codes: {entry[:40]!r}; expected `CODE WORD, …` with a WORD of: {known}"
                )
            extra[int(match[1])] = cast(Posture, match[2])
        return cls(extra)

    def canonical(self, reported: int) -> int | None:
        """Return the published code of `reported`; None if it is unknown."""
        word = self.extra.get(reported) or DEFAULT_CODES.get(reported)
        if word is not None:
            return POSTURE_CODES[word]
        return reported if reported in PUBLISHED | BUSY else None


def is_down(message: Any) -> bool:
    """Whether a SportModeState surely shows a body that lies and does not move; False in any doubt.

    Height, speed, gait and the older mode must agree. The feet's forces are zero since firmware 1.1.7, so
    they can only be evidence against it.
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
    """Return the message about a robot that is sent nothing, because its state is unknown."""
    reported = state.code if state.reported_code is None else state.reported_code
    if state.is_known and reported is not None:
        why = f"says state {state_name(reported)} and moves at {state.speed_mps:.2f} m/s"
    else:
        why = f"is in state {reported}, which this package does not know, and may stand or walk"
    return (
        f"the robot {why}: nothing was sent to it. Bring it to balance stand with its remote, or say "
        f"what the code means, state_codes:='{reported} walk' (one of {', '.join(POSTURE_CODES)})"
    )


DAMPING = frozenset({1001})
LOCKED = frozenset({1002})
CROUCH = frozenset({1004, 2006})
ACTING = frozenset({1006})
SITTING = frozenset({1007})
POSE = frozenset({1091})


@dataclass(frozen=True, slots=True)
class PostureStep:
    """One call of the sport service (none: only wait) and the state that it must lead to.

    `instead` is called where the firmware does not have `call`.
    """

    call: str
    done: Callable[[RobotState], bool]
    arguments: tuple[float, ...] | tuple[bool] = ()
    instead: str = ""


def _in(codes: frozenset[int]) -> Callable[[RobotState], bool]:
    return lambda state: state.code in codes


def can_walk(state: RobotState) -> bool:
    """Whether a Move would have an effect."""
    return state.can_walk


def _stands(state: RobotState) -> bool:
    return state.can_walk or state.code in LOCKED


BALANCE_STAND = PostureStep("BalanceStand", can_walk, instead="RecoveryStand")
RECOVERY_STAND = PostureStep("RecoveryStand", _stands)
RISE = PostureStep("RiseSit", _stands)
WAIT = PostureStep("", can_walk)


def _act(call: str) -> tuple[PostureStep, ...]:
    return (PostureStep(call, _in(ACTING)), WAIT)


PLANS: dict[str, tuple[PostureStep, ...]] = {
    "stand_up": (PostureStep("StandUp", _in(LOCKED)),),
    "stand_down": (PostureStep("StandDown", _in(CROUCH)),),
    "sit": (PostureStep("Sit", _in(SITTING)),),
    "rise": (RISE, BALANCE_STAND),
    "hello": _act("Hello"),
    "stretch": _act("Stretch"),
    "recovery_stand": (RECOVERY_STAND, BALANCE_STAND),
    "balance_stand": (BALANCE_STAND,),
    "damp": (PostureStep("Damp", _in(DAMPING)),),
}
"""Steps of each posture of the action language, and of the three that an operator has besides."""


def steps_to_walk(state: RobotState) -> tuple[PostureStep, ...] | None:
    """Return the steps that bring a robot from its present state into one that walks.

    None if it may be sent nothing: it moves in a state that does not walk, or its state is unknown and it
    does not certainly lie.
    """
    if state.can_walk:
        return ()
    if state.is_known and state.code in ACTING | BUSY:
        return (WAIT,)
    if state.speed_mps > MOVING_MPS or not (state.is_known or state.is_down):
        return None
    if not state.is_known:
        return (RECOVERY_STAND, BALANCE_STAND)
    if state.code in LOCKED:
        return (BALANCE_STAND,)
    if state.code in SITTING:
        return (RISE, BALANCE_STAND)
    if state.code in POSE:
        return (PostureStep("Pose", can_walk, (False,)),)
    # Lying, damped or fallen: RecoveryStand is the vendor's safe way in from an unknown posture.
    return (RECOVERY_STAND, BALANCE_STAND)
