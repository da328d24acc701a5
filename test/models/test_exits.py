"""Early exits: on time, in order, right, and without influence on the final logits."""

import numpy as np
import torch

from test.models.test_context import assert_plain, ends_of


def reference(pair, layer, path):
    """Exit logits [vocab] by Transformers' hidden states, the shipped adapter, final norm and head."""
    with torch.inference_mode():
        states = pair.network(**pair.extended(path), output_hidden_states=True).hidden_states[layer][0, -1]
        adapter = pair.model.decoder.exits[layer]
        states = states if adapter is None else states + states @ adapter.weight.T + adapter.bias
        stack = pair.network.model.language_model
        return pair.network.lm_head(stack.norm(states))[:60].numpy()


def test_exits_are_announced_in_order_with_the_rows_asked_for(exits_pair):
    context, seen = exits_pair.model.open(exits_pair.observation), []
    context.score((7,), (8, 9), (0, 0))
    tokens, parents = (8, 9, 10, 11), (0, 0, 1, 3)
    logits = context.score((7,), tokens, parents, on_exit=lambda layer, rows: seen.append((layer, rows)))
    assert [layer for layer, _ in seen] == list(exits_pair.model.card.exit_layers) == [1, 2, 3]
    for layer, rows in seen:
        for row, path in zip(rows, ends_of((7,), tokens, parents), strict=True):
            np.testing.assert_allclose(row, reference(exits_pair, layer, path), atol=1e-4)
    assert_plain(exits_pair, logits, (7,), tokens, parents)


def test_exits_come_while_the_pass_is_still_climbing(exits_pair):
    """At exit n the cache holds n layers' keys, not all four's."""
    context, heights = exits_pair.model.open(exits_pair.observation), []
    context.score((7,), on_exit=lambda layer, rows: heights.append((layer, len(context._cache.layers))))
    assert heights == [(1, 1), (2, 2), (3, 3)]


def test_listening_changes_nothing(exits_pair):
    deaf, listening = (exits_pair.model.open(exits_pair.observation) for _ in range(2))
    request = ((7,), (8, 9), (0, 1))
    assert np.array_equal(deaf.score(*request), listening.score(*request, on_exit=lambda layer, rows: None))


def test_known_rows_need_no_pass_and_announce_nothing(exits_pair):
    context, seen = exits_pair.model.open(exits_pair.observation), []
    context.score((7,), (8,), (0,))
    context.score((7, 8), on_exit=lambda layer, rows: seen.append(layer))
    assert seen == []
