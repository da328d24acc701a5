"""The phrasings that training uses, and those it must never see."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import lexicon
from vlm_spec_decode.train.lexicon import Strange
from vlm_spec_decode.train.phrasings import (
    OTHER_TONGUES,
    SLOTS,
    VOICES,
    Part,
    by_meaning,
    normalised,
    phrasings,
    read_phrasings,
)


def test_there_are_three_thousand_phrasings_and_a_fifth_is_held_out() -> None:
    taught, held = phrasings(), phrasings("held_out")
    assert len(taught) + len(held) >= 3000
    assert len(held) >= 600
    assert 0.18 <= len(held) / (len(taught) + len(held)) <= 0.22


def test_no_phrasing_is_in_two_parts() -> None:
    parts = [{normalised(p.text) for p in phrasings(part)} for part in get_args(Part)]
    assert len(set().union(*parts)) == sum(map(len, parts))
    assert all(len(part) >= 250 for part in parts)


def test_a_fifth_of_the_strange_words_is_never_taught_and_none_is_a_thing_of_the_room() -> None:
    rng = np.random.default_rng(0)
    known = {
        w for group in ("kinds", "colours") for names in lexicon.lexicon()[group].values() for w in names
    }
    for kind in get_args(Strange):
        found = lexicon.words(kind)
        assert len(found) == len(set(found)) >= 100
        assert not known & set(found)
        taught, other = (
            {lexicon.strange_word(rng, kind, is_taught=is_taught) for _ in range(12 * len(found))}
            for is_taught in (True, False)
        )
        assert not taught & other
        assert taught | other == set(found)
        assert 0.15 < len(other) / len(found) < 0.25


def test_every_meaning_is_taught_and_nearly_every_voice_is_held_out() -> None:
    taught, held = by_meaning(), by_meaning("held_out")
    assert set(taught) == set(SLOTS)
    assert set(held) <= set(taught)
    assert len(held) >= 0.9 * len(taught)
    voices = Counter(p.voice for p in phrasings("held_out"))
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
