"""Language models of Llama's shape that need no code of their own: trees and answers are Transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from test.models import checkpoints
from test.models.conftest import Pair
from test.models.test_context import assert_plain, ends_of, random_tree
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model

EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LANGUAGES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "ernie4_5": {},
    "glm4": {"head_dim": 8},
    "mixtral": EXPERTS,
    "olmo2": {},
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
}
"""Model types, and what their configs need besides the sizes of `checkpoints.TEXT`."""


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp(request.param) / "m"
    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param](**checkpoints.TEXT | LANGUAGES[request.param])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    checkpoints.tokenizer().save_pretrained(folder)
    model, observation = load_model(f"{folder},prompt=bare"), checkpoints.observation()
    assert isinstance(model, VlmModel)
    inputs = {"input_ids": torch.tensor([model.encoder.encode(observation).ids])}
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Pair(folder, model, network, inputs, observation)


def test_trees_are_exact(language: Pair) -> None:
    rng, context = np.random.default_rng(0), language.model.open(language.observation)
    prefix: Tokens = ()
    for _ in range(4):
        nodes = random_tree(rng, 5)
        assert_plain(language, context.score(prefix, *nodes), prefix, *nodes)
        prefix = ends_of(prefix, *nodes)[int(rng.integers(0, 6))]


def test_answers_are_those_of_generate(language: Pair) -> None:
    with torch.inference_mode():
        said = language.network.generate(
            **language.inputs,
            attention_mask=torch.ones_like(language.inputs["input_ids"]),
            max_new_tokens=16,
            do_sample=False,
            suppress_tokens=list(range(language.model.card.vocab_size, checkpoints.PADDED_VOCAB)),
            eos_token_id=None,
        )
    wanted = tuple(said[0, language.prompt_tokens :].tolist())
    context, answer = language.model.open(language.observation), ()
    for _ in wanted:
        answer = (*answer, int(context.score(answer)[0].argmax()))
    assert answer == wanted
