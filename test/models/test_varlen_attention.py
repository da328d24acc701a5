"""Attention in groups over one pool says what attention answer by answer says, in every family."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from test.models.test_context import assert_plain, ends_of, random_tree
from test.models.test_waits import context_of, decoder_on
from vlm_spec_decode.core.errors import Cancelled, OutOfMemory, VsdError
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.choices import DenseChoices
from vlm_spec_decode.models import varlen_attention
from vlm_spec_decode.models.choose import DeviceChoices
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.models.context import VlmContext, run_pass
from vlm_spec_decode.models.kv_pool import SPARE_COLUMN, KvPool
from vlm_spec_decode.models.varlen_attention import attention


def contexts_of(pair: Any, count: int, pooled: bool, max_dead: int = 6) -> list[VlmContext]:
    decoder = replace(pair.model.decoder, is_pooled=pooled)
    opened = [pair.model.open(pair.observation) for _ in range(count)]
    return [VlmContext(decoder, context._embed_prompt, max_dead=max_dead) for context in opened]


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_queries_that_share_keys_attend_as_if_keys_were_repeated(rows: int, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(rows)
    query = torch.randn(2, heads[0], rows, 16, generator=generator)
    keys, values = torch.randn(2, 2, heads[1], 230, 16, generator=generator)
    mask = torch.where(torch.rand(2, 1, rows, 230, generator=generator) < 0.5, 0.0, -1e30)
    mask[..., 0] = 0
    wide = [part.repeat_interleave(heads[0] // heads[1], dim=1) for part in (keys, values)]
    for seen in (mask, None):
        found = attention(query, keys, values, seen, 0.3)
        wanted = scaled_dot_product_attention(query, *wide, attn_mask=seen, scale=0.3)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_pool_says_what_each_answer_alone_says(pair: Any) -> None:
    """Answers join and leave, branch, are rolled back and evicted; prompts share passes with single rows."""
    rng = np.random.default_rng(4)
    forms = [contexts_of(pair, 4, pooled) for pooled in (False, True)]
    prefixes = [()] * 4
    for turn in range(6):
        present = [i for i in range(4) if i <= turn and rng.random() < 0.8] or [0]
        trees = [random_tree(rng, int(rng.integers(0, 9))) for _ in present]
        said = []
        for contexts in forms:
            asked = zip(present, trees, strict=True)
            entries = [contexts[i].batch_entry(prefixes[i], *tree) for i, tree in asked]
            said.append([found.logits for found in run_pass(contexts[0]._decoder, entries)])
        for alone, pooled in zip(*said, strict=True):
            np.testing.assert_allclose(pooled, alone, atol=1e-4)
        for i, tree in zip(present, trees, strict=True):
            ends = ends_of(prefixes[i], *tree)
            prefixes[i] = ends[int(rng.integers(0, len(ends)))][: turn + 2]
    assert_plain(pair, forms[1][0].score(prefixes[0]), prefixes[0])
    if not any(hasattr(context._cache, "pasts") for context in forms[1]):
        pool = forms[1][0]._decoder.pool
        held = [column for context in forms[1] for column in context._cache.columns]
        assert len(set(held)) == len(held)
        assert SPARE_COLUMN not in held
        assert sum(context.kv_bytes for context in forms[1]) == len(held) * pool.column_bytes
        # What nobody holds any more is free again.
        forms[1][0].forget()
        forms[1][1].close()
        del forms, contexts, entries
        gc.collect()
        assert sorted(pool._free) == list(range(1, pool._columns))


def test_answers_of_different_lengths_are_not_padded_to_the_longest(llava_pair: Any) -> None:
    contexts = contexts_of(llava_pair, 4, pooled=True, max_dead=500)
    for context, length in zip(contexts, (1, 2, 200, 190), strict=True):
        context.score((5,) * length)
    seen: list[list[int]] = []
    group = varlen_attention._groups
    decoder = contexts[0]._decoder
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(varlen_attention, "_groups", lambda entries: seen.append(group(entries)) or seen[-1])
        run_pass(decoder, [c.batch_entry((5,) * n) for c, n in zip(contexts, (2, 3, 201, 191), strict=True)])
    assert [sorted(members) for members in seen[0]] == [[2, 3], [0, 1]]


def test_a_pass_that_breaks_off_gives_its_columns_back(exits_pair: Any) -> None:
    contexts = contexts_of(exits_pair, 3, pooled=True)
    decoder = contexts[0]._decoder
    contexts[1].score((7,))
    before = list(contexts[1]._cache.columns)

    def cancel(_layer: int, _choices: Any) -> None:
        raise Cancelled("enough")

    entries = [
        contexts[0].batch_entry((7,), (8, 9), (0, 1)),
        contexts[1].batch_entry((7,), (8,), (0,), cancel),
        contexts[2].batch_entry((9,), (), (), cancel),
    ]
    fine, *cancelled = run_pass(decoder, entries)
    assert all(isinstance(error, Cancelled) for error in cancelled)
    assert not isinstance(fine, VsdError)
    assert_plain(exits_pair, fine.logits, (7,), (8, 9), (0, 1))
    assert contexts[1]._cache.columns == before
    assert contexts[2]._cache.columns == []
    for context in contexts:
        assert_plain(exits_pair, context.score((7,), (11,), (0,)), (7,), (11,), (0,))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("pooled", [False, True])
def test_without_memory_in_the_middle_of_a_tree_nothing_is_lost(
    exits_pair: Any, pooled: bool, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer, or the growing of what holds keys and values, finds no memory; then there is some again."""
    contexts = contexts_of(exits_pair, 3, pooled)
    decoder = contexts[0]._decoder
    contexts[0].score((5, 6), (7, 8), (0, 1))
    contexts[1].score((5,))
    held = [context.kv_bytes for context in contexts]

    def full(*_args: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("no room on the GPU")

    def asked() -> list[Any]:
        return [
            contexts[0].batch_entry((5, 6, 7), (9, 10, 11), (0, 1, 1)),
            contexts[1].batch_entry((5, 6), (9,), (0,)),
            contexts[2].batch_entry((), (9, 10), (0, 0)),
        ]

    for place, name in ((decoder.stack.layers[layer], "forward"), (varlen_attention, "attention")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, full)
            with pytest.raises(OutOfMemory):
                run_pass(decoder, asked())
        assert [context.kv_bytes for context in contexts][:2] == held[:2]
        assert contexts[0].stats.passes == 1
    # Those that took no part never notice, and those that did go on.
    assert_plain(exits_pair, contexts[1].score((5,), (6,), (0,)), (5,), (6,), (0,))
    first, second, third = run_pass(decoder, asked())
    assert_plain(exits_pair, first.logits, (5, 6, 7), (9, 10, 11), (0, 1, 1))
    assert_plain(exits_pair, second.logits, (5, 6), (9,), (0,))
    assert_plain(exits_pair, third.logits, (), (9, 10), (0, 0))
    assert contexts[2].stats.prompt_tokens == exits_pair.prompt_tokens


def test_a_pool_that_cannot_grow_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KvPool()
    taken = pool.take(10)
    for layer in range(3):
        pool.write(layer, *torch.ones(2, 2, 10, 4), torch.tensor(taken))
    allocate, calls = torch.Tensor.new_zeros, []

    def full(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) >= 4:  # from the middle of the second layer on
            raise torch.OutOfMemoryError("no room")
        return allocate(*args)

    pool.release(taken[5:])
    free = list(pool._free)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_zeros", full)
        with pytest.raises(torch.OutOfMemoryError):
            pool.take(5000)
    assert (pool._free, pool._columns) == (free, 11)
    # One layer has grown, and is used as it is.
    assert torch.equal(pool.read(0, torch.arange(1, 6))[0], torch.ones(2, 5, 4))
    generation = pool.generation
    again = pool.take(5000)
    assert len(set(again)) == 5000
    assert pool.generation > generation
    for layer in range(3):
        assert torch.equal(pool.read(layer, torch.arange(1, 6))[0], torch.ones(2, 5, 4))


def test_a_pool_without_memory_for_twice_its_size_grows_by_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = KvPool()
    pool.write(0, *torch.ones(2, 2, 4000, 4), torch.tensor(pool.take(4000)))
    allocate = torch.Tensor.new_zeros

    def short(self: torch.Tensor, heads: int, size: int, width: int) -> torch.Tensor:
        if size > 5000:
            raise torch.OutOfMemoryError("no room")
        return allocate(self, heads, size, width)

    monkeypatch.setattr(torch.Tensor, "new_zeros", short)
    pool.take(200)
    assert pool._layers[0][0].shape == (2, 4224, 4)
    with pytest.raises(torch.OutOfMemoryError):
        pool.take(2000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_the_bits_give_the_same_pass_up_to_their_rounding(dtype: torch.dtype) -> None:
    """Trees and several answers in 16 bits, in both forms, beside 32 bits; and choosing from such logits."""
    whole, rng = decoder_on("cpu"), np.random.default_rng(2)
    for part in (whole.stack, whole.head):
        for weights in part.parameters():
            weights.copy_(weights.to(dtype))  # the same numbers in both
    half = decoder_on("cpu")
    half.stack.load_state_dict(whole.stack.state_dict())
    half.stack.to(dtype)
    half.head.to(dtype)
    forms = [whole, half, replace(half, is_pooled=True)]
    contexts = [[context_of(decoder, 30 + 9 * i) for i in range(3)] for decoder in forms]
    for turn in range(4):
        trees = [random_tree(rng, int(rng.integers(1, 20))) for _ in range(3)]
        said = []
        for decoder, own in zip(forms, contexts, strict=True):
            asked = zip(own, trees, strict=True)
            entries = [context.batch_entry((40, 41, 42, 43)[:turn], *tree) for context, tree in asked]
            said.append(run_pass(decoder, entries))
        for exact, alone, pooled in zip(*said, strict=True):
            scale = np.abs(exact.logits).max()
            for found in (alone, pooled):
                assert found.scores.dtype == dtype
                np.testing.assert_allclose(found.logits, exact.logits, atol=0.03 * scale)
            params = SamplingParams(temperature=0.7, top_p=0.9, seed=turn)
            rows = range(len(pooled))
            plain = DenseChoices(pooled.logits)
            for chooser in (DeviceChoices, BatchChoices):
                choices = chooser(pooled.scores)
                assert choices.pick(rows, rows, params) == plain.pick(rows, rows, params)
                assert choices.pick(rows, rows, SamplingParams()) == plain.pick(rows, rows, SamplingParams())
