"""Early exits: on time, in order, right, and without influence on the final logits."""

import json

import numpy as np
import pytest
import torch

from test.models import checkpoints
from test.models.test_context import assert_plain, ends_of
from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.checkpoint import CALIBRATION_FILE
from vlm_spec_decode.models.loader import load_model


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


def test_states_of_an_answer_are_those_of_the_model(exits_pair):
    context, answer = exits_pair.model.open(exits_pair.observation), (7, 8, 9)
    context.score((), answer, (0, 1, 2))
    with torch.inference_mode():
        wanted = exits_pair.network(**exits_pair.extended(answer), output_hidden_states=True).hidden_states
    for layer in (1, 2, 3, 4):
        assert torch.allclose(context.states(layer), wanted[layer][0, -4:], atol=1e-4)


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


def calibrated(folder, document):
    """A checkpoint with an exit after layer 2 and this calibration."""
    checkpoints.llama(folder, exit_layers=[2])
    (folder / CALIBRATION_FILE).write_text(document)
    return folder


def test_contexts_know_how_far_their_exits_can_be_believed(tmp_path, exits_pair):
    rows = [{"to": 0.5, "agrees": 0.1}, {"to": 0.8, "agrees": None}, {"to": 1.0, "agrees": 0.9}]
    document = json.dumps({"layers": {"2": {"by_confidence": rows}}})
    context = load_model(calibrated(tmp_path / "m", document)).open(Observation(None, "go"))
    assert [context.exit_chance(2, confidence) for confidence in (0.4, 0.6, 1.0)] == [0.1, 0.9, 0.9]
    assert context.exit_chance(3, 0.6) == 0.6
    assert exits_pair.model.open(exits_pair.observation).exit_chance(2, 0.6) == 0.6


@pytest.mark.parametrize("document", ["{", "[]", '{"layers": {"2": {}}}', '{"layers": {"2": null}}'])
def test_a_calibration_that_is_none_is_refused_by_name(tmp_path, document):
    with pytest.raises(ModelError, match=CALIBRATION_FILE):
        load_model(calibrated(tmp_path / "m", document))
