"""`score` against recomputing everything, and proof that nothing is computed twice."""

import numpy as np
import pytest
import torch

from vlm_spec_decode.core.errors import Cancelled, ModelError
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.kv_slots import SlotTable

VOCAB = 59
"""Ids below are words to every family's tokenizer."""
ATOL = 1e-4


def ends_of(prefix, tokens, parents):
    ends = [prefix]
    for token, parent in zip(tokens, parents, strict=True):
        ends.append((*ends[parent], token))
    return ends


def assert_plain(pair, logits, prefix, tokens=(), parents=()):
    ends = ends_of(prefix, tokens, parents)
    assert logits.shape == (len(ends), pair.model.card.vocab_size)
    assert logits.dtype == np.float32
    for row, path in zip(logits, ends, strict=True):
        np.testing.assert_allclose(row, pair.plain(path), atol=ATOL)


def random_tree(rng, size):
    return tuple(rng.integers(5, VOCAB, size).tolist()), tuple(
        int(rng.integers(0, i + 1)) for i in range(size)
    )


def test_prompt_prefix_and_tree_in_one_pass(pair):
    context = pair.model.open(pair.observation)
    prefix, tokens, parents = (9, 10), (11, 12, 13, 14), (0, 1, 0, 3)
    assert_plain(pair, context.score(prefix, tokens, parents), prefix, tokens, parents)
    assert context.stats.passes == 1
    assert context.stats.tokens == 6
    assert context.stats.prompt_tokens == pair.prompt_tokens


def test_image_tokens_are_counted_as_the_family_does(pair):
    context = pair.model.open(pair.observation)
    context.prefill()
    context.prefill()
    assert context.stats.prompt_tokens == pair.prompt_tokens
    assert context.stats.passes == 1
    assert_plain(pair, context.score(()), ())
    assert context.stats.passes == 1


@pytest.mark.parametrize("max_dead", [0, 5, 64])
def test_random_life_of_an_answer(pair, max_dead):
    """Trees, re-rooting into a branch, rollback, and a foreign prefix, with all eagerness to evict."""
    rng = np.random.default_rng(max_dead)
    opened = pair.model.open(pair.observation)
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=max_dead)
    prefix = ()
    for _ in range(8):
        tokens, parents = random_tree(rng, int(rng.integers(0, 9)))
        assert_plain(pair, context.score(prefix, tokens, parents), prefix, tokens, parents)
        ends = ends_of(prefix, tokens, parents)
        prefix = ends[int(rng.integers(0, len(ends)))]
        match int(rng.integers(0, 4)):
            case 0:
                prefix = prefix[:-2]
            case 1:
                prefix = (*prefix[:-1], int(rng.integers(5, VOCAB)))
    if max_dead == 0:
        assert context.stats.gathers > 0


def test_each_slot_is_computed_once(pair):
    """While nothing is evicted, the tokens computed are the distinct paths asked for; known rows are free"""
    rng = np.random.default_rng(1)
    opened, asked = pair.model.open(pair.observation), SlotTable()
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=64)
    prefix = ()
    for _ in range(6):
        tokens, parents = random_tree(rng, 6)
        asked.place(prefix, tokens, parents)
        first = context.score(prefix, tokens, parents)
        passes = context.stats.passes
        assert context.stats.tokens == len(asked) - 1
        assert np.array_equal(context.score(prefix, tokens, parents), first)
        assert context.stats.passes == passes
        prefix = ends_of(prefix, tokens, parents)[int(rng.integers(0, 7))]
    assert context.stats.gathers == 0


def test_accepted_branch_costs_only_what_is_new(llava_pair):
    context = llava_pair.model.open(llava_pair.observation)
    context.score((), (7, 8, 9), (0, 1, 2))
    context.score((7, 8, 9))
    assert (context.stats.passes, context.stats.tokens) == (1, 3)
    context.score((7, 8), (20,), (0,))
    assert (context.stats.passes, context.stats.tokens) == (2, 4)


def test_eviction_keeps_the_living_and_computes_none_of_it_again(llava_pair):
    opened = llava_pair.model.open(llava_pair.observation)
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=3)
    context.score((), (7, 8, 9, 10, 11, 12, 13), (0, 1, 0, 0, 0, 0, 2))
    logits = context.score((7,), (8, 13), (0, 1))
    assert context.stats.gathers == 1
    assert (context.stats.passes, context.stats.tokens) == (1, 7)
    assert_plain(llava_pair, logits, (7,), (8, 13), (0, 1))


def test_greedy_decoding_equals_transformers_generate(pair):
    new = 12
    with torch.inference_mode():
        wanted = pair.network.generate(
            **pair.extended(()),
            max_new_tokens=new,
            do_sample=False,
            suppress_tokens=list(range(pair.model.card.vocab_size, 64)),
            eos_token_id=-1,
        )[0, pair.prompt_tokens :]
    context, answer = pair.model.open(pair.observation), ()
    for _ in range(new):
        answer = (*answer, int(context.score(answer)[0].argmax()))
    assert answer == tuple(wanted.tolist())
    assert context.stats.tokens == new - 1


def test_contexts_of_one_model_do_not_disturb_each_other(llava_pair):
    one, two = (llava_pair.model.open(llava_pair.observation) for _ in range(2))
    one.score((7,))
    two.score((8, 9))
    assert_plain(llava_pair, one.score((7, 10)), (7, 10))
    assert_plain(llava_pair, two.score((8, 9, 10)), (8, 9, 10))


def test_closed_context_says_so(llava_pair):
    context = llava_pair.model.open(llava_pair.observation)
    context.score((7,))
    context.close()
    context.close()
    with pytest.raises(ModelError, match="closed"):
        context.score((7,))


@pytest.mark.parametrize("token", [-1, 60, 10**9])
def test_token_outside_the_vocabulary_is_refused_and_harms_nothing(llava_pair, token):
    context = llava_pair.model.open(llava_pair.observation)
    with pytest.raises(ModelError, match="outside the vocabulary"):
        context.score((7,), (token,), (0,))
    assert_plain(llava_pair, context.score((7,)), (7,))


@pytest.mark.parametrize("prefilled", [False, True])
def test_pass_abandoned_in_an_exit_is_undone(exits_pair, prefilled):
    context = exits_pair.model.open(exits_pair.observation)
    if prefilled:
        context.score((5,), (6,), (0,))

    def cancel(layer, logits):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        context.score((7,), (8,), (0,), on_exit=cancel)
    assert_plain(exits_pair, context.score((7,), (9, 8), (0, 0)), (7,), (9, 8), (0, 0))
