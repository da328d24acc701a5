"""A draft step and a target pass of real size beside the bare layers and head for the same rows.

Random weights in the shape of Qwen2-VL-2B's language model, cut to four layers, one thread. A figure is the
time of all of our code for a step, over the time of the bare layers and head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from figures import Figure
from transformers import Qwen2Config, Qwen2ForCausalLM

from vlm_spec_decode.core.choices import LegalTokens
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.grammar_mask import GrammarWalk, MaskedContext
from vlm_spec_decode.decoding.verify import verify_coupled
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.families.base import EmbeddedPrompt
from vlm_spec_decode.models.families.language import Language
from vlm_spec_decode.strategies.hybrid.draft_tree import DraftTree, TreeNode

VOCABULARY, WIDTH, LAYERS, PROMPT = 151_936, 1536, 4, 64
ROWS, NODES = 24, 64
SETTINGS = {
    "greedy": SamplingParams(stop_ids=(1,), max_tokens=1000),
    "sampled": SamplingParams(temperature=0.7, top_p=0.9, stop_ids=(1,), max_tokens=1000),
}
SEEDS = count(1)
"""Each step draws from noise that nobody has made before, as each position of an answer does."""

DRAFT_BARS = {"greedy": 1.08, "sampled": 1.15, "grammar": 1.12}
TARGET_BARS = {"greedy": 1.08, "sampled": 1.12, "grammar": 1.12}


def decoder_of(vocabulary: int, width: int) -> Decoder:
    """Return a decoder with random weights: heads of 128, grouped six to one, as Qwen2-VL-2B has them."""
    heads = max(1, width // 128)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 35 // 6,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 6),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    network = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    family = Language.of_config(config)
    return Decoder(network.model, network.lm_head, {}, vocabulary, family)


def context_of(decoder: Decoder) -> VlmContext:
    """Return an answer's context whose prompt has been read."""
    ids = torch.arange(PROMPT) % decoder.vocab_size
    context = VlmContext(decoder, lambda: EmbeddedPrompt(decoder.embed(ids), torch.arange(PROMPT)[None], ids))
    context.prefill()
    return context


class AllLegal:
    """A grammar that allows nine tenths of the ids everywhere: as wide a mask as a real one gets."""

    digest = "wide"

    def __init__(self, vocabulary: int) -> None:
        mask = np.random.default_rng(0).random(vocabulary) < 0.9
        mask[:4096] = True
        self._legal = LegalTokens.of(mask)

    def start(self) -> AllLegal:
        """Return the one state."""
        return self

    def legal(self) -> LegalTokens:
        """Return a mask that nobody has unpacked yet, as each state of a real grammar has its own."""
        return LegalTokens(self._legal.bits, self._legal.vocab_size)

    def after(self, token: int) -> AllLegal:  # noqa: ARG002
        """Return the same state."""
        return self


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of a call: whatever else runs does not count."""
    began_s = time.process_time()
    run()
    return time.process_time() - began_s


Prepare = Callable[[], Callable[[], object]]
"""Prepares one run, whose time is then taken."""


def ratio(ours: Prepare, bare: Prepare, turns: int) -> float:
    """Return the median of ours over bare; the two take turns, and the first turn does not count."""
    found = []
    for _ in range(turns + 1):
        mine, other = ours(), bare()
        found.append(seconds(mine) / seconds(other))
    return float(np.median(found[1:]))


def bare_pass(decoder: Decoder, rows: int, known: int) -> Callable[[], object]:
    """Return the layers for `rows` siblings below the prompt, and the head for them and `known` rows more."""
    varlen = context_of(decoder).batch_entry((), tuple(range(10, 10 + rows)), (0,) * rows).varlen
    assert varlen is not None

    @torch.inference_mode()
    def run() -> object:
        states = [states for _, states in decoder.run_layers([varlen])][-1][0]
        return decoder.head(torch.cat([states, states[:known]]))

    return run


def draft_step(decoder: Decoder, params: SamplingParams, rows: int, grammar: bool) -> Callable[[], object]:
    """Return one expansion of `rows` nodes of a draft tree, each scored for the first time."""
    context: Any = context_of(decoder)
    if grammar:
        context = MaskedContext(context, GrammarWalk(cast(Any, AllLegal(decoder.vocab_size))))
    tree = DraftTree(drafter=context, params=replace(params, seed=next(SEEDS)))
    nodes = [tree.offer(tree.root, token, -1.0) for token in range(10, 10 + rows)]
    return lambda: tree.expand(cast("list[TreeNode]", nodes))


def target_pass(decoder: Decoder, params: SamplingParams, nodes: int, grammar: bool) -> Callable[[], object]:
    """Return one verification pass of a chain's siblings: the target's pass and the verdict."""
    context: Any = context_of(decoder)
    if grammar:
        context = MaskedContext(context, GrammarWalk(cast(Any, AllLegal(decoder.vocab_size))))
    tokens, parents = tuple(range(10, 10 + nodes)), (0,) * nodes
    params = replace(params, seed=next(SEEDS))
    return lambda: verify_coupled(context.choose((), (tokens, parents)), tokens, parents, 0, params)


def steps(turns: int) -> Iterator[Figure]:
    """Measure draft steps and target passes at both widths."""
    for width, widest in ((WIDTH, None), (256, 1.3)):
        yield from figures_of(decoder_of(VOCABULARY, width), width, widest, turns)


def figures_of(decoder: Decoder, width: int, widest: float | None, turns: int) -> Iterator[Figure]:
    """Measure draft step and target pass of one width; `widest` replaces the bars."""
    for what, step, rows, bars in (
        ("draft", draft_step, ROWS, DRAFT_BARS),
        ("target", target_pass, NODES, TARGET_BARS),
    ):
        for name, bar in bars.items():
            params = SETTINGS.get(name, SETTINGS["greedy"])
            ours = partial(step, decoder, params, rows, name == "grammar")
            value = ratio(ours, partial(bare_pass, decoder, rows, int(what == "target")), turns)
            note = f"{rows} rows, width {width}, {VOCABULARY} ids"
            yield Figure(f"{what}_{name}_{width}", value, widest or bar, "at most", note)
