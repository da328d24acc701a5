"""The pattern of an answer against the parser and the gate: what it allows parses and is within limits."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.actions.grammar import answer_pattern, language, number_pattern
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import ACTION_TYPES, Done, format_action, make_action, parse_number
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.errors import ActionParseError, ActionRefused

PATTERN = re.compile(answer_pattern())
GATE = SafetyGate(SafetyLimits())


@given(st.from_regex(PATTERN, fullmatch=True))
def test_what_the_pattern_allows_parses_and_passes_the_gates_limits(text: str) -> None:
    actions = parse_answer(text)
    assert 1 <= len(actions) <= SafetyLimits().max_actions
    assert not any(isinstance(action, Done) for action in actions[:-1])
    for action in actions:
        GATE.check_limits(action)


@pytest.mark.parametrize("name", [name for name in ACTION_TYPES if name not in ("done", "ask")])
@given(data=st.data())
def test_every_call_that_the_gate_allows_can_be_said(name: str, data: st.DataObject) -> None:
    """The pattern is not narrower than the limits: any number within them, as `format_action` writes it."""
    arity = len(ACTION_TYPES[name].__dataclass_fields__)
    numbers = tuple(data.draw(st.floats(-200, 200).map(lambda x: round(x, 4))) for _ in range(arity))
    action = make_action(name, numbers)
    text = f"ok . {format_action(action)} done()"
    assert bool(PATTERN.fullmatch(text)) == _allowed(lambda: GATE.check_limits(action))


def _allowed(check: Callable[[], None]) -> bool:
    try:
        check()
    except ActionRefused:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "turn(20)",
        "i see a red chair ahead . turn ( -10 ) forward ( 1.6 )",
        "i see nothing . no , i can not do that . done ( )",
        "look(20,-25) wait ( 10.0 )\nsit() done()",
        " turn(20)",
    ],
)
def test_answers_as_models_give_them_are_of_the_pattern(text: str) -> None:
    assert PATTERN.fullmatch(text)
    assert parse_answer(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "i see a chair .",
        "a chairturn(20)",
        "turn(181)",
        "turn(180.5)",
        "forward(3.1)",
        "forward(--1)",
        "wait(-1)",
        "wait(1e1)",
        "look(1)",
        "done() turn(20)",
        "turn(20) and forward(1)",
        "turn(20).",
        "turn(20) ",
        "turn(20) done() done()",
        "fly(1)",
        "stop(yet)",
        "turn(20",
        "turn(1 0)",
        "turn(20) " * 16 + "turn(20)",
    ],
)
def test_what_is_no_answer_is_not_of_the_pattern(text: str) -> None:
    assert not PATTERN.fullmatch(text)


def test_a_bound_is_rounded_down_and_may_be_below_one() -> None:
    signed = re.compile(number_pattern(2.5, signed=True))
    assert [n for n in ("-2", "1.9999", "2.0", "2.1", "3", "0") if signed.fullmatch(n)] == [
        "-2",
        "1.9999",
        "2.0",
        "0",
    ]
    zero = re.compile(number_pattern(0.5, signed=False))
    assert [n for n in ("0", "0.0", "0.1", "-0", "1") if zero.fullmatch(n)] == ["0", "0.0"]


def test_the_digest_tells_whether_answers_are_held_to_the_language() -> None:
    assert language().digest != language(constrained=False).digest
    assert language().pattern == answer_pattern()
    assert language(constrained=False).pattern == ""


def test_numbers_of_the_pattern_are_numbers_of_the_parser() -> None:
    for text in ("0", "-3", "2.75", "1.0001"):
        assert re.fullmatch(number_pattern(3, signed=True), text)
        assert abs(parse_number(text)) <= 3
    with pytest.raises(ActionParseError):
        parse_number("1.00001")
    assert not re.fullmatch(number_pattern(3, signed=True), "1.00001")


def test_a_question_to_the_operator_ends_an_answer_alone() -> None:
    question = "do you mean the red or the blue chair ? ask ( )"
    assert PATTERN.fullmatch(question)
    assert PATTERN.fullmatch("ask()")
    for text in ("ok . forward(1) ask()", "ask() done()", "ask() forward(1)", "ask(1)"):
        assert not PATTERN.fullmatch(text), text
