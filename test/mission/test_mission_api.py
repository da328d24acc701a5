"""`vsd.Robot` and `vsd.Mission`: whatever ends a mission, the robot stands afterwards."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest

from test.mission.scripted import ScriptedEngine
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import (
    ActionRefused,
    Cancelled,
    CloudUnreachable,
    ConfigError,
    InstructionError,
    RobotError,
    RobotHeld,
    UsageError,
)
from vlm_spec_decode.mission.mission import (
    Mission,
    MissionEvent,
    MissionResult,
    Report,
    _Run,
)
from vlm_spec_decode.mission.robot import Robot
from vlm_spec_decode.mission.service import MissionService, MissionSettings
from vlm_spec_decode.mission.state import RunnerConfig
from vlm_spec_decode.robot.fake import SPEC, FakeCamera, FakeRobot
from vlm_spec_decode.robot.registry import RobotParts

FAR = [["I see it. ", "forward(2) ", "…"]]
"""An answer that walks and then waits for a cloud that says no more."""

QUICK = MissionSettings(runner=RunnerConfig(fallback="stop", hold_s=1.0))


class Stage:
    """A fake robot that stands, with what tests look at."""

    def __init__(self) -> None:
        clock = WallClock()
        self.fake = FakeRobot(clock)
        self.fake.set_pose(0, 0, 0)
        self.fake.start = lambda: None  # type: ignore[method-assign]  # it stands already
        parts = RobotParts(driver=self.fake, open_camera=lambda: FakeCamera(self.fake, clock))
        self.robot = Robot(SPEC, parts, clock=clock)
        self.robot.start()

    def mission(self, script: list[list[object]], settings: MissionSettings = QUICK) -> Mission:
        return Mission(ScriptedEngine(script), self.robot, settings=settings)

    @property
    def stands(self) -> bool:
        return self.fake.state().is_still

    def wait_until_it_walks(self) -> None:
        end_s = time.monotonic() + 5
        while self.fake.state().speed_mps < 0.2:
            assert time.monotonic() < end_s
            time.sleep(0.01)

    def assert_it_stays(self) -> None:
        assert self.stands
        there = self.fake.true_pose
        time.sleep(0.4)
        assert math.dist(there[:2], self.fake.true_pose[:2]) < 0.01


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.robot.close()


def test_a_mission_looks_answers_acts_and_says_so(stage: Stage) -> None:
    heard: list[MissionEvent] = []
    mission = stage.mission([["ahead. forward(0.3)"], ["there. done()"]])
    result = mission.run("walk to the red ball", heard.append)
    assert result == MissionResult(status="done", steps=2, actions=("forward(0.3)", "done()"))
    assert result.check() is result
    assert stage.fake.true_pose[0] == pytest.approx(0.3, abs=0.08)
    stage.assert_it_stays()
    kinds = [event.kind for event in heard]
    assert {"state", "text", "answer", "robot"} == set(kinds)
    assert [str(event) for event in heard if event.kind == "text"] == ["ahead. forward(0.3)", "there. done()"]
    assert str(heard[-1]) == "done"


def test_a_mission_can_be_run_again(stage: Stage) -> None:
    mission = stage.mission([["forward(0.1) done()"], ["forward(0.1) done()"]])
    for _ in range(2):
        assert mission.run("go").is_done
    assert stage.fake.true_pose[0] == pytest.approx(0.2, abs=0.1)


ASKS = ["red chair , blue chair . the red or the blue one ? ask()"]


@pytest.mark.parametrize("words", [["x" * 1990, "the red one"], ["x" * 1990] * 5], ids=["once", "always"])
def test_a_word_that_cannot_be_used_is_asked_for_again_with_the_reason(
    stage: Stage, words: list[str]
) -> None:
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        return words[len(asked) - 1]

    engine = ScriptedEngine([ASKS, ["there. done()"]])
    result = Mission(engine, stage.robot, reply=reply, settings=QUICK).run("walk to a chair")
    assert asked[0] == "the red or the blue one ?"
    reason = "the reply has 1990 characters; the instruction has room for 1982. the red or the blue one ?"
    assert asked[1:] == [reason] * (len(asked) - 1)
    if words[1] == "the red one":
        assert (result.status, len(asked)) == ("done", 2)
        assert engine.seen[1].instruction == "walk to a chair . the red one"
    else:  # no callback keeps a robot busy for ever
        assert (result.status, len(asked)) == ("cancelled", 3)
        assert result.detail == "the robot's question was not answered"


class Walks:
    """An `on_event` that does `then` as soon as the robot walks."""

    def __init__(self, stage: Stage, then: BaseException) -> None:
        self.stage, self.then = stage, then

    def __call__(self, event: MissionEvent) -> None:
        if event.kind == "robot" and "forward" in event.text:
            self.stage.wait_until_it_walks()
            raise self.then


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("of the caller")])
def test_what_on_event_raises_comes_out_and_the_robot_stands(stage: Stage, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stage.mission(FAR).run("go", Walks(stage, error))
    stage.assert_it_stays()
    assert 0.05 < stage.fake.true_pose[0] < 1.5, "it had begun and was ended"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of the engine"), SystemExit(1)])
def test_what_the_engine_raises_inside_decoding_comes_out_too(stage: Stage, error: BaseException) -> None:
    class Broken(ScriptedEngine):
        def answer(self, observation):  # type: ignore[no-untyped-def]
            for update in super().answer(observation):
                yield update
                stage.wait_until_it_walks()
                raise error

    mission = Mission(Broken([["forward(2) ", "…"]]), stage.robot)
    with pytest.raises(type(error)):
        mission.run("go")
    stage.assert_it_stays()
    assert stage.fake.true_pose[0] < 1.5


def test_ctrl_c_while_walking_stops_it_and_a_second_one_does_not_prevent_that(stage: Stage) -> None:
    import _thread

    def press() -> None:
        stage.wait_until_it_walks()
        for _ in range(3):
            _thread.interrupt_main()
            time.sleep(0.02)

    pressing = threading.Thread(target=press)
    pressing.start()
    began_s = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            stage.mission(FAR).run("go")
    except KeyboardInterrupt:
        pass  # one that came just behind
    finally:
        try:
            pressing.join()
        except KeyboardInterrupt:
            pressing.join()
    stage.assert_it_stays()
    assert time.monotonic() - began_s < 4


def test_a_run_that_ends_without_its_own_end_is_cancelled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt at an odd moment of `run` may skip its end; the mission ends all the same."""
    monkeypatch.setattr("vlm_spec_decode.mission.mission.without_interrupts", lambda _: None)

    class Away(BaseException): ...

    def leave(*_: object) -> None:
        stage.wait_until_it_walks()
        raise Away

    monkeypatch.setattr("vlm_spec_decode.mission.mission._Run.follow", leave)
    mission = stage.mission(FAR)
    with pytest.raises(Away):
        mission.run("go")
    time.sleep(1.5)
    stage.assert_it_stays()


AT_REST_S = 0.7 + 0.15
"""When a robot is stopped whose `run` is silent; the rest is this machine's."""


def late(stage: Stage, seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have the thread of `run` stand still once, outside a callback, while the robot walks."""
    plain, seen = _Run._on_report, list[float]()

    def stall(self: _Run, report: Report) -> None:
        if isinstance(report, PlanStatus) and "forward" in report.action and not seen:
            stage.wait_until_it_walks()
            seen.append(time.monotonic())
            time.sleep(seconds)
        plain(self, report)

    monkeypatch.setattr(_Run, "_on_report", stall)
    return seen


def test_a_run_that_is_late_stops_the_robot_and_its_mission_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = late(stage, 1.0, monkeypatch)
    result = stage.mission([["forward(1.5)"], ["forward(1.5)"], ["done()"]]).run("go")
    assert result.is_done
    stopped_s = next(at for at, call in stage.fake.calls if call == "stop" and at > seen[0])
    assert stopped_s - seen[0] < AT_REST_S, "it stood before it was heard of again"
    assert stage.fake.true_pose[0] == pytest.approx(1.5, abs=0.1)


def test_a_run_that_is_gone_for_long_is_cancelled(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = late(stage, 3.5, monkeypatch)
    result = stage.mission(FAR).run("go")
    assert result.detail == "nobody follows the mission any more"
    stopped_s = next(at for at, call in stage.fake.calls if call == "stop" and at > seen[0])
    assert stopped_s - seen[0] < AT_REST_S


def test_a_heartbeat_thread_that_is_late_itself_does_not_blame_the_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock meanwhile, as it does while reports are passed on by a busy computer."""
    plain, seen = MissionService.drain, list[float]()

    def stall(self: MissionService) -> None:
        plain(self)
        run = mission._running
        if run is not None and self is run._service and stage.fake.state().speed_mps > 0.2 and not seen:
            seen.append(time.monotonic())
            time.sleep(1.2)

    mission = stage.mission([["forward(1.5)"], ["forward(1.5)"], ["done()"]])
    monkeypatch.setattr(MissionService, "drain", stall)
    submit, sent = Robot.submit, list[float]()
    monkeypatch.setattr(
        Robot, "submit", lambda self, plan: (sent.append(time.monotonic()), submit(self, plan))[1]
    )
    result = mission.run("go")
    assert result.is_done
    meanwhile = [at - seen[0] for at in sent if seen[0] < at < seen[0] + 1.2]
    assert not meanwhile, "nothing commands the robot meanwhile"


def run_in_a_thread(mission: Mission) -> tuple[threading.Thread, list[MissionResult]]:
    """Start a mission in another thread; its result is in the list once the thread has ended."""
    found: list[MissionResult] = []
    running = threading.Thread(target=lambda: found.append(mission.run("go")))
    running.start()
    return running, found


def test_another_thread_cancels(stage: Stage) -> None:
    mission = stage.mission(FAR)
    running, found = run_in_a_thread(mission)
    stage.wait_until_it_walks()
    with pytest.raises(UsageError, match="runs already"):
        mission.run("something else")
    mission.cancel("enough")
    running.join(5)
    assert not running.is_alive()
    assert (found[0].status, found[0].detail) == ("cancelled", "enough")
    with pytest.raises(Cancelled, match="enough"):
        found[0].check()
    stage.assert_it_stays()


def test_an_emergency_stop_latches_and_ends_the_mission(stage: Stage) -> None:
    mission = stage.mission(FAR)
    running, found = run_in_a_thread(mission)
    stage.wait_until_it_walks()
    report = stage.robot.emergency_stop()
    assert report is not None
    assert report.reaction_s < 0.1
    running.join(5)
    assert (found[0].status, found[0].reason) == ("cancelled", "estop")
    assert stage.robot.is_stopped
    assert stage.mission([["forward(1)"]]).run("go").reason == "estop", "nothing moves before the release"
    stage.robot.release()
    assert stage.mission([["forward(0.1) done()"]]).run("go").is_done


def test_a_time_limit_cancels(stage: Stage) -> None:
    result = stage.mission(FAR).run("go", timeout_s=1.0)
    assert (result.status, result.detail) == ("cancelled", "no end within 1 s")
    stage.assert_it_stays()


def test_a_caller_that_hangs_in_on_event_loses_the_mission(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_spec_decode.mission.mission.CALLBACK_S", 0.5)
    seen: list[float] = []

    def hang(event: MissionEvent) -> None:
        if event.kind == "robot" and "forward" in event.text and not seen:
            stage.wait_until_it_walks()
            time.sleep(1.5)
            seen.append(stage.fake.state().speed_mps)

    result = stage.mission(FAR).run("go", hang)
    assert result.detail == "its asker fell silent"
    assert seen == [0.0], "it stood before the callback came back"


def test_a_lost_cloud_stops_it_and_is_named_by_its_type(stage: Stage) -> None:
    result = stage.mission([["forward(2) ", CloudUnreachable("the link was cut")]]).run("go")
    assert (result.status, result.reason) == ("failed", "CloudUnreachable")
    with pytest.raises(CloudUnreachable, match="cut"):
        result.check()
    stage.assert_it_stays()


def test_what_the_gate_refuses_is_a_refusal(stage: Stage) -> None:
    result = stage.mission([["forward(9)"]]).run("go")
    assert (result.status, result.reason) == ("refused", "limit_distance")
    with pytest.raises(ActionRefused, match="limit_distance"):
        result.check()


def test_a_plan_waits_for_a_yes_and_a_no_moves_nothing(stage: Stage) -> None:
    asked: list[str] = []

    def no(plan: str) -> bool:
        asked.append(plan)
        return False

    mission = Mission(ScriptedEngine([["forward(1)"]]), stage.robot, approve=no)
    assert mission.run("go").detail == "the plan was not approved"
    assert asked == ["forward(1)"]
    assert stage.fake.true_pose[0] == 0


@pytest.mark.parametrize("text", ["", "   ", "x" * 5000])
def test_no_instruction_is_refused_at_once(stage: Stage, text: str) -> None:
    with pytest.raises(InstructionError):
        stage.mission([["done()"]]).run(text)


def test_a_robot_is_stopped_at_the_end_of_its_block() -> None:
    stage = Stage()
    with pytest.raises(ValueError, match="of the caller"), stage.robot:
        stage.mission(FAR).run("go", Walks(stage, ValueError("of the caller")))
    assert [call for _, call in stage.fake.calls if call].count("stop") >= 1
    with pytest.raises(RobotError):
        _ = stage.robot.state
    with pytest.raises(RobotError):
        stage.robot.frame()
    stage.robot.close()


def test_no_heartbeat_no_motion(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the thread that repeats the plan dies, the watchdog stops the robot, and `run` raises."""
    beats: list[float] = []
    beat = MissionService.repeat_plan

    def die(self: MissionService) -> None:
        beats.append(time.monotonic())
        if stage.fake.state().speed_mps > 0.2:
            raise MemoryError("of the heartbeat")
        beat(self)

    monkeypatch.setattr("vlm_spec_decode.mission.service.MissionService.repeat_plan", die)
    with pytest.raises(MemoryError):
        stage.mission(FAR).run("go")
    assert beats
    stage.assert_it_stays()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("rover", {}, "unknown robot 'rover'; known: go2, sim"),
        ("fake", {"colour": "red"}, "no setting colour"),
    ],
)
def test_what_cannot_be_connected_says_what_there_is(name: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Robot.connect(name, **settings)


def test_the_fake_robot_connects_stands_and_sees() -> None:
    with Robot.connect("fake", limits=SafetyLimits(max_speed_mps=0.3)) as robot:
        assert robot.state.can_walk
        assert robot.frame().width == 320
        assert robot.limits.max_speed_mps == 0.3
        with pytest.raises(ConfigError, match="walk"):
            robot.spec.narrowed(SafetyLimits(modes=(7,)))


def test_a_robot_that_another_executor_holds_is_refused_and_not_moved() -> None:
    from vlm_spec_decode.robot.lease import new_claim

    class Taken:
        """A board on which somebody holds the robot."""

        def open(self, hear):  # type: ignore[no-untyped-def]
            self.hear = hear

        def poll(self) -> None:
            from dataclasses import replace

            self.hear(replace(new_claim("another"), holds=True).to_json())

        def write(self, text: str) -> None: ...

        def close(self) -> None: ...

    fake = FakeRobot(WallClock())
    robot = Robot(SPEC, RobotParts(driver=fake, boards=(Taken(),)))
    with pytest.raises(RobotHeld, match="another"):
        robot.start()
    robot.close()
    assert not [call for _, call in fake.calls if call]


def test_a_mission_needs_a_camera_and_an_engine(stage: Stage) -> None:
    blind = Robot(SPEC, RobotParts(driver=FakeRobot(WallClock())))
    with pytest.raises(ConfigError, match="no camera"):
        Mission(ScriptedEngine([]), blind)
    with pytest.raises(ConfigError, match="an engine"):
        Mission(None, stage.robot)
