"""A pass queues its work and waits for none of it; what a GPU would wait for is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from test.models.test_choose_batch import Waits, transfers
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.models.context import VlmContext, run_pass
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.families.base import EmbeddedPrompt
from vlm_spec_decode.models.families.language import Language

CONFIG = Qwen2Config(
    vocab_size=5000,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def decoder_on(device: str, exits: tuple[int, ...] = ()) -> Decoder:
    torch.manual_seed(0)
    with torch.device(device):
        network = Qwen2ForCausalLM(CONFIG).eval().requires_grad_(False)
    family = Language.of_config(CONFIG)
    return Decoder(network.model, network.lm_head, dict.fromkeys(exits), 5000, family)


def context_of(decoder: Decoder, length: int = 20) -> VlmContext:
    # The prompt's positions are made on the host, once an answer.
    ids = torch.arange(length, device=decoder.device)
    return VlmContext(decoder, lambda: EmbeddedPrompt(decoder.embed(ids), torch.arange(length)[None], ids))


def tree_of(nodes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(range(30, 30 + nodes)), tuple(max(0, i - 2) for i in range(nodes))


def test_a_pass_reads_no_number_of_the_device() -> None:
    """On the meta device there are none to read: prompt, tree, exits, eviction, other sessions."""
    decoder = decoder_on("meta", exits=(1, 2))
    contexts = [context_of(decoder, length) for length in (5, 20, 33)]
    heard: list[int] = []

    def listen(layer: int, choices: Any) -> None:
        assert isinstance(choices, BatchChoices)
        heard.append(layer)

    prefix: tuple[int, ...] = ()
    for step in range(6):
        entries = [c.batch_entry(prefix, *tree_of(9 + 20 * i), listen) for i, c in enumerate(contexts)]
        for found in run_pass(decoder, entries):
            assert isinstance(found, BatchChoices)
        prefix += (4000 + step,)
    assert heard == [1, 1, 1, 2, 2, 2] * 6
    assert sum(context.stats.gathers for context in contexts) > 0
    assert len(contexts[0].choose(prefix, tree_of(9), rows=(0, 3))) == 2


@pytest.mark.parametrize("sampled", [False, True])
def test_the_waits_of_a_pass_do_not_grow_with_its_rows(
    sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, seed=3) if sampled else SamplingParams()
    decoder, found = decoder_on("cpu"), set()
    for nodes in (0, 1, 8, 63):
        context = context_of(decoder)
        context.prefill()
        with Waits() as waits, transfers(monkeypatch) as sizes:
            choices = context.choose((7,), tree_of(nodes))
            assert hasattr(choices, "scores")
            chosen = BatchChoices(choices.scores)
            chosen.ranked(range(nodes + 1), range(nodes + 1), params, 6, summed=False)
        found.add((waits.count, len(sizes)))
    # Random weights have flat rows, whose nucleus takes a second question.
    assert found == {(0, 2 if sampled else 1)}
