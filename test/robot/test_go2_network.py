"""What the Go2 driver checks and translates before and without a robot."""

from __future__ import annotations

import pytest
from unitree_sdk2py.idl.default import unitree_go_msg_dds__SportModeState_

from vlm_spec_decode.core.errors import ConfigError, ImageError, RobotError, RobotRefused, RobotUnreachable
from vlm_spec_decode.core.robot import POSTURES, RobotState
from vlm_spec_decode.robot import codes, network
from vlm_spec_decode.robot.go2 import Go2Config, Go2Driver
from vlm_spec_decode.robot.go2_camera import to_image
from vlm_spec_decode.robot.go2_postures import PLANS, steps_to_walk
from vlm_spec_decode.robot.link import to_state


def in_state(code: int) -> RobotState:
    return RobotState(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, code=code)


@pytest.mark.parametrize("version", ["11.0.1", "12.3", "0.11.0"])
def test_new_dds_is_kept_away_from_a_real_robot_and_the_error_says_why(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network.metadata, "version", lambda _: version)
    with pytest.raises(RobotError, match=rf"cyclonedds {version}.*0\.10.*crash.*loopback"):
        network.check_dds_version(allow_simulator=False)
    network.check_dds_version(allow_simulator=True)
    network.check_network(1, "lo")
    others = [name for name in _interfaces() if name != "lo"]
    for interface in [*others, None]:
        with pytest.raises(RobotError, match="must not join"):
            network.check_network(0, interface)


def test_the_robots_own_dds_may_meet_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.metadata, "version", lambda _: "0.10.2")
    network.check_dds_version(allow_simulator=False)
    network.check_network(0, None)


def _interfaces() -> list[str]:
    import socket

    return [name for _, name in socket.if_nameindex()]


def test_loopback_is_told_from_its_flags_not_from_its_name() -> None:
    assert network.is_loopback("lo")
    assert not network.is_loopback(None)
    assert not network.is_loopback("lo/../lo")
    assert not network.is_loopback("loop9")


@pytest.mark.parametrize(("domain", "interface"), [(1, "nope0"), (233, "lo"), (-1, "lo")])
def test_an_unusable_network_is_a_named_error(domain: int, interface: str) -> None:
    driver = Go2Driver(Go2Config(domain=domain, interface=interface))
    with pytest.raises(RobotUnreachable, match=str(domain) if interface == "lo" else interface):
        driver.start()
    driver.close()


def test_before_start_there_is_no_state_and_nothing_to_stop() -> None:
    driver = Go2Driver(Go2Config())
    driver.stop()
    with pytest.raises(RobotUnreachable, match="not been started"):
        driver.state()
    with pytest.raises(RobotUnreachable, match="not been started"):
        driver.move(0.1, 0.0, 0.0)
    driver.close()
    driver.close()


@pytest.mark.parametrize(
    "settings", [{"stop_timeout_s": 0.2}, {"stop_timeout_s": 0.0}, {"stale_after_s": 5.0}]
)
def test_settings_that_would_make_it_unsafe_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Go2Config(**settings)


@pytest.mark.parametrize(("code", "words"), [(3102, "no service"), (3104, "no reply"), (9999, "unknown")])
def test_return_codes_become_errors_that_say_what_they_mean(code: int, words: str) -> None:
    with pytest.raises(RobotRefused, match=f"StandUp returned {code} .*{words}") as caught:
        codes.check("StandUp", code)
    assert caught.value.code == code
    codes.check("StandUp", 0)


def test_every_posture_has_a_plan_and_every_state_a_way_to_walk() -> None:
    assert set(PLANS) == set(POSTURES)
    calls = {code: [step.call for step in steps_to_walk(in_state(code))] for code in codes.STATE_CODES}
    assert calls[100] == calls[1013] == calls[1015] == []
    assert calls[1002] == ["BalanceStand"]
    assert calls[1007] == ["RiseSit", "BalanceStand"]
    assert calls[1001] == calls[1004] == ["RecoveryStand", "BalanceStand"]
    assert calls[1006] == [""]


def test_a_state_message_is_translated_with_its_units() -> None:
    message = unitree_go_msg_dds__SportModeState_()
    message.stamp.sec, message.stamp.nanosec = 5, 250_000_000
    message.error_code = 1015
    message.position = [1.0, -2.0, 0.3]
    message.velocity = [0.5, 0.1, 0.0]
    message.yaw_speed = 0.2
    message.imu_state.rpy = [0.01, 0.02, 1.5]
    message.range_obstacle = [0.8, 0.0, 3.0, 2.0]
    state = to_state(message, 7.0, 0.5)
    assert (state.stamp_s, state.received_s, state.code) == (5.25, 7.0, 1015)
    assert (state.x_m, state.y_m, state.yaw_rad) == (1.0, -2.0, 1.5)
    assert (state.vx_mps, state.vy_mps, state.vyaw_radps) == (0.5, 0.1, 0.2)
    assert state.range_obstacle_m == (0.8, 0.0, 3.0, 2.0), "one 0 is contact"
    message.range_obstacle = [0.0] * 4
    assert to_state(message, 5.0, 0.9).range_obstacle_m == (float("inf"),) * 4, "four are no sensor"
    assert state.battery_soc == 0.5


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a" + bytes(100), bytes(1000)])
def test_bytes_that_are_no_jpeg_are_a_named_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        to_image(data)
