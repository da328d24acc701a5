"""Recorded passes in padded shapes say what plain ones say. What records is CUDA's; here it repeats a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from test.models.test_context import assert_plain, ends_of, random_tree
from test.models.test_waits import context_of, decoder_on, tree_of
from vlm_spec_decode.core.errors import Cancelled
from vlm_spec_decode.models import pass_graphs
from vlm_spec_decode.models.context import VlmContext, run_pass
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.pass_graphs import PassGraphs, Run, padded_columns, padded_rows


class Recorder:
    """Repeats a run, and insists as a recording does that its tensors stay where they are."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, run: Run) -> Run:
        self.recorded += 1
        run()
        # What a recording leaves lies in one place for ever: later runs are copied there.
        _, recording, _, last = run.args  # type: ignore[attr-defined]
        place = recording.states[last]

        def replay() -> None:
            self.replayed += 1
            run()
            place.copy_(recording.states[last])
            recording.states[last] = place

        return replay


def recording(decoder: Decoder) -> tuple[Decoder, Recorder]:
    recorder, found = Recorder(), replace(decoder, is_pooled=True)
    object.__setattr__(found, "graphs", PassGraphs(recorder))
    return found, recorder


def test_shapes_are_few_and_never_too_small() -> None:
    assert [padded_rows(n) for n in (1, 2, 3, 8, 9, 33, 64)] == [1, 2, 4, 8, 16, 64, 64]
    assert [padded_columns(n) for n in (1, 512, 513, 768, 769, 1024, 1025, 1536, 1537)] == [
        512, 512, 768, 768, 1024, 1024, 1536, 1536, 2048,
    ]  # fmt: skip
    for n in range(1, 9000, 7):
        assert n <= padded_columns(n) <= max(512, 1.5 * n + 1)


def test_a_recorded_answer_is_the_same(pair: Any) -> None:
    """A random life: trees, rollback, eviction; every shape is recorded at its third use."""
    rng = np.random.default_rng(8)
    decoder, recorder = recording(pair.model.decoder)
    context = VlmContext(decoder, pair.model.open(pair.observation)._embed_prompt, max_dead=5)
    prefix: tuple[int, ...] = ()
    for _ in range(16):
        tokens, parents = random_tree(rng, int(rng.integers(0, 6)))
        assert_plain(pair, context.score(prefix, tokens, parents), prefix, tokens, parents)
        ends = ends_of(prefix, tokens, parents)
        prefix = ends[int(rng.integers(0, len(ends)))][:6]
    assert decoder.graphs is not None
    is_plain = decoder.graphs.fits(decoder.family, [context.batch_entry((7, 8, 9, 11, 13)).varlen])
    assert (recorder.replayed > 0) == is_plain


def test_exits_come_while_the_pass_is_under_way(exits_pair: Any) -> None:
    """A listener is called before the later layers run, and what it gets lasts."""
    decoder, recorder = recording(exits_pair.model.decoder)
    context = VlmContext(decoder, exits_pair.model.open(exits_pair.observation)._embed_prompt)
    plain = exits_pair.model.open(exits_pair.observation)
    heard: dict[int, Any] = {}
    counts = list[int]()

    def listen(layer: int, choices: Any) -> None:
        counts.append(recorder.replayed)
        heard[layer] = choices.logits

    for turn in range(5):
        prefix, tree = (7,) * (turn + 1), ((10 + turn, 20), (0, 1))
        wanted: dict[int, Any] = {}
        context.choose(prefix, tree, listen)
        plain.choose(prefix, tree, lambda layer, choices, to=wanted: to.update({layer: choices.logits}))
        for layer, logits in wanted.items():
            np.testing.assert_allclose(heard[layer], logits, atol=1e-4)
    assert recorder.replayed > 0
    assert np.diff(counts[-3:]).tolist() == [1, 1]

    def cancel(_layer: int, _choices: Any) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        context.choose((7,) * 5, ((30, 31), (0, 0)), cancel)
    assert_plain(exits_pair, context.score((7,) * 5, (30, 9), (0, 0)), (7,) * 5, (30, 9), (0, 0))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_pass_that_cannot_be_recorded_runs_all_the_same(llava_pair: Any, error: type[Exception]) -> None:
    def full(_run: Run) -> Run:
        raise error("no room for a recording")

    decoder, _ = recording(llava_pair.model.decoder)
    object.__setattr__(decoder, "graphs", PassGraphs(full))
    context = VlmContext(decoder, llava_pair.model.open(llava_pair.observation)._embed_prompt)
    context.prefill()
    for turn in range(2):
        context.score((7,) * (turn + 1))
    with pytest.warns(RuntimeWarning, match="not recorded"):
        found = context.score((7,) * 3)
    assert_plain(llava_pair, found, (7,) * 3)
    assert_plain(llava_pair, context.score((7,) * 4), (7,) * 4)


def test_recordings_are_of_what_lies_where_it_lay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool moves when it grows: older recordings go, and so do those beyond the limit."""
    decoder, recorder = recording(decoder_on("cpu"))
    monkeypatch.setattr(pass_graphs, "MOST_RECORDINGS", 2)
    context, plain = context_of(decoder), context_of(decoder_on("cpu"))

    def check(prefix: tuple[int, ...], nodes: int) -> None:
        found, wanted = (c.score(prefix, *tree_of(nodes)) for c in (context, plain))
        np.testing.assert_allclose(found, wanted, atol=1e-4)

    prefix: tuple[int, ...] = ()
    graphs: Any = decoder.graphs
    for turn in range(24):
        prefix += (100 + turn,)
        check(prefix, (0, 3, 9)[turn % 3])
        assert len(graphs._recordings) <= 2
    assert recorder.replayed > 0
    before = set(graphs._recordings)
    others = [context_of(decoder, 1500) for _ in range(3)]
    for other in others:
        other.prefill()
    for turn in range(24, 30):
        prefix += (100 + turn,)
        check(prefix, 3)
    assert graphs._recordings
    assert not before & set(graphs._recordings)


def test_sessions_together_and_prompts_are_not_recorded() -> None:
    decoder, recorder = recording(decoder_on("cpu"))
    contexts = [context_of(decoder, 20 + i) for i in range(2)]
    for turn in range(6):
        run_pass(decoder, [context.batch_entry((7,) * turn) for context in contexts])
    assert recorder.recorded == 0


def test_a_recorded_pass_waits_for_nothing() -> None:
    """The meta device has no numbers to wait for."""
    decoder, recorder = recording(decoder_on("meta", exits=(1,)))
    context, said = context_of(decoder), list[Callable[[], int]]()
    for turn in range(6):
        context.choose((7,) * (turn + 1), tree_of(3), lambda _layer, choices: said.append(choices.__len__))
    assert recorder.replayed > 0
    assert len(said) == 6
