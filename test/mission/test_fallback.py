from dataclasses import replace

import pytest

from test.mission.scripted import EchoExecutor, ScriptedEngine
from test.mission.test_runner import QUICK, World
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.core.errors import CloudRefused, CloudTimeout, CloudUnreachable
from vlm_spec_decode.mission.state import MissionJob, MissionStatus, Shown

LOST = CloudUnreachable("nothing heard")


def world_of(engine, fallback, **more):
    return World(engine, EchoExecutor(), replace(QUICK, fallback=fallback, max_steps=8, **more))


def states(world):
    return [status.state for status in world.of(MissionStatus)]


def test_hold_stands_still_and_goes_on_with_a_new_look_when_the_cloud_is_back():
    world = world_of(ScriptedEngine([["forward(0.5) ", LOST], ["done()"]]), "hold")
    world.engines.returns_after = 3
    assert world.run().status == "done"
    said = states(world)
    assert said[said.index("holding") :] == ["holding", "looking", "answering", "acting", "done"]
    assert world.engine.seen[1].stamp_s > world.engine.seen[0].stamp_s
    assert world.engine.seen[1].history == ("forward(0.5)",), "what was carried out counts"


@pytest.mark.parametrize("error", [LOST, CloudTimeout("late")])
@pytest.mark.parametrize("fallback", ["hold", "stop", "draft_only"])
def test_a_cloud_lost_in_the_middle_supersedes_its_plan_at_once(error, fallback):
    alone = ScriptedEngine([["done()"]])
    world = world_of(ScriptedEngine([["forward(0.5) ", error], ["done()"]]), fallback)
    world.engines.alone, world.engines.returns_after = alone, 2
    world.run()
    plans = world.of(Plan)
    lost = next(i for i, plan in enumerate(plans) if plan.actions)
    after = plans[lost + 1]
    assert (after.mission, after.actions) == (plans[lost].mission, ())
    assert after.answer > plans[lost].answer


def test_hold_gives_up_after_its_time():
    world = world_of(ScriptedEngine([[LOST]]), "hold", hold_s=3.0)
    world.engines.returns_after = 10**9
    ending = world.run()
    assert (ending.status, ending.reason) == ("failed", "CloudUnreachable")


def test_hold_can_be_cancelled():
    world = world_of(ScriptedEngine([[LOST]]), "hold", hold_s=10**9)
    world.engines.returns_after = 10**9
    hear = world.runner._emit

    def cancelling(job, report):
        hear(job, report)
        if isinstance(report, MissionStatus) and report.state == "holding":
            world.feed.cancel(job.mission, "asked for")

    world.runner._emit = cancelling
    assert world.run().status == "cancelled"


def test_the_draft_alone_marks_its_plans_and_hands_over_when_the_cloud_is_back():
    alone = ScriptedEngine([["turn(10)"], ["turn(20)"]])
    world = world_of(ScriptedEngine([["forward(0.5) ", LOST], ["done()"]]), "draft_only")
    world.engines.alone, world.engines.returns_after = alone, 2
    assert world.run().status == "done"
    with_actions = [plan for plan in world.of(Plan) if plan.actions]
    assert [plan.verified for plan in with_actions] == [True, False, False, True]
    assert "drafting" in states(world)
    reasons = [status.reason for status in world.of(MissionStatus) if status.state == "answering"]
    assert reasons == ["", "unverified", "unverified", ""]


def test_the_draft_alone_can_begin_a_mission_and_hold_cannot():
    for fallback, status in (("draft_only", "done"), ("hold", "failed"), ("stop", "failed")):
        world = world_of(None, fallback)
        world.engines.alone = ScriptedEngine([["done()"]])
        assert world.run().status == status


def test_a_refusal_by_name_is_not_waited_out():
    world = world_of(ScriptedEngine([[CloudRefused("too_large", "image")]]), "hold")
    assert world.run().reason == "CloudRefused"
    assert world.engines.losses == 1


def test_a_dry_run_shows_the_plan_and_sends_nothing():
    world = World(ScriptedEngine([["turn(20) ", "forward(1)"]]), EchoExecutor())
    ending = world.run(MissionJob("m1", "go", dry_run=True))
    assert (ending.status, ending.reason) == ("done", "dry_run")
    assert ending.detail.endswith("turn(20) forward(1)")
    assert not any(plan.actions for plan in world.of(Plan))


class Person:
    """Says yes or no to every plan that is shown, after letting some time pass."""

    def __init__(self, world, *answers, wait_s=0.0):
        self.world, self.answers, self.shown = world, list(answers), []
        self.wait_s, self.emit = wait_s, world.runner._emit
        wait = world.feed.wait_approval

        def wait_verdict(timeout_s):
            if self.answers and (yes := self.answers.pop(0)) is not None:
                self.world.now_s += self.wait_s
                return yes
            return wait(0.05)

        world.feed.wait_approval = wait_verdict
        world.runner._emit = self.hear

    def hear(self, job, report):
        self.emit(job, report)
        if isinstance(report, MissionStatus) and report.state == "proposed":
            self.shown.append(report.detail)
            assert not any(p.actions for p in self.world.of(Plan) if p.answer == report.step)


def approve(world):
    return world.run(MissionJob("m1", "go", approve=True))


def test_a_plan_waits_for_a_yes():
    world = World(ScriptedEngine([["turn(20)"], ["done()"]]), EchoExecutor())
    person = Person(world, True, True)
    assert approve(world).status == "done"
    assert person.shown == ["turn(20)", "done()"]


def test_a_yes_that_comes_with_the_plan_counts_and_only_for_that_plan():
    world = World(ScriptedEngine([["turn(20)"], ["done()"]]), EchoExecutor())
    taken, emit = [], world.runner._emit

    def say_yes_at_once(job, report):
        emit(job, report)
        if isinstance(report, MissionStatus) and report.state == "proposed":
            named = [
                Shown("another"), Shown(step=9), Shown("m1", report.step, "forward(3)"),
                Shown("m1", report.step, report.detail), Shown(),
            ]  # fmt: skip
            taken.append([world.feed.put_approval(True, each) for each in named])

    world.runner._emit = say_yes_at_once
    assert approve(world).status == "done"
    assert taken == [[False, False, False, True, False]] * 2


@pytest.mark.parametrize("answers", [(False,), (None,), ()])
def test_a_no_and_silence_move_nothing(answers):
    world = World(ScriptedEngine([["turn(20)"]]), EchoExecutor())
    Person(world, *answers)
    assert approve(world).status == "cancelled"
    assert not any(plan.actions for plan in world.of(Plan))


def test_a_late_yes_looks_again_and_asks_again_only_if_the_plan_is_another():
    world = World(
        ScriptedEngine([["turn(20)"], ["turn(24)"], ["forward(1) ", "done()"], ["done()"], ["done()"]]),
        EchoExecutor(),
    )
    person = Person(world, True, True, True, wait_s=60.0)
    assert approve(world).status == "done"
    assert person.shown == ["turn(20)", "forward(1) done()", "done()"]
    sent = [plan.actions[0] for plan in world.of(Plan) if plan.actions]
    assert next(action for action in sent if hasattr(action, "angle_deg")).angle_deg == 24.0
    ages = [world.now_s - plan.stamp_s for plan in world.of(Plan) if plan.actions]
    assert all(age < 60.0 * 3 for age in ages)
