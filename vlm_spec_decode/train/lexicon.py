"""What people call the objects and colours of a room, in English, Chinese, Spanish and German.

The words stand in `lexicon.yaml`; those that mean nothing to the robot, and what people say around an
instruction, in `words.yaml`. A rendering is drawn by a random generator; what it means is known before.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, Literal, TypeAlias

import numpy as np
import yaml

Tongue: TypeAlias = Literal["en", "zh", "es", "de"]

PLAIN_SHARE = 0.6
"""Share of names that use the first word of the lexicon for the kind, and likewise for the colour."""


@cache
def lexicon() -> dict[str, Any]:
    """Return the content of `lexicon.yaml`."""
    text = resources.files("vlm_spec_decode.train").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def kind_name(rng: np.random.Generator, kind: str) -> str:
    """Draw an English noun for a kind of object."""
    return _one(rng, lexicon()["kinds"][kind])


def colour_name(rng: np.random.Generator, colour: str) -> str:
    """Draw an English word for a colour."""
    return _one(rng, lexicon()["colours"][colour])


def plural(noun: str) -> str:
    """Return the plural of an English noun of the lexicon."""
    *front, last = noun.split()
    return " ".join((*front, lexicon()["plurals"].get(last, f"{last}s")))


def object_name(rng: np.random.Generator, thing: str) -> str:
    """Draw an English noun phrase, without article, for "colour kind" or a kind alone."""
    *colours, kind = thing.split()
    noun = kind_name(rng, kind)
    if not colours:
        return noun
    colour = colour_name(rng, colours[0])
    if kind == "person" and rng.random() < 0.5:
        return f"{noun} in {colour}"
    return f"{colour} {noun}"


Strange: TypeAlias = Literal["nouns", "verbs", "made_up"]
"""Words that mean nothing here: everyday things that are none of the robot's, deeds that it cannot do, and
words that nobody uses."""

UNSEEN_EVERY = 5
"""Every fifth strange word is never taught: with it is measured."""


@cache
def words(name: str) -> tuple[str, ...]:
    """Return a list of `words.yaml`."""
    text = resources.files("vlm_spec_decode.train").joinpath("words.yaml").read_text(encoding="utf-8")
    return tuple(map(str, yaml.safe_load(text)[name]))


def strange_word(rng: np.random.Generator, kind: Strange, *, is_taught: bool = True) -> str:
    """Draw a strange word of those that are taught, or of the others."""
    found = words(kind)
    while True:
        at = int(rng.integers(len(found)))
        if (at % UNSEEN_EVERY > 0) == is_taught:
            return found[at]


def invented_word(rng: np.random.Generator, *, is_taught: bool = True) -> str:
    """Draw a word that means nothing here: of an everyday thing, a made-up one, or letters."""
    if (drawn := rng.random()) < 0.7:
        return strange_word(rng, "nouns" if drawn < 0.4 else "made_up", is_taught=is_taught)
    syllables = [f"{rng.choice(list('bdfgklmnprstvz'))}{rng.choice(list('aeiou'))}" for _ in range(3)]
    return "".join(syllables)[: int(rng.integers(3, 7))] + str(rng.choice(list("xqjbk")))


def side_name(tongue: Tongue, side: str) -> str:
    """Return left or right in a language."""
    return side if tongue == "en" else str(lexicon()["languages"][tongue]["sides"][side])


def foreign_slots(tongue: Tongue, thing: str) -> dict[str, str]:
    """Return the slots that name an object in Chinese, Spanish or German, each in its grammatical form.

    `x` is Chinese; `el`, `al`, `del` Spanish; `zu`, `den`, `dem` German (with "zum" or "zur", in the
    accusative, in the dative).
    """
    *colours, kind = thing.split()
    words = lexicon()["languages"][tongue]
    noun = words["kinds"][kind]
    colour = words["colours"][colours[0]] if colours else ""
    if tongue == "zh":
        return {"x": f"{colour}{noun}"}
    if tongue == "es":
        is_masculine = noun.startswith("el ")
        name = f"{noun} {colour[not is_masculine]}" if colour else noun
        if is_masculine:
            return {"el": name, "al": f"al {name[3:]}", "del": f"del {name[3:]}"}
        return {"el": name, "al": f"a {name}", "del": f"de {name}"}
    gender, word = noun
    weak, strong = (f"{colour[0]} ", f"{colour[1]} ") if colour else ("", "")
    if gender == "m":
        return {"zu": f"zum {strong}{word}", "den": f"den {strong}{word}", "dem": f"dem {strong}{word}"}
    return {"zu": f"zur {strong}{word}", "den": f"die {weak}{word}", "dem": f"der {strong}{word}"}


def _one(rng: np.random.Generator, words: list[str]) -> str:
    return words[0] if rng.random() < PLAIN_SHARE else words[int(rng.integers(len(words)))]
