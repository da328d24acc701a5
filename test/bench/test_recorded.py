"""Recorded pairs: a memory changes nothing but the time, and the early draft is what it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_spec_decode.bench.pairs import DESCRIBED_PROMPTS, PairLibrary, measure_pair, recorded_prompts
from vlm_spec_decode.bench.recorded import RecordedModel
from vlm_spec_decode.bench.run import RunSetup, decode
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.strategies.registry import STRATEGIES


@pytest.fixture(scope="module")
def library() -> PairLibrary:
    return PairLibrary(2)


def test_a_recorded_model_says_what_the_model_says_and_asks_it_once() -> None:
    question = recorded_prompts(1)[0]
    target = load_model(shipped("target"))
    plain, recorded = target.open(question), RecordedModel(target, {question.frame_id: question})
    tree = ((5, 6, 7), (0, 0, 1))
    expected, exits = plain.score((3, 4), *tree), dict[int, np.ndarray]()
    context = recorded.open(Observation(None, "", frame_id=question.frame_id))
    found = context.score((3, 4), *tree, on_exit=exits.__setitem__)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert set(exits) == set(target.card.exit_layers)
    memory = recorded.memories[question.frame_id]
    passes = memory.context.stats.passes
    context.close()
    again = recorded.open(question)
    part = dict[int, np.ndarray]()
    np.testing.assert_array_equal(again.score((3, 4, 5), (7,), (0,), on_exit=part.__setitem__), found[[1, 3]])
    for layer, rows in part.items():
        np.testing.assert_array_equal(rows, exits[layer][[1, 3]])
    assert memory.context.stats.passes == passes


@pytest.mark.slow
@pytest.mark.parametrize("link", ["go2_paper", "wifi_handover"])
def test_every_strategy_says_the_same_on_recorded_answers(library: PairLibrary, link: str) -> None:
    pair = library.pair("early47")
    hardware, road = load_hardware("go2_a100"), load_link(link)
    said = {}
    for name in STRATEGIES:
        setup = RunSetup(strategy=name, hardware=hardware, link=road, has_colocated_draft=name == "colocated")
        found = [decode(setup, pair.draft, pair.target, q, pair.params, pair.codec) for q in pair.questions]
        said[name] = [o.tokens for o in found]
        assert all(o.first_action_s is not None and 0 < o.first_action_s <= o.total_s for o in found)
        assert all(o.hits <= o.lookups for o in found)
    assert all(tokens == said["autoregressive"] for tokens in said.values())


def test_without_its_image_a_question_costs_no_image_bytes(library: PairLibrary) -> None:
    pair = library.pair("shipped")
    setup = RunSetup(
        strategy="autoregressive", hardware=load_hardware("go2_a100"), link=load_link("go2_paper")
    )
    whole = pair.questions[0]
    bare = Observation(None, whole.instruction, whole.history, frame_id=whole.frame_id)
    seen, unseen = (decode(setup, pair.draft, pair.target, q, pair.params) for q in (whole, bare))
    assert seen.tokens == unseen.tokens
    assert unseen.image_bytes == 0 < seen.image_bytes
    assert 0 <= seen.up_bytes - unseen.up_bytes <= 40  # the image's name
    assert unseen.total_s < seen.total_s


def test_an_answer_that_was_given_before_costs_few_passes() -> None:
    pair = PairLibrary(1).pair("shipped")
    hardware, link = load_hardware("go2_a100"), load_link("go2_paper")
    setups = [RunSetup(strategy="hybrid", hardware=hardware, link=link, is_repeat=r) for r in (False, True)]
    first, again = (decode(s, pair.draft, pair.target, pair.questions[0], pair.params) for s in setups)
    assert again.tokens == first.tokens
    assert again.passes < first.passes
    assert again.total_s < first.total_s
    assert again.gpu_s < first.gpu_s


@pytest.mark.slow
def test_the_drafts_are_worth_what_they_are_called() -> None:
    library = PairLibrary(12)
    found = {name: measure_pair(library.pair(name)) for name in ("early47", "early69", "shipped", "oracle")}
    values = [w.acceptance for w in found.values()]
    assert values == sorted(values)
    assert 0.40 <= found["early47"].acceptance <= 0.56
    assert found["oracle"].acceptance == 1
    for worth in found.values():
        assert sum(worth.ranks) == worth.tokens
        assert worth.ranks[0] == round(worth.acceptance * worth.tokens)


def test_told_rooms_have_no_image_and_the_room_in_words() -> None:
    found = recorded_prompts(24, DESCRIBED_PROMPTS)
    assert len({o.frame_id for o in (*found, *recorded_prompts(24))}) == 48
    assert all(o.image is None for o in found)
    assert sum("you see" in o.instruction for o in found) > 12


def test_bad_names_are_refused(library: PairLibrary) -> None:
    for name in ("nothing", "synthetic:x", "synthetic:2"):
        with pytest.raises(ConfigError):
            library.pair(name)
    with pytest.raises(ConfigError):
        recorded_prompts(10_000)
