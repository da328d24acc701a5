"""An answer asks the operator something: the robot stands, waits for a word, and goes on with it."""

from __future__ import annotations

import threading
import time

import pytest

from test.mission.scripted import EchoExecutor, ScriptedEngine
from test.mission.test_runner import QUICK, World
from vlm_spec_decode.actions.types import Ask, Forward
from vlm_spec_decode.edge.mission_loop import MissionLoop
from vlm_spec_decode.mission.state import Answer, MissionStatus

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
