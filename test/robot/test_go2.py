"""The Go2 driver over real DDS against the simulated robot: what the contract of all drivers does not ask."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from test.robot.go2_support import driver
from test.simulator import dds_domain, simulator
from vlm_spec_decode.core.errors import DomainBusy, RobotRefused, RobotUnreachable
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver
from vlm_spec_decode.robot.go2.sdk import Go2Camera

pytestmark = [pytest.mark.dds, pytest.mark.sim]


@pytest.fixture(scope="module", name="go2")
def _go2() -> Iterator[Go2Driver]:
    with simulator(scene_seed=3), driver() as made:
        yield made


def walk(robot: Go2Driver, seconds: float, vx_mps: float = 0.4) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        robot.move(vx_mps, 0, 0)
        time.sleep(0.05)


@pytest.mark.parametrize("burst", [1, 30])
def test_a_stop_right_after_a_burst_of_moves_holds(go2: Go2Driver, burst: int) -> None:
    for _ in range(burst):
        go2.move(0.0, 0.0, 2.0)
    go2.stop()
    time.sleep(0.3)
    assert go2.state().is_still


def test_move_after_stand_up_does_nothing_until_balance_stand(go2: Go2Driver) -> None:
    go2.posture("stand_up")
    assert go2.state().code == 1002
    before = go2.state()
    walk(go2, 0.5)
    assert go2.state().x_m == before.x_m
    assert not go2.state().can_walk
    go2.posture("balance_stand")
    walk(go2, 0.5, vx_mps=0.3)
    go2.stop()
    assert go2.state().x_m != before.x_m


def test_a_posture_from_the_wrong_state_is_refused_by_name(go2: Go2Driver) -> None:
    go2.posture("sit")
    with pytest.raises(RobotRefused, match="Hello returned 4206"):
        go2.posture("hello")
    go2.posture("rise")
    with pytest.raises(RobotRefused, match="somersault"):
        go2.posture("somersault")


def test_the_camera_gives_fresh_frames(go2: Go2Driver) -> None:
    camera = Go2Camera(Go2Config(domain=dds_domain()))
    image, stamp_s = camera.frame()
    assert (image.width, image.height) == (640, 360)
    assert 0.0 <= time.monotonic() - stamp_s < 10.0
    _, later_s = camera.frame()
    assert later_s > stamp_s
    camera.close()
    with pytest.raises(RobotUnreachable):
        camera.frame()


def test_other_settings_in_the_same_process_are_a_named_error(go2: Go2Driver) -> None:
    with pytest.raises(DomainBusy, match=f"joined DDS domain {dds_domain()} on 'lo'"):
        Go2Driver(Go2Config(domain=dds_domain() + 1)).start()


def test_start_again_gets_a_damped_robot_up(go2: Go2Driver) -> None:
    go2.posture("damp")
    assert go2.state().code == 1001
    go2.start()
    assert go2.state().can_walk
