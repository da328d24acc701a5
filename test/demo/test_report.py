"""The log of a mission from its messages, and what it was worth."""

from dataclasses import replace

import pytest

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Turn
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.trace import LinkUsage
from vlm_spec_decode.demo import report
from vlm_spec_decode.demo.report import (
    MissionLog,
    MissionStep,
    figures,
    is_success,
    named_object,
    object_ahead,
    same_tokens,
)
from vlm_spec_decode.demo.timeline import MOVING
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import LOOK_DROPPED, LOOK_USED, MissionStatus
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.scene import random_scene

TRACE = DecodeReport(
    mission="m",
    number=1,
    strategy="hybrid",
    rule="coupled",
    tokens=10,
    rounds=(),
    drafted=8,
    accepted=6,
    acceptance_rate=0.75,
    target_passes=3,
    early_verdicts=0,
    time_to_first_token_s=0.1,
    time_to_first_action_s=0.2,
    total_s=0.5,
    usage=LinkUsage(100, 50, 2000),
)


def status(state, mission="m", step=0, reason="", detail=""):
    return MissionStatus(state=state, mission=mission, step=step, reason=reason, detail=detail)


def plan_status(state, action="", executed=(), mission="m", answer=1, reason="", detail=""):
    return PlanStatus(mission, answer, len(executed), state, reason, detail, action, tuple(executed))


def told() -> MissionLog:
    log = MissionLog()
    log.on_report(status("ready", ""), 0.5)
    log.begin(1.0)
    log.on_report(status("looking"), 1.1)
    log.on_report(status("answering", step=1), 1.2)
    plan = Plan("m", 1, 9.5, 0)
    log.on_report(plan, 1.3)
    log.on_report(replace(plan, actions=(Turn(20.0),), sequence=1), 1.5)
    answer = AnswerReport(
        mission="m", number=1, text="turn ( 20 )", token_ids=(4, 5), actions=(Turn(20.0),), stamp_s=9.5
    )
    log.on_report(replace(answer, text="turn", token_ids=(), actions=(), final=False), 1.55)
    log.on_report(answer, 1.6)
    log.on_report(TRACE, 1.6)
    log.on_report(plan_status("done", executed=["turn(20)"]), 2.0)
    log.on_report(status("done", step=1), 3.0)
    return log


def test_times_and_steps_come_from_the_messages():
    log = told()
    assert (log.link, log.state, log.has_ended) == ("ready", "done", True)
    assert log.first_action_s == 1.5
    (step,) = log.steps
    assert (step.text, step.token_ids, step.executed) == ("turn ( 20 )", (4, 5), ("turn(20)",))
    assert figures(s.trace for s in log.steps).acceptance_rate == 0.75


def test_another_mission_is_not_this_one():
    log = told()
    assert log.on_report(plan_status("moving", "turn(90)", mission="old"), 3.1) == []
    assert log.on_report(status("failed"), 3.2) == []
    assert log.state == "done"


def test_an_instruction_that_is_refused_at_once_ends_the_story():
    log = MissionLog()
    log.begin(1.0)
    lines = log.on_report(status("failed", "", reason="InstructionError", detail="empty"), 1.1)
    assert log.has_ended
    assert lines == ["failed: InstructionError: empty"]


def test_a_search_is_told_with_its_turns_and_what_became_of_each_answer():
    log = MissionLog()
    log.begin(1.0)
    answer = AnswerReport(mission="m", number=6, text="turn(20)", token_ids=(4,), actions=(Turn(20.0),))
    told = [
        (2.0, plan_status("moving", "turn(170)", answer=2)),
        (2.1, status("answering", step=3, detail="searching while it turns")),
        (2.5, status("answering", step=4, detail="searching while it turns")),
        (4.0, status("answering", step=4, reason=LOOK_DROPPED, detail="answer 4: given up")),
        (4.0, status("answering", step=6, reason=LOOK_USED, detail="answer 6, asked as 3")),
        (4.1, plan_status("moving", "turn(-95)", ["turn(-95)"], answer=6)),
        (4.2, answer),
        (5.0, plan_status("done", "", ["turn(-95)"], answer=6)),
        (6.0, status("done", step=6)),
    ]
    lines = [line for at_s, report in told for line in log.on_report(report, at_s)]
    # The first move came before the mission was known by a status of its own.
    assert lines == [
        "[3] looks",
        "[4] looks",
        "    ~ not used: answer 4: given up",
        "    ~ goes by: answer 6, asked as 3",
        "    > turn(-95)",
        "    [6] turn(20)",
        "done",
    ]
    assert [(step.number, step.text) for step in log.steps] == [(3, ""), (4, ""), (6, "turn(20)")]
    assert log.steps[-1].executed == ("turn(-95)",)
    line = log.times.timeline(1.0, log.ended_s)
    assert line.looks == 2
    assert line.seconds(MOVING) == pytest.approx(0.9)


def test_the_demo_prints_what_every_other_display_of_a_mission_prints():
    log = MissionLog()
    log.begin(1.0)
    told = [
        status("answering", step=1),
        plan_status("moving", "turn(20)"),
        AnswerReport(mission="m", number=1, text="Ball left. turn(20)", actions=(Turn(20.0),)),
        TRACE,
        status("step_limit", step=1),
    ]
    assert [line for each in told for line in log.on_report(each, 2.0)] == [
        "[1] looks",
        "    > turn(20)",
        "    Ball left. turn(20)",
        "    10 tokens, 0.50 s, 3 target passes, 6 of 8 drafted kept",
        "step limit",
    ]


def test_a_refusal_is_told_with_its_name():
    log = told()
    said = plan_status("refused", "forward(9)", reason="limit_distance", detail="at most 5 m")
    lines = log.on_report(said, 2.1)
    assert lines == ["    ! refused forward(9): limit_distance at most 5 m"]


@pytest.mark.parametrize(
    ("state", "distance_m", "collisions", "good"),
    [
        ("done", 0.7, 0, True),
        ("done", 0.71, 0, False),
        ("done", 0.5, 1, False),
        ("step_limit", 0.5, 0, False),
    ],
)
def test_success_needs_done_distance_and_no_collision(state, distance_m, collisions, good):
    log = told()
    log.state = state
    assert is_success(log, "red ball", distance_m, collisions) is good


def test_tokens_are_compared_step_by_step():
    steps = [MissionStep(1, token_ids=(1, 2)), MissionStep(2, token_ids=(3,))]
    assert same_tokens(steps, {}) is None
    assert same_tokens(steps, {1: {"token_ids": [1, 2]}}) is True
    assert same_tokens(steps, {1: {"token_ids": [1, 2]}, 2: {"token_ids": [4]}}) is False


def test_objects_are_found_by_name_and_by_a_kind_that_is_there_once():
    names = ("orange table", "red person", "blue chair", "green box")
    things = [(name, *name.split()[::-1], 2.0 * i, 0.0) for i, name in enumerate(names)]
    scene = replace(random_scene(3), objects=tuple(SceneObject(*thing) for thing in things))
    assert named_object("Walk to the RED person, please.", scene) == "red person"
    assert named_object("go to the chair", scene) == "blue chair"
    assert named_object("go to the purple chair", scene) is None
    assert named_object("go to the plant", scene) is None
    assert named_object("boxing", scene) is None


def test_the_object_ahead_is_the_one_that_the_robot_looks_at():
    scene = random_scene(3)
    for item in scene.objects:
        behind = replace(item, colour="purple", name=f"purple {item.kind}", x_m=item.x_m - 3.0)
        start = Pose2D(item.x_m - 1.0, item.y_m, 0.0)
        assert object_ahead(replace(scene, start=start, objects=(behind, item))) == item.name


def test_the_table_says_when_tokens_differ():
    sums = report.sums(figures([TRACE.to_mapping()]))
    document = {
        "instruction": "go", "success": False, "status": "done", "target_object": None,
        "final_distance_m": None,
        "collisions": 0, "answers": [], "time_to_first_action_s": None, "total_s": 3.0,
        "strategy": "speculative",
        "autoregressive": sums, "same_tokens_as_autoregressive": False, **sums,
    }  # fmt: skip
    text = report.table(document)
    assert "NO" in text
    assert "75.0%" in text
    assert "none that is in this room" in text
