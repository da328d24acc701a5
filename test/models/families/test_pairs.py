"""A draft of one family for a target of another: what must be equal is what token ids mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from test.models.families.cases import CASES
from test.models.families.reference import SIZES, Loaded, load_case, seen
from vlm_spec_decode.core.errors import VocabularyMismatch
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.vocabulary import assert_same_vocabulary

PAIRS = {
    "qwen3_vl": ("qwen3", "internvl"),  # a language model that does not see, and one that sees in tiles
    "smolvlm": ("idefics3",),
    "llava": ("llama",),
}
"""Targets, and the families that draft for them."""

STRANGERS = {"qwen3_vl": "qwen2", "smolvlm": "smollm3", "llava": "smolvlm"}
"""A family with other ids, or without some of the target's."""


def loaded(name: str, folder: Path) -> LoadedModel:
    CASES[name].make(folder)
    return load_model(f"{folder},prompt=bare")


# Each of these loads up to three vocabularies of 152,000 tokens.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=PAIRS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_case(CASES[request.param], tmp_path_factory.mktemp(request.param) / "model")


def test_a_draft_of_another_family_changes_no_token(target: Loaded, tmp_path: Path) -> None:
    for name in PAIRS[target.case.name]:
        draft = loaded(name, tmp_path / name)
        assert_same_vocabulary(draft.card, target.model.card)
        for setting, size in (("greedy", SIZES[-1]), ("sampled, grammar", None)):
            wanted, _ = target.wanted(seen(size), setting)
            for strategy in ("speculative", "hybrid"):
                assert target.said(strategy, seen(size), setting, draft) == wanted, (name, setting, strategy)


def test_a_draft_whose_ids_mean_something_else_is_refused(target: Loaded, tmp_path: Path) -> None:
    stranger = loaded(STRANGERS[target.case.name], tmp_path / "stranger")
    with pytest.raises(VocabularyMismatch, match=r"draft stranger .* differ in vocabulary"):
        assert_same_vocabulary(stranger.card, target.model.card)
