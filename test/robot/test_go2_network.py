"""What the Go2 driver checks and translates before and without a robot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from unitree_sdk2py.idl.default import unitree_go_msg_dds__SportModeState_

from vlm_spec_decode.core.errors import (
    ConfigError,
    DomainBusy,
    ImageError,
    RobotError,
    RobotRefused,
    RobotUnreachable,
)
from vlm_spec_decode.core.robot import POSTURES, RobotState
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2 import config as network
from vlm_spec_decode.robot.go2.codes import PLANS, posture_of, steps_to_walk
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver
from vlm_spec_decode.robot.go2.link import to_state
from vlm_spec_decode.robot.go2.sdk import to_image


def in_state(code: int) -> RobotState:
    return RobotState(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, posture=posture_of(code), code=code)


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
    assert set(PLANS) == {*POSTURES, "recovery_stand", "balance_stand", "damp"}
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


@pytest.mark.parametrize("driver", ["sdk", "ros2", "cmd_vel"])
@pytest.mark.parametrize("rmw", ["rmw_cyclonedds_cpp", "rmw_fastrtps_cpp", "rmw_zenoh_cpp", ""])
@pytest.mark.parametrize(("ros_domain", "sdk_domain"), [(0, 0), (7, 7), (0, 1), (1, 0)])
def test_ros_and_sdk_clash_only_on_cyclone_and_one_domain(
    driver: str, rmw: str, ros_domain: int, sdk_domain: int
) -> None:
    clash = network.middleware_clash(rmw, ros_domain, sdk_domain, driver)
    expected = driver == "sdk" and rmw == "rmw_cyclonedds_cpp" and ros_domain == sdk_domain
    assert bool(clash) == expected
    if expected:
        assert all(way in clash for way in ("ROS_DOMAIN_ID", "rmw_fastrtps_cpp", "driver:=ros2"))
        with pytest.raises(DomainBusy, match=f"domain {sdk_domain} "):
            network.check_middleware(rmw, ros_domain, sdk_domain, driver)
    else:
        network.check_middleware(rmw, ros_domain, sdk_domain, driver)


@pytest.mark.parametrize(
    ("rmw", "said"), [("rmw_cyclonedds_cpp", "ROS_DOMAIN_ID"), ("rmw_fastrtps_cpp", "is the interface up")]
)
def test_a_domain_that_the_sdk_cannot_open_names_the_likely_cause(
    rmw: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the SDK prints becomes part of the error, and nothing of it reaches standard output."""
    code = (
        "import sys\n"
        "from unitree_sdk2py.core.channel import ChannelFactory\n"
        "from vlm_spec_decode.robot.go2 import sdk as go2_sdk\n"
        "def fails(self, domain, interface):\n"
        "    print('[ChannelFactory] create domain error. msg: already there')\n"
        "    return False\n"
        "ChannelFactory.Init = fails\n"
        "sys.modules['rclpy'] = sys\n"
        "try:\n"
        "    go2_sdk.join(3, 'lo')\n"
        "except go2_sdk.RobotUnreachable as error:\n"
        "    print('named', error)\n"
    )
    environ = os.environ | {"RMW_IMPLEMENTATION": rmw, "ROS_DOMAIN_ID": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("named DDS cannot open domain 3 on 'lo'")
    assert said in line


@pytest.mark.dds
def test_more_than_ten_processes_join_one_domain(tmp_path: Path) -> None:
    """Cyclone DDS 0.10 lets ten join by itself where `lo` has no multicast, as on most computers."""
    code = (
        "import sys\n"
        "from cyclonedds.domain import Domain, DomainParticipant\n"
        "from vlm_spec_decode.core.dds import domain_xml\n"
        "made = Domain(9, domain_xml('lo')), DomainParticipant(9)\n"
        "print('joined', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(13)]
    try:
        said = [process.stdout.readline().strip() for process in started if process.stdout]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert said == ["joined"] * 13
