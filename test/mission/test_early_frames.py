"""The next question before rest: exact, about that frame, with the history that comes true, or not."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from test.mission.scripted import ScriptedEngine, ScriptedEngines, plain_jpeg
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Forward, Turn, format_action
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.runner import MissionRunner
from vlm_spec_decode.mission.state import Answer, MissionJob, MissionStatus, RunnerConfig

JOB = MissionJob("m1", "walk to the red ball")
CONFIG = RunnerConfig(max_steps=6, listen_s=0.01)
STEP_S = 0.1


class ScriptedTime(threading.Condition):
    """Waiting plays what happens next, one thing every `STEP_S`; without anything the time just passes."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock, self.coming = clock, deque[Callable[[], None]]()

    def wait_for(self, predicate, timeout=None):  # type: ignore[no-untyped-def]
        until_s = float("inf") if timeout is None else self.clock.now() + timeout
        while not (found := predicate()) and self.clock.now() < until_s:
            self.clock.sleep(STEP_S)
            if self.coming:
                self.coming.popleft()()
        return found


@dataclass
class World:
    """A robot that needs time for a plan. `course` names what happens while each plan is carried out."""

    engine: ScriptedEngine
    course: tuple[str, ...] = ("frame", "settles", "frame", "done")
    config: RunnerConfig = CONFIG
    jpeg: bytes = field(default_factory=plain_jpeg)
    said: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = VirtualClock(100.0)
        self.time = ScriptedTime(self.clock)
        self.events = MissionEvents(self.clock, self.time)
        self.engines = ScriptedEngines(self.engine)
        self.runner = MissionRunner(self.events, self.hear, self.clock.now, self.config)
        self.courses = iter((self.course,))
        self.settled_s: list[float] = []
        self.ended_s: list[float] = []

    def run(self, job: MissionJob = JOB):  # type: ignore[no-untyped-def]
        ending = self.runner.run(job, self.engines)
        assert not [each for each in threading.enumerate() if each.name == "early answer"]
        return ending

    def of(self, kind):  # type: ignore[no-untyped-def]
        return [report for report in self.said if isinstance(report, kind)]

    def hear(self, job: MissionJob, report: object) -> None:
        self.said.append(report)
        if not isinstance(report, Plan):
            return
        if not report.actions:
            self.status(report, "done" if report.final else "idle")
            self.time.coming.append(self.frame)  # whoever waits for a frame gets one
        elif report.final:
            self.time.coming.clear()
            course = next(self.courses, ("frame", "done"))
            self.time.coming.extend([lambda name=name: self.happens(name, report) for name in course])
            self.time.coming.extend([self.frame] * 3)

    def frame(self) -> None:
        self.events.put_frame(Frame(Image(self.jpeg, 32, 24), self.clock.now(), "front_camera"))

    def status(
        self, plan: Plan, state: str, *, settling: bool = False, reason: str = "", done: int = 0
    ) -> None:
        texts = tuple(map(format_action, plan.actions))
        executed = texts if state == "done" else texts[:done]
        status = PlanStatus(plan.mission, plan.answer, len(executed), state, reason, executed=executed)
        if self.events.put_status(replace(status, settling=settling)):
            self.engine.cancel()  # as the service does

    def happens(self, name: str, plan: Plan) -> None:
        last = len(plan.actions) - 1
        self.settled_s += [self.clock.now()] * (name == "settles")
        self.ended_s += [self.clock.now()] * (name in ("done", "elsewhere", "partly"))
        if name == "frame":
            self.frame()
        elif name == "first":
            self.status(plan, "moving")
        elif name == "moves":
            self.status(plan, "moving", done=last)
        elif name == "settles":
            self.status(plan, "moving", settling=True, done=last)
        elif name == "done":
            self.status(plan, "done", settling=True)
        elif name == "elsewhere":
            self.status(plan, "done")
        elif name == "partly":
            texts = tuple(map(format_action, plan.actions[:last]))
            self.events.put_status(
                PlanStatus(plan.mission, plan.answer, last, "done", executed=texts, settling=True)
            )
        elif name == "cancel":
            self.events.cancel(plan.mission, "asked for")
            self.engine.cancel()
        elif name == "estop":
            self.status(plan, "estop", reason="estop")
        else:
            self.status(plan, "refused", reason=name)


def states(world: World) -> list[str]:
    return [status.state for status in world.of(MissionStatus)]


def test_the_question_goes_up_while_the_body_settles_and_its_answer_is_what_is_carried_out() -> None:
    engine = ScriptedEngine([["turn(20) ", "forward(0.5)"], ["forward(0.3) ", "done()"]])
    world = World(engine)
    assert world.run().status == "done"
    first, second = engine.seen
    acting, settled = first.stamp_s, second.stamp_s
    done_s = next(s for s in world.of(Plan) if s.answer == 2).stamp_s
    assert second.history == ("turn(20)", "forward(0.5)"), "told as it is once the plan has been carried out"
    assert settled == done_s, "the plan says about which frame it was decided"
    assert settled > acting
    # Nothing was asked again, and no plan was sent before the one under way had ended.
    assert [answer.observation for answer in world.of(Answer)] == [first, second]
    assert states(world) == ["looking", "answering", "acting", "answering", "acting", "done"]
    assert [(p.answer, len(p.actions), p.final) for p in world.of(Plan)][-4:] == [
        (2, 0, False),
        (2, 1, False),
        (2, 2, True),
        (4, 0, True),
    ]


class ByFrame(ScriptedEngine):
    """Says how far to walk by the frame that it is asked about, so every answer tells its frame."""

    def answer(self, observation):  # type: ignore[no-untyped-def]
        centimetres = round(100 * observation.stamp_s) % 250
        ends = len(observation.history) >= 4
        self.script.append([f"forward({0.05 + centimetres / 100:.2f}) ", "done()" if ends else "turn(5)"])
        yield from super().answer(observation)


@pytest.mark.parametrize(
    "course",
    [
        ("frame", "settles", "frame", "done"),
        ("frame", "settles", "frame", "moves", "frame", "settles", "frame", "frame", "done"),
        ("settles", "frame", "elsewhere"),
        ("settles", "done"),
        ("settles", "frame", "obstacle"),
        ("frame", "done"),
    ],
)
def test_what_is_carried_out_is_the_exact_answer_to_its_own_frame(course: tuple[str, ...]) -> None:
    """The law: every plan holds the actions of the answer to the frame and the history that it names."""
    world = World(ByFrame([]), course)
    world.courses = iter((course, course))
    assert world.run().status == "done"
    history: tuple[str, ...] = ()
    answers = {answer.number: answer for answer in world.of(Answer)}
    for plan in (plan for plan in world.of(Plan) if plan.final and plan.actions):
        answer = answers[plan.answer]
        assert answer.observation.stamp_s == plan.stamp_s
        assert answer.observation.history == history
        centimetres = round(100 * plan.stamp_s) % 250
        assert plan.actions[0] == Forward(round(0.05 + centimetres / 100, 2))
        broken = course[-1] == "obstacle" and plan.answer <= 2
        history += ("stop()",) if broken else tuple(map(format_action, plan.actions))


def test_a_frame_from_before_a_correction_counts_no_more() -> None:
    engine = ScriptedEngine([["forward(1.0)"], ["…"], ["done()"]])
    world = World(engine, ("settles", "frame", "moves", "frame", "settles", "frame", "done"))
    assert world.run().status == "done"
    assert engine.seen[1].stamp_s < world.settled_s[1] < engine.seen[2].stamp_s < world.ended_s[0]
    assert world.of(Answer)[-1].observation == engine.seen[2]


@pytest.mark.parametrize("end", ["elsewhere", "partly", "obstacle", "watchdog"])
def test_a_plan_that_ends_otherwise_is_looked_at_again(end: str) -> None:
    engine = ScriptedEngine([["forward(1.0)"], ["…"], ["done()"]])
    world = World(engine, ("settles", "frame", end))
    assert world.run().status == "done"
    _, early, late = engine.seen
    assert early.history == ("forward(1)",)
    told = {"elsewhere": ("forward(1)",), "partly": (), "obstacle": ("stop()",), "watchdog": ()}
    assert late.history == told[end]
    assert late.stamp_s > early.stamp_s
    assert engine.cancelled.is_set() or len(engine.seen) == 3
    assert len(world.of(Answer)) == 2


@pytest.mark.parametrize(
    ("event", "ending"), [("estop", ("cancelled", "estop")), ("cancel", ("cancelled", "cancel"))]
)
def test_an_estop_and_a_cancel_end_the_early_answer_too(event: str, ending: tuple[str, str]) -> None:
    engine = ScriptedEngine([["forward(1.0)"], ["…"]])
    world = World(engine, ("settles", "frame", event))
    found = world.run()
    assert (found.status, found.reason) == ending
    assert engine.cancelled.is_set()
    assert world.of(Plan)[-1].actions == ()
    assert len(engine.seen) == 2


def test_a_cloud_lost_while_it_is_asked_early_is_lost_once_the_plan_is_carried_out() -> None:
    lost = CloudUnreachable("nothing heard")
    engine = ScriptedEngine([["forward(1.0)"], [lost], ["done()"]])
    world = World(engine)
    world.engines.returns_after = 2
    assert world.run().status == "done"
    assert world.engines.losses == 1
    said = states(world)
    assert said[said.index("holding") :] == ["holding", "looking", "answering", "acting", "done"]
    assert engine.seen[-1].history == ("forward(1)",), "the plan under way was carried out all the same"


def test_an_early_answer_that_never_comes_waits_as_any_other_and_can_be_cancelled() -> None:
    engine = ScriptedEngine([["forward(1.0)"], ["turn(5) ", "…"]])
    world = World(engine)
    hear = world.runner._emit

    def cancelling(job: MissionJob, report: object) -> None:
        hear(job, report)
        if isinstance(report, Plan) and report.answer == 2 and report.actions:
            world.events.cancel(job.mission, "asked for")
            engine.cancel()

    world.runner._emit = cancelling  # type: ignore[method-assign]
    found = world.run()
    assert (found.status, found.detail) == ("cancelled", "asked for")
    assert [plan.actions for plan in world.of(Plan) if plan.answer == 2] == [(), (Turn(5.0),)]


@pytest.mark.parametrize(
    ("script", "config"),
    [
        ([["forward(1.0)"], ["done()"]], replace(CONFIG, early_frames="off")),
        ([["forward(1.0) done()"]], CONFIG),
        ([["forward(1.0)"]], replace(CONFIG, max_steps=1)),
    ],
)
def test_it_is_not_asked_early_where_it_is_off_or_nothing_is_to_be_asked(
    script: list, config: RunnerConfig
) -> None:
    engine = ScriptedEngine(script)
    world = World(engine, ("settles", "frame", "frame", "done"), config)
    world.run()
    asked_s = [seen.stamp_s for seen in engine.seen]
    assert len(asked_s) == len(script)
    if len(asked_s) == 2:
        assert asked_s[1] > world.ended_s[0], "its frame was taken after the plan's end"


def test_the_draft_alone_takes_one_step_after_the_other() -> None:
    engine, alone = (
        ScriptedEngine([[CloudUnreachable("gone")]]),
        ScriptedEngine([["forward(0.3)"], ["done()"]]),
    )
    world = World(engine, config=replace(CONFIG, fallback="draft_only"))
    world.engines.alone, world.engines.returns_after = alone, 10**6
    assert world.run().status == "done"
    assert alone.seen[1].history == ("forward(0.3)",)
    assert alone.seen[1].stamp_s > world.ended_s[0], "its frame was taken after the plan's end"
    assert not any(plan.verified for plan in world.of(Plan) if plan.actions)


def test_a_damaged_picture_is_not_asked_about_early() -> None:
    engine = ScriptedEngine([["forward(1.0)"], ["done()"]])
    world = World(engine, ("damage", "settles", "frame", "repair", "done"))
    happens, whole = world.happens, world.jpeg

    def damaging(name: str, plan: Plan) -> None:
        if name in ("damage", "repair"):
            world.jpeg = b"no picture" if name == "damage" else whole
        else:
            happens(name, plan)

    world.happens = damaging  # type: ignore[method-assign]
    assert world.run().status == "done"
    assert [seen.history for seen in engine.seen] == [(), ("forward(1)",)]


def test_an_early_frame_that_is_too_old_for_the_gate_is_looked_at_again() -> None:
    engine = ScriptedEngine([["forward(1.0)"], ["turn(9)"], ["done()"]])
    world = World(engine)
    world.courses = iter((world.course, ("stale_frame",)))
    assert world.run().status == "done"
    assert [seen.history for seen in engine.seen] == [(), ("forward(1)",), ("forward(1)",)]
    # One at rest that is too old ends the mission, as ever.
    world = World(ScriptedEngine([["forward(1.0)"]]), ("stale_frame",))
    assert (world.run().reason, len(world.engine.seen)) == ("stale_frame", 1)


def test_an_answer_of_an_engine_that_was_replaced_is_dropped() -> None:
    engine, other = ScriptedEngine([["forward(1.0)"], ["…"]]), ScriptedEngine([["done()"]])
    world = World(engine)
    hear = world.runner._emit

    def replacing(job: MissionJob, report: object) -> None:
        hear(job, report)
        if isinstance(report, MissionStatus) and report.state == "acting":
            world.engines.engine = other

    world.runner._emit = replacing  # type: ignore[method-assign]
    assert world.run().status == "done"
    assert engine.cancelled.is_set()
    assert [seen.history for seen in other.seen] == [("forward(1)",)]


@dataclass
class DraftingEngine(ScriptedEngine):
    """Drafts two tokens ahead about each frame, or for ever."""

    drafted: list = field(default_factory=list)
    left_off: list = field(default_factory=list)
    walks_m: list = field(default_factory=list)
    endless: bool = False

    def draft_ahead(self, observation, *, walks_m=0.0):  # type: ignore[no-untyped-def]
        self.drafted.append(observation)
        self.walks_m.append(walks_m)
        try:
            yield (1,)
            while self.endless:
                yield (1, 2)
        finally:
            self.left_off.append(len(self.seen))


def test_frames_on_the_way_are_drafted_about_during_the_last_action_only() -> None:
    engine = DraftingEngine([["turn(20) forward(0.5)"], ["done()"]])
    world = World(engine, ("first", "frame", "frame", "moves", "frame", "frame", "settles", "frame", "done"))
    moved_s: list[float] = []
    happens = world.happens

    def noting(name: str, plan: Plan) -> None:
        moved_s.extend([world.clock.now()] * (name == "moves"))
        happens(name, plan)

    world.happens = noting  # type: ignore[method-assign]
    assert world.run().status == "done"
    assert engine.drafted
    assert all(seen.history == ("turn(20)", "forward(0.5)") for seen in engine.drafted)
    assert all(seen.stamp_s >= moved_s[0] - STEP_S - 1e-9 for seen in engine.drafted)
    stamps = [seen.stamp_s for seen in engine.drafted]
    assert stamps == sorted(set(stamps)), "no frame twice"
    assert engine.seen[1].stamp_s > stamps[-1]


def test_what_is_drafted_ahead_is_left_off_before_the_question_is_asked() -> None:
    engine = DraftingEngine([["forward(0.5)"], ["done()"]], endless=True)
    world = World(engine, ("moves", "frame", "moves", "settles", "frame", "done"))
    assert world.run().status == "done"
    assert engine.left_off == [1], "one draft, which ended before the second answer began"


def test_a_draft_on_the_way_is_told_how_far_the_last_action_still_leads() -> None:
    engine = DraftingEngine([["turn(20) forward(0.5)"], ["done()"]])
    world = World(engine, ("moves", "frame", "frame", "settles", "frame", "done"))
    walked_m = iter((0.0, 0.2, 0.2, 0.4, *[0.5] * 20))
    happens = world.happens

    def walking(name: str, plan: Plan) -> None:
        world.events.put_pose(world.clock.now(), Pose2D(next(walked_m), 0.0, 0.0))
        happens(name, plan)

    world.happens = walking  # type: ignore[method-assign]
    assert world.run().status == "done"
    assert engine.walks_m == [pytest.approx(0.3), *engine.walks_m[1:]]
    assert all(0.0 <= walks_m <= 0.5 for walks_m in engine.walks_m)
    assert engine.walks_m == sorted(engine.walks_m, reverse=True)
