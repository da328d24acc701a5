import threading
from dataclasses import replace

import pytest

from test.actions.rig import Rig
from test.mission.scripted import EchoExecutor, ScriptedEngine, ScriptedEngines, plain_jpeg
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Done, Forward, Turn
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ActionParseError, CloudRefused, CloudUnreachable, ImageError
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.mission_loop import MAX_OBSTRUCTIONS, MAX_SILENCES
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.runner import MissionRunner
from vlm_spec_decode.mission.state import Answer, MissionJob, MissionStatus, PartialAnswer, RunnerConfig

JOB = MissionJob("m1", "walk to the red ball")
QUICK = RunnerConfig(max_steps=4, ready_s=0.3, frame_s=0.3, silence_s=0.3, act_s=1.0, listen_s=0.01)


class World:
    """A runner with an executor and a camera that answer at once, on the runner's own thread."""

    def __init__(self, engine, executor=None, config=QUICK, camera=True, jpeg=None):
        self.jpeg = jpeg or plain_jpeg()
        self.feed, self.engine, self.executor = MissionEvents(WallClock()), engine, executor
        self.said, self.now_s, self.camera = [], 100.0, camera
        self.engines = ScriptedEngines(engine)
        self.runner = MissionRunner(self.feed, self.hear, self.tick, config)

    def tick(self):
        """Return the time and let the camera deliver a frame just after it."""
        self.now_s += 1.0
        if self.camera:
            self.feed.put_frame(Frame(Image(self.jpeg, 32, 24), self.now_s + 0.5, "front_camera_optical"))
        return self.now_s

    def hear(self, job, report):
        self.said.append(report)
        if isinstance(report, Plan) and self.executor and self.feed.put_status(self.executor.take(report)):
            self.engine.cancel()

    def run(self, job=JOB):
        return self.runner.run(job, self.engines)

    def of(self, kind):
        return [report for report in self.said if isinstance(report, kind)]


def test_look_answer_act_until_done():
    engine = ScriptedEngine([["ball left. turn(20)", " forward(0.5)"], ["ball ahead. ", "done()"]])
    world = World(engine, EchoExecutor())
    assert world.run().status == "done"
    first, second = engine.seen
    assert (first.history, second.history) == ((), ("turn(20)", "forward(0.5)"))
    assert second.stamp_s > first.stamp_s
    assert [answer.actions for answer in world.of(Answer)] == [(Turn(20.0), Forward(0.5)), (Done(),)]
    states = [status.state for status in world.of(MissionStatus)]
    assert states == ["looking", "answering", "acting", "answering", "acting", "done"]


def test_the_plan_grows_while_the_answer_is_said_and_ends_empty():
    world = World(ScriptedEngine([["turn(20)", " and on", " done()"]]), EchoExecutor())
    world.run()
    plans = [(p.answer, p.sequence, len(p.actions), p.final) for p in world.of(Plan)]
    assert plans == [(0, 0, 0, False), (1, 0, 0, False), (1, 1, 1, False), (1, 2, 2, True), (3, 0, 0, True)]
    assert [p.text for p in world.of(PartialAnswer)] == [
        "turn(20)",
        "turn(20) and on",
        "turn(20) and on done()",
    ]


def test_nonsense_that_is_answered_without_an_action_leaves_the_robot_where_it_is():
    world = World(ScriptedEngine([["I see no unicorn."]]), EchoExecutor())
    assert world.run().status == "done"
    assert not any(plan.actions for plan in world.of(Plan))
    assert world.of(Answer)[0].result.text == "I see no unicorn."


def test_a_mission_without_end_stops_at_the_limit():
    world = World(ScriptedEngine([["forward(0.1)"]]), EchoExecutor())
    assert world.run().status == "step_limit"
    assert len(world.of(Answer)) == QUICK.max_steps


@pytest.mark.parametrize(
    ("error", "lost_cloud"),
    [
        (CloudUnreachable("nobody answers"), True),
        (CloudRefused("model_mismatch", "other model"), True),
        (ActionParseError("'fly' is no action"), False),
        (ImageError("no JPEG"), False),
    ],
)
def test_an_error_mid_answer_ends_the_mission_by_name_with_an_empty_plan(error, lost_cloud):
    world = World(ScriptedEngine([["forward(0.5) ", error]]), EchoExecutor(), replace(QUICK, fallback="stop"))
    ending = world.run()
    assert (ending.status, ending.reason) == ("failed", type(error).__name__)
    assert world.engines.losses == lost_cloud
    assert world.of(MissionStatus)[-1].detail == str(error)
    last = world.of(Plan)[-1]
    assert (last.actions, last.final) == ((), True)
    assert last.answer > max(plan.answer for plan in world.of(Plan)[:-1])


@pytest.mark.parametrize(
    ("state", "reason", "status"),
    [("refused", "obstacle", "refused"), ("fault", "stale", "failed"), ("stopped", "cancel", "cancelled")],
)
def test_what_the_executor_says_breaks_the_answer_off_while_it_is_still_being_said(state, reason, status):
    verdict = PlanStatus(state=state, reason=reason, detail="0.4 m ahead")
    world = World(ScriptedEngine([["forward(0.5)", "…"]]), EchoExecutor(verdict))
    ending = world.run()
    assert (ending.status, ending.reason) == (status, reason)
    assert "forward(0.5)" in ending.detail
    assert not world.of(Answer)
    assert len(world.engine.seen) == (MAX_OBSTRUCTIONS if reason == "obstacle" else 1)


@pytest.mark.parametrize(
    "verdict",
    [
        PlanStatus(state="refused", reason="obstacle", detail="0.4 m ahead"),
        PlanStatus(state="stopped", reason="watchdog", detail="the commander fell silent"),
        PlanStatus(state="fault", reason="stale_state", detail="the state's stamp stands still for 0.30 s"),
        PlanStatus(state="refused", reason="stale_state", detail="the robot's state is 0.30 s old"),
    ],
    ids=lambda verdict: f"{verdict.state}-{verdict.reason}",
)
def test_after_something_in_the_way_or_a_silence_the_robot_looks_again(verdict):
    engine = ScriptedEngine([["turn(20) forward(0.5)"], ["there it is. done()"]])
    world = World(engine, EchoExecutor(verdict))
    hear = world.hear

    def once(job, report):
        hear(job, report)
        if isinstance(report, Plan) and report.actions:
            world.executor.verdict = None

    world.runner = MissionRunner(world.feed, once, world.tick, QUICK)
    assert world.run().status == "done"
    assert len(engine.seen) == 2


@pytest.mark.parametrize(
    ("state", "reason", "status"),
    [("stopped", "watchdog", "cancelled"), ("fault", "stale_state", "failed")],
)
def test_commander_and_robot_that_lose_each_other_again_and_again_end_the_mission(state, reason, status):
    verdict = PlanStatus(state=state, reason=reason, detail="nothing was heard")
    patient = replace(QUICK, max_steps=2 * MAX_SILENCES)
    world = World(ScriptedEngine([["forward(0.5)"]]), EchoExecutor(verdict), patient)
    ending = world.run()
    assert (ending.status, ending.reason) == (status, reason)
    assert len(world.engine.seen) == MAX_SILENCES


def test_a_robot_that_was_not_heard_stands_a_moment_before_the_next_look():
    verdict = PlanStatus(state="fault", reason="stale_state", detail="nothing was heard")
    world = World(ScriptedEngine([["forward(0.5)"]]), EchoExecutor(verdict), replace(QUICK, listen_s=0.05))
    pauses = []
    world.feed.pause = pauses.append
    world.run()
    assert pauses == [0.05] * (QUICK.max_steps - 1)


def test_a_latched_e_stop_refuses_the_mission_before_it_looks():
    world = World(ScriptedEngine([["done()"]]), EchoExecutor(latched=True))
    assert world.run().status == "cancelled"
    assert not world.engine.seen


def test_without_a_locomotion_node_nothing_is_asked_of_the_cloud():
    world = World(ScriptedEngine([["done()"]]), executor=None)
    ending = world.run()
    assert (ending.status, ending.reason) == ("failed", "RobotUnreachable")
    assert "locomotion_node" in ending.detail
    assert not world.engine.seen


def test_without_a_camera_the_mission_fails_by_name():
    world = World(ScriptedEngine([["done()"]]), EchoExecutor(), camera=False)
    assert "camera gone" in world.run().detail


@pytest.mark.parametrize("text", ["", " \n", "x" * 10_000])
def test_an_instruction_that_is_none_ends_before_it_begins(text):
    world = World(ScriptedEngine([["done()"]]), EchoExecutor())
    ending = world.run(MissionJob("m2", text))
    assert (ending.status, ending.reason) == ("failed", "InstructionError")
    assert len(world.of(MissionStatus)[-1].instruction) <= 200


def test_a_cancel_ends_a_mission_that_waits_for_its_executor():
    executor = EchoExecutor()
    executor.take = lambda plan: PlanStatus(plan.mission, plan.answer, 0, "moving" if plan.answer else "idle")
    world = World(ScriptedEngine([["forward(3)"]]), executor, RunnerConfig(act_s=30.0, silence_s=30.0))
    threading.Timer(0.2, world.feed.cancel, ("m1", "asked for")).start()
    ending = world.run()
    assert (ending.status, ending.detail) == ("cancelled", "asked for")


def test_a_cancel_that_comes_before_the_mission_begins_is_not_lost():
    world = World(ScriptedEngine([["done()"]]), EchoExecutor())
    world.feed.cancel("m1", "too late")
    assert world.run().status == "cancelled"
    assert not world.engine.seen


def test_silence_of_the_executor_while_it_moves_is_noticed():
    executor = EchoExecutor()
    executor.take = lambda plan: PlanStatus(plan.mission, plan.answer, 0, "moving" if plan.answer else "idle")
    ending = World(ScriptedEngine([["forward(3)"]]), executor).run()
    assert "silent" in ending.detail


def test_a_frame_that_is_cut_off_is_named_before_anything_is_asked_of_the_cloud():
    world = World(ScriptedEngine([["forward(0.5)"]]), EchoExecutor(), jpeg=plain_jpeg()[:300])
    assert world.run().reason == "ImageError"
    assert not world.engine.seen


class Walker:
    """The real executor on a fake robot in virtual time; somebody is not heard for a while at first."""

    def __init__(self, silences, who):
        self.rig, self.silences, self.who = Rig(), silences, who

    def take(self, plan):
        self.rig._sent = replace(plan, stamp_s=self.rig.clock.now())
        self.rig.robot.faults.frozen_stamp = False
        if plan.actions and self.silences:
            self.silences -= 1
            self.rig.go(2.0)
            self.rig.robot.faults.frozen_stamp = self.who == "robot"
            return self.rig.go(1.0, heartbeat=self.who == "robot")
        return self.rig.go(12.0 if plan.actions else 0.3)


@pytest.mark.parametrize("who", ["commander", "robot"])
@pytest.mark.parametrize("silences", [0, 1, 2])
def test_a_plain_motion_that_a_silence_broke_off_ends_where_it_was_told_to(silences, who):
    engine, walker = ScriptedEngine([["forward(2.5)", " done()"]]), Walker(silences, who)
    assert World(engine, walker).run().status == "done"
    assert len(engine.seen) == 1 + silences
    assert walker.rig.x_m == pytest.approx(2.5, abs=0.1)
