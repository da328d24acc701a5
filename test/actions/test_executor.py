"""The executor on the fake robot in virtual time: it arrives, it stops, and it says why."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test.actions.rig import Rig
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.control.action_runner import DriverCall, PendingCall
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.errors import ActionRefused, RobotStale
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.fake import Disc, FakeBody

bodies = st.builds(
    FakeBody,
    delay_s=st.floats(0.02, 0.05),
    lag_s=st.floats(0.05, 0.25),
    state_period_s=st.sampled_from([0.02, 0.05]),
)


@settings(max_examples=40, deadline=None)
@given(st.integers(-300, 300).map(lambda cm: cm / 100), bodies, st.sampled_from(["forward", "strafe"]))
def test_distances_end_within_ten_centimetres(distance_m: float, body: FakeBody, name: str) -> None:
    rig = Rig(body=body)
    status = rig.run(f"{name}({distance_m})")
    assert (status.state, status.reason) == ("done", "")
    assert rig.is_still
    along, across = (rig.x_m, rig.y_m) if name == "forward" else (rig.y_m, rig.x_m)
    assert along == pytest.approx(distance_m, abs=0.1)
    assert across == pytest.approx(0, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(-180, 180), bodies)
def test_turns_end_within_three_degrees(angle_deg: int, body: FakeBody) -> None:
    rig = Rig(body=body)
    assert rig.run(f"turn({angle_deg})").state == "done"
    assert rig.yaw_deg == pytest.approx(angle_deg, abs=3)


def test_commands_stay_within_speed_and_slew() -> None:
    rig = Rig()
    rig.run("forward(1.5) turn(120) strafe(-0.6) forward(-0.5)")
    limits = rig.limits
    for (t0, a), (t1, b) in pairwise(rig.moves()):
        assert math.hypot(b[0], b[1]) <= limits.max_speed_mps + 1e-9
        assert abs(b[2]) <= limits.max_turn_radps + 1e-9
        slew = (limits.max_accel_mps2, limits.max_accel_mps2, limits.max_turn_accel_radps2)
        for before, after, limit in zip(a, b, slew, strict=True):
            assert abs(after - before) <= limit * min(t1 - t0, 0.1) + 2e-3
    assert max(velocity[0] for _, velocity in rig.moves()) == pytest.approx(limits.max_speed_mps)


def test_heading_is_held_while_driving() -> None:
    """A robot that is pushed off its heading on the way comes back to it."""
    rig = Rig()
    rig.send("forward(2)")
    rig.go(1.0)
    x, y, _ = rig.robot.true_pose
    rig.robot.set_pose(x, y, math.radians(8))
    rig.go(6.0)
    assert rig.yaw_deg == pytest.approx(0, abs=1.0)


def test_a_whole_answer_is_carried_out_in_order() -> None:
    rig = Rig()
    status = rig.run("turn(90) forward(1) look(10,5) wait(0.5) hello() sit() rise() stop() done()")
    assert status.state == "done"
    assert status.actions_done == 9
    assert status.executed[:3] == ("turn(90)", "forward(1)", "look(10,5)")
    assert status.executed[-1] == "done()"
    assert rig.y_m == pytest.approx(1, abs=0.1)
    postures = [call for _, call in rig.robot.calls if not call.startswith("move") and call != "stop"]
    assert postures == ["recovery_stand", "look(0.175,0.087)", "hello", "sit", "rise"]


def test_the_body_is_levelled_before_walking() -> None:
    rig = Rig()
    rig.run("look(15,0)")
    assert rig.robot.state().pitch_rad == pytest.approx(math.radians(15))
    rig.run("forward(0.3)", answer=1)
    assert rig.robot.state().pitch_rad == 0


def test_standing_up_ends_in_a_stance_that_walks() -> None:
    rig = Rig(starts=False)
    assert rig.run("forward(1)").reason == "mode"
    assert rig.run("stand_up() forward(0.5)", answer=1).state == "done"
    assert rig.x_m == pytest.approx(0.5, abs=0.1)


def test_a_growing_plan_goes_on_where_it_was() -> None:
    rig = Rig()
    rig.send("forward(0.5)", final=False)
    status = rig.go(4.0)
    assert (status.state, status.executed) == ("idle", ("forward(0.5)",))
    rig.send("forward(0.5) turn(30)", final=False, sequence=1)
    assert rig.go(0.2).state == "moving"
    rig.send("forward(0.5) turn(30) done()", final=True, sequence=2)
    status = rig.go(4.0)
    assert (status.state, status.actions_done) == ("done", 3)
    assert rig.x_m == pytest.approx(0.5, abs=0.1)
    assert rig.yaw_deg == pytest.approx(30, abs=3)


def test_a_plan_that_contradicts_itself_stops_the_robot() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.send("forward(1)", sequence=1)
    status = rig.go(0.1)
    assert (status.state, status.reason) == ("refused", "plan_changed")
    assert rig.is_still


def test_late_and_repeated_messages_change_nothing() -> None:
    rig = Rig()
    old = rig.plan("turn(90)", answer=0)
    rig.send("forward(0.4)", answer=1)
    rig.go(0.1)
    rig.executor.submit(old)
    assert rig.go(4.0).executed == ("forward(0.4)",)
    rig.executor.submit(old)
    assert rig.go(1.0).answer == 1
    assert rig.yaw_deg == pytest.approx(0, abs=0.5)


def test_a_new_answer_supersedes_and_an_old_mission_never_returns() -> None:
    rig = Rig()
    rig.send("forward(3)", mission="first")
    rig.go(1.0)
    away = rig.x_m
    old = rig.plan("forward(3) turn(90)", mission="first", sequence=5)
    rig.send("turn(-45)", mission="second")
    status = rig.go(4.0)
    assert (status.mission, status.state) == ("second", "done")
    assert rig.x_m - away < 0.25
    assert rig.yaw_deg == pytest.approx(-45, abs=3)
    rig.executor.submit(old)
    rig.go(2.0)
    assert rig.executor.status().mission == "second"
    assert rig.yaw_deg == pytest.approx(-45, abs=3)


@pytest.mark.parametrize("text", ["forward(3)", "turn(170)", "strafe(2)", "wait(5) forward(1)"])
def test_silence_stops_within_three_tenths_of_a_second(text: str) -> None:
    rig = Rig()
    rig.send(text)
    rig.go(1.0)
    silent_since_s = rig.clock.now()
    status = rig.go(1.5, heartbeat=False)
    assert (status.state, status.reason) == ("stopped", "watchdog")
    report = rig.executor.last_stop
    assert report is not None
    assert report.cause == "watchdog"
    assert report.commanded_s - silent_since_s <= 0.3
    assert 0.2 < report.reaction_s <= 0.3
    assert 0 <= report.standstill_s < 0.8
    assert report.distance_m is not None
    assert report.distance_m < 0.2
    assert rig.is_still
    moves_after = [at for at, _ in rig.moves() if at > report.commanded_s]
    assert moves_after == []


def test_silence_is_no_fault_when_nothing_is_under_way() -> None:
    rig = Rig()
    rig.send("forward(0.2)", final=False)
    rig.go(3.0)
    assert rig.go(3.0, heartbeat=False).state == "idle"


def test_a_mission_may_go_on_with_a_new_answer_after_the_watchdog() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(0.5)
    rig.go(1.0, heartbeat=False)
    rig.go(1.0)  # the same answer again moves nothing
    assert rig.executor.status().reason == "watchdog"
    before = rig.x_m
    rig.send("forward(0.3)", answer=1)
    assert rig.go(4.0).state == "done"
    assert rig.x_m - before == pytest.approx(0.3, abs=0.1)


def test_cancel_stops_and_closes_the_mission() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.executor.cancel()
    status = rig.go(0.05)
    assert (status.state, status.reason) == ("stopped", "cancelled")
    assert rig.is_still
    there = rig.x_m
    rig.send("forward(1)", answer=1)
    status = rig.go(2.0)
    assert (status.answer, status.state, status.reason) == (1, "stopped", "cancelled")
    assert rig.x_m == pytest.approx(there, abs=0.01)
    rig.send("forward(0.3)", mission="next")
    assert rig.go(4.0).state == "done"


def test_estop_latches_until_reset_and_voids_what_was_commanded() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    report = rig.executor.estop(True)
    assert report is not None
    assert report.reaction_s == 0
    assert report.confirmed_s is not None
    assert rig.executor.status().state == "estop"
    there = rig.x_m
    rig.send("forward(2)", mission="during")
    assert rig.go(1.0).state == "estop"
    rig.executor.estop(False)
    status = rig.go(1.0)  # the heartbeat of a mission that was asked for during the e-stop goes on
    assert (status.mission, status.state, status.reason) == ("during", "stopped", "estop")
    assert rig.x_m == pytest.approx(there, abs=0.01)
    assert rig.executor.last_stop == report
    rig.send("forward(0.3)", mission="after")
    assert rig.go(4.0).state == "done"


def test_estop_that_is_released_between_two_ticks_still_ends_the_mission() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.executor.estop(True)
    rig.executor.estop(False)
    there = rig.x_m
    status = rig.go(2.0)
    assert (status.state, status.reason) == ("stopped", "estop")
    assert rig.x_m == pytest.approx(there, abs=0.01)


@pytest.mark.parametrize("fault", [ValueError("a bug of the driver"), RobotStale("3 s old")])
def test_a_driver_that_cannot_tell_its_state_is_still_stopped(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(2.0)
    stopped: list[bool] = []

    def state() -> RobotState:
        raise fault

    monkeypatch.setattr(rig.robot, "state", state)
    monkeypatch.setattr(rig.robot, "stop", lambda: stopped.append(True))
    report = rig.executor.estop(True)
    assert stopped
    assert report is not None
    assert report.distance_m is None


def test_estop_is_not_released_while_the_robot_moves() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.robot.faults.deaf = True
    report = rig.executor.estop(True)
    assert report is not None
    assert report.confirmed_s is None
    rig.robot.faults.deaf = False
    rig.robot.move(0.5, 0, 0)
    rig.clock.sleep(0.5)
    with pytest.raises(ActionRefused, match="estop"):
        rig.executor.estop(False)
    assert rig.executor.status().state == "estop"
    rig.go(1.0)  # the latch goes on stopping
    assert rig.is_still
    rig.executor.estop(False)


def test_a_robot_that_does_not_stop_is_a_fault_and_is_stopped_again() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.robot.faults.deaf = True
    rig.executor.cancel()
    rig.executor.tick()
    assert rig.executor.status().state == "fault"
    before = sum(call == "stop" for _, call in rig.robot.calls)
    rig.robot.faults.deaf = False
    rig.go(1.0, heartbeat=False)
    assert sum(call == "stop" for _, call in rig.robot.calls) > before
    assert rig.is_still


@pytest.mark.parametrize(("centre_m", "radius_m"), [(2.0, 0.3), (1.0, 0.3), (1.5, 0.05)])
def test_forward_stops_before_an_obstacle(centre_m: float, radius_m: float) -> None:
    rig = Rig(Disc(centre_m, 0.0, radius_m))
    status = rig.run("forward(3)")
    assert (status.state, status.reason) == ("refused", "obstacle")
    gap = centre_m - radius_m - 0.35 - rig.x_m
    assert 0.07 <= gap <= 0.2
    assert rig.is_still


def test_what_steps_in_the_way_stops_the_robot_before_contact() -> None:
    """At full speed with the gap that braking needs: there is no time for the smooth profile."""
    rig = Rig()
    rig.send("forward(3)")
    rig.go(2.0)
    rig.robot.set_discs(Disc(rig.x_m + 0.35 + 0.30 + 0.2, 0.0, 0.2))
    status = rig.go(1.0)
    assert (status.state, status.reason) == ("refused", "obstacle")
    assert rig.robot.state().range_obstacle_m[0] > 0.02


def test_approach_to_half_a_metre_of_the_centre_is_carried_out() -> None:
    rig = Rig(Disc(2.2, 0.0, 0.2))
    status = rig.run("forward(1.5)")
    assert status.state == "done"
    assert 2.0 - rig.x_m == pytest.approx(0.5, abs=0.1)


def test_an_obstacle_just_before_the_end_does_not_spoil_it() -> None:
    rig = Rig(Disc(2.0, 0.0, 0.2))
    status = rig.run("forward(1.38) turn(20)")
    assert (status.state, status.executed) == ("done", ("forward(1.38)", "turn(20)"))
    assert rig.robot.state().range_obstacle_m[0] > 0.05


def test_backing_away_from_an_obstacle_is_free() -> None:
    rig = Rig(Disc(0.6, 0.0, 0.2))
    assert rig.run("forward(1)").reason == "obstacle"
    assert rig.run("forward(-0.5)", answer=1).state == "done"


def test_no_progress_is_blocked() -> None:
    rig = Rig()
    rig.robot.faults.stuck = True
    began_s = rig.clock.now()
    status = rig.run("forward(1)")
    assert (status.state, status.reason) == ("refused", "blocked")
    assert rig.clock.now() - began_s < 2.0


def test_geofence_is_watched_on_the_way() -> None:
    """The gate allows the whole way; a robot that is pushed aside on it stops at the fence."""
    fence = SafetyLimits(geofence=((-1.0, -1.0), (3.0, -1.0), (3.0, 1.0), (-1.0, 1.0)))
    rig = Rig(limits=fence)
    assert rig.run("forward(3)").reason == "geofence"
    rig.send("forward(2.5)", answer=1)
    rig.go(1.0)
    rig.robot.set_pose(rig.x_m, 0.98, math.radians(30))
    status = rig.go(3.0)
    assert (status.state, status.reason) == ("refused", "geofence")
    assert rig.y_m < 1.1


def test_limits_refuse_the_whole_plan_before_anything_moves() -> None:
    rig = Rig()
    status = rig.run("turn(30) forward(99)")
    assert (status.state, status.reason, status.executed) == ("refused", "limit_distance", ())
    assert rig.moves() == []


def test_an_old_frame_moves_nothing() -> None:
    rig = Rig()
    plan = Plan("m", 0, rig.clock.now() - 6.0, 0, (Forward(1.0),), True)
    rig.executor.submit(plan)
    rig.executor.tick()
    assert rig.executor.status().reason == "stale_frame"
    assert rig.moves() == []


def test_a_long_plan_is_not_stale_because_it_is_long() -> None:
    rig = Rig()
    assert rig.run("wait(6) forward(0.2)").state == "done"


@pytest.mark.parametrize("text", ["forward(3)", "turn(170)", "wait(5)"])
def test_frozen_stamp_is_a_fault_within_four_tenths_of_a_second(text: str) -> None:
    rig = Rig()
    rig.send(text)
    rig.go(1.0)
    rig.robot.faults.frozen_stamp = True
    frozen_s = rig.clock.now()
    status = rig.go(0.5)
    assert (status.state, status.reason) == ("fault", "stale_state")
    stops = [at for at, call in rig.robot.calls if call == "stop" and at > frozen_s]
    assert stops[0] - frozen_s <= 0.4
    rig.robot.faults.frozen_stamp = False
    rig.go(1.0)
    assert rig.is_still


def test_an_unreachable_robot_is_a_fault() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.robot.faults.unreachable = True
    status = rig.go(0.2)
    assert (status.state, status.reason) == ("fault", "unreachable")
    rig.robot.faults.unreachable = False
    rig.go(1.0)
    assert rig.is_still


def test_a_fall_is_a_fault() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.robot.fall()
    status = rig.go(0.2)
    assert (status.state, status.reason) == ("fault", "robot")
    assert "does not walk" in status.detail


def test_a_refused_posture_is_a_fault_that_names_the_call() -> None:
    rig = Rig()
    rig.robot.faults.refuse = frozenset({"hello"})
    status = rig.run("hello() forward(1)")
    assert (status.state, status.reason) == ("fault", "robot")
    assert "hello: posture unsuitable" in status.detail
    assert rig.moves() == []


def test_low_battery_is_refused() -> None:
    rig = Rig()
    rig.robot.battery_soc = 0.1
    assert rig.run("forward(1)").reason == "battery"
    assert rig.run("sit()", answer=1).state == "done"


def test_close_stops_the_robot() -> None:
    rig = Rig()
    rig.send("forward(3)")
    rig.go(1.0)
    rig.executor.close()
    assert rig.is_still
    rig.executor.close()


def test_a_lost_move_is_nothing_and_a_robot_that_refuses_them_is_a_fault() -> None:
    rig = Rig()
    rig.send("forward(1)")
    rig.go(1.0)
    rig.robot.faults.refuse = frozenset({"move"})
    rig.go(0.2)
    rig.robot.faults.refuse = frozenset()
    assert rig.go(4.0).state == "done"
    assert rig.x_m == pytest.approx(1, abs=0.1)
    rig.send("forward(-1)", answer=1)
    rig.go(1.0)
    rig.robot.faults.refuse = frozenset({"move"})
    status = rig.go(0.6)
    assert (status.state, status.reason) == ("fault", "robot")
    assert rig.is_still


class MeanwhileRunner:
    """Lets something happen at the very moment at which a posture begins, just before its call."""

    concurrent = False

    def __init__(self) -> None:
        self.before: Callable[[], object] = lambda: None

    def run(self, job: DriverCall, call: PendingCall) -> None:
        self.before()
        job.run(call.run)


def test_estop_is_not_released_while_a_posture_begins() -> None:
    """A job counts as running before its thread does: counted after, a release slipped through."""
    rig = Rig()
    runner = MeanwhileRunner()
    rig.executor = Executor(rig.robot, SafetyGate(), rig.clock, runner=runner)
    said: list[str] = []

    def press_and_release() -> None:
        rig.executor.estop(True)
        try:
            rig.executor.estop(False)
        except ActionRefused as refusal:
            said.append(refusal.detail)

    runner.before = press_and_release
    rig.send("hello()")
    rig.go(0.1)
    assert said == ["a posture is still under way"]
    assert rig.executor.status().state == "estop"
    assert not any(call == "hello" for _, call in rig.robot.calls)


@pytest.mark.parametrize("text", ["hello()", "forward(1)"])
def test_what_was_decided_before_an_estop_does_not_begin_after_its_release(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed and released inside one period, after its orders were read."""
    rig = Rig()
    read = rig.robot.state

    def press_and_release() -> RobotState:
        monkeypatch.setattr(rig.robot, "state", read)
        rig.executor.estop(True)
        rig.executor.estop(False)
        return read()

    rig.send(text)
    if text == "forward(1)":
        rig.go(0.5)
    before = len(rig.moves())
    monkeypatch.setattr(rig.robot, "state", press_and_release)
    rig.executor.tick()
    assert len(rig.moves()) == before
    assert not any(call == "hello" for _, call in rig.robot.calls)
    status = rig.go(1.0)
    assert (status.state, status.reason) == ("stopped", "estop")
    assert len(rig.moves()) == before
    assert rig.is_still
