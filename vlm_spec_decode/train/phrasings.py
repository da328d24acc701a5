"""How people word what they want: phrasings with slots, by meaning and voice, from `phrasings/*.yaml`.

One file per kind of instruction. No training may use those of `phrasings/development`, which are there to be
looked at while models are made, and of `phrasings/held_out`, which measure a release. A file maps a
meaning to voices, and a voice to phrasings, one a line. Slots: `{x}`, `{y}` an object ("red chair"), `{k}` a
kind, `{ks}` its plural, `{c}` a colour, `{s}` a side, `{n}` a distance, `{d}` the same or a vague one ("a
bit"), `{a}` an angle, `{t}` a duration, `{u}` a word without meaning, `{first}` to `{third}` instructions of
a sequence. `lexicon.foreign_slots` has those of other languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Formatter
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import yaml

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.train.lexicon import Tongue

Part: TypeAlias = Literal["taught", "development", "held_out"]
"""What phrasings are for: to train on, to look at failures on, to measure with."""

VOICES = ("short", "command", "chatty", "formal", "second_language", "question", "wish")

OTHER_TONGUES = (
    *("french", "italian", "portuguese", "dutch", "polish", "swedish", "russian", "japanese"),
    *("turkish", "latin"),
)
"""The voices of the meaning `other_language`: languages that are not understood."""

_OBJECT = ("come", "face", "find", "follow", "goto", "goto_behind", "how_far", "is_there")
_PLAIN = (
    *("sit", "stand_down", "stand_up", "rise", "hello", "stretch", "stop", "see", "turn_around", "full_turn"),
    *("forward_some", "back_some"),
)
_MOTIONS = {
    "goto": "x el al del zu den dem",
    "forward": "n",
    "back": "n",
    "strafe": "s n",
    "turn": "s a",
    "turn_side": "s",
    "turn_around": "",
    "stop": "",
}

SLOTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        name: frozenset(slots.split())
        for name, slots in {
            **dict.fromkeys(_OBJECT, "x"),
            **dict.fromkeys(_PLAIN, ""),
            **dict.fromkeys(("goto_nearest", "goto_farthest", "goto_leftmost", "goto_rightmost"), "k ks"),
            **dict.fromkeys(("goto_beside", "goto_hidden", "goto_left_of", "goto_right_of"), "k y"),
            **dict.fromkeys(("forward", "back"), "n d"),
            **dict.fromkeys(("strafe",), "n d s"),
            **dict.fromkeys(("turn_side", "turn_bit", "strafe_some"), "s"),
            **dict.fromkeys(("reply_nearest", "reply_left", "reply_right", "reply_none"), ""),
            **{
                f"{tongue}_{name}": slots for tongue in ("zh", "es", "de") for name, slots in _MOTIONS.items()
            },
            "goto_stop": "x n",
            "pass": "x s",
            "what_colour": "k",
            "nearer": "x y",
            "how_many": "ks",
            "turn": "s a",
            "wait": "t",
            "two": "first second",
            "three": "first second third",
            "reply_colour": "c k",
            "negated": "x s a d",
            "unsafe": "x",
            "impossible": "x y",
            "meaningless": "u x c s n",
            "other_language": "u",
        }.items()
    }
)
"""Every meaning, and the slots that its phrasings may have."""


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One wording of a meaning, in the voice of a kind of speaker; `file` is where it stands."""

    meaning: str
    voice: str
    text: str
    part: Part = "taught"
    file: str = ""

    @property
    def slots(self) -> frozenset[str]:
        """The names of its slots."""
        return frozenset(name for _, name, _, _ in Formatter().parse(self.text) if name)

    @property
    def tongue(self) -> Tongue:
        """The language that it is in; that of `other_language` counts as English."""
        known: dict[str, Tongue] = {"zh": "zh", "es": "es", "de": "de"}
        return known.get(self.meaning.split("_")[0], "en")


def normalised(text: str) -> str:
    """Return a phrasing without case, punctuation and spacing, to compare it with others."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return " ".join(re.sub(r"[^\w{}']+", " ", plain).split())


@cache
def phrasings(part: Part = "taught") -> tuple[Phrasing, ...]:
    """Return all phrasings of a part. Raises ConfigError naming what is wrong."""
    folder = resources.files("vlm_spec_decode.train").joinpath("phrasings")
    folder = folder if part == "taught" else folder.joinpath(part)
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda i: i.name)
    found: dict[str, Phrasing] = {}
    for file in files:
        for phrasing in read_phrasings(file.name, yaml.safe_load(file.read_text(encoding="utf-8")), part):
            key = normalised(phrasing.text)
            if key in found:
                raise ConfigError(f"{file.name}: {phrasing.text!r} repeats {found[key].text!r}")
            found[key] = phrasing
    return tuple(found.values())


def read_phrasings(name: str, data: Any, part: Part = "taught") -> list[Phrasing]:
    """Return the phrasings of one file's content. Raises ConfigError."""
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected meanings")
    found = []
    for meaning, voices in data.items():
        if meaning not in SLOTS:
            raise ConfigError(f"{name}: unknown meaning {meaning!r}")
        allowed = OTHER_TONGUES if meaning == "other_language" else VOICES
        for voice, lines in voices.items():
            if voice not in allowed:
                raise ConfigError(f"{name}: {meaning}: unknown voice {voice!r}")
            for line in filter(None, map(str.strip, lines.splitlines())):
                phrasing = Phrasing(meaning, voice, line, part, name)
                if wrong := sorted(phrasing.slots - SLOTS[meaning]):
                    raise ConfigError(f"{name}: {line!r}: {meaning} has no slot {wrong[0]!r}")
                found.append(phrasing)
    return found


@cache
def by_meaning(part: Part = "taught") -> Mapping[str, tuple[Phrasing, ...]]:
    """Return the phrasings of each meaning in a part."""
    grouped: dict[str, list[Phrasing]] = {}
    for phrasing in phrasings(part):
        grouped.setdefault(phrasing.meaning, []).append(phrasing)
    return MappingProxyType({meaning: tuple(of) for meaning, of in grouped.items()})
