"""The language's table, its digest and its canonical text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from test.actions.strategies import actions
from vlm_spec_decode.actions import types
from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.types import (
    ACTION_LANGUAGE_DIGEST,
    ACTION_TYPES,
    Action,
    Done,
    Forward,
    Look,
    StandUp,
    Turn,
    format_action,
    language_spec,
)
from vlm_spec_decode.core.errors import ActionParseError


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (Forward(1.6), "forward(1.6)"),
        (Forward(0.1 + 0.2), "forward(0.3)"),
        (Turn(-10), "turn(-10)"),
        (Turn(-0.0), "turn(0)"),
        (Turn(100), "turn(100)"),
        (Look(10, -5.5), "look(10,-5.5)"),
        (StandUp(), "stand_up()"),
        (Done(), "done()"),
    ],
)
def test_canonical_text(action: Action, text: str) -> None:
    assert format_action(action) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10_000.0, 9_999.99999])
def test_numbers_the_language_cannot_say_are_refused(value: float) -> None:
    with pytest.raises(ActionParseError, match="cannot be said"):
        format_action(Forward(value))


@given(actions())
def test_format_and_parse_are_inverse(action: Action) -> None:
    assert parse_action(format_action(action)) == action


def test_digest_names_this_language() -> None:
    """A changed digest is a changed protocol: both ends must be released together."""
    assert types.hashlib.sha256(language_spec().encode()).hexdigest() == ACTION_LANGUAGE_DIGEST
    for name in ACTION_TYPES:
        assert f"\n{name}(" in "\n" + language_spec()
    assert "look(pitch_deg,yaw_deg)" in language_spec()
    assert len(ACTION_TYPES) == 14
