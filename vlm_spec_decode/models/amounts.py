"""Reads the amounts in an instruction: "seven and a half feet" is 2.3 m, "an eighth of a turn" 45 degrees.

A small model copies numbers far better than it converts them, and a number that is read wrongly moves a
robot. So this grammar reads amounts with a unit, in English, Chinese, Spanish and German, and the models that
ship are told the value on the grid of the action language behind the words: `back 7.5 feet (2.3 m)`. What is
more than one action may do stands there in parts, `8 m (3 + 3 + 2 m)`, and what is more than an instruction
may ask for as `(too much)`. Numbers without a unit and vague amounts ("a bit") are left to the model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

Quantity: TypeAlias = Literal["distance", "angle", "duration"]

GRID: dict[Quantity, Fraction] = {
    "distance": Fraction(1, 20),
    "angle": Fraction(1),
    "duration": Fraction(1, 2),
}
"""Smallest step of an amount that an instruction names: 0.05 m, 1 degree, 0.5 s."""

MOST: dict[Quantity, Fraction] = {"distance": Fraction(9), "angle": Fraction(360), "duration": Fraction(30)}
"""The most that one instruction may ask for: nine metres, a full turn, half a minute."""

AT_ONCE: dict[Quantity, Fraction] = {
    "distance": Fraction(3),
    "angle": Fraction(180),
    "duration": Fraction(10),
}
"""The most of one action, as the gate's defaults are."""

BASE: dict[Quantity, str] = {"distance": "m", "angle": "degrees", "duration": "s"}
"""The units of the action language."""

FOOT, INCH, YARD = Fraction(3048, 10000), Fraction(254, 10000), Fraction(9144, 10000)
STEP_M = Fraction(3, 10)
"""A step of the robot, and "a bit"."""

RADIAN_DEG = Fraction(180) / Fraction("3.14159265358979")


@dataclass(frozen=True, slots=True)
class ReadAmount:
    """An amount that stands in a text from `start` to `end`, and its value in metres, degrees or seconds."""

    start: int
    end: int
    value: Fraction
    quantity: Quantity

    @property
    def told(self) -> str:
        """The value on the grid, in the parts that single actions may have, such as "3 + 0.5 m"."""
        parts = split(self.value, self.quantity)
        if parts is None:
            return "too much"
        return f"{' + '.join(format(float(part), 'g') for part in parts)} {BASE[self.quantity]}"


def on_grid(value: Fraction, quantity: Quantity) -> Fraction:
    """Return the value rounded to the nearest grid point, halves up."""
    grid = GRID[quantity]
    return (value / grid + Fraction(1, 2)).__floor__() * grid


def split(value: Fraction, quantity: Quantity) -> tuple[Fraction, ...] | None:
    """Return the value on the grid in parts, each but the last the most of one action; None: too much."""
    left, parts = on_grid(value, quantity), []
    if left > MOST[quantity]:
        return None
    while left > AT_ONCE[quantity]:
        parts.append(AT_ONCE[quantity])
        left -= AT_ONCE[quantity]
    return (*parts, left)


# Units: what a text shows, and its value in metres, degrees or seconds -------------------------------

_UNITS: tuple[tuple[str, Quantity, Fraction], ...] = (
    (r"(?:k(?:ilo)?met(?:re|er)s?|km|kilómetros?|kilometern?|公里)", "distance", Fraction(1000)),
    (r"(?:cm|centimet(?:re|er)s?|centímetros?|zentimetern?|厘米)", "distance", Fraction(1, 100)),
    (r"(?:mm|millimet(?:re|er)s?|milímetros?|millimetern?|毫米)", "distance", Fraction(1, 1000)),
    (r"(?:m|mtrs?|met(?:re|er)s?|metern?|metros?|米|公尺)", "distance", Fraction(1)),
    (r"(?:ft|feet|foot|['′])", "distance", FOOT),
    (r"(?:inch(?:es)?|[\"″])", "distance", INCH),
    (r"(?:yards?|yds?)", "distance", YARD),
    (r"(?:miles?)", "distance", Fraction(1609)),
    (r"(?:steps?|paces?|pasos?(?! de )|schritte?n?|步)", "distance", STEP_M),
    (r"(?:°|degs?|degrees?|grados?|grad|度)", "angle", Fraction(1)),
    (r"(?:rads?|radians?)", "angle", RADIAN_DEG),
    (r"(?:ms|milliseconds?)", "duration", Fraction(1, 1000)),
    (r"(?:s|secs?|seconds?|segundos?|sekunden?|秒)", "duration", Fraction(1)),
    (r"(?:min|mins|minutes?|minutos?|minuten?|分钟)", "duration", Fraction(60)),
    (r"(?:hours?|h|hrs?|horas?|stunden?|小时)", "duration", Fraction(3600)),
)
_TURNS = r"(?:turns?|rotations?|revolutions?|vueltas?|drehung(?:en)?|umdrehung(?:en)?)"

_ANY_UNIT = "|".join(pattern for pattern, _, _ in _UNITS)
# Chinese has no spaces: a letter may follow there.
_UNIT = rf"(?P<unit>(?:{_ANY_UNIT})(?![^\W\u4e00-\u9fff]))"

# Numbers ---------------------------------------------------------------------------------------------

_ENGLISH = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
"""
_ENGLISH_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety"
_SPANISH = """
cero un dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete
dieciocho diecinueve veinte
"""
_SPANISH_TENS = "- - veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa cien"
_GERMAN = """
null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn
siebzehn achtzehn neunzehn
"""
_GERMAN_TENS = "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"


def _words() -> dict[str, int]:
    """Return the number words of three languages; German ones below 200 are one word each."""
    found: dict[str, int] = {}
    for ones, tens in ((_ENGLISH, _ENGLISH_TENS), (_SPANISH, _SPANISH_TENS), (_GERMAN, _GERMAN_TENS)):
        found |= {word: i for i, word in enumerate(ones.split())}
        found |= {word: 10 * i for i, word in enumerate(tens.split()) if i > 1}
    german = dict(zip(_GERMAN.split(), range(20), strict=True))
    for i, ten in enumerate(_GERMAN_TENS.split()):
        if i > 1:
            german |= {ten: 10 * i}
            german |= {f"{one}und{ten}": 10 * i + n for n, one in enumerate(_GERMAN.split()[:10]) if n}
    german |= {"hundert": 100} | {f"hundert{word}": 100 + n for word, n in german.items() if n}
    german |= {f"ein{word}": n for word, n in german.items() if n >= 100}
    one = dict.fromkeys(("uno", "una", "eine", "einen", "einem", "einer"), 1)
    return {**found, **german, **one, "ciento": 100}


_WORDS = _words()
_HANZI = {digit: i for i, digit in enumerate("零一二三四五六七八九")} | {"两": 2}

_WORD = "|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True))
_CARDINAL = rf"(?:(?:a )?hundred|{_WORD})(?:(?: and | y |[ -])(?:hundred|{_WORD}))*(?!\w)"
_DIGITS = r"(?:\d+(?:[.,]\d+)?|[.,]\d+)"
_SPOKEN = rf"(?<!\w){_CARDINAL}(?: (?:point|komma|coma) (?:{_WORD})(?: (?:{_WORD}))*)?"
_CHINESE = r"[零一二三四五六七八九十百两]+(?:点[零一二三四五六七八九]+)?"
_NUMBER = rf"(?P<number>(?<![\d.,]){_DIGITS}(?! ?/)|{_SPOKEN}|{_CHINESE})"


def _number(text: str) -> Fraction:
    """Return the value of digits or of words."""
    text = text.lower()
    if re.fullmatch(_DIGITS, text):
        return Fraction("0" * (text[0] in ".,") + text.replace(",", "."))
    if re.fullmatch(_CHINESE, text):
        whole, _, tenths = text.partition("点")
        return _hanzi(whole) + _tenths(str(_HANZI[digit]) for digit in tenths)
    whole, _, tenths = re.sub(r" (?:point|komma|coma) ", "|", text).partition("|")
    total = 0
    for word in re.split(r"[ -]", whole):
        if word == "hundred":
            total = max(1, total) * 100
        elif word not in ("a", "and", "y"):
            total += _WORDS[word]
    return total + _tenths(str(_WORDS[word]) for word in tenths.split())


def _tenths(digits: Iterable[str]) -> Fraction:
    """Return what stands behind the decimal point, 0 for nothing."""
    text = "".join(digits)
    return Fraction(int(text or 0), 10 ** len(text))


def _hanzi(text: str) -> Fraction:
    total, digit = 0, 0
    for mark in text:
        if mark in "十百":
            total, digit = total + (digit or 1) * (10 if mark == "十" else 100), 0
        else:
            digit = _HANZI[mark]
    return Fraction(total + digit)


_PARTS = {
    **{"half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)},
    **{"fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6), "eighth": Fraction(1, 8)},
    **{"tenth": Fraction(1, 10), "halb": Fraction(1, 2), "viertel": Fraction(1, 4)},
    **{"drittel": Fraction(1, 3), "achtel": Fraction(1, 8)},
    **{"medio": Fraction(1, 2), "media": Fraction(1, 2), "cuarto": Fraction(1, 4), "tercio": Fraction(1, 3)},
}
_COUNTS = {"two": 2, "three": 3, "tres": 3}
_PART = "half|halves|(?:third|quarter|fourth|fifth|sixth|eighth|tenth)s?"
_AND_PART = rf"(?:,? and (?:(?P<count>an?|one|two|three) )?(?P<part>{_PART})| y (?P<es>medi[oa]|cuarto))?"


def _and_part(found: re.Match[str]) -> Fraction:
    groups = found.groupdict()
    if groups.get("es"):
        return _PARTS[groups["es"].lower()]
    return _share(groups.get("count"), groups["part"]) if groups.get("part") else Fraction(0)


def _share(count: str | None, part: str) -> Fraction:
    times, part = _COUNTS.get((count or "").strip().lower(), 1), part.lower()
    return times * (_PARTS.get(part) or _PARTS[part.rstrip("s")])


def _unit(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    shown = found["unit"].lower()
    return next((q, size) for pattern, q, size in _UNITS if re.fullmatch(pattern, shown))


_Read: TypeAlias = Callable[[re.Match[str]], tuple[Quantity, Fraction]]


def _plain(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    """Return "2.5 m", "two and a half feet", "one metre and a half"."""
    quantity, size = _unit(found)
    return quantity, (_number(found["number"]) + _and_part(found)) * size


def _single(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    """Return "a metre", "a metre and a half"."""
    quantity, size = _unit(found)
    return quantity, (1 + _and_part(found)) * size


def _part_of(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    """Return "half a metre", "three quarters of a metre"."""
    quantity, size = _unit(found)
    return quantity, _share(found["count"], found["part"]) * size


def _turn(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    return "angle", _share(found["count"], found["part"]) * 360


def _feet_inches(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    return "distance", _number(found["number"]) * FOOT + _number(found["inches"]) * INCH


def _pi(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    times = _number(found["times"]) if found["times"] else Fraction(1)
    return "angle", 180 * times / (int(found["by"]) if found["by"] else 1)


def _fraction(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    """Return "3/4 m", "1 1/2 m"."""
    quantity, size = _unit(found)
    whole = int(found["whole"]) if found["whole"] else 0
    return quantity, (whole + Fraction(int(found["up"]), int(found["down"]))) * size


def _fixed(quantity: Quantity, value: Fraction) -> _Read:
    return lambda _: (quantity, value)


def _times(count: Fraction) -> _Read:
    """Return what reads so many of a unit: "a couple of metres", "medio metro"."""

    def read(found: re.Match[str]) -> tuple[Quantity, Fraction]:
        quantity, size = _unit(found)
        return quantity, count * size

    return read


def _and_half(found: re.Match[str]) -> tuple[Quantity, Fraction]:
    """Return what ends in a half: "metro y medio" without a number, 一米半, "zweieinhalb Meter"."""
    quantity, size = _unit(found)
    word = (found.groupdict().get("number") or "").lower()
    return quantity, ((_number(word) if word else 1) + Fraction(1, 2)) * size


_ONE = r"(?<!\w)(?P<count>an? |one |two |three )?"
_FEET, _INCHES = r"(?:ft|feet|foot|['′])", r"(?:inch(?:es)?(?!\w)|[\"″])"

_FORMS: tuple[tuple[str, _Read], ...] = (
    # 5'3", 5 feet 3 inches; 3/4 m, 1 1/2 m; pi/2 radians, 0.5 pi rad
    (rf"{_NUMBER} ?{_FEET} ?(?:and )?(?P<inches>{_DIGITS}|{_CARDINAL}) ?{_INCHES}", _feet_inches),
    (rf"(?<![\d.,/])(?:(?P<whole>\d+) (?:and )?)?(?P<up>\d)[/⁄](?P<down>[1-9]\d?) ?{_UNIT}", _fraction),
    (rf"(?<!\w)(?P<times>{_DIGITS})? ?\*? ?(?:pi|π)(?: ?/ ?(?P<by>[1-9]\d?))? ?(?:rad|radian)s?(?!\w)", _pi),
    (r"(?<!\w)(?P<times>)(?:pi|π) ?/ ?(?P<by>[1-9]\d?)(?!\w)", _pi),
    # 2.5 m, two and a half feet; one metre and a half; a metre and a half; a couple of metres
    (rf"{_NUMBER}{_AND_PART}[ -]?{_UNIT}", _plain),
    (rf"{_NUMBER} ?{_UNIT}{_AND_PART}(?!\w)", _plain),
    (rf"(?<!\w)(?:an?|a single) {_UNIT}{_AND_PART}(?!\w)", _single),
    (rf"(?<!\w)(?:a couple(?: of)?|un par de) {_UNIT}", _times(Fraction(2))),
    # half a metre, three quarters of a metre; a quarter turn
    (rf"{_ONE}(?P<part>{_PART})(?: of)?(?: an?| one)? {_UNIT}", _part_of),
    (rf"{_ONE}(?P<part>{_PART})[ -](?:of )?(?:an? )?{_TURNS}(?!\w)", _turn),
    (rf"(?<!\w)(?P<count>un |tres )?(?P<part>medi[oa]|cuarto)(?: de)? {_TURNS}(?!\w)", _turn),
    (r"(?<!\w)(?P<count>)(?:eine )?(?P<part>viertel|halb|drittel|achtel)e? ?(?:um)?drehung(?!\w)", _turn),
    (rf"(?<!\w)(?:a|one) (?:full|whole|complete) {_TURNS}(?!\w)", _fixed("angle", Fraction(360))),
    (r"(?<!\w)(?:a )?right angle(?!\w)", _fixed("angle", Fraction(90))),
    (r"(?<!\w)a moment(?!\w)", _fixed("duration", Fraction(2))),
    # medio metro, einen halben Meter, 半米; 一米半, metro y medio, anderthalb Meter, zweieinhalb Meter
    (rf"(?<!\w)medi[oa] {_UNIT}", _times(Fraction(1, 2))),
    (rf"(?<!\w)(?:einen |eine |ein )?halbe[nrsm]? {_UNIT}", _times(Fraction(1, 2))),
    (rf"半{_UNIT}", _times(Fraction(1, 2))),
    (rf"{_NUMBER}{_UNIT}半", _and_half),
    (rf"(?<!\w)(?:un )?{_UNIT} y medi[oa](?!\w)", _and_half),
    (rf"(?<!\w)(?:anderthalb|eineinhalb) {_UNIT}", _and_half),
    (rf"(?<!\w)(?P<number>zwei|drei|vier|fünf)einhalb {_UNIT}", _and_half),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), read) for pattern, read in _FORMS)


def read_amounts(text: str) -> tuple[ReadAmount, ...]:
    """Return the amounts with a unit in a text, from left to right; of overlapping ones the longest."""
    found = sorted(_candidates(text), key=lambda amount: (amount.start, -amount.end))
    kept: list[ReadAmount] = []
    for amount in found:
        if not kept or amount.start >= kept[-1].end:
            kept.append(amount)
    return tuple(kept)


_UNREAD_PART = re.compile(r"\b(?:two|three|four|five|\d+|half)\s+\S+\s+of\s*$", re.IGNORECASE)
"""What stands before "a metre" in "three qiarters of a metre": an unread part is not the whole."""


_NO_AMOUNT = re.compile(
    r"(?:one|a|1) foot (?:in front of|before|after|behind) (?:the other|another)", re.IGNORECASE
)
"""Sayings with a number and a unit that are no amount."""


def _candidates(text: str) -> Iterator[ReadAmount]:
    for pattern, read in _COMPILED:
        for match in pattern.finditer(text):
            if _NO_AMOUNT.match(text, match.start()):
                continue
            if read is _single and _UNREAD_PART.search(text[: match.start()]):
                continue
            quantity, value = read(match)
            yield ReadAmount(match.start(), match.end(), value, quantity)


def with_amounts(text: str) -> str:
    """Return the text with the value of each amount behind it (see the module), in the form NFKC."""
    text = unicodedata.normalize("NFKC", text)
    for amount in reversed(read_amounts(text)):
        text = f"{text[: amount.end]} ({amount.told}){text[amount.end :]}"
    return text
