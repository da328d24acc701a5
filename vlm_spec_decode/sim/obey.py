"""Between state machine and body: the body's news to the machine, the machine's wishes to the body."""

from __future__ import annotations

from vlm_spec_decode.sim.statemachine import BodyCommand, SportStateMachine
from vlm_spec_decode.sim.world import World


def attend(machine: SportStateMachine, world: World, now_s: float) -> BodyCommand:
    """Tell the machine how the body is, and return what the machine wants of it now."""
    if world.has_fallen and not machine.fallen:
        machine.fall(now_s)
    machine.body_is_there = world.posture_settled
    return machine.advance(now_s)


def hold(world: World, wanted: BodyCommand) -> None:
    """Let the body take the attitude that is wanted; velocities are the caller's."""
    tilt = wanted.attitude
    world.set_posture(tilt.height_m, tilt.roll_rad, tilt.pitch_rad, tilt.yaw_rad, limp=wanted.limp)
