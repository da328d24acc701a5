"""A motion that begins on a draft: its limits, what confirms it, what corrects it, and what ends it."""

from __future__ import annotations

import json
import math

import pytest

from test.actions.rig import Rig
from vlm_spec_decode.actions.limits import START_DISTANCE_M, SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Forward, Turn
from vlm_spec_decode.control.plan_queue import PlanReceipt, PlanTracker
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.errors import ActionParseError, ActionRefused
from vlm_spec_decode.robot.fake import Disc

STAND_S = 0.05


class StartRig(Rig):
    """Sends an answer's empty plan, then the draft's first action, then what the cloud commits."""

    def begin(self, text: str, *, answer: int = 1) -> None:
        """Start on a draft."""
        self.send("", answer=answer, final=False)
        self.go(STAND_S)
        self.start(text, answer=answer)

    def start(self, text: str, *, answer: int = 1, sequence: int = 1) -> None:
        """Send a start on a draft without the answer's empty plan before it."""
        actions = parse_answer(text)
        stamp_s = self._sent.stamp_s if self._sent else self.clock.now()
        self._sent = Plan("m", answer, stamp_s, sequence, actions, verified=False, draft_start=True)
        self.executor.submit(self._sent)

    def commit(self, text: str, *, answer: int = 1, sequence: int = 2, final: bool = True) -> None:
        """Send the committed plan."""
        self.send(text, answer=answer, sequence=sequence, final=final)

    def finish(self) -> PlanStatus:
        """Let the answer be carried out."""
        for _ in range(100):
            if (status := self.go(0.2)).is_terminal:
                return status
        raise AssertionError(status)

    def stops(self) -> int:
        """Return how often the driver was asked to stop."""
        return sum(call == "stop" for _, call in self.robot.calls)


@pytest.mark.parametrize(
    ("draft", "said", "after_s", "wanted_m", "wanted_deg"),
    [
        ("turn(40)", "turn(40)", 0.8, 0.0, 40.0),
        ("turn(40)", "turn(60)", 0.8, 0.0, 60.0),
        ("turn(-40)", "turn(-25)", 0.8, 0.0, -25.0),
        ("forward(0.3)", "forward(1.2)", 0.8, 1.2, 0.0),
        ("forward(0.3)", "forward(0.2)", 0.6, 0.2, 0.0),
    ],
)
def test_the_same_motion_goes_on_without_a_stop(
    draft: str, said: str, after_s: float, wanted_m: float, wanted_deg: float
) -> None:
    rig = StartRig()
    rig.begin(draft)
    status = rig.go(after_s)
    assert (status.state, status.start, status.executed) == ("moving", "begun", ())
    stops, sent, at_s = rig.stops(), len(rig.moves()), rig.clock.now()
    rig.commit(said)
    status = rig.go(0.3)
    assert (status.state, status.start) == ("moving", "confirmed")
    assert rig.stops() == stops
    # No velocity sent since is zero, and none is a jump.
    since = [v for t, v in rig.moves() if t >= at_s - 1e-9]
    assert len(rig.moves()) > sent
    assert all(any(v) for v in since)
    status = rig.finish()
    assert (status.state, status.executed) == ("done", (said,))
    assert rig.x_m == pytest.approx(wanted_m, abs=0.06)
    assert rig.yaw_deg == pytest.approx(wanted_deg, abs=2.5)


@pytest.mark.parametrize(("draft", "said"), [("turn(20)", "turn(50)"), ("forward(0.3)", "forward(1)")])
def test_a_start_that_has_ended_counts_too(draft: str, said: str) -> None:
    rig = StartRig()
    rig.begin(draft)
    status = rig.go(5.0)
    assert (status.state, status.start, status.executed) == ("idle", "begun", ())
    rig.commit(said)
    assert rig.finish().executed == (said,)
    assert rig.executor.status().start == "confirmed"
    whole = parse_answer(said)[0]
    if isinstance(whole, Turn):
        assert rig.yaw_deg == pytest.approx(whole.angle_deg, abs=2.5)
    else:
        assert rig.x_m == pytest.approx(1.0, abs=0.06)


def test_reduced_limits_hold_on_the_draft_and_the_full_ones_afterwards() -> None:
    rig = StartRig()
    rig.begin("forward(0.3)")
    rig.go(1.0)
    assert 0.1 < max(vx for _, (vx, _, _) in rig.moves()) <= rig.limits.unverified_speed_mps + 1e-9
    rig.commit("forward(1.5)")
    rig.finish()
    assert max(vx for _, (vx, _, _) in rig.moves()) > rig.limits.unverified_speed_mps + 0.1


@pytest.mark.parametrize(
    ("draft", "said", "goal"),
    [
        ("turn(40)", "turn(-30)", (0.0, 0.0, -30.0)),
        ("turn(40)", "forward(1)", (1.0, 0.0, 0.0)),
        ("forward(0.3)", "turn(90)", (0.25, 0.0, 90.0)),
        ("forward(0.3)", "turn(90) forward(1)", (0.0, 1.0, 90.0)),
        ("turn(-30)", "turn(45) forward(1)", (math.sqrt(0.5), math.sqrt(0.5), 45.0)),
        ("forward(0.3)", "forward(-0.5)", (-0.5, 0.0, 0.0)),
        ("turn(40)", "wait(0.5)", (0.0, 0.0, None)),
        ("turn(40)", "done()", (0.0, 0.0, None)),
    ],
)
def test_another_action_stops_the_body_at_once_and_leads_to_where_it_would_have_led(
    draft: str, said: str, goal: tuple[float, float, float | None]
) -> None:
    rig = StartRig()
    rig.begin(draft)
    rig.go(1.2)
    rig.commit(said)
    rig.executor.tick()
    status = rig.executor.status()
    assert status.start == "corrected"
    assert said.split(maxsplit=1)[0] in status.start_detail
    assert rig.executor.last_stop is not None
    assert rig.executor.last_stop.cause == "draft_corrected"
    status = rig.finish()
    assert (status.state, " ".join(status.executed)) == ("done", said)
    x_m, y_m, yaw_deg = goal
    assert (rig.x_m, rig.y_m) == pytest.approx((x_m, y_m), abs=0.12)
    if yaw_deg is not None:
        assert math.remainder(rig.yaw_deg - yaw_deg, 360.0) == pytest.approx(0.0, abs=15.0)


def test_an_answer_without_an_action_stops_the_body_and_leaves_it_there() -> None:
    rig = StartRig()
    rig.begin("forward(0.3)")
    rig.go(0.8)
    rig.commit("")
    status = rig.finish()
    assert (status.state, status.start, status.executed) == ("done", "corrected", ())
    assert rig.is_still
    assert rig.x_m < START_DISTANCE_M


def test_actions_that_follow_the_first_come_later_and_are_told_from_the_same_frame() -> None:
    rig = StartRig()
    rig.begin("forward(0.3)")
    rig.go(1.2)
    rig.commit("turn(90)", final=False)
    rig.go(3.0)
    rig.commit("turn(90) forward(1)", sequence=3)
    assert rig.finish().executed == ("turn(90)", "forward(1)")
    assert (rig.x_m, rig.y_m) == pytest.approx((0.0, 1.0), abs=0.1)


def test_what_is_walked_beyond_a_shorter_way_is_not_walked_again() -> None:
    rig = StartRig()
    rig.begin("forward(0.3)")
    rig.go(5.0)
    rig.commit("forward(0.1)")
    status = rig.finish()
    assert (status.start, status.executed) == ("corrected", ("forward(0.1)",))
    assert rig.x_m == pytest.approx(0.3, abs=0.06)


def test_a_draft_that_takes_its_start_back_stops_the_body_and_the_answer_goes_on() -> None:
    rig = StartRig()
    rig.begin("turn(40)")
    rig.go(0.8)
    rig.start("", sequence=2)
    rig.executor.tick()
    status = rig.executor.status()
    assert (status.state, status.start) == ("idle", "withdrawn")
    rig.go(1.0)
    assert rig.is_still
    turned_deg = rig.yaw_deg
    assert turned_deg > 3.0
    rig.commit("turn(-20)", sequence=3)
    rig.finish()
    assert rig.yaw_deg == pytest.approx(-20.0, abs=2.5)


@pytest.mark.parametrize(
    ("draft", "discs", "limits", "reason"),
    [
        ("forward(0.3)", (Disc(1.05, 0.0, 0.2),), None, "start_obstacle"),
        ("turn(30)", (Disc(0.0, 0.5, 0.2),), None, "start_obstacle"),
        ("turn(30)", (Disc(-0.7, 0.0, 0.2),), None, "start_obstacle"),
        ("forward(0.3)", (), {"geofence": ((-1, -1), (0.5, -1), (0.5, 1), (-1, 1))}, "start_geofence"),
        ("forward(0.31)", (), None, "limit_distance"),
        ("turn(91)", (), None, "limit_angle"),
        ("forward(-0.2)", (), None, "start_action"),
        ("strafe(0.2)", (), None, "start_action"),
        ("hello()", (), None, "start_action"),
        ("sit()", (), None, "start_action"),
        ("done()", (), None, "start_action"),
        ("wait(1)", (), None, "start_action"),
        ("look(5,5)", (), None, "start_action"),
        ("forward(0.3)", (), {"max_frame_age_s": 0.01}, "stale_frame"),
        ("forward(0.2)", (), {"unverified_distance_m": 0.1}, "limit_distance"),
    ],
)
def test_what_a_draft_may_not_begin_is_refused_by_name_and_ends_no_answer(
    draft: str, discs: tuple[Disc, ...], limits: dict[str, object] | None, reason: str
) -> None:
    rig = StartRig(*discs, limits=SafetyLimits(**(limits or {})))  # type: ignore[arg-type]
    before = len(rig.robot.calls)
    rig.begin(draft)
    status = rig.go(1.5)
    assert (status.state, status.start, status.executed) == ("idle", "refused", ())
    assert status.start_detail.startswith(f"{reason}: ")
    assert not rig.moves()
    assert {call for _, call in rig.robot.calls[before:]} <= {"", "stop"}
    rig.commit("wait(0.2)")
    assert rig.finish().executed == ("wait(0.2)",)


def test_a_wall_that_a_committed_walk_may_near_ends_a_start_further_away() -> None:
    rig = StartRig()
    rig.begin("forward(0.3)")
    rig.go(0.6)
    rig.robot.set_discs(Disc(rig.x_m + 0.35 + 0.2 + 0.25, 0.0, 0.2))
    status = rig.go(0.5)
    assert (status.state, status.start) == ("idle", "refused")
    assert "obstacle" in status.start_detail
    assert rig.is_still
    # The committed walk goes on from there, by its own limits.
    rig.robot.set_discs()
    rig.commit("forward(1)")
    rig.finish()
    assert rig.x_m == pytest.approx(1.0, abs=0.06)


def test_a_tilted_body_begins_nothing_on_a_draft() -> None:
    rig = StartRig()
    rig.send("look(10,0)", answer=0)
    rig.go(2.0)
    rig.begin("turn(20)")
    assert rig.go(0.5).start_detail.startswith("start_action")
    assert not rig.moves()


@pytest.mark.parametrize("ending", ["estop", "cancel", "teleop", "watchdog", "superseded", "lost", "stale"])
def test_whatever_ends_a_committed_motion_ends_a_start(ending: str) -> None:
    rig = StartRig()
    rig.begin("turn(80)")
    rig.go(0.8)
    if ending == "estop":
        rig.executor.estop(True)
    elif ending == "cancel":
        rig.executor.cancel()
    elif ending == "teleop":
        rig.executor.steer((0.0, 0.0, 0.0))
    elif ending == "superseded":
        rig.send("", mission="other", answer=0, final=False)
    elif ending == "lost":
        rig.send("", answer=2, final=False)
    elif ending == "stale":
        rig.robot.faults.frozen_stamp = True
    rig.go(1.0, heartbeat=ending in ("superseded", "lost", "stale"))
    rig.robot.faults.frozen_stamp = False
    assert rig.is_still
    turned_deg = rig.yaw_deg
    status = rig.executor.status()
    reason = {"watchdog": "watchdog", "cancel": "cancelled", "teleop": "teleop", "estop": "estop",
              "stale": "stale_state"}.get(ending)  # fmt: skip
    if reason:
        assert status.reason == reason
    if ending == "watchdog":
        # The answer has ended: neither its start nor its committed plan moves the body again.
        rig.commit("turn(80)", sequence=5)
        rig.go(1.0)
        assert rig.yaw_deg == pytest.approx(turned_deg, abs=0.1)
    if ending in ("lost", "watchdog"):
        # The next answer is about a frame after the motion, so nothing of it is taken off.
        rig.send("turn(80)", answer=3)
        rig.finish()
        assert rig.yaw_deg == pytest.approx(turned_deg + 80.0, abs=2.5)


def test_only_the_first_action_of_an_answer_may_begin_on_a_draft_and_only_once() -> None:
    rig = StartRig()
    rig.send("turn(10)", answer=1, final=False)
    rig.go(3.0)
    rig.start("turn(30)")
    assert rig.go(0.2).reason == "plan_changed"
    again = StartRig()
    again.begin("turn(10)")
    again.go(0.3)
    again.start("turn(30)", sequence=2)
    assert again.go(0.2).reason == "plan_changed"


def test_an_older_start_that_comes_late_is_dropped() -> None:
    rig = StartRig()
    rig.begin("turn(40)")
    rig.go(0.5)
    late = rig._sent
    rig.commit("turn(40) turn(20)")
    assert late is not None
    for _ in range(10):
        rig.executor.submit(late)
        rig.go(0.1)
    assert rig.finish().executed == ("turn(40)", "turn(20)")


def test_the_start_may_be_the_first_message_of_its_answer_that_arrives() -> None:
    rig = StartRig()
    rig.start("turn(40)", answer=4)
    assert rig.go(0.8).start == "begun"
    rig.commit("turn(40)", answer=4)
    assert rig.finish().executed == ("turn(40)",)
    assert rig.yaw_deg == pytest.approx(40.0, abs=2.5)


# Messages -------------------------------------------------------------------------------------------------


def test_a_start_travels_as_json_and_other_plans_look_as_before() -> None:
    plan = Plan("m", 1, 2.0, 3, (Turn(20.0),), verified=False, draft_start=True)
    assert Plan.from_json(plan.to_json()) == plan
    plain = Plan("m", 1, 2.0, 3, (Turn(20.0),))
    assert "draft_start" not in json.loads(plain.to_json())
    assert Plan.from_json(plain.to_json()) == plain


@pytest.mark.parametrize(
    "change", [{"verified": True}, {"final": True}, {"actions": ["turn(1)", "turn(2)"]}, {"draft_start": 1}]
)
def test_a_start_that_claims_more_is_no_message(change: dict[str, object]) -> None:
    data = json.loads(Plan("m", 1, 2.0, 3, (Turn(20.0),), verified=False, draft_start=True).to_json())
    with pytest.raises(ActionParseError):
        Plan.from_json(json.dumps(data | change))


def test_a_status_tells_of_a_start_only_if_there_was_one() -> None:
    status = PlanStatus("m", 1, state="moving", start="begun", start_detail="turn(20)")
    assert PlanStatus.from_json(status.to_json()) == status
    assert "start" not in json.loads(PlanStatus("m", 1).to_json())
    wrong = json.loads(status.to_json()) | {"start": "perhaps"}
    with pytest.raises(ActionParseError, match="perhaps"):
        PlanStatus.from_json(json.dumps(wrong))


def test_plans_around_a_start_are_told_apart() -> None:
    tracker = PlanTracker()
    start = Plan("m", 1, 0.0, 1, (Turn(20.0),), verified=False, draft_start=True)
    assert tracker.receive(Plan("m", 1, 0.0, 0), 0.0, 0.1) is PlanReceipt.NEW
    assert tracker.receive(start, 0.1, 0.2) is PlanReceipt.START
    assert tracker.receive(start, 0.2, 0.3) is PlanReceipt.BEAT
    assert tracker.action(0) == (Turn(20.0), 0.2)
    committed = Plan("m", 1, 0.0, 2, (Forward(1.0),))
    assert tracker.receive(committed, 0.9, 1.5) is PlanReceipt.COMMITTED
    # The age of the frame counts to the arrival of the committed action, not of the draft's.
    assert tracker.action(0) == (Forward(1.0), 1.5)
    assert tracker.receive(start, 1.0, 1.6) is PlanReceipt.DROPPED
    for wrong in (
        Plan("m", 1, 0.0, 3, (Turn(20.0),), verified=False, draft_start=True),
        Plan("m", 2, 0.0, 0, (Turn(20.0),), True, False, draft_start=True),
    ):
        with pytest.raises(ActionRefused):
            tracker.receive(wrong, 1.1, 0.1)


def test_limits_of_a_start_are_never_wider_than_those_of_an_unverified_plan() -> None:
    for limits in (SafetyLimits(), SafetyLimits(unverified_distance_m=0.1, unverified_angle_deg=20.0)):
        start, unverified = limits.start(), limits.unverified()
        assert start.max_distance_m <= min(unverified.max_distance_m, START_DISTANCE_M)
        assert start.max_angle_deg <= unverified.max_angle_deg
        assert start.max_speed_mps <= unverified.max_speed_mps
        assert start.max_turn_radps <= unverified.max_turn_radps
        assert start.obstacle_stop_m > unverified.obstacle_stop_m
        with pytest.raises(ActionRefused):
            SafetyGate(start).check_plan((Turn(10.0), Turn(10.0)))
