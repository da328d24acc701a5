"""From when on a frame shows what one at rest will show, as the executor says, and takes it back."""

import math

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.control.motion_profile import MotionTuning, StraightMotion, TurnMotion
from vlm_spec_decode.control.settling import Settling, SettlingLimits
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.fake import Disc


def followed(rig: Rig, text: str, *, final: bool = True) -> list[tuple[float, PlanStatus, RobotState]]:
    """Send a plan and return time, status and state of each control period up to its end."""
    rig.send(text, final=final)
    found = []
    while not found or found[-1][1].state == "moving":
        status = rig.go(rig.executor.period_s)
        found.append((rig.clock.now(), status, rig.robot.state()))
    return found


@pytest.mark.parametrize("text", ["forward(1.0)", "turn(60)", "strafe(0.5)", "turn(30) forward(1.0)"])
def test_it_is_said_shortly_before_rest_and_the_body_is_all_but_there(text: str) -> None:
    found = followed(Rig(), text)
    end_s, end, at_end = found[-1]
    first_s, first, state = next(each for each in found if each[1].settling)
    assert end.state == "done"
    assert end.settling
    assert first.state == "moving"
    assert 0.15 <= end_s - first_s <= 0.6, "that is how much sooner the next question can go up"
    assert math.hypot(state.x_m - at_end.x_m, state.y_m - at_end.y_m) <= SettlingLimits().moved_m
    assert abs(math.degrees(state.yaw_rad - at_end.yaw_rad)) <= math.degrees(SettlingLimits().moved_rad)
    assert not any(status.settling for at_s, status, _ in found if at_s < first_s)
    assert all(status.settling for at_s, status, _ in found if at_s >= first_s)


def test_it_is_not_said_of_an_action_that_another_follows() -> None:
    found = followed(Rig(), "forward(0.5) turn(40)")
    assert not any(status.settling for _, status, _ in found if status.actions_done == 0)


def test_it_is_not_said_while_the_answer_may_go_on() -> None:
    found = followed(Rig(), "forward(0.5)", final=False)
    assert found[-1][1].state == "idle"
    assert not any(status.settling for _, status, _ in found)


@pytest.mark.parametrize(
    "text", ["forward(0.5) wait(0.5)", "wait(0.5)", "forward(0.5) done()", "look(10, 0)"]
)
def test_it_is_not_said_of_what_is_no_motion(text: str) -> None:
    assert not any(status.settling for _, status, _ in followed(Rig(), text))


def test_an_obstacle_and_an_estop_take_it_back() -> None:
    found = followed(Rig(Disc(1.2, 0.0, 0.1)), "forward(2.0)")
    assert (found[-1][1].state, found[-1][1].reason) == ("refused", "obstacle")
    assert not found[-1][1].settling
    rig = Rig()
    rig.send("forward(1.0)")
    while not rig.go(rig.executor.period_s).settling:
        pass
    rig.executor.estop(True)
    assert not rig.go(0.1).settling


def test_the_next_answer_begins_without_it() -> None:
    rig = Rig()
    assert followed(rig, "turn(30)")[-1][1].settling
    rig.send("forward(1.0)", answer=1)
    assert not rig.go(0.2).settling


def at(x_m: float = 0.0, yaw_deg: float = 0.0, vx_mps: float = 0.0) -> RobotState:
    return RobotState(0.0, 0.0, x_m, 0.0, math.radians(yaw_deg), vx_mps, 0.0, 0.0)


LIMITS, TUNING = SafetyLimits(), MotionTuning()


@pytest.mark.parametrize(
    ("whole_m", "x_m", "vx_mps", "counts"),
    [
        (1.0, 0.97, 0.1, True),
        (1.0, 0.95, 0.1, False),  # too far from its end
        (1.0, 0.97, 0.3, False),  # too fast
        (0.1, 0.07, 0.1, False),  # three centimetres are a third of this step
        (0.1, 0.09, 0.1, True),
        (-0.5, -0.48, -0.1, True),
    ],
)
def test_when_a_way_is_all_but_over(whole_m: float, x_m: float, vx_mps: float, counts: bool) -> None:
    settling = Settling(SettlingLimits())
    settling.observe(StraightMotion(whole_m, False, LIMITS, TUNING, at()), at(x_m, vx_mps=vx_mps))
    assert settling.is_settling is counts


def test_a_correction_that_leads_away_takes_it_back() -> None:
    motion, settling = TurnMotion(math.radians(60), LIMITS, TUNING, at()), Settling(SettlingLimits())
    for yaw_deg, counts in ((30, False), (59, True), (62, True), (63.5, False)):
        settling.observe(motion, at(yaw_deg=yaw_deg))
        assert settling.is_settling is counts
    settling.observe(None, at(yaw_deg=63.5))
    assert not settling.is_settling
