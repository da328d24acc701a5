"""The Go2's sport state machine, pure: requests in, state code and body command out.

Knows nothing of DDS, JSON, threads or the physics. Time is an argument of every call, so that tests run it in
virtual time. Behaviour that the vendor documents: StandUp locks the joints and Move is ignored until
BalanceStand; one Move holds for 1 s; Sit is left only through RiseSit; Damp goes from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm_spec_decode.sim import statemachine_tables as t
from vlm_spec_decode.sim.statemachine_tables import Ask, Attitude, Code


@dataclass(frozen=True, slots=True)
class BodyCommand:
    """What the world's body shall do now: a body-frame velocity and an attitude, or nothing if `limp`."""

    vx_mps: float
    vy_mps: float
    vyaw_radps: float
    attitude: Attitude
    limp: bool = False


@dataclass(frozen=True, slots=True)
class _Transition:
    """A change of state under way, or of attitude alone if `target` is None."""

    target: Code | None
    start_s: float
    end_s: float
    origin: Attitude
    goal: Attitude


def _clamp(value: float, limits: tuple[float, float], share: float = 1.0) -> float:
    return min(max(value, limits[0] * share), limits[1] * share)


class SportStateMachine:
    """One robot's state. Every method takes the present time and returns whether the request is obeyed.

    Calls must come with non-decreasing times. Not safe for threads: the owner locks.
    """

    def __init__(self, now_s: float = 0.0, code: Code = Code.DAMPING) -> None:
        self._code = code
        self._fallen = False
        self._attitude = t.ATTITUDES.get(code, t.STAND)
        self._change: _Transition | None = None
        self._gait = Code.WALK
        self._velocity = (0.0, 0.0, 0.0)
        self._hold_until_s = now_s
        self._walk_until_s = now_s
        self.body_is_there = True
        """Whether the body has reached the attitude last asked for; its owner says so before `advance`.

        A change of state waits for it, up to `BODY_WAIT_S`.
        """
        self.speed_level = 0
        self.auto_recovery = False

    @property
    def code(self) -> Code:
        """The state as the robot reports it."""
        return self._code

    @property
    def legacy_mode(self) -> int:
        """The older `mode` byte."""
        return t.LEGACY_MODE.get(self._code, 0)

    @property
    def gait_type(self) -> int:
        """The older `gait_type` byte: 0 idle, 1 trot, 2 run."""
        if self._velocity == (0.0, 0.0, 0.0):
            return 0
        return 2 if self._gait is Code.RUN else 1

    @property
    def fallen(self) -> bool:
        """Whether the robot lies on its side and only RecoveryStand helps."""
        return self._fallen

    def progress(self, now_s: float) -> float:
        """Return how far the transition under way has come, 0 to 1; 0 when there is none."""
        change = self._change
        if change is None or now_s >= change.end_s:
            return 0.0
        return max(0.0, now_s - change.start_s) / (change.end_s - change.start_s)

    def ask(self, request: Ask, now_s: float) -> bool:
        """Begin a transition; refused from a wrong state and during another one.

        A fallen robot takes RecoveryStand alone; Damp is obeyed always.
        """
        self._settle(now_s)
        rule = t.RULES[request]
        if request is not Ask.DAMP:
            lost = self._fallen and request is not Ask.RECOVERY_STAND
            if self._busy or lost or self._code not in rule.sources:
                return False
        self._halt(now_s)
        if self._code != rule.target or self._fallen or rule.during is not None:
            self._begin(rule, now_s)
        else:
            self._change = self._turn(t.ATTITUDES.get(self._code, t.STAND), now_s)
        return True

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float, now_s: float) -> bool:
        """Take a velocity for the next 1 s; a zero one ends the motion. Ignored in states that do not walk.

        Out-of-range values are clamped to the vendor's limits (its own behaviour is not documented).
        """
        self._settle(now_s)
        if self._code not in t.WALKING or self._busy:
            return False
        share = t.SPEED_SHARE[self.speed_level]
        velocity = (
            _clamp(vx_mps, t.VX_LIMITS_MPS, share),
            _clamp(vy_mps, t.VY_LIMITS_MPS, share),
            _clamp(vyaw_radps, t.VYAW_LIMITS_RADPS, share),
        )
        if velocity == (0.0, 0.0, 0.0):
            self._halt(now_s)
            return True
        self._velocity = velocity
        self._hold_until_s = now_s + t.MOVE_HOLD_S
        self._walk_until_s = self._hold_until_s + t.SETTLE_S
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
        if self._code not in t.WALKING or self._busy:
            return False
        tilt = (-t.ROLL_PITCH_LIMIT_RAD, t.ROLL_PITCH_LIMIT_RAD)
        yaw = _clamp(yaw_rad, (-t.YAW_LIMIT_RAD, t.YAW_LIMIT_RAD))
        goal = Attitude(t.STAND.height_m, _clamp(roll_rad, tilt), _clamp(pitch_rad, tilt), yaw)
        self._change = self._turn(goal, now_s)
        return True

    def set_gait(self, gait: Code, now_s: float) -> bool:
        """Choose the code that walking reports. Refused while the robot cannot walk."""
        self._settle(now_s)
        if self._code not in t.WALKING:
            return False
        self._gait = gait
        return True

    def fall(self, now_s: float) -> None:
        """Tip the robot over: damping, on its side, until RecoveryStand."""
        self._settle(now_s)
        self._halt(now_s)
        self._fallen = True
        self._code = Code.DAMPING
        self._change = _Transition(Code.DAMPING, now_s, now_s + 0.5, self._attitude, t.FALLEN)

    def advance(self, now_s: float) -> BodyCommand:
        """Let what is due by `now_s` happen and return what the body shall do."""
        self._settle(now_s)
        vx, vy, vyaw = self._velocity
        limp = self._code is Code.DAMPING and not self._busy
        return BodyCommand(vx, vy, vyaw, self._attitude, limp)

    @property
    def _busy(self) -> bool:
        """Whether the robot is on its way to another state."""
        return self._change is not None and self._change.target not in (None, self._code)

    def _halt(self, now_s: float) -> None:
        if self._velocity != (0.0, 0.0, 0.0):
            self._velocity = (0.0, 0.0, 0.0)
            self._walk_until_s = now_s + t.SETTLE_S

    def _begin(self, rule: t.Rule, now_s: float) -> None:
        on_side = self._fallen and rule.target is Code.DAMPING
        goal = t.FALLEN if on_side else t.ATTITUDES.get(rule.target, t.STAND)
        self._change = _Transition(rule.target, now_s, now_s + rule.duration_s, self._attitude, goal)
        if rule.during is not None:
            self._code = rule.during
        elif self._code in t.WALKING:
            self._code = Code.BALANCE_STAND

    def _turn(self, goal: Attitude, now_s: float) -> _Transition:
        return _Transition(None, now_s, now_s + t.LOOK_S, self._attitude, goal)

    def _settle(self, now_s: float) -> None:
        """Bring code, velocity and attitude up to `now_s`."""
        if self._velocity != (0.0, 0.0, 0.0) and now_s >= self._hold_until_s:
            self._velocity = (0.0, 0.0, 0.0)
        if self._code in t.WALKING and self._velocity == (0.0, 0.0, 0.0) and now_s >= self._walk_until_s:
            self._code = Code.BALANCE_STAND
        change = self._change
        if change is None:
            return
        share = min(1.0, max(0.0, (now_s - change.start_s) / (change.end_s - change.start_s)))
        self._attitude = change.origin.towards(change.goal, share)
        waited = now_s >= change.end_s + t.BODY_WAIT_S or change.target in (None, Code.DAMPING)
        if share >= 1.0 and (self.body_is_there or waited):
            self._finish(change)

    def _finish(self, change: _Transition) -> None:
        self._change = None
        if change.target is None:
            return
        self._code = change.target
        self._fallen = self._fallen and change.target is Code.DAMPING
