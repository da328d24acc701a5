"""Distances, angles and durations as people write them, with the value on the grid of the action language.

Every amount is an exact fraction of metres, degrees or seconds. The truth is that value rounded to the
nearest grid point; a rendering never changes it. An action is limited by the gate; what is longer is several
actions in a row, up to `MOST`, and beyond that it is declined in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vlm_spec_decode.actions.types import format_number
from vlm_spec_decode.models.amounts import (
    FOOT,
    INCH,
    MOST,
    RADIAN_DEG,
    STEP_M,
    YARD,
    Quantity,
    on_grid,
    split,
)
from vlm_spec_decode.train.lexicon import Tongue

METRES = {"m": Fraction(1), "cm": Fraction(1, 100), "mm": Fraction(1, 1000)}


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount as text, and its exact value in metres, degrees or seconds."""

    text: str
    value: Fraction
    quantity: Quantity

    @property
    def on_grid(self) -> Fraction:
        """The value rounded to the nearest grid point, halves up."""
        return on_grid(self.value, self.quantity)

    @property
    def is_too_much(self) -> bool:
        """Whether it is more than one instruction may ask for."""
        return self.on_grid > MOST[self.quantity]

    def numbers(self, sign: int = 1) -> tuple[str, ...]:
        """Return the numbers of the actions that come to it, as the action language writes them.

        Each but the last is the most of one action. Raises ValueError if it is too much.
        """
        parts = split(self.value, self.quantity)
        if parts is None:
            raise ValueError(f"{self.text}: more than {MOST[self.quantity]}")
        return tuple(format_number(float(sign * part)) for part in parts)


def draw_amount(
    rng: np.random.Generator, quantity: Quantity, *, vague: bool = False, tongue: Tongue = "en"
) -> Amount:
    """Draw an amount of at least one grid point; with `vague`, sometimes one such as "a bit"."""
    if tongue != "en":
        return _foreign(rng, quantity, tongue)
    if quantity == "distance" and vague and rng.random() < 0.15:
        return Amount(*_of(rng, VAGUE), quantity)
    forms = {"distance": _DISTANCES, "angle": _ANGLES, "duration": _DURATIONS}[quantity]
    while True:
        form = forms[int(rng.choice(len(forms), p=_shares(forms)))][1]
        amount = Amount(*form(rng), quantity)
        if amount.on_grid > 0:
            return amount


_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
"""
ONES = tuple(_ONES.split())
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Return a whole number from 0 to 999 in English words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return TENS[ten] + (f"-{ONES[one]}" if one else "")
    hundred, rest = divmod(number, 100)
    return f"{ONES[hundred]} hundred" + (f" and {in_words(rest)}" if rest else "")


def in_digits(rng: np.random.Generator, value: Fraction) -> str:
    """Write a number with a decimal point or comma, sometimes with a zero more or without the leading one."""
    text = format_number(float(value))
    kind = rng.random()
    if "." not in text:
        return f"{text}.0" if kind < 0.1 else f"{text},0" if kind < 0.13 else text
    if kind < 0.08:
        text += "0"
    elif kind < 0.14 and text.startswith("0."):
        text = text[1:]
    return text.replace(".", ",") if rng.random() < 0.2 else text


def _unit(rng: np.random.Generator, digits: str, short: Sequence[str], long: Sequence[str]) -> str:
    """Put a unit behind digits: a short one with or without a space, a long one with it."""
    if rng.random() < 0.55:
        return f"{digits}{' ' if rng.random() < 0.5 else ''}{_any(rng, short)}"
    return f"{digits} {_any(rng, long)}"


def _any(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _of(rng: np.random.Generator, table: dict[str, Fraction]) -> tuple[str, Fraction]:
    text = _any(rng, tuple(table))
    return text, table[text]


def _metres(rng: np.random.Generator) -> tuple[str, Fraction]:
    kind = rng.random()
    if kind < 0.35:
        value = Fraction(int(rng.integers(1, 5 if rng.random() < 0.8 else 13)))
    elif kind < 0.85:
        value = Fraction(int(rng.integers(1, 31)), 10)
    elif kind < 0.97:
        value = Fraction(int(rng.integers(5, 301)), 100)
    else:
        value = Fraction(int(rng.integers(10, 200)))
    long = ("metre", "meter") if value == 1 else ("metres", "meters")
    return _unit(rng, in_digits(rng, value), ("m", "m", "m", "mtr"), long), value


def _centimetres(rng: np.random.Generator) -> tuple[str, Fraction]:
    count = int(rng.integers(1, 31)) * 10 if rng.random() < 0.6 else int(rng.integers(5, 200))
    long = ("centimetres", "centimeters")
    if rng.random() < 0.2:
        return f"{in_words(count)} {_any(rng, long)}", count * METRES["cm"]
    return _unit(rng, str(count), ("cm",), long), count * METRES["cm"]


def _millimetres(rng: np.random.Generator) -> tuple[str, Fraction]:
    count = 50 * int(rng.integers(2, 31))
    return _unit(rng, str(count), ("mm",), ("millimetres", "millimeters")), count * METRES["mm"]


def _feet(rng: np.random.Generator) -> tuple[str, Fraction]:
    half = int(rng.integers(1, 21)) if rng.random() < 0.9 else int(rng.integers(1, 80))
    count = Fraction(half, 2) if rng.random() < 0.3 else Fraction(int(rng.integers(1, 11)))
    kind = rng.random()
    if count.denominator == 1 and kind < 0.3:
        unit = "foot" if count == 1 else _any(rng, ("feet", "feet", "foot", "ft"))
        number = "a" if count == 1 and rng.random() < 0.5 else in_words(int(count))
        return f"{number} {unit}", count * FOOT
    if count.denominator == 2 and kind < 0.3:
        whole = int(count)
        text = f"{in_words(whole)} and a half feet" if whole else "half a foot"
        return text, count * FOOT
    if count.denominator == 1 and kind < 0.4:
        inches = int(rng.integers(1, 12))
        if rng.random() < 0.5:
            return f"{count} feet {inches} inches", count * FOOT + inches * INCH
        return f"{count}'{inches}\"", count * FOOT + inches * INCH
    text = in_digits(rng, count)
    return (f"{text}'" if kind > 0.95 else _unit(rng, text, ("ft",), ("feet", "foot"))), count * FOOT


def _inches(rng: np.random.Generator) -> tuple[str, Fraction]:
    count = int(rng.integers(2, 41))
    kind = rng.random()
    if kind < 0.25:
        return f"{in_words(count)} inches", count * INCH
    return (f'{count}"' if kind < 0.35 else f"{count} inches"), count * INCH


def _yards(rng: np.random.Generator) -> tuple[str, Fraction]:
    count = int(rng.integers(1, 5))
    if count == 1:
        return _any(rng, ("a yard", "one yard", "1 yard", "1 yd")), YARD
    return _any(rng, (f"{count} yards", f"{in_words(count)} yards", f"{count} yd")), count * YARD


def _metres_in_words(rng: np.random.Generator) -> tuple[str, Fraction]:
    unit, units = ("metre", "metres") if rng.random() < 0.5 else ("meter", "meters")
    kind = rng.random()
    if kind < 0.5:
        return _of(
            rng,
            {
                f"half a {unit}": Fraction(1, 2),
                f"half {unit}": Fraction(1, 2),
                f"a half {unit}": Fraction(1, 2),
                f"one half of a {unit}": Fraction(1, 2),
                f"a quarter of a {unit}": Fraction(1, 4),
                f"a quarter {unit}": Fraction(1, 4),
                f"three quarters of a {unit}": Fraction(3, 4),
                f"a tenth of a {unit}": Fraction(1, 10),
                f"a {unit}": Fraction(1),
                f"one {unit}": Fraction(1),
                f"a single {unit}": Fraction(1),
                f"a {unit} and a half": Fraction(3, 2),
                f"one and a half {units}": Fraction(3, 2),
                f"one {unit} and a half": Fraction(3, 2),
                f"a {unit} and a quarter": Fraction(5, 4),
                f"one and a quarter {units}": Fraction(5, 4),
                f"one and three quarter {units}": Fraction(7, 4),
                f"a couple of {units}": Fraction(2),
            },
        )
    whole = int(rng.integers(2, 10))
    if kind < 0.7:
        return f"{in_words(whole)} {units}", Fraction(whole)
    if kind < 0.8:
        return f"{in_words(whole)} and a half {units}", Fraction(2 * whole + 1, 2)
    whole, tenth = int(rng.integers(0, 4)), int(rng.integers(1, 10))
    if kind < 0.93:
        return f"{in_words(whole)} point {ONES[tenth]} {units}", Fraction(10 * whole + tenth, 10)
    return f"{whole + 1} and a half {units}", Fraction(2 * whole + 3, 2)


def _steps(rng: np.random.Generator) -> tuple[str, Fraction]:
    count = int(rng.integers(1, 7))
    word = _any(rng, ("step", "pace"))
    if count == 1:
        return f"{_any(rng, ('a', 'one', '1'))} {word}", STEP_M
    return f"{in_words(count) if rng.random() < 0.6 else count} {word}s", count * STEP_M


VAGUE: dict[str, Fraction] = {
    "a bit": STEP_M,
    "a little": STEP_M,
    "a little bit": STEP_M,
    "slightly": STEP_M,
    "a touch": STEP_M,
    "some": STEP_M,
    "a small distance": STEP_M,
    "a few steps": 3 * STEP_M,
    "a couple of steps": 2 * STEP_M,
    "a good bit": 3 * STEP_M,
}


def _degrees(rng: np.random.Generator) -> tuple[str, Fraction]:
    kind = rng.random()
    if kind < 0.5:
        count = 5 * int(rng.integers(1, 37))
    elif kind < 0.7:
        count = _any_int(rng, (30, 45, 60, 90, 120, 135, 180))
    elif kind < 0.92:
        count = int(rng.integers(3, 181))
    else:
        count = 5 * int(rng.integers(37, 100))
    form = rng.random()
    if form < 0.25:
        return f"{in_words(count)} {'degrees' if rng.random() < 0.9 else 'deg'}", Fraction(count)
    if form < 0.33:
        return str(count), Fraction(count)
    return _unit(rng, str(count), ("°", "°", "deg"), ("degrees", "degrees", "degree", "deg")), Fraction(count)


def _any_int(rng: np.random.Generator, options: Sequence[int]) -> int:
    return options[int(rng.integers(len(options)))]


def _radians(rng: np.random.Generator) -> tuple[str, Fraction]:
    if rng.random() < 0.35:
        text, degrees = _of(rng, {"pi/2": Fraction(90), "pi/4": Fraction(45), "pi/3": Fraction(60)})
        text = text.replace("pi", "π") if rng.random() < 0.3 else text
        return f"{text} {_any(rng, ('rad', 'radians'))}", degrees
    tenths = int(rng.integers(1, 32))
    if tenths == 10 and rng.random() < 0.5:
        return "one radian", RADIAN_DEG
    if tenths == 5 and rng.random() < 0.5:
        return "half a radian", RADIAN_DEG / 2
    value = Fraction(157, 100) if rng.random() < 0.1 else Fraction(tenths, 10)
    return _unit(rng, in_digits(rng, value), ("rad",), ("radians", "radian")), value * RADIAN_DEG


def _turns(rng: np.random.Generator) -> tuple[str, Fraction]:
    return _of(
        rng,
        {
            "a quarter turn": Fraction(90),
            "a quarter of a turn": Fraction(90),
            "a right angle": Fraction(90),
            "half a turn": Fraction(180),
            "a half turn": Fraction(180),
            "an eighth of a turn": Fraction(45),
            "a third of a turn": Fraction(120),
            "three quarters of a turn": Fraction(270),
            "a full turn": Fraction(360),
        },
    )


def _seconds(rng: np.random.Generator) -> tuple[str, Fraction]:
    half = int(rng.integers(1, 25)) if rng.random() < 0.3 else 2 * int(rng.integers(1, 31))
    value = Fraction(half, 2)
    if value.denominator == 1 and rng.random() < 0.35:
        return f"{in_words(int(value))} second{'s' if value != 1 else ''}", value
    return _unit(rng, in_digits(rng, value), ("s", "sec", "secs"), ("seconds", "second", "sec")), value


def _moments(rng: np.random.Generator) -> tuple[str, Fraction]:
    return _of(
        rng,
        {
            "a moment": Fraction(2),
            "a second": Fraction(1),
            "half a second": Fraction(1, 2),
            "a second and a half": Fraction(3, 2),
            "a few seconds": Fraction(3),
            "a couple of seconds": Fraction(2),
            "half a minute": Fraction(30),
            "a quarter of a minute": Fraction(15),
            "a minute": Fraction(60),
            "two minutes": Fraction(120),
            "an hour": Fraction(3600),
        },
    )


_DISTANCES = (
    (0.46, _metres),
    (0.17, _metres_in_words),
    (0.15, _centimetres),
    (0.02, _millimetres),
    (0.1, _feet),
    (0.04, _inches),
    (0.02, _yards),
    (0.04, _steps),
)
_ANGLES = ((0.82, _degrees), (0.08, _radians), (0.1, _turns))
_DURATIONS = ((0.75, _seconds), (0.25, _moments))
"""(share, form): a form draws a text and its exact value."""


def _shares(forms: Sequence[tuple[float, object]]) -> list[float]:
    return [share for share, _ in forms]


_FOREIGN_UNITS: dict[Tongue, dict[Quantity, tuple[str, ...]]] = {
    "zh": {"distance": ("米", "公尺", "m"), "angle": ("度", "°"), "duration": ("秒",)},
    "es": {"distance": (" metros", " m", "m"), "angle": (" grados", "°"), "duration": (" segundos",)},
    "de": {"distance": (" meter", " m", "m"), "angle": (" grad", "°"), "duration": (" sekunden",)},
}
_FOREIGN_WORDS: dict[Tongue, dict[Quantity, dict[str, Fraction]]] = {
    "zh": {
        "distance": {
            "半米": Fraction(1, 2),
            "一米": Fraction(1),
            "一米半": Fraction(3, 2),
            "两米": Fraction(2),
            "三米": Fraction(3),
            "五十厘米": Fraction(1, 2),
            "一步": STEP_M,
            "一点": STEP_M,
        },
        "angle": {
            "九十度": Fraction(90),
            "四十五度": Fraction(45),
            "三十度": Fraction(30),
            "六十度": Fraction(60),
            "一百八十度": Fraction(180),
        },
        "duration": {"三秒": Fraction(3)},
    },
    "es": {
        "distance": {
            "medio metro": Fraction(1, 2),
            "un metro": Fraction(1),
            "metro y medio": Fraction(3, 2),
            "un metro y medio": Fraction(3, 2),
            "dos metros": Fraction(2),
            "tres metros": Fraction(3),
            "cincuenta centímetros": Fraction(1, 2),
            "un paso": STEP_M,
            "un poco": STEP_M,
        },
        "angle": {
            "noventa grados": Fraction(90),
            "cuarenta y cinco grados": Fraction(45),
            "treinta grados": Fraction(30),
            "sesenta grados": Fraction(60),
            "un cuarto de vuelta": Fraction(90),
        },
        "duration": {"tres segundos": Fraction(3)},
    },
    "de": {
        "distance": {
            "einen halben meter": Fraction(1, 2),
            "einen meter": Fraction(1),
            "anderthalb meter": Fraction(3, 2),
            "eineinhalb meter": Fraction(3, 2),
            "zwei meter": Fraction(2),
            "zweieinhalb meter": Fraction(5, 2),
            "drei meter": Fraction(3),
            "fünfzig zentimeter": Fraction(1, 2),
            "einen schritt": STEP_M,
            "ein bisschen": STEP_M,
            "ein stück": STEP_M,
        },
        "angle": {
            "neunzig grad": Fraction(90),
            "fünfundvierzig grad": Fraction(45),
            "dreißig grad": Fraction(30),
            "sechzig grad": Fraction(60),
            "eine vierteldrehung": Fraction(90),
        },
        "duration": {"drei sekunden": Fraction(3)},
    },
}


def _foreign(rng: np.random.Generator, quantity: Quantity, tongue: Tongue) -> Amount:
    if rng.random() < 0.35:
        return Amount(*_of(rng, _FOREIGN_WORDS[tongue][quantity]), quantity)
    if quantity == "distance" and rng.random() < 0.2:
        count = 10 * int(rng.integers(1, 31))
        return Amount(f"{count}{'厘米' if tongue == 'zh' else ' cm'}", Fraction(count, 100), quantity)
    value = (
        Fraction(5 * int(rng.integers(1, 37)))
        if quantity == "angle"
        else Fraction(int(rng.integers(1, 31)), 10)
    )
    if quantity == "duration":
        value = Fraction(int(rng.integers(1, 11)))
    if quantity == "distance" and rng.random() < 0.4:
        value = Fraction(int(rng.integers(1, 4)))
    text = format_number(float(value))
    if tongue != "zh" and rng.random() < 0.5:
        text = text.replace(".", ",")
    return Amount(f"{text}{_any(rng, _FOREIGN_UNITS[tongue][quantity])}", value, quantity)
