"""An answer asks the operator something: the robot stands, waits for a word, and goes on with it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from test.mission.scripted import EchoExecutor, ScriptedEngine
from test.mission.test_runner import QUICK, World
from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.actions.types import Ask, Forward
from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.core.types import MAX_INSTRUCTION_CHARS
from vlm_spec_decode.edge.mission_loop import MissionLoop
from vlm_spec_decode.mission.state import Answer, MissionStatus, Shown

QUESTION = "do you mean the red or the blue chair ?"
ASKS = [[f"red chair , blue chair . {QUESTION} ask()"], ["red chair ahead . ", "forward(0.5) done()"]]


def say_when_asked(world: World, word: str) -> threading.Thread:
    """Say a word as soon as the mission waits for one."""

    def wait() -> None:
        until_s = time.monotonic() + 20
        while not world.feed.waits_for_word and time.monotonic() < until_s:
            time.sleep(0.002)
        world.feed.put_word(word)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_the_mission_waits_for_a_word_and_goes_on_with_it() -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor())
    thread = say_when_asked(world, "the red one")
    assert world.run().status == "done"
    thread.join(5)
    first, second = world.engine.seen
    assert first.instruction == "walk to the red ball"
    assert second.instruction == "walk to the red ball . the red one"
    assert second.history == ()
    asked = [s for s in world.of(MissionStatus) if s.state == "waiting"]
    assert [(s.reason, s.detail) for s in asked] == [("asked", QUESTION)]
    assert [a.actions[:1] for a in world.of(Answer)] == [(Ask(),), (Forward(0.5),)]


@pytest.mark.parametrize("word", ["", "   "])
def test_without_a_word_the_mission_ends(word: str) -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor())
    say_when_asked(world, word).join(0)
    ending = world.run()
    assert (ending.status, ending.detail) == ("cancelled", "the robot's question was not answered")
    assert len(world.engine.seen) == 1


def test_a_cancel_ends_a_mission_that_waits_for_a_word() -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor())

    def cancel() -> None:
        while not world.feed.waits_for_word:
            time.sleep(0.002)
        world.feed.cancel("m1", "enough")

    threading.Thread(target=cancel, daemon=True).start()
    ending = world.run()
    assert (ending.status, ending.detail) == ("cancelled", "enough")


def test_a_word_is_added_to_the_instruction_and_a_question_is_no_history() -> None:
    mission = MissionLoop("go to the chair", QUICK.max_steps)
    mission.record(("turn(60)", "ask()"), (Ask(),))
    assert mission.is_running
    assert mission.is_asking
    mission.go_on_with(" the blue one ")
    assert (mission.instruction, mission.history) == ("go to the chair . the blue one", ["turn(60)"])
    assert not mission.is_asking
    room = MAX_INSTRUCTION_CHARS - len("go to the chair . the blue one . ")
    with pytest.raises(InstructionError, match=f"has room for {room}"):
        mission.go_on_with("x" * (room + 1))
    assert mission.instruction == "go to the chair . the blue one"
    mission.go_on_with("x" * room)
    assert len(mission.instruction) == MAX_INSTRUCTION_CHARS


LONG = "x" * (MAX_INSTRUCTION_CHARS - 10)


def test_a_word_that_makes_the_instruction_too_long_is_refused_and_the_mission_goes_on_waiting() -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor(), replace(QUICK, reply_s=0.6))
    refused: list[str] = []

    def reply() -> None:
        until_s = time.monotonic() + 20
        while not world.feed.waits_for_word and time.monotonic() < until_s:
            time.sleep(0.002)
        for _ in range(3):  # longer in all than a question waits: each refusal gives as much time again
            time.sleep(0.35)
            try:
                world.feed.put_word(LONG)
            except InstructionError as error:
                refused.append(str(error))
        world.feed.put_word("the red one")

    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    assert world.run().status == "done"
    thread.join(5)
    assert len(refused) == 3
    assert all("the instruction has room for" in each for each in refused)
    assert world.engine.seen[1].instruction == "walk to the red ball . the red one"


def test_a_reply_that_comes_with_the_question_is_not_lost() -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor())
    taken = []
    emit = world.runner._emit

    def reply_at_once(job: object, report: object) -> None:
        emit(job, report)  # type: ignore[arg-type]
        if isinstance(report, MissionStatus) and report.state == "waiting":
            shown = Shown(report.mission, report.step, report.detail)
            taken.append(world.feed.put_word("the red one", shown))

    world.runner._emit = reply_at_once
    assert world.run().status == "done"
    assert taken == [True]
    assert world.engine.seen[1].instruction == "walk to the red ball . the red one"


@pytest.mark.parametrize(
    "shown",
    [Shown("another"), Shown("m1", 2), Shown("m1", 1, "which box ?"), Shown("", 7)],
)
def test_a_word_on_another_question_is_refused_and_the_first_one_counts(shown: Shown) -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor())
    found: list[bool] = []

    def reply() -> None:
        while not world.feed.waits_for_word:
            time.sleep(0.002)
        put = world.feed.put_word
        found.extend([put("the green one", shown), world.feed.put_approval(True)])
        with world.feed._changed:  # so that the mission reads neither before both have come
            found.extend([put("the red one", Shown("m1", 1, QUESTION)), put("the blue one")])

    assert not world.feed.put_word("too early")
    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    assert world.run().status == "done"
    thread.join(5)
    assert found == [False, False, True, False]
    assert not world.feed.put_word("too late")
    assert world.engine.seen[1].instruction == "walk to the red ball . the red one"


def test_a_mission_that_ends_takes_no_word_and_no_yes() -> None:
    world = World(ScriptedEngine(ASKS), EchoExecutor())
    world.feed.begin("m1", 1)
    world.feed.expect_word(1, QUESTION)
    assert world.feed.waits_for_word
    world.feed.cancel("m1", "superseded")
    assert not world.feed.put_word("go somewhere else")
    world.feed.begin("m2", 1)
    world.feed.expect_approval(1, "turn(20)")
    world.feed.put_status(PlanStatus(state="estop", reason="estop"))
    assert not world.feed.put_approval(True)
