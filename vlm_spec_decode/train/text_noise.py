"""How people type: case, punctuation, politeness, filler, contractions, spelling, typing errors.

Everything is drawn by a seeded generator and changes how an instruction is written, never what it means:
digits, numbers in words, units, sides and negations are never touched, and no typing error makes one known
word of another.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from vlm_spec_decode.train.lexicon import Tongue, lexicon, words
from vlm_spec_decode.train.spoken_numbers import ONES, TENS

_NEGATIONS = """
no not never none neither nor nothing without nope nah dont cannot cant refrain avoid forbidden
"""
_KEPT = """
hundred point half halves quarter quarters third thirds fourth fourths fifth fifths sixth sixths
eighth eighths tenth tenths couple few single first second seconds minute minutes moment
hour left right around round back behind forward forwards backward backwards ahead before after then away turn
stop
metre metres meter meters foot feet inch inches yard yards step steps pace paces degree degrees radian radians
centimetre centimetres centimeter centimeters millimetres millimeters mtr deg rad sec secs
near nearer nearest far farther
"""

NEGATIONS = frozenset(_NEGATIONS.split())
"""Words that turn a meaning into its opposite; with every word that ends in "n't" they are left alone."""

KEPT = frozenset((*NEGATIONS, *_KEPT.split(), *(word for word in (*ONES, *TENS) if word)))
"""Words in which no letter is changed: an error in them could become another number, side or order."""

NEIGHBOURS = {
    **{"q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok"},
    **{"o": "ipl", "p": "ol", "a": "qsz", "s": "adw", "d": "sfe", "f": "dgr", "g": "fht", "h": "gjy"},
    **{"j": "hku", "k": "jli", "l": "kop", "z": "xas", "x": "zcs", "c": "xvd", "v": "cbf", "b": "vng"},
    **{"n": "bmh", "m": "nj"},
}
"""Keys beside each key of an English keyboard."""

BEFORE = (
    *("please", "hey", "hey robot ,", "robot ,", "ok", "ok so", "so", "well ,", "um ,", "uh", "now", "and"),
    *("hi ,", "hello robot ,", "alright ,", "listen ,", "quick ,", "good boy ,", "yo", "dear robot ,"),
)
AFTER = (
    *("please", ", please", "now", "thanks", ", thank you", "will you", ", ok", "for me", ", buddy"),
    *("asap", "quickly", "at once", ", thx", "pls", "plz", ", would you", "if you can", ", robot"),
)
"""What people put around an instruction. No word of it is a side, a number or a negation."""

CONTRACTIONS = (
    ("i would", "i'd"),
    ("i am", "i'm"),
    ("let us", "let's"),
    ("what is", "what's"),
    ("where is", "where's"),
    ("that is", "that's"),
    ("it is", "it's"),
    ("there is", "there's"),
    ("you are", "you're"),
    ("going to", "gonna"),
    ("want to", "wanna"),
)
AMERICAN = (
    *(("colour", "color"), ("metre", "meter"), ("centre", "center"), ("favour", "favor")),
    ("authoris", "authoriz"),
)

OPENED_SHARE, TAIL_SHARE = 0.3, 0.08
"""Shares of taught commands that an opener stands before ("could you"), and a tail behind ("for a photo")."""

BARE = frozenset({"meaningless", "see", "stop"})
"""Meanings whose short phrasings would mean another thing with more words around them: only written anew."""


def opened(rng: np.random.Generator, text: str, meaning: str = "") -> str:
    """Return an English command, which begins with an infinitive, as a wish, a question, a duty of the robot.

    The openers and tails stand in `words.yaml`. A prohibition, and what stands alone, is left as it is.
    """
    if meaning in BARE or meaning == "negated" or meaning.startswith(("reply", "zh_", "es_", "de_")):
        return text
    openers, tails = words("openers"), words("tails")
    if rng.random() < OPENED_SHARE:
        text = f"{openers[int(rng.integers(len(openers)))]} {text}"
    if rng.random() < TAIL_SHARE:
        text = f"{text} {tails[int(rng.integers(len(tails)))]}"
    return text


def noisy(rng: np.random.Generator, text: str, meaning: str = "", tongue: Tongue = "en") -> str:
    """Return an instruction as somebody may type it. About a third stay as they are but for spacing."""
    if tongue == "en":
        text = _articles(text)
        text = _worded(rng, text, meaning)
        if rng.random() < 0.12:
            text = with_typo(rng, text)
    text = _punctuated(rng, text, tongue)
    return _cased(rng, text)


def _articles(text: str) -> str:
    """Write "an" before a vowel."""
    return re.sub(r"\b(a) (?=[aeio])", r"\1n ", text)


def _worded(rng: np.random.Generator, text: str, meaning: str) -> str:
    if rng.random() < 0.3:
        for long, short in CONTRACTIONS:
            text = re.sub(rf"\b{long}\b(?! not\b)", short, text)
    if rng.random() < 0.4:
        for british, american in AMERICAN:
            text = text.replace(british, american)
    if meaning in BARE or meaning.startswith("reply"):
        return text
    if rng.random() < 0.12:
        text = f"{BEFORE[int(rng.integers(len(BEFORE)))]} {text}"
    if rng.random() < 0.12:
        text = f"{text} {AFTER[int(rng.integers(len(AFTER)))]}"
    return text


def with_typo(rng: np.random.Generator, text: str) -> str:
    """Return the text with one letter of one word mistyped, dropped, doubled or swapped with the next.

    A word that must stay (`KEPT`, digits, short words) is never chosen, and no result is a known word.
    """
    words = text.split(" ")
    chances = [i for i, word in enumerate(words) if may_change(word)]
    if not chances:
        return text
    at = chances[int(rng.integers(len(chances)))]
    wrong = _mistyped(rng, words[at])
    if wrong not in known_words():
        words[at] = wrong
    return " ".join(words)


def may_change(word: str) -> bool:
    """Whether a letter of a word may be changed: four letters or more, and nothing that must stay."""
    plain = word.lower()
    return len(plain) >= 4 and plain.isascii() and plain.isalpha() and plain not in KEPT


@cache
def known_words() -> frozenset[str]:
    """Return the words that no typing error may become: those of the lexicon, and those that must stay."""
    groups = (lexicon()["kinds"], lexicon()["colours"])
    names = [
        word for group in groups for phrases in group.values() for name in phrases for word in name.split()
    ]
    return frozenset((*names, *lexicon()["plurals"].values(), *KEPT))


def _mistyped(rng: np.random.Generator, word: str) -> str:
    at, kind = int(rng.integers(1, len(word))), rng.random()
    if kind < 0.35:
        beside = NEIGHBOURS.get(word[at].lower(), word[at])
        return word[:at] + beside[int(rng.integers(len(beside)))] + word[at + 1 :]
    if kind < 0.6:
        return word[:at] + word[at + 1 :]
    if kind < 0.8:
        return word[:at] + word[at] + word[at:]
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def _punctuated(rng: np.random.Generator, text: str, tongue: Tongue) -> str:
    """Join punctuation to its word, drop some commas, and sometimes end the sentence."""
    text = re.sub(r" ([,;.])(?= |$)", r"\1", text)
    if rng.random() < 0.35:
        text = re.sub(r"(?<=[^\d]),(?= )", "", text)
    if text[-1:].isalnum() and rng.random() < 0.4:
        marks = ("。", "！") if tongue == "zh" else (".", ".", "!", "!!", "...", "?")
        text += marks[int(rng.integers(len(marks)))]
    return text


def _cased(rng: np.random.Generator, text: str) -> str:
    kind = rng.random()
    if kind < 0.3:
        return text[:1].upper() + text[1:]
    if kind < 0.35:
        return text.upper() if text.isascii() else text
    return text.title() if kind < 0.37 and text.isascii() and "'" not in text else text
