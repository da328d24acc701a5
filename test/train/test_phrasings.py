"""The phrasings that training uses, and those it must never see."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import lexicon
from vlm_spec_decode.train.phrasings import (
    OTHER_TONGUES,
    SLOTS,
    VOICES,
    by_meaning,
    normalised,
    phrasings,
    read_phrasings,
)


def test_there_are_three_thousand_phrasings_and_a_fifth_is_held_out() -> None:
    taught, held = phrasings(), phrasings(held_out=True)
    assert len(taught) + len(held) >= 3000
    assert len(held) >= 600
    assert 0.18 <= len(held) / (len(taught) + len(held)) <= 0.22


def test_no_held_out_phrasing_is_taught() -> None:
    taught = {normalised(p.text) for p in phrasings()}
    assert [p for p in phrasings(held_out=True) if normalised(p.text) in taught] == []


def test_every_meaning_is_taught_and_nearly_every_voice_is_held_out() -> None:
    taught, held = by_meaning(), by_meaning(held_out=True)
    assert set(taught) == set(SLOTS)
    assert set(held) <= set(taught)
    assert len(held) >= 0.9 * len(taught)
    voices = Counter(p.voice for p in phrasings(held_out=True))
    assert set(VOICES) <= set(voices)
    assert min(voices[v] for v in VOICES) >= 30
    assert set(voices) - set(VOICES) <= set(OTHER_TONGUES)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ([], "expected meanings"),
        ({"gotoo": {"short": "go"}}, "unknown meaning 'gotoo'"),
        ({"goto": {"posh": "go"}}, "unknown voice 'posh'"),
        ({"goto": {"short": "go {n}"}}, "no slot 'n'"),
    ],
)
def test_a_wrong_file_is_named(data: object, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        read_phrasings("file.yaml", data)


def test_every_object_has_a_name_in_every_language() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        assert lexicon.object_name(rng, kind) in lexicon.lexicon()["kinds"][kind]
        for colour in COLOURS:
            assert lexicon.object_name(rng, f"{colour} {kind}")
            for tongue in ("zh", "es", "de"):
                assert all(lexicon.foreign_slots(tongue, f"{colour} {kind}").values())
    assert lexicon.foreign_slots("de", "red box")["zu"] == "zur roten kiste"
    assert lexicon.foreign_slots("de", "red chair")["den"] == "den roten stuhl"
    assert lexicon.foreign_slots("es", "yellow cone")["al"] == "al cono amarillo"
    assert lexicon.foreign_slots("es", "yellow box")["del"] == "de la caja amarilla"
    assert lexicon.plural("traffic cone") == "traffic cones"
    assert lexicon.plural("cardboard box") == "cardboard boxes"


def test_no_word_names_two_kinds_or_two_colours() -> None:
    for group in ("kinds", "colours"):
        counts = Counter(word for words in lexicon.lexicon()[group].values() for word in words)
        assert [word for word, count in counts.items() if count > 1] == []
