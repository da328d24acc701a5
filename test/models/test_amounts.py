"""The amounts of an instruction: what is read is what is written, and what is no amount stays as it is."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.amounts import (
    AT_ONCE,
    GRID,
    MOST,
    Quantity,
    on_grid,
    read_amounts,
    split,
    with_amounts,
)
from vlm_spec_decode.models.prompt import PromptStyle, prompt_digest, prompt_text
from vlm_spec_decode.models.subword import encode_prompt, train_subword_tokenizer
from vlm_spec_decode.train.phrasings import phrasings
from vlm_spec_decode.train.spoken_dialogues import Sayings
from vlm_spec_decode.train.spoken_numbers import VAGUE, draw_amount
from vlm_spec_decode.train.text_dataset import views

QUANTITIES: tuple[Quantity, ...] = ("distance", "angle", "duration")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("back up 1m", "back up 1m (1 m)"),
        ("Walk forward 2 meters", "Walk forward 2 meters (2 m)"),
        (
            "go straight ahead for one and a half meters",
            "go straight ahead for one and a half meters (1.5 m)",
        ),
        ("back seven and a half feet", "back seven and a half feet (2.3 m)"),
        ("go 1,5 m, then turn 90°", "go 1,5 m (1.5 m), then turn 90° (90 degrees)"),
        ("half a metre to the left", "half a metre (0.5 m) to the left"),
        ("a metre and a half", "a metre and a half (1.5 m)"),
        ("one and three quarter meters", "one and three quarter meters (1.75 m)"),
        ("three quarters of a meter", "three quarters of a meter (0.75 m)"),
        ("two point five metres", "two point five metres (2.5 m)"),
        ("a couple of metres", "a couple of metres (2 m)"),
        (".75 m", ".75 m (0.75 m)"),
        ("1 1/2 m", "1 1/2 m (1.5 m)"),
        ("½ m", "1⁄2 m (0.5 m)"),
        ("5'3\" ahead", "5'3\" (1.6 m) ahead"),
        ("2 feet 6 inches", "2 feet 6 inches (0.75 m)"),
        ("a yard", "a yard (0.9 m)"),
        ("two paces", "two paces (0.6 m)"),
        ("137 cm", "137 cm (1.35 m)"),
        ("8 meters", "8 meters (3 + 3 + 2 m)"),
        ("9 m", "9 m (3 + 3 + 3 m)"),
        ("47 meters", "47 meters (too much)"),
        ("2 km", "2 km (too much)"),
        ("one hundred and thirty-eight degrees", "one hundred and thirty-eight degrees (138 degrees)"),
        ("185° right", "185° (180 + 5 degrees) right"),
        ("an eighth of a turn", "an eighth of a turn (45 degrees)"),
        ("a full turn", "a full turn (180 + 180 degrees)"),
        ("pi/2 radians", "pi/2 radians (90 degrees)"),
        ("1 rad", "1 rad (57 degrees)"),
        ("a second and a half", "a second and a half (1.5 s)"),
        ("half a minute", "half a minute (10 + 10 + 10 s)"),
        ("an hour", "an hour (too much)"),
        ("gehe zweieinhalb Meter vor", "gehe zweieinhalb Meter (2.5 m) vor"),
        ("dreh dich um fünfundvierzig Grad", "dreh dich um fünfundvierzig Grad (45 degrees)"),
        ("eine Vierteldrehung nach links", "eine Vierteldrehung (90 degrees) nach links"),
        ("geh hundertzwanzig Zentimeter", "geh hundertzwanzig Zentimeter (1.2 m)"),
        ("avanza un metro y medio", "avanza un metro y medio (1.5 m)"),
        ("gira cuarenta y cinco grados", "gira cuarenta y cinco grados (45 degrees)"),
        ("da un paso de 50 cm", "da un paso de 50 cm (0.5 m)"),
        ("后退两米", "后退两米 (2 m)"),
        ("前进一米半", "前进一米半 (1.5 m)"),
        ("向左转一百二十度吧", "向左转一百二十度 (120 degrees)吧"),
        ("走半米", "走半米 (0.5 m)"),
        ("走一点五米", "走一点五米 (1.5 m)"),
    ],
)
def test_what_people_write_is_read(text: str, told: str) -> None:
    assert with_amounts(text) == told


@pytest.mark.parametrize(
    "text",
    [
        *("go to the red chair", "take a turn left", "step back", "the one on the right", "turn left 90"),
        *("two and a half", "how many chairs are there?", "a bit", "the 2nd chair", "go to room 12 m8"),
        *(
            "往前移动一点",
            "ein stück nach links",
            "un poco adelante",
            "a few steps",
            "are you 5?",
            "1.2.3 meet",
            "",
        ),
        *(
            "three qiarters of a metre",
            "2 thirs of a foot",
            "the second one",
            "mind the 3 mugs",
            "half of the room",
            "feet",
            "m",
            "steps",
        ),
    ],
)
def test_what_is_no_amount_stays_as_it_is(text: str) -> None:
    assert with_amounts(text) == text


def test_the_amounts_of_every_taught_phrasing_are_read_as_they_are_meant() -> None:
    """Another module writes than reads them: `train/spoken_numbers.py`, with each amount's exact value."""
    rng, sayings = np.random.default_rng(3), Sayings()
    seen = [view for room in range(8) for view in views(room, 3, frozenset())]
    read = 0
    for i, phrasing in enumerate(phrasings()):
        saying = sayings.say(rng, seen[i % len(seen)], phrasing)
        told = {(a.quantity, on_grid(a.value, a.quantity)) for a in read_amounts(saying.goal.text)}
        if saying.amounts and phrasing.meaning not in ("two", "three"):
            # In a numbered list "1 step left" may be a step as well.
            assert told <= {(a.quantity, a.on_grid) for a in saying.amounts}, saying.goal.text
        with_unit = [a for a in saying.amounts if a.text and not a.text.isdigit()]
        with_unit = [a for a in with_unit if a.text not in VAGUE and "few" not in a.text]
        if phrasing.tongue == "en":
            assert {(a.quantity, a.on_grid) for a in with_unit} <= told, saying.goal.text
            read += len(with_unit)
    assert read > 400


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_drawn_amount_is_read_whole_and_exactly(quantity: Quantity) -> None:
    rng = np.random.default_rng(7)
    for tongue in ("en", "en", "en", "zh", "es", "de"):
        for _ in range(300):
            amount = draw_amount(rng, quantity, tongue=tongue)
            found = read_amounts(amount.text)
            if not found:  # without a unit, or vague
                assert amount.text.isdigit() or not any(mark.isdigit() for mark in amount.text), amount
                assert amount.text.isdigit() or amount.value in (STEP_LIKE | {Fraction(3)}), amount
                continue
            (one,) = found
            assert (one.start, one.end, one.quantity) == (0, len(amount.text), quantity), amount
            assert float(one.value) == pytest.approx(float(amount.value), rel=1e-9), amount


STEP_LIKE = {Fraction(3, 10)}
"""What vague words of other languages mean."""


def test_the_parts_are_those_that_the_gate_lets_through() -> None:
    limits = SafetyLimits()
    assert {
        "distance": Fraction(limits.max_distance_m),
        "angle": Fraction(limits.max_angle_deg),
        "duration": Fraction(limits.max_wait_s),
    } == AT_ONCE


@given(st.fractions(min_value=0, max_value=500, max_denominator=1000), st.sampled_from(QUANTITIES))
def test_the_parts_come_to_the_amount(value: Fraction, quantity: Quantity) -> None:
    parts = split(value, quantity)
    if parts is None:
        assert value > MOST[quantity] - GRID[quantity]
        return
    assert abs(sum(parts) - value) <= GRID[quantity] / 2
    assert all(0 < part <= AT_ONCE[quantity] for part in parts) or parts == (0,)
    assert all(part == AT_ONCE[quantity] for part in parts[:-1])


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    spans = read_amounts(text)
    assert all(0 <= a.start < a.end <= len(text) for a in spans)
    assert all(one.end <= other.start for one, other in pairwise(spans))


def test_a_prompt_with_amounts_is_told_as_it_was_trained_and_has_a_digest_of_its_own() -> None:
    seen = Observation(None, "go back 7.5 feet", ("turn(60)", "forward(1.5)"))
    told = prompt_text(seen, PromptStyle.AMOUNTS)
    assert told == "go back 7.5 feet (2.3 m) . done : turn(60) forward(1.5)"
    tok = train_subword_tokenizer([f" user : {told} robot :"], 300)
    bare = prompt_text(seen)
    assert encode_prompt(tok, bare) == tok(f" user : {told} robot :", add_special_tokens=False)["input_ids"]
    assert prompt_digest(PromptStyle.AMOUNTS) != prompt_digest(PromptStyle.BARE)
