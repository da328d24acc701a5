"""Which calls lead to which posture, and which state confirms each of them. Pure tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.states import BUSY, MOVING_MPS

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
"""Steps of each of `core.robot.POSTURES`."""


def steps_to_walk(state: RobotState) -> tuple[PostureStep, ...] | None:
    """Return the steps that make a robot walk from whatever state it is found in.

    None if nothing may be sent to it: it moves in a state that does not walk, or nobody knows its state and
    it does not surely lie.
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
