"""benchmarks/continuous.py in small: times add up, actions overlap decoding, pairs are compared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.trace import GenerationResult, LinkUsage
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.edge.engine import AnswerUpdate, DraftedAction
from vlm_spec_decode.mission.state import RunnerConfig
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import World

ROOT = Path(__file__).parents[2]
FIRST_S, REST_S, DRAFT_S = 1.0, 2.0, 0.3


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


class ScriptedEngine:
    """Commits each answer's first action after `FIRST_S`, the rest after `REST_S` more.

    If it is to show its draft, that says after `DRAFT_S` what `drafts` hold for the answer.
    """

    def __init__(self, answers: tuple[str, ...], drafts: tuple[str, ...] = ()) -> None:
        self.clock, self._answers, self._drafts = VirtualClock(), iter(answers), drafts
        self.asked: list[Observation] = []
        self.previews: list[bool] = []

    def picture(self, data: bytes) -> Image:
        return Image(data, 4, 4)

    def answer(self, observation: Observation, *, preview: bool = False) -> Iterator[AnswerUpdate]:
        self.asked.append(observation)
        text = next(self._answers)
        actions = parse_answer(text)
        self.previews.append(preview)
        if preview and len(self.asked) <= len(self._drafts):
            self.clock.sleep(DRAFT_S)
            drafted = DraftedAction(parse_answer(self._drafts[len(self.asked) - 1])[0], "", 0.95)
            yield AnswerUpdate(answer=1, tokens=(), text="", actions=(), drafted=drafted)
            self.clock.sleep(FIRST_S - DRAFT_S)
        else:
            self.clock.sleep(FIRST_S)
        yield AnswerUpdate(answer=1, tokens=(1,), text="", actions=actions[:1])
        self.clock.sleep(REST_S)
        result = GenerationResult(
            tokens=(1, 2),
            text=text,
            strategy="scripted",
            rule="coupled",
            rounds=(),
            early_verdicts=0,
            time_to_first_token_s=FIRST_S,
            time_to_first_action_s=FIRST_S,
            total_s=FIRST_S + REST_S,
            usage=LinkUsage(0, 0, 0),
        )
        yield AnswerUpdate(answer=1, tokens=(2,), text=text, actions=actions[1:], result=result)

    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")


def play(
    way: str,
    answers: tuple[str, ...],
    limits: SafetyLimits | None = None,
    items: tuple[SceneObject, ...] = (),
    drafts: tuple[str, ...] = (),
) -> tuple[Any, Any, Any]:
    """Return the end, the timeline and the engine of a mission in a hall with these things."""
    from continuous_rig import PacedEngine, VirtualRobot
    from continuous_ways import WAYS

    world = World(Scene(0, 12.0, 12.0, items, Pose2D(0.0, 0.0, 0.0)))
    robot = VirtualRobot(HeadlessGo2(world), limits or SafetyLimits())
    engine = ScriptedEngine(answers, drafts)
    ending = WAYS[way].run(robot, PacedEngine(engine, engine.clock, robot), "walk", RunnerConfig())
    return ending, robot.timeline, engine


ANSWERS = ("forward(1.0) turn(30)", "forward(0.5) done()")


@pytest.mark.usefixtures("benchmarks")
def test_the_robot_moves_while_the_rest_is_decoded() -> None:
    ending, line, _ = play("present", ANSWERS)
    assert ending.status == "done"
    assert line.executed == ["forward(1)", "turn(30)", "forward(0.5)", "done()"]
    # Both answers' first motions take longer than what is left to decode, or nearly.
    assert REST_S <= line.overlap_s <= 2 * REST_S
    spent_s = sum(end_s - began_s for _, began_s, end_s in line.spans)
    assert spent_s == pytest.approx(line.mission_s, abs=1e-6)
    assert line.moving_s + line.waiting_s == pytest.approx(line.mission_s)
    for look in line.looks:
        assert look.first_action_s - look.frame_s == pytest.approx(FIRST_S)
        assert look.end_s - look.frame_s == pytest.approx(FIRST_S + REST_S)


@pytest.mark.usefixtures("benchmarks")
def test_whole_answers_cost_the_overlap_and_nothing_else() -> None:
    _, now, _ = play("present", ANSWERS)
    _, whole, _ = play("whole", ANSWERS)
    assert whole.executed == now.executed
    assert whole.overlap_s == 0
    # Camera and control periods round the moments, so the times agree to a few of them.
    assert whole.mission_s - now.mission_s == pytest.approx(now.overlap_s, abs=0.5)
    assert whole.moving_s == pytest.approx(now.moving_s, abs=0.1)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("way", ["settling", "early"])
def test_early_frames_save_the_settling_and_change_no_action(way: str) -> None:
    # Motions longer than `REST_S`: the answer is whole before its last motion ends.
    answers = ("forward(2.0)", "turn(150)", "forward(1.5)", "done()")
    _, now, stood = play("present", answers)
    ending, early, engine = play(way, answers)
    assert ending.status == "done"
    assert early.executed == now.executed
    assert (early.uncommitted, early.too_old) == (0, 0)
    assert len(early.looks) == len(now.looks)
    # Three looks come while the body settles: each saves what a camera's period and the settling take.
    saved_s = now.waiting_s - early.waiting_s
    assert 3 * 0.2 <= saved_s <= 3 * 0.6
    assert [seen.history for seen in engine.asked] == [seen.history for seen in stood.asked]
    assert early.moving_s == pytest.approx(now.moving_s, abs=0.2)
    spent_s = sum(end_s - began_s for _, began_s, end_s in early.spans)
    assert spent_s == pytest.approx(early.mission_s, abs=1e-6)


@pytest.mark.usefixtures("benchmarks")
def test_a_frame_counts_early_only_where_the_body_comes_to_rest() -> None:
    """A box in the way: a question that was asked early, if any, is asked again from where the body is."""
    box = SceneObject("red box", "box", "red", 1.5, 0.0, 0.0)
    ending, line, engine = play("early", ("forward(3.0)", "turn(90)", "done()"), items=(box,))
    assert ending.status == "done"
    assert line.executed == ["turn(90)", "done()"]
    assert [seen.history for seen in engine.asked] == [(), ("stop()",), ("stop()", "turn(90)")]


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("way", ["present", "whole"])
def test_a_draft_moves_nothing_unless_the_way_says_so(way: str) -> None:
    _, line, engine = play(way, ANSWERS, drafts=("forward(1.0)", "forward(0.5)"))
    assert not any(engine.previews)
    assert (line.starts, line.unverified_s, line.uncommitted) == ({}, 0.0, 0)


@pytest.mark.usefixtures("benchmarks")
def test_a_start_on_the_draft_is_counted_apart_and_saves_waiting() -> None:
    _, now, _ = play("present", ANSWERS)
    ending, line, engine = play("draft_start", ANSWERS, drafts=("forward(1.0)", "forward(0.5)"))
    assert all(engine.previews)
    assert ending.status == "done"
    assert line.executed == now.executed
    assert line.starts == {"begun": 2, "confirmed": 2}
    assert line.uncommitted == 0
    assert line.unverified_s == pytest.approx(2 * (FIRST_S - DRAFT_S), abs=0.15)
    assert line.waiting_s < now.waiting_s - 1.0
    assert line.mission_s < now.mission_s
    # The age of a committed action's frame counts to its commit, not to the draft's word.
    assert line.oldest_frame_s == pytest.approx(now.oldest_frame_s, abs=0.05)


@pytest.mark.usefixtures("benchmarks")
def test_an_answer_that_was_asked_for_early_begins_on_its_draft_too() -> None:
    answers = ("forward(2.0)", "turn(150)", "done()")
    _, early, plain = play("default", answers, drafts=("forward(1.0)", "turn(60)"))
    _, line, engine = play("turning_early_draft", answers, drafts=("forward(1.0)", "turn(60)"))
    assert engine.previews == [True, True, True]
    assert not any(plain.previews)
    assert line.starts == {"begun": 2, "confirmed": 2}
    assert (early.starts, line.uncommitted, early.uncommitted) == ({}, 0, 0)
    assert line.executed == early.executed
    assert line.waiting_s < early.waiting_s - 0.7


@pytest.mark.usefixtures("benchmarks")
def test_a_wrong_start_is_corrected_and_the_mission_ends_where_it_would_have() -> None:
    _, now, _ = play("present", ("turn(90)", "forward(1.0) done()"))
    ending, line, _ = play("draft_start", ("turn(90)", "forward(1.0) done()"), drafts=("turn(-60)",) * 2)
    assert ending.status == "done"
    assert line.starts == {"begun": 1, "corrected": 1}
    assert line.executed == now.executed
    ends = (line.path[-1], now.path[-1])
    assert ends[0].x_m == pytest.approx(ends[1].x_m, abs=0.1)
    assert ends[0].y_m == pytest.approx(ends[1].y_m, abs=0.1)


@pytest.mark.usefixtures("benchmarks")
def test_a_commit_during_a_slow_posture_is_as_old_as_it_came() -> None:
    _, line, _ = play("present", ("hello() turn(30)", "done()"))
    assert line.executed == ["hello()", "turn(30)", "done()"]
    assert line.oldest_frame_s == pytest.approx(FIRST_S + REST_S, abs=0.05)


@pytest.mark.usefixtures("benchmarks")
def test_default_missions_move_on_committed_tokens_and_fresh_frames_only() -> None:
    _, line, engine = play("present", ANSWERS)
    assert (line.uncommitted, line.too_old) == (0, 0)
    # The second action of an answer arrives with its end.
    assert line.oldest_frame_s == pytest.approx(FIRST_S + REST_S, abs=0.05)
    stamps = [seen.stamp_s for seen in engine.asked]
    assert stamps == sorted(set(stamps))
    assert engine.asked[1].history == ("forward(1)", "turn(30)")


@pytest.mark.usefixtures("benchmarks")
def test_an_answer_that_is_too_late_for_the_gate_ends_the_mission() -> None:
    ending, line, _ = play("whole", ANSWERS, SafetyLimits(max_frame_age_s=2.0))
    assert (ending.status, ending.reason) == ("refused", "stale_frame")
    assert line.executed == []
    # The first action is in time, and is carried out; the second is not.
    ending, line, _ = play("present", ANSWERS, SafetyLimits(max_frame_age_s=2.0))
    assert (ending.reason, line.executed) == ("stale_frame", ["forward(1)"])


@pytest.mark.usefixtures("benchmarks")
def test_a_mission_looks_again_after_an_obstacle() -> None:
    box = SceneObject("red box", "box", "red", 1.5, 0.0, 0.0)
    ending, line, engine = play("present", ("forward(3.0)", "turn(90) done()"), items=(box,))
    assert ending.status == "done"
    assert line.executed == ["turn(90)", "done()"]
    assert engine.asked[1].history == ("stop()",)


@pytest.mark.usefixtures("benchmarks")
def test_an_action_that_nobody_committed_is_counted() -> None:
    from continuous_rig import VirtualRobot

    robot = VirtualRobot(HeadlessGo2(World(Scene(0, 12.0, 12.0, (), Pose2D(0.0, 0.0, 0.0)))), SafetyLimits())
    forward, on = parse_answer("forward(1.0)"), parse_answer("turn(100)")
    robot.submit(Plan("m", 1, 0.0, 0, forward))
    moving = PlanStatus("m", 1, state="moving", action="forward(1)")
    robot._record(moving, moving, robot.clock.now())
    assert robot.timeline.uncommitted == 1
    robot.timeline.uncommitted = 0
    robot.committed[0.0] = list(forward)
    robot._record(moving, moving, robot.clock.now())
    assert robot.timeline.uncommitted == 0
    other = PlanStatus("m", 1, state="moving", action="forward(2)")
    robot._record(other, other, robot.clock.now())
    assert robot.timeline.uncommitted == 1
    robot.submit(Plan("m", 2, 0.0, 0, on, origin="search"))
    turning = PlanStatus("m", 2, state="moving", action="turn(100)")
    robot._record(turning, turning, robot.clock.now())
    assert robot.timeline.uncommitted == 2
    robot.committed[0.0] = list(parse_answer("turn(60)"))
    robot._record(turning, turning, robot.clock.now())
    assert robot.timeline.uncommitted == 2


@pytest.mark.usefixtures("benchmarks")
def test_standstills_count_between_two_motions_only() -> None:
    from continuous_rig import Standstills

    def status(answer: int, done: int, action: str) -> PlanStatus:
        return PlanStatus("m", answer, done, "moving", action=action)

    seen = Standstills()
    first, second = status(1, 0, "forward(1)"), status(1, 1, "turn(30)")
    for at, is_still in ((first, True), (first, False), (first, True), (first, False)):
        seen.see(at, is_still)
    assert seen.count == 0
    seen.see(second, False)  # without a stop in between
    assert seen.count == 0
    seen.see(PlanStatus("m", 1, 2, "done"), True)
    seen.see(status(2, 0, "forward(1)"), False)
    assert seen.count == 1


@pytest.mark.usefixtures("benchmarks")
def test_pairs_give_a_ratio_and_a_difference_with_intervals() -> None:
    import continuous

    ours = [{"mission_s": 1.0, "success": True}, {"mission_s": 2.0, "success": False}] * 20
    theirs = [{"mission_s": 2.0, "success": True}, {"mission_s": 4.0, "success": True}] * 20
    ratio = continuous.ratio(ours, theirs, "mission_s")
    assert ratio is not None
    # Each pair halves, so every resample does: the interval is of pairs, not of two samples.
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    change = continuous.difference(ours, theirs, "success")
    assert change is not None
    assert change.value == -0.5
    assert -0.7 < change.low < -0.5 < change.high < -0.3


@pytest.mark.usefixtures("benchmarks")
def test_a_mission_of_the_shipped_pair_and_resuming(tmp_path: Path) -> None:
    import continuous

    cells = [continuous.Cell("2026", "hybrid", way) for way in ("present", "whole")]
    seeds = range(continuous.FIRST_SEED, continuous.FIRST_SEED + 1)
    file = tmp_path / "missions.jsonl"
    found = continuous.measure(cells, seeds, file)
    written = file.read_text()
    assert continuous.measure(cells, seeds, file) == found
    assert file.read_text() == written
    now, whole = (found[cell][0] for cell in cells)
    assert now["answers"] == whole["answers"]
    assert now["mission_s"] <= whole["mission_s"]
    for row in (now, whole):
        assert row["uncommitted"] == row["too_old"] == 0
        assert 0 < row["waiting_s"] < row["mission_s"]
