"""Noise changes how an instruction is typed, never what it means."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.train.lexicon import words
from vlm_spec_decode.train.phrasings import phrasings
from vlm_spec_decode.train.text_noise import (
    AFTER,
    BEFORE,
    KEPT,
    NEGATIONS,
    OPENED_SHARE,
    known_words,
    noisy,
    opened,
    with_typo,
)

TEXTS = [p.text.replace("{", "").replace("}", "") for p in phrasings() if p.tongue == "en"]


def kept(text: str) -> list[str]:
    """Return what decides: digits, and words that must stay, in their order."""
    words = re.findall(r"[0-9]+|[a-z']+", text.lower().replace("meter", "metre"))
    meter = {"centimetre", "millimetre"}
    return [w for w in words if w[0].isdigit() or w in KEPT - meter or w.endswith("n't")]


def test_digits_sides_numbers_and_negations_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(6000):
        text = f"{TEXTS[int(rng.integers(len(TEXTS)))]} 1.5 metres two left not 90"
        typed = noisy(rng, text)
        inside = [w for w in kept(typed) if w not in ("at", "once")]
        assert inside == kept(text), (text, typed)
        changed += typed != text
    assert changed > 3000


def test_no_word_around_an_instruction_decides() -> None:
    around = (*BEFORE, *AFTER, *words("openers"), *words("tails"))
    assert [w for text in around for w in kept(text)] == []


def test_openers_stand_before_commands_and_change_no_prohibition() -> None:
    rng = np.random.default_rng(0)
    said = [opened(rng, "walk to the red chair", "goto") for _ in range(2000)]
    assert all("walk to the red chair" in text for text in said)
    assert sum(not text.startswith("walk") for text in said) == pytest.approx(2000 * OPENED_SHARE, rel=0.2)
    assert len(set(said)) > 200
    for meaning in ("negated", "meaningless", "stop", "reply_left", "zh_goto"):
        assert {opened(rng, "do not go", meaning) for _ in range(50)} == {"do not go"}


@given(st.integers(0, 2**32), st.sampled_from(TEXTS))
def test_a_typing_error_changes_one_word_that_may_be_changed(seed: int, text: str) -> None:
    typed = with_typo(np.random.default_rng(seed), text)
    pairs = [(a, b) for a, b in zip(text.split(" "), typed.split(" "), strict=True) if a != b]
    assert len(pairs) <= 1
    for before, after in pairs:
        assert len(before) >= 4
        assert before not in KEPT | NEGATIONS
        assert after not in known_words()
        assert abs(len(before) - len(after)) <= 1


def test_a_seed_decides_everything() -> None:
    one, other, third = (
        [noisy(np.random.default_rng([seed, i]), text) for i, text in enumerate(TEXTS[:200])]
        for seed in (1, 1, 2)
    )
    assert one == other != third
