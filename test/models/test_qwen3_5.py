"""What only recurrent layers may get wrong: states, traces of rejected drafts, memory; Qwen3.5, 248,320 ids.

What holds for every family is in `families/test_contract.py`, the rule itself in `test_delta_net.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from test.models.families.cases import CASES
from test.models.families.reference import Inputs, Loaded, Reference, load_case, seen
from test.models.families.test_contract import Tree, tree
from test.models.test_context import ends_of
from vlm_spec_decode.core.errors import ModelError, OutOfMemory
from vlm_spec_decode.core.ports import ScoreRequest
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.delta_net import DeltaPast
from vlm_spec_decode.models.families.base import LINEAR
from vlm_spec_decode.models.families.qwen3_5 import RecurrentCache
from vlm_spec_decode.models.loader import load_model

Logits = npt.NDArray[np.float32]
SIZE = (40, 30)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_case(CASES["qwen3_5"], tmp_path_factory.mktemp("qwen3_5") / "model")


def at_once(reference: Reference, inputs: Inputs, path: Tokens, rows: int) -> Logits:
    """Return Transformers' logits [1 + n, rows] behind a prompt and its path, fed in one piece."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([path], dtype=torch.long)], dim=1)
    with torch.inference_mode():
        said = reference.network(
            **reference._with_kinds({**inputs, "input_ids": ids}), logits_to_keep=len(path) + 1
        )
    found: Logits = said.logits[0, :, :rows].float().numpy()
    return found


def in_steps(reference: Reference, inputs: Inputs, path: Tokens, rows: int) -> Logits:
    """Return the same, the path fed token by token into Transformers' cache behind the prompt."""
    network = reference.network
    network.model.rope_deltas = None  # else those of the last picture count for a prompt without one
    with torch.inference_mode():
        out = network(**inputs, use_cache=True, logits_to_keep=1)
        said: list[Tensor] = [out.logits[0, -1]]
        for token in path:
            out = network(
                input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True
            )
            said.append(out.logits[0, -1])
    found: Logits = torch.stack(said)[:, :rows].float().numpy()
    return found


def noise(family: Loaded, inputs: Inputs, path: Tokens) -> float:
    """Return how much Transformers' model differs from itself between a path at once and in steps."""
    rows = family.vocab_size
    steps = in_steps(family.reference, inputs, path, rows)
    return float(np.abs(steps - at_once(family.reference, inputs, path, rows)).max())


def error(family: Loaded, inputs: Inputs, found: Logits, prefix: Tokens, nodes: Tree) -> float:
    """Return the greatest difference between the rows of a tree and each path at once."""
    ends, inner, worst = ends_of(prefix, *nodes), set(nodes[1]), 0.0
    assert found.shape == (len(ends), family.vocab_size)
    for leaf in (path for row, path in enumerate(ends) if row not in inner):
        # A path to a leaf gives the rows of all nodes on it.
        wanted = at_once(family.reference, inputs, leaf, family.vocab_size)
        on_it = [row for row, path in enumerate(ends) if path == leaf[: len(path)]]
        worst = max(worst, *(float(np.abs(found[row] - wanted[len(ends[row])]).max()) for row in on_it))
    return worst


def deep_tree(rng: np.random.Generator, size: int) -> Tree:
    """Return a tree that is rather deep than wide."""
    tokens, _ = tree(rng, size)
    return tokens, tuple(int(rng.integers(max(0, i - 2), i + 1)) for i in range(size))


@pytest.mark.parametrize("size", [None, SIZE, (320, 20)])
def test_trees_are_as_exact_as_the_model_itself(family: Loaded, size: tuple[int, int] | None) -> None:
    """Prompt, prefix and nodes in one pass, then more nodes below the deepest."""
    observation, rng = seen(size), np.random.default_rng(1)
    inputs = family.reference.inputs(observation)
    own = worst = 0.0
    for _ in range(3):
        prefix, nodes, more = tree(rng, 3)[0], deep_tree(rng, 14), deep_tree(rng, 8)
        deepest = max(ends_of(prefix, *nodes), key=len)
        own = max(own, noise(family, inputs, max(ends_of(deepest, *more), key=len)))
        context = family.model.open(observation)
        for start, asked in ((prefix, nodes), (deepest, more)):
            worst = max(worst, error(family, inputs, context.score(start, *asked), start, asked))
    assert 0 < worst <= 2 * own < 1e-3


def test_bfloat16_is_as_exact_as_the_model_itself(family: Loaded) -> None:
    model = load_model(f"{family.folder},prompt=bare,dtype=bfloat16")
    reference = replace(family.reference)
    network = AutoModelForImageTextToText.from_pretrained(family.folder, dtype=torch.bfloat16).eval()
    reference.__dict__["network"] = network
    observation, rng = seen(SIZE), np.random.default_rng(1)
    inputs = reference.inputs(observation)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    own = worst = 0.0
    for _ in range(4):
        path = tree(rng, 8)[0]
        wanted = at_once(reference, inputs, path, family.vocab_size)
        steps = in_steps(reference, inputs, path, family.vocab_size)
        own = max(own, float(np.abs(steps - wanted).max()))
        chain = model.open(observation).score((), path, tuple(range(8)))
        worst = max(worst, float(np.abs(chain - wanted).max()))
    # Its own noise is a last digit or two; often there is none beyond it.
    assert own > 0
    assert worst <= 2 * own


def cache_of(context: VlmContext) -> RecurrentCache:
    assert isinstance(context._cache, RecurrentCache)
    return context._cache


def test_the_state_behind_the_prompt_counts(family: Loaded) -> None:
    """The control of all comparisons: forgotten, the same weights say something else."""
    context = family.model.open(seen(SIZE))
    remembered = context.score((7,), (8,), (0,))
    context.forget()
    context.prefill()
    assert sorted(cache_of(context).pasts) == [0, 1, 2]
    for past in cache_of(context).pasts.values():
        past.state = torch.zeros_like(past.state)
    assert np.abs(context.score((7,), (8,), (0,)) - remembered).max() > 0.1


def test_drafts_that_were_rejected_in_earlier_passes_change_no_bit(family: Loaded) -> None:
    observation, rng = seen(SIZE), np.random.default_rng(2)
    drafted, plain = family.model.open(observation), family.model.open(observation)
    prefix: Tokens = ()
    for _ in range(6):
        drafted.score(prefix)
        plain.score(prefix)
        drafted.score(prefix, *deep_tree(rng, int(rng.integers(1, 12))))
        prefix = (*prefix, *tree(rng, 2)[0])
        asked = deep_tree(rng, 5)
        assert np.array_equal(drafted.score(prefix, *asked), plain.score(prefix, *asked))
    assert drafted.stats.tokens > plain.stats.tokens
    assert drafted.kv_bytes == plain.kv_bytes


@pytest.mark.parametrize("max_dead", [0, 64])
def test_what_was_rejected_in_the_same_pass_changes_no_bit(family: Loaded, max_dead: int) -> None:
    """Two answers with drafts of the same shape and of other tokens, gathered away or only masked."""
    rng = np.random.default_rng(3)
    opened = family.model.open(seen(SIZE))
    one, other = (VlmContext(opened._decoder, opened._embed_prompt, max_dead=max_dead) for _ in range(2))
    prefix: Tokens = ()
    for _ in range(6):
        token, (tokens, parents) = int(rng.integers(1, 999)), deep_tree(rng, 9)
        for context, shift in ((one, 1), (other, 2)):
            context.score(prefix, (token, *(i + shift for i in tokens)), (0, *parents))
        prefix = (*prefix, token)
        asked = deep_tree(rng, 5)
        assert np.array_equal(one.score(prefix, *asked), other.score(prefix, *asked))


def test_dead_drafts_that_are_kept_can_come_back(family: Loaded) -> None:
    observation, rng = seen(None), np.random.default_rng(4)
    inputs, opened = family.reference.inputs(observation), family.model.open(observation)
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=6)
    first = context.score((), (11, 12, 13, 14), (0, 1, 0, 3))
    context.score((13,))
    passes = context.stats.passes
    # No pass: the same rows of the body. Two rows of the head are rounded in another way than four on some
    # processors.
    assert np.allclose(context.score((11,), (12,), (0,)), first[[1, 2]], atol=1e-5)
    assert context.stats.passes == passes
    for token in (11, 12, 15):
        nodes = deep_tree(rng, 9)
        assert error(family, inputs, context.score((token,), *nodes), (token,), nodes) < 1e-4
    assert context.stats.gathers > 0


def test_answers_may_keep_their_keys_in_one_pool(family: Loaded) -> None:
    """As on a GPU: attention is over the pool, while each answer has its own states."""
    rng, decoder = np.random.default_rng(5), replace(family.model.decoder, is_pooled=True)
    observations = [seen(size) for size in (None, SIZE, (320, 20))]
    contexts = [VlmContext(decoder, family.model.open(one)._embed_prompt) for one in observations]
    prefixes: list[Tokens] = [()] * 3
    pooled = replace_decoder(family, decoder)
    for _ in range(3):
        trees = [deep_tree(rng, int(rng.integers(1, 6))) for _ in contexts]
        asked = [ScoreRequest(c, p, *t) for c, p, t in zip(contexts, prefixes, trees, strict=True)]
        for i, found in enumerate(pooled.score_batch(asked)):
            inputs = family.reference.inputs(observations[i])
            assert error(family, inputs, as_choices(found).logits, prefixes[i], trees[i]) < 1e-4
            prefixes[i] = ends_of(prefixes[i], *trees[i])[-2]


def replace_decoder(family: Loaded, decoder: Any) -> Any:
    model = family.model
    return type(model)(model.card, model.codec, decoder, model.encoder)


def breaking(original: Any, at: int) -> Any:
    """Return what does as `original` does until its call number `at` finds no room."""
    calls = 0

    def run(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise torch.OutOfMemoryError("no room")
        return original(*arguments, **options)

    return run


@pytest.mark.parametrize("prefilled", [False, True])
@pytest.mark.parametrize("layer", range(4))
def test_a_state_that_does_not_fit_is_named_and_harms_nobody(
    family: Loaded, monkeypatch: pytest.MonkeyPatch, prefilled: bool, layer: int
) -> None:
    """The pass breaks in any layer, in a recurrent one after the first of three sessions has been there."""
    contexts = [family.model.open(seen(SIZE)) for _ in range(3)]
    untouched = family.model.open(seen(SIZE))
    if prefilled:
        for context in (*contexts, untouched):
            context.score((5,), (6, 7), (0, 0))
    held = [sum(past.nbytes for past in cache_of(context).pasts.values()) for context in contexts]
    asked = [ScoreRequest(context, (5,), (8, 9), (0, 1)) for context in contexts]
    with monkeypatch.context() as patched:
        if family.model.decoder.family.layer_types[layer] == LINEAR:
            name = "extend" if prefilled else "__init__"
            patched.setattr(DeltaPast, name, breaking(getattr(DeltaPast, name), 3 * layer + 2))
        else:
            block = family.model.decoder.stack.layers[layer]
            patched.setattr(block, "forward", breaking(block.forward, 1))
        with pytest.raises(OutOfMemory, match="out of memory"):
            family.model.score_batch(asked)
    assert [sum(past.nbytes for past in cache_of(context).pasts.values()) for context in contexts] == held
    alone = untouched.score((5,), (8, 9), (0, 1))
    for found in family.model.score_batch(asked):
        np.testing.assert_allclose(as_choices(found).logits, alone, atol=1e-4)


def test_bytes_of_states_and_nodes_are_counted_and_freed(family: Loaded) -> None:
    config = family.reference.network.config.text_config
    heads, key_heads = config.linear_num_value_heads, config.linear_num_key_heads
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    channels = 2 * key_heads * key + heads * value
    state = 4 * (heads * key * value + 3 * channels) + 8 * heads
    node = 4 * (channels + key_heads * key + heads * value) + 8 * heads
    context = family.model.open(seen(None))
    context.prefill()
    pasts = cache_of(context).pasts
    assert sum(past.nbytes for past in pasts.values()) == 3 * state
    attended = context.kv_bytes - 3 * state
    assert attended > 0
    before = context.score((), (11, 12, 13), (0, 1, 1))
    assert sum(past.nbytes for past in pasts.values()) == 3 * (state + 3 * node)
    assert context.kv_bytes == attended + 3 * (state + 3 * node)
    context.forget()
    assert context.kv_bytes == 0
    np.testing.assert_allclose(context.score((), (11, 12, 13), (0, 1, 1)), before, atol=1e-4)


def test_a_long_answer_stays_as_exact(family: Loaded) -> None:
    """Two hundred tokens in passes of several sizes; nothing is folded into the state on the way."""
    observation, rng = seen(None), np.random.default_rng(6)
    inputs, path = family.reference.inputs(observation), tree(rng, 200)[0]
    wanted = at_once(family.reference, inputs, path, family.vocab_size)
    own = float(np.abs(in_steps(family.reference, inputs, path, family.vocab_size) - wanted).max())
    context, at = family.model.open(observation), 0
    while at < len(path):
        step = min(int(rng.integers(1, 12)), len(path) - at)
        rows = context.score(path[:at], path[at : at + step], tuple(range(step)))
        assert np.abs(rows - wanted[at : at + step + 1]).max() <= 2 * own
        at += step


def test_a_model_called_as_a_whole_does_what_it_did_before(family: Loaded) -> None:
    """Training and references call Transformers' own forward on the same network."""
    inputs = family.reference.inputs(seen(SIZE))
    with torch.inference_mode():
        found = family.model.encoder.body(**inputs).last_hidden_state
        wanted = family.reference.network.model(**inputs).last_hidden_state
    assert torch.equal(found, wanted)


def test_a_near_relative_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_next"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="'qwen3_next' is not supported: its delta nets lay"):
        load_model(tmp_path)
