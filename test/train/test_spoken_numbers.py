"""Amounts as people write them: what the text says is what the number is."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.models.amounts import GRID, MOST, Quantity
from vlm_spec_decode.train.spoken_numbers import Amount, draw_amount, in_words

UNITS = {
    **dict.fromkeys(("m", "mtr", "metre", "meter", "metres", "meters"), 1.0),
    **dict.fromkeys(("cm", "centimetres", "centimeters"), 0.01),
    **dict.fromkeys(("mm", "millimetres", "millimeters"), 0.001),
    **dict.fromkeys(("ft", "feet", "foot", "'"), 0.3048),
    **dict.fromkeys(("inches", '"'), 0.0254),
    **dict.fromkeys(("yards", "yd"), 0.9144),
    **dict.fromkeys(("°", "deg", "degree", "degrees", ""), 1.0),
    **dict.fromkeys(("rad", "radian", "radians"), 57.29577951),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
}
QUANTITIES: tuple[Quantity, ...] = ("distance", "angle", "duration")


def test_digits_and_unit_are_read_as_a_person_reads_them() -> None:
    """Another reader than the one that wrote them: digits, a decimal point or comma, a unit."""
    rng = np.random.default_rng(0)
    units = Counter[str]()
    for _ in range(4000):
        amount = draw_amount(rng, QUANTITIES[int(rng.integers(3))])
        if (found := re.fullmatch(r"([0-9]*[.,]?[0-9]+) ?([a-z°'\"]*)", amount.text)) and found[2] in UNITS:
            units[found[2]] += 1
            told = float(found[1].replace(",", ".")) * UNITS[found[2]]
            assert float(amount.value) == pytest.approx(told, abs=1e-6), amount
    assert len(units) >= 22
    assert sum(units.values()) > 1800


@pytest.mark.parametrize(
    ("value", "quantity", "numbers"),
    [
        ("1.5", "distance", ("1.5",)),
        ("1.37", "distance", ("1.35",)),
        ("0.4572", "distance", ("0.45",)),
        ("0.025", "distance", ("0.05",)),
        ("5", "distance", ("3", "2")),
        ("9", "distance", ("3", "3", "3")),
        ("57.3", "angle", ("57",)),
        ("270", "angle", ("180", "90")),
        ("30", "duration", ("10", "10", "10")),
    ],
)
def test_an_amount_is_rounded_to_the_grid_and_cut_at_the_gates_limit(
    value: str, quantity: Quantity, numbers: tuple[str, ...]
) -> None:
    assert Amount("", Fraction(value), quantity).numbers() == numbers


@given(
    st.fractions(min_value=0, max_value=500, max_denominator=1000),
    st.sampled_from(QUANTITIES),
    st.sampled_from((1, -1)),
)
def test_the_actions_come_to_the_amount(value: Fraction, quantity: Quantity, sign: int) -> None:
    amount = Amount("", value, quantity)
    assert abs(amount.on_grid - value) <= GRID[quantity] / 2
    if amount.is_too_much:
        assert value > MOST[quantity] - GRID[quantity]
        with pytest.raises(ValueError, match="more than"):
            amount.numbers()
        return
    numbers = [float(n) for n in amount.numbers(sign)]
    assert sum(numbers) == pytest.approx(sign * float(amount.on_grid))
    limits = SafetyLimits()
    most = {
        "distance": limits.max_distance_m,
        "angle": limits.max_angle_deg,
        "duration": limits.max_wait_s,
    }
    assert all(abs(n) <= most[quantity] for n in numbers)


def test_a_spoken_number_is_the_number() -> None:
    assert [in_words(n) for n in (0, 13, 40, 45, 100, 180, 345)] == [
        *("zero", "thirteen", "forty", "forty-five", "one hundred"),
        *("one hundred and eighty", "three hundred and forty-five"),
    ]
    assert len({in_words(n) for n in range(1000)}) == 1000


def test_other_languages_have_amounts_on_the_grid() -> None:
    rng = np.random.default_rng(0)
    for tongue in ("zh", "es", "de"):
        for quantity in QUANTITIES:
            drawn = [draw_amount(rng, quantity, tongue=tongue) for _ in range(40)]
            assert all(a.on_grid == a.value and a.numbers() for a in drawn)
            assert len({a.text for a in drawn}) > (1 if quantity == "duration" else 8)
