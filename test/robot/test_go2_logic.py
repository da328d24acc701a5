"""How the Go2 driver calls, waits and gives up: scripted return codes and states in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import RobotError, RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.codes import posture_of
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver


@dataclass
class Script:
    """A robot on paper: what it answers by call, and its code and speed as functions of time."""

    codes: dict[str, list[int]] = field(default_factory=dict)
    code: Callable[[float], int] = lambda _: 1013
    speed_mps: Callable[[float], float] = lambda _: 0.0
    stale: bool = False
    silent: bool = False
    calls: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(100.0))
    on_call: Callable[[str], None] = lambda _: None

    # The three callers and the feed of a `RobotLink`.
    @property
    def posture(self) -> Script:
        return self

    move = stop = feed = posture

    def call(self, name: str, *arguments: Any) -> int:
        self.calls.append((self.clock.now(), name, arguments))
        self.on_call(name)
        answers = self.codes.get(name, [0])
        code = answers.pop(0) if len(answers) > 1 else answers[0]
        self.clock.sleep(0.1 if code in (3102, 3104) else 0.001)
        return code

    def names(self) -> list[str]:
        return [name for _, name, _ in self.calls]

    def is_live(self) -> bool:
        return not self.silent

    is_moving = is_live

    def newest(self) -> RobotState:
        if self.stale:
            raise RobotStale("the stamp stands still")
        # States arrive at 20 Hz.
        now = math.floor(self.clock.now() * 20) / 20
        code = self.code(now)
        posture = posture_of(code)
        return RobotState(now, now, 0.0, 0.0, 0.0, self.speed_mps(now), 0.0, 0.0, posture=posture, code=code)

    def wait(self, done: Callable[[RobotState], bool], deadline_s: float) -> bool:
        while self.silent or not done(self.newest()):
            if self.clock.now() >= deadline_s:
                return False
            self.clock.sleep(0.01)
        return True

    def close(self) -> None:
        self.silent = True


def started(script: Script, **settings: float) -> Go2Driver:
    driver = Go2Driver(Go2Config(**settings), script.clock, connect=lambda *_: script)
    driver.start()
    script.calls.clear()
    return driver


def test_a_stop_waits_for_a_state_that_is_newer_than_the_answer() -> None:
    script = Script()
    driver = started(script)
    script.clock.now_s = 200.01
    driver.stop()
    assert script.clock.now() >= 200.05
    assert script.names() == ["StopMove"]


def test_a_stop_is_repeated_until_the_body_stands() -> None:
    script = Script(speed_mps=lambda t: 1.0 if t < 101.0 else 0.0)
    driver = started(script)
    driver.stop()
    assert 101.0 <= script.clock.now() < 101.3
    assert script.names().count("StopMove") >= 4


def test_a_body_that_goes_on_moving_is_an_error_within_the_deadline() -> None:
    script = Script(speed_mps=lambda _: 0.5)
    driver = started(script)
    with pytest.raises(RobotError, match=r"moves at 0\.50 m/s"):
        driver.stop()
    assert script.clock.now() < 100 + 2.5 + 0.4


@pytest.mark.parametrize("code", [3102, 3104])
def test_an_unanswered_stop_is_only_believed_when_the_last_move_is_over(code: int) -> None:
    script = Script(codes={"StopMove": [code]})
    driver = started(script)
    driver.move(0.5, 0.0, 0.0)
    driver.stop()
    assert script.clock.now() - 100.0 > 1.0
    assert script.names().count("StopMove") > 3


def test_an_unanswered_stop_of_a_moving_body_is_a_refusal_with_its_code() -> None:
    script = Script(codes={"StopMove": [3102]}, speed_mps=lambda _: 0.5)
    with pytest.raises(RobotRefused, match="StopMove returned 3102"):
        started(script).stop()


def test_stale_after_a_stop_is_what_the_stop_raises() -> None:
    script = Script()
    driver = started(script)
    script.stale = True
    with pytest.raises(RobotStale):
        driver.stop()


def test_only_one_stop_waits_for_a_robot_that_says_nothing_and_all_are_sent() -> None:
    script = Script()
    driver = started(script)
    script.stale = script.silent = True
    spent_s, sent = [], []
    for _ in range(3):
        began_s, before = script.clock.now(), len(script.calls)
        with pytest.raises(RobotStale):
            driver.stop()
        spent_s.append(script.clock.now() - began_s)
        sent.append(len(script.calls) - before)
    assert spent_s[0] >= 2.5
    assert max(spent_s[1:]) < 0.5
    assert min(sent) >= 1
    # It speaks again, and still moves: a stop has all its time.
    script.stale = script.silent = False
    script.speed_mps = lambda t: 0.5 if t < began_s + 2.0 else 0.0
    driver.stop()


def test_a_stop_keeps_clear_of_the_last_move() -> None:
    script = Script()
    driver = started(script)
    driver.move(0.5, 0.0, 0.0)
    driver.stop()
    (moved_s, _, _), (stopped_s, name, _) = script.calls
    assert name == "StopMove"
    assert stopped_s - moved_s >= 0.005


def test_a_move_during_a_stop_is_dropped() -> None:
    script = Script()
    driver = started(script)
    begun: list[bool] = []
    original = script.wait

    def wait(done: Callable[[RobotState], bool], deadline_s: float) -> bool:
        if not begun:
            begun.append(True)
            driver.move(1.0, 0.0, 0.0)
        return original(done, deadline_s)

    script.wait = wait
    driver.stop()
    assert begun
    assert script.names() == ["StopMove"]
    driver.move(1.0, 0.0, 0.0)
    assert script.names()[-1] == "Move"


def test_velocities_are_floats_on_the_wire_and_nonsense_is_refused() -> None:
    script = Script()
    driver = started(script)
    driver.move(1, 0, 0)
    assert [type(value) for value in script.calls[0][2]] == [float] * 3
    for bad in (math.nan, math.inf):
        with pytest.raises(RobotRefused):
            driver.move(bad, 0.0, 0.0)
    assert len(script.calls) == 1


def test_a_move_that_cannot_be_sent_is_refused_by_name() -> None:
    script = Script(codes={"Move": [3102]})
    with pytest.raises(RobotRefused, match="no service listens"):
        started(script).move(0.1, 0.0, 0.0)


def test_an_unanswered_posture_that_the_state_shows_is_not_called_again() -> None:
    script = Script(codes={"Sit": [3104]}, code=lambda t: 1007 if t > 100.3 else 1013)
    started(script).posture("sit")
    assert script.names() == ["Sit"]


def test_an_unanswered_posture_is_called_again_and_a_refusal_then_means_it_was_heard() -> None:
    script = Script(codes={"Sit": [3104, 4206]}, code=lambda t: 1007 if t > 101.5 else 1013)
    started(script).posture("sit")
    assert script.names() == ["Sit", "Sit"]


def test_a_refused_posture_raises_at_once() -> None:
    script = Script(codes={"Sit": [4206]})
    with pytest.raises(RobotRefused, match="posture unsuitable"):
        started(script).posture("sit")
    assert script.clock.now() < 100.5


def test_a_posture_that_is_taken_but_never_reached_names_the_state() -> None:
    script = Script()
    with pytest.raises(
        RobotError, match="Sit was taken, but after 3 s the robot is in state 1013 balance stand"
    ):
        started(script, posture_s=3.0).posture("sit")
    assert script.names() == ["Sit"]


def test_a_service_that_is_not_there_is_unreachable() -> None:
    script = Script(codes={"Sit": [3102]})
    with pytest.raises(RobotUnreachable, match="sport service off"):
        started(script, posture_s=3.0).posture("sit")


def test_after_a_stop_an_unanswered_posture_is_not_called_again() -> None:
    script = Script(codes={"Sit": [3104]})
    driver = started(script)
    script.on_call = lambda name: driver.stop() if name == "Sit" else None
    with pytest.raises(RobotRefused, match=r"Sit .*there has been a stop"):
        driver.posture("sit")
    assert script.names() == ["Sit", "StopMove"]


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (1013, []),
        (1015, []),
        (1002, ["BalanceStand"]),
        (1007, ["RiseSit"]),
        (1001, ["RecoveryStand"]),
        (1004, ["RecoveryStand"]),
        (1091, ["Pose"]),
    ],
)
def test_start_does_what_the_state_needs(code: int, calls: list[str]) -> None:
    script = Script()
    script.code = lambda _: code if not script.calls else 1013
    Go2Driver(Go2Config(), script.clock, connect=lambda *_: script).start()
    assert script.names() == calls


def test_recovery_that_ends_locked_is_unlocked() -> None:
    script = Script()
    script.code = lambda _: {0: 1001, 1: 1002}.get(len(script.calls), 1013)
    Go2Driver(Go2Config(), script.clock, connect=lambda *_: script).start()
    assert script.names() == ["RecoveryStand", "BalanceStand"]


def test_silence_at_start_is_unreachable_and_says_where_it_listened() -> None:
    script = Script(silent=True)
    driver = Go2Driver(Go2Config(domain=7), script.clock, connect=lambda *_: script)
    with pytest.raises(RobotUnreachable, match=r"rt/lf/sportmodestate \(DDS domain 7"):
        driver.start()


def test_close_stops_first_and_once() -> None:
    script = Script()
    driver = started(script)
    driver.close()
    driver.close()
    assert script.names() == ["StopMove"]
    with pytest.raises(RobotUnreachable):
        driver.state()
