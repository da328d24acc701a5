"""Dialogues in people's own words: every meaning, with answers that the robot can carry out."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from vlm_spec_decode.actions.grammar import answer_pattern
from vlm_spec_decode.actions.parser import parse_answer, question_of
from vlm_spec_decode.actions.types import MOTIONS, Action, Ask, Done, Forward, Turn, Wait, action_numbers
from vlm_spec_decode.train import teacher
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.lexicon import UNSEEN_EVERY, words
from vlm_spec_decode.train.phrasings import SLOTS, Phrasing, normalised, phrasings
from vlm_spec_decode.train.scene_description import VisibleObject
from vlm_spec_decode.train.spoken_dialogues import (
    NO_MOTION,
    SHARES,
    Sayings,
    dialogue_of,
    draw_dialogue,
    motion,
)
from vlm_spec_decode.train.teacher import FULL, AnswerStyle, Dialogue

BRIEF = AnswerStyle("brief", teacher.FAR_STEP_M)
VIEW = (
    VisibleObject("chair", "red", 20.0, 2.0, 2.2, 400),
    VisibleObject("chair", "blue", -15.0, 3.0, 3.2, 300),
    VisibleObject("box", "green", -30.0, 4.6, 4.9, 200),
    VisibleObject("plant", "pink", 120.0, 1.0, 1.2, 0),
)


@cache
def drawn(brief: bool) -> tuple[tuple[str, Dialogue], ...]:
    rng, sayings = np.random.default_rng(0), Sayings()
    found = []
    for meaning in sayings.meanings:
        for _ in range(12):
            goal = sayings.draw(rng, VIEW, meaning).goal
            found.append((meaning, dialogue_of(rng, VIEW, goal, BRIEF if brief else FULL)))
    return tuple(found)


def test_every_meaning_is_drawn_by_its_share() -> None:
    assert set(SHARES) == set(SLOTS)
    assert set(Sayings().meanings) == set(SLOTS)
    rng, sayings = np.random.default_rng(0), Sayings(noise=False)
    counts = Counter(sayings.draw(rng, VIEW).phrasing.meaning for _ in range(3000))
    assert counts["goto"] / 3000 == pytest.approx(SHARES["goto"] / sum(SHARES.values()), abs=0.03)


@pytest.mark.parametrize("brief", [False, True])
def test_every_answer_is_of_the_action_language(brief: bool) -> None:
    pattern = re.compile(answer_pattern())
    for meaning, dialogue in drawn(brief):
        assert pattern.fullmatch(dialogue.answer), (meaning, dialogue)
        assert parse_answer(dialogue.answer)
        assert "{" not in dialogue.goal.text, (meaning, dialogue)


def test_what_must_not_be_done_is_answered_in_words_and_without_motion() -> None:
    for meaning, dialogue in drawn(True):
        if meaning in NO_MOTION:
            assert parse_answer(dialogue.answer) == (Done(),)
            assert dialogue.answer.split(" . ")[0] in teacher.ONLY_WORDS.values()


def test_strange_words_are_taught_to_stand_still_and_measured_with_others() -> None:
    rng, sayings = np.random.default_rng(0), Sayings()
    made_up = [
        s for s in (sayings.draw(rng, VIEW) for _ in range(6000)) if s.phrasing.meaning not in NO_MOTION
    ]
    strange = [s for s in made_up if s.goal.verb in ("unknown", "impossible")]
    assert len(strange) > 100  # a known command about an unknown thing
    assert {parse_answer(teacher.answer(s.goal, VIEW, (), BRIEF)) for s in strange} == {(Done(),)}
    unseen = {word for kind in ("nouns", "verbs", "made_up") for word in words(kind)[::UNSEEN_EVERY]}
    told = " ".join(s.goal.text for s in strange).lower().split()
    assert not unseen & set(told) - {word for p in phrasings() for word in p.text.split()}
    held = Sayings("held_out", noise=False)
    drawn = (held.draw(rng, VIEW, "meaningless") for _ in range(400))
    assert unseen & {word for said in drawn for word in said.goal.text.split()}


def test_held_out_sayings_are_of_held_out_phrasings() -> None:
    taught = {normalised(p.text) for p in phrasings()}
    rng, sayings = np.random.default_rng(0), Sayings("held_out")
    assert not any(normalised(sayings.draw(rng, VIEW).phrasing.text) in taught for _ in range(400))


@pytest.mark.parametrize(
    ("meaning", "text", "actions"),
    [
        ("forward_some", "go", (Forward(0.5),)),
        ("back_some", "back", (Forward(-0.3),)),
        ("turn_around", "turn around", (Turn(180.0),)),
        ("full_turn", "spin", (Turn(180.0), Turn(180.0))),
    ],
)
def test_a_motion_without_a_number_has_one_of_its_own(
    meaning: str, text: str, actions: tuple[Action, ...]
) -> None:
    said = motion(np.random.default_rng(0), Phrasing(meaning, "short", text))
    assert parse_answer(said.goal.action) == actions


@pytest.mark.parametrize("meaning", ["forward", "back", "strafe", "turn", "wait"])
def test_the_plan_comes_to_the_amount_and_what_is_too_much_is_declined(meaning: str) -> None:
    rng, sayings = np.random.default_rng(1), Sayings()
    declined = 0
    for _ in range(150):
        said = sayings.draw(rng, VIEW, meaning)
        plan = parse_answer(teacher.answer(said.goal, VIEW, (), BRIEF))
        (amount,) = said.amounts
        if amount.is_too_much:
            declined += 1
            assert plan == (Done(),)
            continue
        assert all(isinstance(a, (*MOTIONS, Wait)) for a in plan[:-1])
        numbers = [action_numbers(a)[0] for a in plan[:-1]]
        assert abs(sum(numbers)) == pytest.approx(float(amount.on_grid))
        is_right = "left" not in said.goal.text.lower() and meaning in ("strafe", "turn")
        assert (sum(numbers) < 0) == (is_right or meaning == "back"), said
    assert declined > 0


def test_two_of_a_kind_are_asked_about_and_the_reply_decides() -> None:
    goal = Goal("go to the chair", "goto", "chair", may_ask=True)
    asked = teacher.answer(goal, VIEW, (), BRIEF)
    assert asked == "red chair , blue chair . do you mean the red or the blue chair ? ask ( )"
    assert question_of(asked) == "do you mean the red or the blue chair ?"
    # On the way, and where the other one cannot be meant, nothing is asked.
    assert not question_of(teacher.answer(goal, VIEW, ("forward(0.5)",), BRIEF))
    assert not question_of(teacher.answer(goal, VIEW[1:], (), BRIEF))
    rng, sayings = np.random.default_rng(0), Sayings(noise=False)
    for meaning, found in (
        ("reply_left", "red chair"),
        ("reply_nearest", "red chair"),
        ("reply_right", "blue"),
    ):
        said = sayings.draw(rng, VIEW, meaning)
        assert not question_of(teacher.answer(said.goal, VIEW, (), BRIEF))
        assert found in teacher.answer(said.goal, VIEW, (), BRIEF).split(" . ")[1]


def test_a_sequence_that_begins_with_motions_makes_them_once() -> None:
    goal = Goal("turn left then go to the red chair", "goto", "red chair", before="turn ( 90 )")
    assert parse_answer(teacher.answer(goal, VIEW, (), BRIEF)) == (Turn(90.0),)
    assert parse_answer(teacher.answer(goal, VIEW, ("turn(90)",), BRIEF)) == (Turn(20.0), Forward(1.1))


def test_a_far_thing_on_a_free_way_is_planned_further() -> None:
    view = (VisibleObject("box", "green", 0.0, 4.6, 4.9, 200),)
    goal = Goal("go to the green box", "goto", "green box")
    assert parse_answer(teacher.answer(goal, view, (), FULL)) == (Forward(1.5),)
    assert parse_answer(teacher.answer(goal, view, (), BRIEF)) == (Forward(3.0),)
    blocked = (*view, VisibleObject("chair", "red", 2.0, 2.0, 2.2, 400))
    plan = parse_answer(teacher.answer(goal, blocked, (), BRIEF))
    assert plan[-1] == Forward(1.5) or action_numbers(plan[-1])[0] < 1.5


@pytest.mark.parametrize(
    ("relation", "other", "found"),
    [("beside", "green box", "blue"), ("left", "blue chair", "red"), ("behind", "red chair", "blue")],
)
def test_a_relative_place_is_found(relation: str, other: str, found: str) -> None:
    goal = Goal("", "goto", "chair", relation=relation, other=other)  # type: ignore[arg-type]
    thing = teacher.find(goal, VIEW)
    assert thing is not None
    assert thing.colour == found


def test_the_nearest_of_all_things_is_taught_too() -> None:
    rng, sayings = np.random.default_rng(0), Sayings(noise=False)
    goals = [sayings.draw(rng, VIEW, "goto_nearest").goal for _ in range(200)]
    of_all = [goal for goal in goals if not goal.thing]
    assert 0.2 < len(of_all) / len(goals) < 0.5
    assert all("thing" in goal.text.split() or "things" in goal.text.split() for goal in of_all)
    box_nearest = (*VIEW[:2], VisibleObject("box", "green", -30.0, 1.0, 1.3, 900))
    said = "red chair 2.0 m , blue chair 3.0 m , green box 1.0 m . green box right 1.0 m . "
    assert teacher.answer(of_all[0], box_nearest, (), BRIEF).startswith(said)


def test_many_stop_distances_are_near_where_the_thing_is() -> None:
    rng, sayings = np.random.default_rng(0), Sayings(noise=False)
    view = (VisibleObject("chair", "red", 20.0, 2.0, 2.2, 400),)
    goals = [sayings.draw(rng, view, "goto_stop").goal for _ in range(300)]
    seen = [goal for goal in goals if goal.thing in ("red chair", "chair")]
    assert sum(teacher.is_near_stop(goal, view) for goal in seen) / len(seen) > 0.5


def test_brief_answers_name_less_before_they_act() -> None:
    lengths = {
        brief: [len(d.answer.split()) for m, d in drawn(brief) if m in ("goto", "turn", "sit")]
        for brief in (False, True)
    }
    assert sum(lengths[True]) < 0.75 * sum(lengths[False])
    assert not any(isinstance(a, Ask) for m, d in drawn(True) if m == "sit" for a in parse_answer(d.answer))


def test_a_seed_decides_everything() -> None:
    one, other = (draw_dialogue(np.random.default_rng(7), VIEW, Sayings(), BRIEF) for _ in range(2))
    assert one == other
