"""The driver before firmware with other codes and fewer calls, over ROS messages, in virtual time."""

from __future__ import annotations

import pytest

from test.robot.test_unitree_api import RobotTime, make
from vlm_spec_decode.core.errors import ConfigError, RobotError
from vlm_spec_decode.robot.go2.codes import StateTable
from vlm_spec_decode.robot.go2.driver import Go2Driver
from vlm_spec_decode.sim.go2.state_machine import (
    FIRMWARES,
    RENUMBERED_BY,
    StateCode,
    StateRequest,
    find_firmware,
)

WORDS = "4013 walk, 4015 walk, 4002 lock, 4001 damp, 4004 lie, 4007 sit, 4006 act"
CALLS = {1002: "BalanceStand", 1003: "StopMove", 1004: "StandUp", 1006: "RecoveryStand", 1008: "Move"}


class Firmware(RobotTime):
    """A robot with a firmware by name, in a posture that its remote has brought it to."""

    def __init__(self, name: str, *postures: StateRequest, walks: bool = False) -> None:
        super().__init__()
        self.robot.firmware = find_firmware(name)
        self.walks = False
        for posture in postures:
            assert self.robot.request(posture)
            self.sleep(2.5)
        self.walks = walks
        self.sleep(0.5)

    def sleep(self, duration_s: float) -> None:
        if getattr(self, "walks", False):  # by its remote
            self.robot.move(0.4, 0.0, 0.0)
        super().sleep(duration_s)

    @property
    def sent(self) -> list[str]:
        return [CALLS[request.header.identity.api_id] for request in self.topics.published]


def started(clock: Firmware, codes: str = "") -> Go2Driver:
    driver = make(clock, states=StateTable.parse(codes))  # type: ignore[arg-type]
    driver.start()
    return driver


@pytest.mark.parametrize("walks", [False, True])
@pytest.mark.parametrize("name", ["documented", "classic"])
def test_a_robot_that_stands_or_walks_is_sent_nothing_at_the_start(name: str, walks: bool) -> None:
    clock = Firmware(name, StateRequest.RECOVERY_STAND, walks=walks)
    driver = started(clock)
    assert clock.sent == []
    assert driver.state().can_walk


@pytest.mark.parametrize("walks", [False, True])
@pytest.mark.parametrize("posture", [StateRequest.RECOVERY_STAND, StateRequest.STAND_UP])
def test_an_unknown_code_of_a_body_that_is_up_is_named_and_nothing_sent(
    posture: StateRequest, walks: bool
) -> None:
    clock = Firmware("renumbered", posture, walks=walks and posture is StateRequest.RECOVERY_STAND)
    began_s = clock.now()
    with pytest.raises(RobotError, match=r"state 40\d\d.*nothing was sent.*state_codes"):
        started(clock)
    assert clock.sent == []
    assert clock.now() - began_s < 4.0, "named at once, not after a posture's time-out"


@pytest.mark.parametrize("walks", [False, True])
def test_with_its_codes_in_the_configuration_it_is_used_as_any_other(walks: bool) -> None:
    clock = Firmware("renumbered", StateRequest.RECOVERY_STAND, walks=walks)
    driver = started(clock, WORDS)
    assert clock.sent == []
    clock.walks = False
    driver.stop()
    driver.move(0.4, 0.0, 0.0)
    clock.sleep(0.5)
    state = driver.state()
    assert (state.speed_mps > 0.2, state.can_walk) == (True, True)
    assert state.reported_code == StateCode.WALK + RENUMBERED_BY
    driver.stop()
    assert driver.state().is_still


@pytest.mark.parametrize("name", ["classic", "renumbered"])
def test_without_balance_stand_a_locked_robot_comes_to_walk_another_way(name: str) -> None:
    clock = Firmware(name, StateRequest.STAND_UP)
    driver = started(clock, WORDS)
    assert clock.sent == ["BalanceStand", "RecoveryStand"]
    assert driver.state().can_walk


def test_a_lying_robot_with_an_unknown_code_is_got_up() -> None:
    clock = Firmware("renumbered")
    with pytest.raises(RobotError, match="state 4013"):
        started(clock)
    assert set(clock.sent) == {"RecoveryStand"}
    assert clock.robot.snapshot().body_height_m > 0.25


def test_a_posture_is_not_tried_while_the_state_is_unknown_but_stop_and_damp_are() -> None:
    clock = Firmware("documented", StateRequest.RECOVERY_STAND)
    driver = started(clock)
    clock.robot.firmware = find_firmware("renumbered")
    clock.sleep(0.3)
    for posture in ("stand_up", "stand_down", "sit", "hello", "balance_stand"):
        with pytest.raises(RobotError, match="state 4013"):
            driver.posture(posture)
    assert clock.sent == []
    driver.stop()
    assert clock.sent == ["StopMove"]


def test_an_unknown_firmware_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="classic"):
        find_firmware("1.2.3")
    assert {firmware.name for firmware in FIRMWARES.values()} == set(FIRMWARES)
