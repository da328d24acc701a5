"""The Go2's sport state machine, pure: requests in, state code and body command out.

Codes, limits and hazards are the vendor's (sport services V2.0). Durations, body heights and refusals by
state are not published; the values here are choices of this simulator. Behaviour that the vendor documents:
StandUp locks the joints and Move is ignored until BalanceStand; one Move holds for 1 s; Sit is left only
through RiseSit; Damp is possible in every state.

Independent of DDS, JSON, threads and physics. Time is an argument of every call, so that tests run it in
virtual time.

Firmware versions differ in the states' numbers and in the calls that they have, and newer ones report codes
that are not published. Each entry is a kind of difference seen in reports, not a copy of one version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from vlm_spec_decode.core.errors import ConfigError


class StateCode(IntEnum):
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


class StateRequest(Enum):
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


WALKING = frozenset(
    {
        StateCode.AGILE,
        StateCode.BALANCE_STAND,
        StateCode.WALK,
        StateCode.RUN,
        StateCode.ENDURANCE,
        StateCode.CLASSIC,
    }
)
"""States in which Move has an effect."""

STANDING = WALKING | {StateCode.STANDING_LOCK}
LYING = frozenset({StateCode.DAMPING, StateCode.CROUCH})


@dataclass(frozen=True, slots=True)
class TransitionRule:
    """One row of the state machine: from any of `sources` to `target` in `duration_s`.

    While it lasts the code is `during`, or still the old state's if that is None.
    """

    sources: frozenset[StateCode]
    target: StateCode
    duration_s: float
    during: StateCode | None = None


def _act(duration_s: float) -> TransitionRule:
    return TransitionRule(WALKING, StateCode.BALANCE_STAND, duration_s, StateCode.ACTING)


RULES: dict[StateRequest, TransitionRule] = {
    StateRequest.DAMP: TransitionRule(frozenset(StateCode), StateCode.DAMPING, 0.6, StateCode.DAMPING),
    StateRequest.STAND_UP: TransitionRule(LYING | STANDING, StateCode.STANDING_LOCK, 1.2),
    StateRequest.BALANCE_STAND: TransitionRule(STANDING, StateCode.BALANCE_STAND, 0.3),
    StateRequest.STAND_DOWN: TransitionRule(LYING | STANDING, StateCode.CROUCH, 1.2),
    StateRequest.RECOVERY_STAND: TransitionRule(LYING | STANDING, StateCode.BALANCE_STAND, 1.5),
    StateRequest.SIT: TransitionRule(STANDING | {StateCode.SIT}, StateCode.SIT, 1.0),
    StateRequest.RISE_SIT: TransitionRule(frozenset({StateCode.SIT}), StateCode.BALANCE_STAND, 1.0),
    StateRequest.HELLO: _act(3.0),
    StateRequest.STRETCH: _act(4.0),
    StateRequest.CONTENT: _act(3.0),
    StateRequest.DANCE1: _act(8.0),
    StateRequest.DANCE2: _act(8.0),
    StateRequest.SCRAPE: _act(4.0),
    StateRequest.HEART: _act(4.0),
    StateRequest.POSE_ON: TransitionRule(WALKING, StateCode.POSE, 0.5),
    StateRequest.POSE_OFF: TransitionRule(frozenset({StateCode.POSE}), StateCode.BALANCE_STAND, 0.5),
}


@dataclass(frozen=True, slots=True)
class Attitude:
    """Trunk height above the floor and the body's angles (roll, pitch down positive, yaw)."""

    height_m: float
    roll_rad: float = 0.0
    pitch_rad: float = 0.0
    yaw_rad: float = 0.0

    def towards(self, other: Attitude, fraction: float) -> Attitude:
        """Return the attitude at `share` (0 to 1) of the way to `other`."""
        return Attitude(
            *(
                a + (b - a) * fraction
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
ATTITUDES: dict[StateCode, Attitude] = {
    StateCode.DAMPING: Attitude(0.10),
    StateCode.STANDING_LOCK: Attitude(0.33),
    StateCode.CROUCH: Attitude(0.10),
    StateCode.SIT: Attitude(0.25, pitch_rad=-0.5),
    StateCode.POSE: Attitude(0.27),
}
"""Attitude of each state; states that are missing stand."""

LEGACY_MODE: dict[StateCode, int] = {
    StateCode.BALANCE_STAND: 1,
    StateCode.POSE: 2,
    StateCode.WALK: 3,
    StateCode.RUN: 3,
    StateCode.ENDURANCE: 3,
    StateCode.CLASSIC: 3,
    StateCode.AGILE: 3,
    StateCode.CROUCH: 5,
    StateCode.STANDING_LOCK: 6,
    StateCode.DAMPING: 7,
    StateCode.SIT: 10,
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


@dataclass(frozen=True, slots=True)
class BodyCommand:
    """The command to the body: a body-frame velocity and an attitude; `limp`: the joints are released."""

    vx_mps: float
    vy_mps: float
    vyaw_radps: float
    attitude: Attitude
    limp: bool = False


@dataclass(frozen=True, slots=True)
class _Transition:
    """A running change of state, or of attitude alone if `target` is None."""

    target: StateCode | None
    start_s: float
    end_s: float
    origin: Attitude
    goal: Attitude


def _clamp(value: float, limits: tuple[float, float], fraction: float = 1.0) -> float:
    return min(max(value, limits[0] * fraction), limits[1] * fraction)


class SportStateMachine:
    """One robot's state. The request methods take the present time and return whether they are accepted.

    Calls must come with non-decreasing times. Not safe for threads: the owner locks.
    """

    def __init__(self, now_s: float = 0.0, code: StateCode = StateCode.DAMPING) -> None:
        self._code = code
        self._fallen = False
        self._attitude = ATTITUDES.get(code, STAND)
        self._change: _Transition | None = None
        self._gait = StateCode.WALK
        self._velocity = (0.0, 0.0, 0.0)
        self._hold_until_s = now_s
        self._walk_until_s = now_s
        self.body_settled = True
        """Whether the body has reached the last attitude; the owner sets it before `advance`.

        A change of state waits for it, up to `BODY_WAIT_S`.
        """
        self.speed_level = 0
        self.auto_recovery = False

    @property
    def code(self) -> StateCode:
        """The state as the robot reports it."""
        return self._code

    @property
    def legacy_mode(self) -> int:
        """The older `mode` byte."""
        return LEGACY_MODE.get(self._code, 0)

    @property
    def gait_type(self) -> int:
        """The older `gait_type` byte: 0 idle, 1 trot, 2 run."""
        if self._velocity == (0.0, 0.0, 0.0):
            return 0
        return 2 if self._gait is StateCode.RUN else 1

    @property
    def fallen(self) -> bool:
        """Whether the robot lies on its side and only RecoveryStand helps."""
        return self._fallen

    def progress(self, now_s: float) -> float:
        """Return the progress of the running transition, 0 to 1; 0 without one."""
        change = self._change
        if change is None or now_s >= change.end_s:
            return 0.0
        return max(0.0, now_s - change.start_s) / (change.end_s - change.start_s)

    def request(self, request: StateRequest, now_s: float) -> bool:
        """Begin a transition; refused from a wrong state and during another one.

        A fallen robot takes RecoveryStand alone; Damp is obeyed always.
        """
        self._settle(now_s)
        rule = RULES[request]
        if request is not StateRequest.DAMP:
            lost = self._fallen and request is not StateRequest.RECOVERY_STAND
            if self._busy or lost or self._code not in rule.sources:
                return False
        self._halt(now_s)
        if self._code != rule.target or self._fallen or rule.during is not None:
            self._begin(rule, now_s)
        else:
            self._change = self._turn(ATTITUDES.get(self._code, STAND), now_s)
        return True

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float, now_s: float) -> bool:
        """Set the velocity for the next 1 s; zero ends the motion. Ignored in states that do not walk.

        Out-of-range values are clamped to the vendor's limits (its own behaviour is not documented).
        """
        self._settle(now_s)
        if self._code not in WALKING or self._busy:
            return False
        fraction = SPEED_SHARE[self.speed_level]
        velocity = (
            _clamp(vx_mps, VX_LIMITS_MPS, fraction),
            _clamp(vy_mps, VY_LIMITS_MPS, fraction),
            _clamp(vyaw_radps, VYAW_LIMITS_RADPS, fraction),
        )
        if velocity == (0.0, 0.0, 0.0):
            self._halt(now_s)
            return True
        self._velocity = velocity
        self._hold_until_s = now_s + MOVE_HOLD_S
        self._walk_until_s = self._hold_until_s + SETTLE_S
        self._code = self._gait
        return True

    def stop(self, now_s: float) -> bool:
        """End the motion. Obeyed in every state; an act such as Hello goes on to its end."""
        self._settle(now_s)
        self._halt(now_s)
        return True

    def look(self, roll_rad: float, pitch_rad: float, yaw_rad: float, now_s: float) -> bool:
        """Tilt the standing body within the vendor's limits; a later Move keeps it, BalanceStand levels."""
        self._settle(now_s)
        if self._code not in WALKING or self._busy:
            return False
        tilt = (-ROLL_PITCH_LIMIT_RAD, ROLL_PITCH_LIMIT_RAD)
        yaw = _clamp(yaw_rad, (-YAW_LIMIT_RAD, YAW_LIMIT_RAD))
        goal = Attitude(STAND.height_m, _clamp(roll_rad, tilt), _clamp(pitch_rad, tilt), yaw)
        self._change = self._turn(goal, now_s)
        return True

    def set_gait(self, gait: StateCode, now_s: float) -> bool:
        """Choose the code that walking reports. Refused while the robot cannot walk."""
        self._settle(now_s)
        if self._code not in WALKING:
            return False
        self._gait = gait
        return True

    def fall(self, now_s: float) -> None:
        """Tip the robot over: damping, on its side, until RecoveryStand."""
        self._settle(now_s)
        self._halt(now_s)
        self._fallen = True
        self._code = StateCode.DAMPING
        self._change = _Transition(StateCode.DAMPING, now_s, now_s + 0.5, self._attitude, FALLEN)

    def advance(self, now_s: float) -> BodyCommand:
        """Advance to `now_s` and return the command to the body."""
        self._settle(now_s)
        vx, vy, vyaw = self._velocity
        limp = self._code is StateCode.DAMPING and not self._busy
        return BodyCommand(vx, vy, vyaw, self._attitude, limp)

    @property
    def _busy(self) -> bool:
        """Whether the robot is on its way to another state."""
        return self._change is not None and self._change.target not in (None, self._code)

    def _halt(self, now_s: float) -> None:
        if self._velocity != (0.0, 0.0, 0.0):
            self._velocity = (0.0, 0.0, 0.0)
            self._walk_until_s = now_s + SETTLE_S

    def _begin(self, rule: TransitionRule, now_s: float) -> None:
        on_side = self._fallen and rule.target is StateCode.DAMPING
        goal = FALLEN if on_side else ATTITUDES.get(rule.target, STAND)
        self._change = _Transition(rule.target, now_s, now_s + rule.duration_s, self._attitude, goal)
        if rule.during is not None:
            self._code = rule.during
        elif self._code in WALKING:
            self._code = StateCode.BALANCE_STAND

    def _turn(self, goal: Attitude, now_s: float) -> _Transition:
        return _Transition(None, now_s, now_s + LOOK_S, self._attitude, goal)

    def _settle(self, now_s: float) -> None:
        """Bring code, velocity and attitude up to `now_s`."""
        if self._velocity != (0.0, 0.0, 0.0) and now_s >= self._hold_until_s:
            self._velocity = (0.0, 0.0, 0.0)
        if self._code in WALKING and self._velocity == (0.0, 0.0, 0.0) and now_s >= self._walk_until_s:
            self._code = StateCode.BALANCE_STAND
        change = self._change
        if change is None:
            return
        fraction = min(1.0, max(0.0, (now_s - change.start_s) / (change.end_s - change.start_s)))
        self._attitude = change.origin.towards(change.goal, fraction)
        waited = now_s >= change.end_s + BODY_WAIT_S or change.target in (None, StateCode.DAMPING)
        if fraction >= 1.0 and (self.body_settled or waited):
            self._finish(change)

    def _finish(self, change: _Transition) -> None:
        self._change = None
        if change.target is None:
            return
        self._code = change.target
        self._fallen = self._fallen and change.target is StateCode.DAMPING


BALANCE_STAND_API = 1002
RENUMBERED_BY = 3000


@dataclass(frozen=True, slots=True)
class Firmware:
    """One kind of firmware. `codes` replace the published ones, `missing` are api ids answered with 3203.

    Without `fills_mode` the older fields `mode` and `gait_type` stay 0.
    """

    name: str
    meaning: str
    codes: Mapping[StateCode, int] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()
    fills_mode: bool = True

    def code(self, code: StateCode) -> int:
        """Return this firmware's code of a state."""
        return self.codes.get(code, int(code))


DOCUMENTED = Firmware("documented", "the published codes and calls")

FIRMWARES = {
    firmware.name: firmware
    for firmware in (
        DOCUMENTED,
        Firmware(
            "classic",
            "2010 wherever it can walk, at rest too; no BalanceStand",
            {code: int(StateCode.CLASSIC) for code in WALKING},
            frozenset({BALANCE_STAND_API}),
        ),
        Firmware(
            "renumbered",
            f"every code is {RENUMBERED_BY} higher than the published one; no BalanceStand, no mode or gait",
            {code: int(code) + RENUMBERED_BY for code in StateCode},
            frozenset({BALANCE_STAND_API}),
            fills_mode=False,
        ),
    )
}


def find_firmware(name: str) -> Firmware:
    """Return the firmware of that name. Raises ConfigError that names the known ones."""
    if name not in FIRMWARES:
        known = "; ".join(f"{firmware.name} ({firmware.meaning})" for firmware in FIRMWARES.values())
        raise ConfigError(f"unknown firmware {name!r}; known: {known}")
    return FIRMWARES[name]
