"""Streaming parser: cuts do not matter, words are never actions, garbage is a named error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test.actions.strategies import actions, loose_text, words
from vlm_spec_decode.actions.parser import (
    MAX_TEXT_CHARS,
    ActionParser,
    actions_until_error,
    choices_of,
    parse_action,
    parse_answer,
    question_of,
)
from vlm_spec_decode.actions.types import Action, Ask, Done, Forward, Look, Stop, Turn, Wait, format_action
from vlm_spec_decode.core.errors import ActionParseError


def outcome(pieces: list[str]) -> tuple[tuple[Action, ...], str]:
    """Return all actions and the error's text, however the text was cut."""
    parser = ActionParser()
    try:
        for piece in pieces:
            parser.feed(piece)
        parser.finish()
    except ActionParseError as error:
        return parser.actions, str(error)
    return parser.actions, ""


def cut(text: str, places: list[int]) -> list[str]:
    marks = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, tuple[Action, ...]]:
    """Return an answer of words and calls, and the calls."""
    wanted = draw(st.lists(actions(with_done=False), max_size=5))
    parts = draw(st.lists(words, max_size=5))
    for action in wanted:
        parts += [draw(loose_text(action)), *draw(st.lists(words, max_size=3))]
    return " ".join(parts), tuple(wanted)


@given(answers(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_gives_the_same_actions(answer: tuple[str, tuple[Action, ...]], places: list[int]) -> None:
    text, wanted = answer
    assert parse_answer(text) == wanted
    assert outcome(cut(text, places)) == (wanted, "")


@given(st.text(), st.lists(st.integers(0, 10_000), max_size=12))
def test_garbage_is_a_named_error_or_nothing(text: str, places: list[int]) -> None:
    assert outcome([text]) == outcome(cut(text, places))


@given(st.text("forwadstn ()1.-,;\n", max_size=60), st.lists(st.integers(0, 10_000), max_size=12))
def test_near_misses_do_not_depend_on_the_cut(text: str, places: list[int]) -> None:
    assert outcome([text]) == outcome(cut(text, places))


@given(st.text().filter(lambda text: "(" not in text and ")" not in text))
def test_words_alone_never_move(text: str) -> None:
    assert parse_answer(text) == ()


def test_actions_come_at_the_closing_parenthesis() -> None:
    parser = ActionParser()
    assert parser.feed("a chair to the left , do not stop . turn ( -10 ") == ()
    assert parser.feed(") forw") == (Turn(-10),)
    assert parser.feed("ard(1.6)done") == (Forward(1.6),)
    assert parser.feed("()") == (Done(),)
    assert parser.finish() == (Turn(-10), Forward(1.6), Done())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fly(3)", "unknown action 'fly'"),
        ("Forward(1)", "unknown action 'Forward'"),
        ("éforward(1)", "unknown action 'éforward'"),
        ("not-forward(1)", "unknown action"),
        ("damp()", "unknown action 'damp'"),
        ("a chair (red)", "unknown action 'chair'"),
        ("do not stop (yet)", "'yet' is not a number"),
        ("forward()", "forward takes 1 argument"),
        ("look(1)", "look takes 2 argument"),
        ("stop(1)", "stop takes 0 argument"),
        ("forward(1,)", "'' is not a number"),
        ("forward(nan)", "'nan' is not a number"),
        ("forward(inf)", "'inf' is not a number"),
        ("forward(1e3)", "'1e3' is not a number"),
        ("forward(+1)", "is not a number"),
        ("forward(١)", "is not a number"),
        ("forward(12345)", "is not a number"),
        ("forward(1 6)", "is not a number"),
        ("forward(" + "1" * 80 + ")", "run on"),
        ("forward(forward(1))", "run on"),
        ("(1)", "without an action's name"),
        ("red.(1)", "without an action's name"),
        ("a ) b", "without a call"),
        ("forward(1", "forward(1 is not closed"),
        ("done() forward(1)", "after done()"),
        ("done() done()", "after done()"),
        ("x" * (MAX_TEXT_CHARS + 1), "longer than"),
    ],
)
def test_errors_name_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ActionParseError) as caught:
        parse_answer(text)
    assert complaint in str(caught.value)


def test_an_error_is_final_and_keeps_what_was_complete() -> None:
    parser = ActionParser()
    with pytest.raises(ActionParseError):
        parser.feed("wait(1) fly(2)")
    with pytest.raises(ActionParseError, match="fly"):
        parser.feed(" stop()")
    with pytest.raises(ActionParseError, match="fly"):
        parser.finish()
    assert parser.actions == (Wait(1),)


def test_words_after_done_are_words() -> None:
    assert parse_answer("done() the end.") == (Done(),)


@pytest.mark.parametrize("text", ["", "stop", "go stop()", "stop() now", "stop() stop()", "stop()."])
def test_one_action_is_exactly_one(text: str) -> None:
    with pytest.raises(ActionParseError):
        parse_action(text)


def test_one_action_may_have_blanks() -> None:
    assert parse_action(" look ( 5 , -3 ) ") == Look(5, -3)
    assert parse_action("stop()") == Stop()
    assert format_action(parse_action("forward(01.50)")) == "forward(1.5)"


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("do you mean the red or the blue chair ? ask ( )", "do you mean the red or the blue chair ?"),
        ("red chair , blue chair . do you mean the red or the blue chair ? ask()",
         "do you mean the red or the blue chair ?"),
        ("I see two. Which one? ask()", "Which one?"),
        ("which one ask()", "which one"),
        ("ask()", ""),
        ("do you see it ? done()", ""),
        ("forward(1) done()", ""),
    ],
)  # fmt: skip
def test_what_an_answer_asks_is_its_last_sentence(text: str, question: str) -> None:
    assert question_of(text) == question


@pytest.mark.parametrize(
    ("question", "offers"),
    [
        ("do you mean the red or the blue chair ?", ("the red", "the blue chair")),
        ("Do you mean the red, the green or the blue chair?", ("the red", "the green", "the blue chair")),
        ("the red , or the blue , or the green box ?", ("the red", "the blue", "the green box")),
        ("i see two , do you mean the left or the right one ?", ("the left", "the right one")),
        ("the one on the left or the one on the right ?", ("the one on the left", "the one on the right")),
        ("should i go to the chair by the red or the blue box ?", ("the red", "the blue box")),
        ("shall i turn left or right ?", ("left", "right")),
        ("yes or no ?", ("yes", "no")),
        ("which one ?", ()),
        ("", ()),
        ("or", ()),
        ("shall i go on or stop ?", ()),
        ("do you mean this or the other ?", ()),
        ("the red or the red ?", ()),
        ("the red or the one that stands behind the big green box ?", ()),
    ],
)
def test_a_question_with_a_choice_offers_its_own_words(question: str, offers: tuple[str, ...]) -> None:
    assert choices_of(question) == offers


def test_nothing_follows_a_question() -> None:
    parser = ActionParser()
    assert parser.feed("which one ? ask()") == (Ask(),)
    assert parser.is_done
    with pytest.raises(ActionParseError, match=r"forward after ask\(\): nothing may follow"):
        parser.feed(" forward(1)")


@pytest.mark.parametrize(
    ("text", "calls", "problem"),
    [
        ("a box . turn(10) done()", "turn(10) done()", ""),
        ("a box (red) is there . turn(10)", "", "box"),
        ("turn(10) forward(1", "turn(10)", "not closed"),
        ("no call at all", "", ""),
    ],
)
def test_an_answer_that_need_not_be_of_the_language_has_the_actions_before_what_is_none(
    text: str, calls: str, problem: str
) -> None:
    found, why = actions_until_error(text)
    assert " ".join(map(format_action, found)) == calls
    assert (problem in why) if problem else not why
