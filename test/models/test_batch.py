"""Many contexts in one pass: each one's logits are those that it has alone, whoever else takes part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from test.models import checkpoints
from test.models.test_context import assert_plain, ends_of, random_tree
from vlm_spec_decode.core.errors import Cancelled, ModelError, OutOfMemory
from vlm_spec_decode.core.ports import ScoreRequest
from vlm_spec_decode.models.encoder import FeatureCache


def test_every_context_says_in_a_batch_what_it_says_alone(pair):
    """Contexts join and leave; prompts, plain steps and trees of all sizes share a pass."""
    rng = np.random.default_rng(3)
    contexts = [pair.model.open(pair.observation) for _ in range(4)]
    prefixes = [()] * 4
    for turn in range(4):
        present = [i for i in range(4) if i <= turn and rng.random() < 0.9] or [0]
        trees = [random_tree(rng, int(rng.integers(0, 7))) for _ in present]
        queries = [
            ScoreRequest(contexts[i], prefixes[i], *tree) for i, tree in zip(present, trees, strict=True)
        ]
        passes = [contexts[i].stats.passes for i in present]
        for i, tree, found in zip(present, trees, pair.model.score_batch(queries), strict=True):
            assert_plain(pair, found.logits, prefixes[i], *tree)
            ends = ends_of(prefixes[i], *tree)
            prefixes[i] = ends[int(rng.integers(0, len(ends)))]
        assert all(contexts[i].stats.passes <= n + 1 for i, n in zip(present, passes, strict=True))


def test_one_that_fails_leaves_the_others_alone(exits_pair):
    contexts = [exits_pair.model.open(exits_pair.observation) for _ in range(4)]
    contexts[1].score((7,))
    contexts[3].close()
    heard = []

    def cancel(layer, logits):
        raise Cancelled("enough")

    def listen(layer, choices):
        heard.append((layer, choices.logits.shape))

    queries = [
        ScoreRequest(contexts[0], (7,), (8, 9), (0, 1), on_exit=listen),
        ScoreRequest(contexts[1], (7,), (8,), (0,), on_exit=cancel),
        ScoreRequest(contexts[2], (7,), (99_999,), (0,)),
        ScoreRequest(contexts[3], (7,)),
    ]
    fine, cancelled, unknown, closed = exits_pair.model.score_batch(queries)
    assert_plain(exits_pair, fine.logits, (7,), (8, 9), (0, 1))
    assert heard == [(layer, (3, 60)) for layer in (1, 2, 3)]
    assert isinstance(cancelled, Cancelled)
    assert isinstance(unknown, ModelError)
    assert isinstance(closed, ModelError)
    assert_plain(exits_pair, contexts[1].score((7,), (9,), (0,)), (7,), (9,), (0,))


def test_a_batch_without_memory_has_computed_nothing(llava_pair, monkeypatch):
    contexts = [llava_pair.model.open(llava_pair.observation) for _ in range(3)]
    contexts[0].score((5,))
    layer = llava_pair.model.decoder.stack.layers[1]

    def full(*_args, **_options):
        raise torch.OutOfMemoryError("no room")

    queries = [ScoreRequest(context, (5,), (6,), (0,)) for context in contexts]
    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", full)
        with pytest.raises(OutOfMemory):
            llava_pair.model.score_batch(queries)
    for found in llava_pair.model.score_batch(queries):
        assert_plain(llava_pair, found.logits, (5,), (6,), (0,))


def test_what_was_forgotten_is_computed_again(llava_pair):
    context = llava_pair.model.open(checkpoints.observation())
    before = context.score((7, 8), (9,), (0,))
    held = context.kv_bytes
    assert held > 0
    context.forget()
    assert context.kv_bytes == 0
    np.testing.assert_allclose(context.score((7, 8), (9,), (0,)), before, atol=1e-4)
    assert context.kv_bytes == held


def test_the_same_frame_passes_the_vision_tower_once(llava_pair):
    seen = llava_pair.model.encoder.features
    first = llava_pair.model.open(checkpoints.observation()).score((7,))
    misses, hits = seen.misses, seen.hits
    again = llava_pair.model.open(checkpoints.observation()).score((7,))
    assert (seen.misses, seen.hits) == (misses, hits + 1)
    assert np.array_equal(first, again)


def test_features_beyond_the_limit_make_way():
    cache = FeatureCache(limit_bytes=3 * 40)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        cache.get(name, lambda: torch.zeros(10))
    assert cache.misses == 4
    for name in (b"a", b"b"):
        cache.get(name, lambda: torch.zeros(10))
    assert cache.misses == 5
