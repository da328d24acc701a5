"""The simulated Go2's state machine in virtual time."""

from __future__ import annotations

import pytest

from vlm_spec_decode.sim.go2.state_machine import (
    ATTITUDES,
    FALLEN,
    RULES,
    SportStateMachine,
    StateCode,
    StateRequest,
)


def walking() -> SportStateMachine:
    return SportStateMachine(0.0, StateCode.BALANCE_STAND)


def test_stand_up_locks_the_joints_until_balance_stand() -> None:
    machine = SportStateMachine()
    assert machine.code is StateCode.DAMPING
    assert machine.request(StateRequest.STAND_UP, 0.0)
    assert not machine.move(0.5, 0.0, 0.0, 0.5)
    assert machine.advance(2.0).attitude.height_m == pytest.approx(0.33)
    assert machine.code is StateCode.STANDING_LOCK
    assert not machine.move(0.5, 0.0, 0.0, 2.0)
    assert machine.advance(2.1).vx_mps == 0.0
    assert machine.request(StateRequest.BALANCE_STAND, 2.2)
    machine.advance(3.0)
    assert machine.code is StateCode.BALANCE_STAND
    assert machine.move(0.5, 0.0, 0.0, 3.0)
    assert machine.code is StateCode.WALK


def test_one_move_holds_for_one_second_then_the_state_returns() -> None:
    machine = walking()
    machine.move(0.5, -0.1, 0.2, 0.0)
    command = machine.advance(0.99)
    assert (command.vx_mps, command.vy_mps, command.vyaw_radps) == (0.5, -0.1, 0.2)
    assert machine.code is StateCode.WALK
    assert machine.advance(1.0).vx_mps == 0.0
    assert machine.code is StateCode.WALK
    machine.advance(1.31)
    assert machine.code is StateCode.BALANCE_STAND


@pytest.mark.parametrize("zero_move", [True, False])
def test_stop_move_and_a_zero_move_end_the_motion(zero_move: bool) -> None:
    machine = walking()
    machine.move(1.0, 0.0, 0.0, 0.0)
    assert machine.move(0.0, 0.0, 0.0, 0.2) if zero_move else machine.stop(0.2)
    assert machine.advance(0.2).vx_mps == 0.0
    machine.advance(0.51)
    assert machine.code is StateCode.BALANCE_STAND


def test_velocities_out_of_range_are_clamped_to_the_vendors_limits() -> None:
    machine = walking()
    machine.move(9.0, -9.0, 9.0, 0.0)
    command = machine.advance(0.0)
    assert (command.vx_mps, command.vy_mps, command.vyaw_radps) == (3.8, -1.0, 4.0)
    machine.speed_level = -1
    machine.move(-9.0, 0.0, 0.0, 0.1)
    assert machine.advance(0.1).vx_mps == pytest.approx(-1.0)


def test_sit_is_left_only_through_rise_sit() -> None:
    machine = walking()
    assert machine.request(StateRequest.SIT, 0.0)
    assert not machine.move(0.5, 0.0, 0.0, 0.5)
    machine.advance(1.1)
    assert machine.code is StateCode.SIT
    refused = (
        StateRequest.STAND_UP,
        StateRequest.BALANCE_STAND,
        StateRequest.RECOVERY_STAND,
        StateRequest.STAND_DOWN,
        StateRequest.HELLO,
    )
    assert not any(machine.request(ask, 1.2) for ask in refused)
    assert machine.request(StateRequest.RISE_SIT, 1.3)
    machine.advance(2.4)
    assert machine.code is StateCode.BALANCE_STAND


@pytest.mark.parametrize("act", [StateRequest.HELLO, StateRequest.STRETCH, StateRequest.DANCE1])
def test_an_act_reports_1006_to_its_end_and_takes_nothing_meanwhile(act: StateRequest) -> None:
    machine = walking()
    assert machine.request(act, 0.0)
    end_s = RULES[act].duration_s
    machine.advance(end_s - 0.1)
    assert machine.code is StateCode.ACTING
    assert 0.9 < machine.progress(end_s - 0.1) < 1.0
    assert not machine.move(0.5, 0.0, 0.0, end_s - 0.1)
    assert not machine.request(StateRequest.SIT, end_s - 0.1)
    assert machine.stop(end_s - 0.1)
    machine.advance(end_s + 0.01)
    assert machine.code is StateCode.BALANCE_STAND


def test_damp_goes_from_anywhere_and_the_robot_sinks() -> None:
    for code in StateCode:
        machine = SportStateMachine(0.0, code)
        machine.move(1.0, 0.0, 0.0, 0.0)
        assert machine.request(StateRequest.DAMP, 0.1)
        assert machine.code is StateCode.DAMPING
        command = machine.advance(1.0)
        assert command.vx_mps == 0.0
        assert command.attitude == ATTITUDES[StateCode.DAMPING]


def test_only_recovery_stand_helps_after_a_fall() -> None:
    machine = walking()
    machine.move(1.0, 0.0, 0.0, 0.0)
    machine.fall(0.1)
    assert machine.advance(1.0).attitude == FALLEN
    assert machine.code is StateCode.DAMPING
    assert machine.request(StateRequest.DAMP, 1.1)
    assert machine.advance(2.0).attitude == FALLEN
    assert not machine.request(StateRequest.STAND_UP, 2.0)
    assert machine.request(StateRequest.RECOVERY_STAND, 2.1)
    assert machine.advance(3.7).attitude.roll_rad == 0.0
    assert machine.code is StateCode.BALANCE_STAND
    assert not machine.fallen


def test_look_tilts_the_body_and_balance_stand_levels_it() -> None:
    machine = walking()
    assert machine.look(0.0, 0.3, 2.0, 0.0)
    attitude = machine.advance(0.5).attitude
    assert (attitude.pitch_rad, attitude.yaw_rad) == (0.3, 0.6)
    machine.move(0.5, 0.0, 0.0, 0.6)
    assert machine.advance(0.7).attitude.pitch_rad == 0.3
    assert machine.request(StateRequest.BALANCE_STAND, 2.0)
    assert machine.advance(3.0).attitude.pitch_rad == 0.0
    assert machine.request(StateRequest.STAND_UP, 3.0)
    machine.advance(5.0)
    assert not machine.look(0.0, 0.3, 0.0, 5.0)


def test_looking_while_the_walk_ends_blocks_no_later_request() -> None:
    machine = walking()
    machine.move(0.5, 0.0, 0.0, 0.0)
    machine.look(0.0, 0.2, 0.0, 1.2)
    machine.advance(1.35)
    assert machine.code is StateCode.BALANCE_STAND
    assert machine.move(0.5, 0.0, 0.0, 1.36)


def test_a_gait_is_what_walking_reports() -> None:
    machine = walking()
    assert machine.set_gait(StateCode.RUN, 0.0)
    machine.move(1.0, 0.0, 0.0, 0.0)
    assert machine.code is StateCode.RUN
    assert not SportStateMachine().set_gait(StateCode.RUN, 0.0)
