"""The teacher: what it says is of the action language, and following it gets there."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Done, Forward, Sit, Stop, Turn
from vlm_spec_decode.edge.mission_loop import OBSTRUCTED
from vlm_spec_decode.edge.told_numbers import rounded_m
from vlm_spec_decode.models.tiny import UNK_ID
from vlm_spec_decode.train import instructions, teacher
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.loop import tokenizer
from vlm_spec_decode.train.scene_description import VisibleObject
from vlm_spec_decode.train.teacher import SEARCHED, draw_dialogue


def thing(
    kind: str = "chair", bearing_deg: float = 0.0, distance_m: float = 2.0, pixels: int = 500
) -> VisibleObject:
    return VisibleObject(kind, "red", bearing_deg, distance_m, distance_m + 0.25, pixels)


def random_view(rng: np.random.Generator) -> tuple[VisibleObject, ...]:
    return tuple(
        VisibleObject(
            str(rng.choice(instructions.KINDS)),
            colour,
            float(rng.uniform(-60, 60)),
            float(rng.uniform(0.4, 5)),
            float(rng.uniform(5, 6)),
            int(rng.integers(0, 200)),
        )
        for colour in instructions.COLOURS[: int(rng.integers(1, 6))]
    )


def test_every_answer_parses_and_every_word_is_in_the_vocabulary() -> None:
    rng, tok = np.random.default_rng(0), tokenizer()
    verbs = set()
    for _ in range(800):
        dialogue = draw_dialogue(rng, random_view(rng))
        assert parse_answer(dialogue.answer), dialogue
        assert UNK_ID not in tok(dialogue.answer)["input_ids"], dialogue.answer
        if dialogue.goal.verb != "unknown":
            assert UNK_ID not in tok(dialogue.prompt)["input_ids"], dialogue.prompt
        verbs.add(dialogue.goal.verb)
    assert verbs == set(get_args(instructions.Verb))
    assert len(tok) < 512


@pytest.mark.parametrize("bearing_deg", [-45.0, 0.0, 30.0])
@pytest.mark.parametrize("distance_m", [0.5, 1.3, 4.0])
def test_following_the_teacher_ends_within_reach(bearing_deg: float, distance_m: float) -> None:
    goal = Goal("go to the red chair", "goto", "red chair")
    angle = math.radians(bearing_deg)
    x, y, radius = distance_m * math.cos(angle), distance_m * math.sin(angle), 0.25
    for step in range(8):
        here = VisibleObject(
            "chair", "red", math.degrees(math.atan2(y, x)), math.hypot(x, y), math.hypot(x, y) + radius, 99
        )
        actions = parse_answer(teacher.answer(goal, (here,), ()))
        for action in actions:
            if isinstance(action, Turn):
                a = math.radians(-action.angle_deg)
                x, y = x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)
            if isinstance(action, Forward):
                x -= action.distance_m
        if isinstance(actions[-1], Done):
            assert 0.4 < math.hypot(x, y) <= 0.6, "well within the 0.7 m that count as reached"
            assert step <= 5
            return
    pytest.fail("the teacher never said done")


@pytest.mark.parametrize("stop_m", [instructions.STOP_M, 0.8])
def test_what_is_at_the_edge_of_the_view_is_turned_to_before_it_counts_as_reached(stop_m: float) -> None:
    goal = Goal("go to the red chair", "goto", "red chair", stop_m=stop_m)
    for bearing_deg in (-40.0, 14.0, 50.0):
        there = thing(bearing_deg=bearing_deg, distance_m=stop_m)
        (action,) = parse_answer(teacher.answer(goal, (there,), ()))
        assert isinstance(action, Turn)
        assert action.angle_deg == pytest.approx(bearing_deg, abs=5)
        assert parse_answer(teacher.answer(goal, (there,), ("forward(0.6)", "turn(-40)"))) == (Done(),)
        assert parse_answer(teacher.answer(goal, (there,), ("turn(60)",))) == (action,), "found by a search"
    ahead = parse_answer(teacher.answer(goal, (thing(bearing_deg=10.0, distance_m=stop_m),), ()))
    assert ahead == (Done(),)


def test_what_stops_the_robot_right_before_a_thing_is_the_thing() -> None:
    goal = Goal("go to the red chair and sit", "goto", "red chair", action="sit ( )")
    near, far = (thing(distance_m=0.68),), (thing(distance_m=1.4),)
    assert isinstance(parse_answer(teacher.answer(goal, near, ("forward(0.5)",)))[0], Forward)
    assert parse_answer(teacher.answer(goal, near, ("forward(0.5)", OBSTRUCTED))) == (Sit(), Done())
    assert isinstance(parse_answer(teacher.answer(goal, far, ("forward(0.5)", OBSTRUCTED)))[0], Forward)
    hidden = (thing(pixels=0),)
    look = Goal("find the red chair", "find", "red chair")
    for turned in range(1, 7):
        history = (f"turn({teacher.SEARCH_DEG})",) * turned
        assert teacher.answer(look, hidden, (*history, OBSTRUCTED)) == teacher.answer(look, hidden, history)


def test_it_searches_and_then_says_that_the_thing_is_not_there() -> None:
    goal = Goal("go to the red chair", "goto", "red chair")
    hidden = (thing(pixels=0),)
    assert parse_answer(teacher.answer(goal, hidden, ())) == (Turn(teacher.SEARCH_DEG),)
    turned = (f"turn({teacher.SEARCH_DEG})",) * teacher.FULL_TURN
    elsewhere = (Turn(teacher.SEARCH_DEG), Forward(teacher.MAX_STEP_M))
    assert parse_answer(teacher.answer(goal, hidden, turned)) == elsewhere, "once more from another place"
    lost_on_the_way = ("turn(20)", "forward(1.5)", *turned)
    assert parse_answer(teacher.answer(goal, hidden, lost_on_the_way)) == elsewhere
    closed = (*turned, teacher.SECOND_PLACE[0], OBSTRUCTED)
    assert parse_answer(teacher.answer(goal, hidden, closed)) == (Turn(180), Forward(teacher.MAX_STEP_M))
    other_place = (*closed, *teacher.OTHER_WAY)
    assert parse_answer(teacher.answer(goal, hidden, other_place)) == (Turn(-teacher.SEARCH_DEG),)
    dead_end = (*closed, teacher.OTHER_WAY[0], OBSTRUCTED)
    places = (teacher.SECOND_PLACE, other_place)
    for history in (*((*place, *turned) for place in places), (*turned, turned[0]), dead_end):
        assert parse_answer(teacher.answer(goal, hidden, history)) == (Stop(), Done())
    look = Goal("find the red chair", "find", "red chair")
    assert parse_answer(teacher.answer(look, hidden, turned)) == (Stop(), Done())


def test_a_thing_in_the_way_is_walked_around() -> None:
    goal = Goal("go to the red chair", "goto", "red chair")
    chair, box = thing(distance_m=3.0), VisibleObject("box", "blue", 3.0, 1.2, 1.45, 400)
    straight = parse_answer(teacher.answer(goal, (chair,), ()))
    around = parse_answer(teacher.answer(goal, (chair, box), ()))
    assert isinstance(straight[0], Forward)
    assert isinstance(around[0], Turn)
    assert around[0].angle_deg < 0, "the box stands a little to the left, so right is the shorter way"


def walked(goal: Goal, distance_m: float) -> float:
    """Follow the teacher towards a thing straight ahead and return the distance at which it is done."""
    for _ in range(8):
        for action in parse_answer(teacher.answer(goal, (thing(distance_m=distance_m),), ())):
            if isinstance(action, Forward):
                distance_m -= action.distance_m
            if isinstance(action, Done):
                return distance_m
    return math.nan


@pytest.mark.parametrize("stop_m", [0.8, 1.3, 2.0])
@pytest.mark.parametrize("distance_m", [0.55, 1.0, 2.27, 4.6])
def test_it_stops_as_far_before_a_thing_as_it_was_told_backing_up_if_need_be(
    stop_m: float, distance_m: float
) -> None:
    goal = Goal(f"stop {stop_m} metres before the red chair", "goto", "red chair", stop_m=stop_m)
    assert walked(goal, distance_m) == pytest.approx(stop_m, abs=0.25)


def test_what_was_picked_as_the_nearest_is_walked_to_also_when_another_comes_nearer() -> None:
    goal = Goal("go to the nearest thing", "goto", pick="nearest")
    chair, ball = thing(distance_m=1.0), VisibleObject("ball", "blue", 50.0, 1.4, 1.5, 300)
    assert teacher.find(goal, (chair, ball)) == chair
    nearer = VisibleObject("ball", "blue", 50.0, 0.6, 0.7, 300)
    assert teacher.find(goal, (chair, nearer)) == nearer
    assert teacher.find(goal, (chair, nearer), ("forward(0.4)",)) == chair


def test_what_is_far_is_told_roughly() -> None:
    assert [round(rounded_m(d), 2) for d in (0.04, 0.87, 1.47, 2.35, 3.3, 9.0)] == [
        0.1,
        0.9,
        1.4,
        2.4,
        3.5,
        5.0,
    ]


def test_no_history_tells_whether_the_thing_is_in_view() -> None:
    """A model takes any such shortcut: it then says that it does not see what it has just described."""
    rng, shapes = np.random.default_rng(1), dict[str, list[bool]]()
    for _ in range(6000):
        view = random_view(rng)
        dialogue = draw_dialogue(rng, view)
        if (
            dialogue.goal.verb in SEARCHED
            and not dialogue.goal.is_behind
            and "wait(1)" not in dialogue.history
        ):
            is_seen = teacher.find(dialogue.goal, view) is not None
            shapes.setdefault(shape_of(dialogue.history), []).append(is_seen)
    common = {shape: seen for shape, seen in shapes.items() if len(seen) >= 60}
    assert {"", "walk", "search", "walk search"} <= set(common)
    for shape, seen in common.items():
        assert 0.2 < np.mean(seen) < 0.97, f"after {shape!r} it is in view {np.mean(seen):.0%} of the time"


def test_gestures_after_an_arrival_are_drawn_where_they_are_due() -> None:
    rng, due = np.random.default_rng(2), {0.5: 0, 3.0: 0}
    for distance_m in due:
        for _ in range(400):
            goal = draw_dialogue(rng, (thing(distance_m=distance_m),)).goal
            due[distance_m] += goal.verb == "goto" and bool(goal.action)
    assert due[0.5] > 400 * 0.12
    assert due[0.5] > 2 * due[3.0] > 0


def shape_of(history: tuple[str, ...]) -> str:
    words = (("walk", any("forward" in entry for entry in history)), ("search", is_search(history[-1:])))
    return " ".join(word for word, holds in words if holds)


def is_search(entries: tuple[str, ...]) -> bool:
    return bool(entries) and entries[0] in (f"turn({teacher.SEARCH_DEG})", f"turn(-{teacher.SEARCH_DEG})")


@pytest.mark.parametrize(
    ("step", "distance_m"), [("forward(0.1)", 2.6), ("forward(0.3)", 2.7), ("forward(-0.35)", 3.0)]
)
def test_a_stop_distance_that_the_eye_never_reads_lies_between_two_readings(
    step: str, distance_m: float
) -> None:
    """Beyond 2.5 m the eye tells every half metre: a step over 2.85 m reads 2.5 m or 3 m and never less."""
    goal = Goal("", "goto", "red chair", stop_m=2.85)
    seen = (thing(distance_m=distance_m),)
    assert parse_answer(teacher.answer(goal, seen, (step,))) == (Done(),)
    # Without such a step before, or after a long one, the distance is corrected.
    for history in ((), ("forward(1.5)",), ("turn(20)",)):
        assert parse_answer(teacher.answer(goal, seen, history)) != (Done(),)


def test_what_is_out_of_view_after_the_walk_past_it_has_been_passed() -> None:
    goal = Goal("", "pass", "red chair", side="left")
    nothing = (thing(pixels=0),)
    for history in (("turn(20)", "forward(1.5)"), ("forward(0.6)", OBSTRUCTED)):
        assert parse_answer(teacher.answer(goal, nothing, history)) == (Done(),)
    search = ("turn(60)",) * 6
    for history in ((), ("turn(60)",), ("forward(1)", "turn(60)"), (*search, "turn(60)", "forward(1.5)")):
        assert isinstance(parse_answer(teacher.answer(goal, nothing, history))[0], Turn)
