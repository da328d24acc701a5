"""The tiny models: a tokenizer that keeps numbers whole, and the sizes that the project promises."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vlm_spec_decode.models.tiny import NUMBERS, UNK_ID, build_tokenizer, draft_config, target_config


def test_numbers_are_single_tokens_and_survive_the_way_back() -> None:
    tok = build_tokenizer(("turn", "(", ")", "forward"))
    for number in NUMBERS:
        ids = tok(f"turn({number})")["input_ids"]
        assert len(ids) == 4, number
        assert UNK_ID not in ids, number
        assert tok.decode(ids) == f"turn ( {number} )"


def test_case_and_spacing_do_not_matter_and_unknown_words_are_unknown() -> None:
    tok = build_tokenizer(("go", "to", "the", ",", "."))
    assert tok("Go  TO the,")["input_ids"] == tok("go to the ,")["input_ids"]
    assert tok("go to the dragon")["input_ids"][-1] == UNK_ID


@pytest.mark.parametrize(
    ("config", "layers", "least", "most"),
    [(target_config(400), 8, 2.0e6, 12.0e6), (draft_config(400), 2, 0.2e6, 1.0e6)],
)
def test_sizes(config: LlavaConfig, layers: int, least: float, most: float) -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config)
    assert least <= sum(p.numel() for p in model.parameters()) <= most
    assert config.text_config.num_hidden_layers >= layers
