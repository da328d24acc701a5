"""The executor on its own thread in real time: nothing that stops ever waits for anything that acts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.robot import fake
from vlm_spec_decode.robot.fake import FakeRobot


class Commander:
    """A commander that republishes its plan at 20 Hz on a thread of its own until it falls silent."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._silent = threading.Event()
        self._plan: Plan | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def say(self, text: str, mission: str = "m", answer: int = 0) -> None:
        self._plan = Plan(mission, answer, time.monotonic(), 0, parse_answer(text), True)
        self._executor.submit(self._plan)

    def fall_silent(self) -> float:
        self._silent.set()
        self._thread.join()
        return time.monotonic()

    def _beat(self) -> None:
        while not self._silent.wait(0.05):
            if self._plan is not None:
                self._executor.submit(self._plan)


PATIENT = SafetyLimits(watchdog_s=10.0, max_state_age_s=10.0)
"""A busy machine starves this process of its own heartbeat."""


class Stage:
    def __init__(self, limits: SafetyLimits = PATIENT) -> None:
        self.robot = FakeRobot(WallClock())
        self.robot.set_pose(0, 0, 0)
        self.executor = Executor(self.robot, SafetyGate(limits), WallClock())
        self.commander = Commander(self.executor)

    def wait(self, done: Callable[[], bool], within_s: float = 30.0) -> None:
        end_s = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < end_s, self.executor.status()
            time.sleep(0.005)


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(getattr(request, "param", PATIENT))
    made.executor.start()
    try:
        yield made
    finally:
        made.commander.fall_silent()
        made.executor.close()


def test_it_drives_and_arrives(stage: Stage) -> None:
    stage.commander.say("forward(0.4) turn(15) done()")
    stage.wait(lambda: stage.executor.status().state == "done")
    x, _, yaw = stage.robot.true_pose
    assert x == pytest.approx(0.4, abs=0.1)
    assert yaw == pytest.approx(0.262, abs=0.05)


@pytest.mark.parametrize("stage", [SafetyLimits()], indirect=True)
def test_watchdog_in_real_time(stage: Stage) -> None:
    stage.commander.say("forward(3)")
    # A machine that starves this process may have the watchdog bite before the silence; that is silence, too.
    stage.wait(lambda: stage.robot.state().vx_mps > 0.2 or stage.executor.status().reason == "watchdog")
    stage.commander.fall_silent()
    stage.wait(lambda: stage.executor.status().reason == "watchdog")
    report = stage.executor.last_stop
    assert report is not None
    # The bar of 0.3 s is shown in virtual time (test_executor.py); here a starved thread gets a second more.
    assert 0.2 < report.reaction_s < 1.5
    assert stage.robot.state().is_still


@pytest.mark.parametrize("text", ["stretch()", "stand_down()"])
def test_estop_does_not_wait_for_a_posture(stage: Stage, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = text.removesuffix("()")
    sources, target, _ = fake._RULES[name]
    monkeypatch.setitem(fake._RULES, name, (sources, target, 15.0))
    stage.commander.say(text)
    stage.wait(lambda: any(call == name for _, call in stage.robot.calls))
    report = stage.executor.estop(True)
    assert report is not None
    assert stage.executor.status().state == "estop"
    with pytest.raises(ActionRefused, match="under way"):
        stage.executor.estop(False)


def test_cancel_does_not_wait_for_a_posture(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, target, _ = fake._RULES["stretch"]
    monkeypatch.setitem(fake._RULES, "stretch", (sources, target, 15.0))
    stage.commander.say("stretch() forward(1)")
    stage.wait(lambda: any(call == "stretch" for _, call in stage.robot.calls))
    stage.executor.cancel()
    stage.wait(lambda: stage.executor.status().reason == "cancelled")
    with pytest.raises(ActionRefused, match="under way"):
        stage.executor.estop(False)


def test_no_move_follows_an_estop_from_another_thread(stage: Stage) -> None:
    stage.commander.say("forward(3)")
    for _ in range(3):
        stage.wait(lambda: stage.robot.state().vx_mps > 0.15)
        stage.executor.estop(True)
        engaged_s = time.monotonic()
        time.sleep(0.3)
        late = [call for at_s, call in stage.robot.calls if at_s > engaged_s and call.startswith("move")]
        assert late == []
        assert stage.robot.state().is_still
        stage.executor.estop(False)
        stage.commander.say("forward(3)", mission=f"after {engaged_s}")


def test_close_ends_thread_and_motion(stage: Stage) -> None:
    stage.commander.say("forward(3)")
    stage.wait(lambda: stage.robot.state().vx_mps > 0.2)
    stage.executor.close()
    assert stage.robot.state().is_still
    assert not [thread for thread in threading.enumerate() if thread.name == "executor"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_control_thread_still_stops_the_robot(stage: Stage) -> None:
    """What nobody foresaw ends the thread; the robot must not walk on."""
    stage.commander.say("forward(3)")
    stage.wait(lambda: stage.robot.state().vx_mps > 0.2)
    working = stage.robot.move

    def broken(*velocity: float) -> None:
        stage.robot.move = working  # type: ignore[method-assign]
        raise ZeroDivisionError

    stage.robot.move = broken  # type: ignore[method-assign]
    stage.wait(lambda: not [t for t in threading.enumerate() if t.name == "executor"])
    assert stage.robot.state().is_still
    assert any(call == "stop" for _, call in stage.robot.calls)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_executor_whose_thread_dies_has_stopped_the_robot_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits for the plan must not wait for ever, nor the robot go on."""
    robot = FakeRobot(WallClock())
    robot.set_pose(0, 0, 0)
    executor = Executor(robot, SafetyGate(), WallClock())
    executor.start()
    plan = Plan("m", 0, time.monotonic(), 0, (Forward(2.0),))
    end_s = time.monotonic() + 5
    while robot.state().speed_mps < 0.2 and time.monotonic() < end_s:
        executor.submit(plan)
        time.sleep(0.02)
    monkeypatch.setattr(executor._action_runner, "begin_period", lambda: 1 / 0)
    while executor.status().state != "fault" and time.monotonic() < end_s:
        time.sleep(0.02)
    status = executor.status()
    assert (status.state, status.reason) == ("fault", "internal")
    assert "ZeroDivisionError" in status.detail
    while not robot.state().is_still and time.monotonic() < end_s:
        time.sleep(0.02)
    assert robot.state().is_still
    assert "stop" in [call for _, call in robot.calls]
    executor.close()
