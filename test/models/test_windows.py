"""Sliding windows under a tree mask: what each row sees, and that every part of it counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test.models import checkpoints
from test.models.conftest import Pair, load_pair
from test.models.test_context import assert_plain, ends_of, random_tree
from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.models import context as context_module
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.families.base import FULL, SLIDING
from vlm_spec_decode.models.kv_slots import NO_ROWS, AttentionSpan, SlotTable, Visibility, sees_by_type
from vlm_spec_decode.models.loader import load_model

PROMPT = 7
IMAGE_ROWS = np.array([1, 2, 4, 5])
"""Two pictures of two rows each, in a prompt of 7."""


def random_table(rng: np.random.Generator) -> SlotTable:
    """A table after a random life: nodes anywhere, a part of them gathered away."""
    slots = SlotTable()
    for _ in range(int(rng.integers(1, 20))):
        slots.add(int(rng.integers(0, len(slots))), int(rng.integers(0, 9)))
    slots.gather(slots.alive(int(rng.integers(0, len(slots)))))
    for _ in range(int(rng.integers(1, 6))):
        slots.add(int(rng.integers(0, len(slots))), int(rng.integers(10, 99)))
    return slots


def by_definition(slots: SlotTable, window: int | None, blocks: bool) -> Visibility:
    """What all rows see, one path at a time, as a sequence model sees the tokens of one sequence."""
    columns = PROMPT - 1 + len(slots)
    sees = np.zeros((columns, columns), dtype=np.bool_)
    paths = [list(range(i + 1)) for i in range(PROMPT - 1)]  # of the prompt's rows before the last one
    for slot in range(len(slots)):
        above = paths[PROMPT - 1 + slots.parents[slot]] if slot else list(range(PROMPT - 1))
        paths.append([*above, PROMPT - 1 + slot])
    picture = {row: number // 2 for number, row in enumerate(IMAGE_ROWS)} if blocks else {}
    for row, path in enumerate(paths):
        for place, column in enumerate(path):
            sees[row, column] = window is None or len(path) - 1 - place < window
        for column, number in picture.items():
            if picture.get(row) == number and column > row:
                sees[row, column] = True
    return sees


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 40])
@pytest.mark.parametrize("blocks", [False, True])
def test_rows_see_what_they_see_in_the_sequence_of_their_path(
    seed: int, window: int | None, blocks: bool
) -> None:
    rng = np.random.default_rng(seed)
    slots = random_table(rng)
    spans = {FULL: AttentionSpan(), SLIDING: AttentionSpan(window, image_blocks=blocks)}
    for first in {0, 1, len(slots) - 1, int(rng.integers(1, len(slots)))}:
        found = sees_by_type(slots, first, PROMPT, IMAGE_ROWS, spans)
        for name, limits in ((FULL, (None, False)), (SLIDING, (window, blocks and not first))):
            wanted = by_definition(slots, *limits)[0 if not first else PROMPT - 1 + first :]
            seen = found[name]
            assert np.array_equal(np.ones_like(wanted) if seen is None else seen, wanted)


def test_nothing_is_made_where_no_window_bites() -> None:
    slots, spans = SlotTable(), {FULL: AttentionSpan(), SLIDING: AttentionSpan(PROMPT + 3)}
    for token in range(2):
        slots.add(len(slots) - 1, token)
    assert sees_by_type(slots, 2, PROMPT, NO_ROWS, spans) == {FULL: None, SLIDING: None}
    slots.add(0, 9)
    found = sees_by_type(slots, 1, PROMPT, NO_ROWS, spans)
    assert found[FULL] is found[SLIDING] is not None
    chain = SlotTable()
    for token in range(4):
        chain.add(len(chain) - 1, token)
    found = sees_by_type(chain, 4, PROMPT, NO_ROWS, spans)
    assert found[FULL] is None
    assert found[SLIDING] is not None
    assert found[SLIDING].tolist() == [[False] + [True] * (PROMPT + 3)]


def windowed(folder: Path, family: str, window: int, types: list[str]) -> Pair:
    """A family's checkpoint with a window in its config; weights know nothing of it."""
    getattr(checkpoints, family)(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    text["layer_types"] = types
    if family == "mistral" and FULL not in types:  # with types of layers, Transformers takes it for Ministral
        del text["layer_types"]
    path.write_text(json.dumps(config))
    return load_pair(family, folder)


def walk(pair: Pair, max_dead: int, seed: int, turns: int = 5) -> VlmContext:
    """Hold trees at a growing prefix, with rollbacks, to the reference."""
    rng = np.random.default_rng(seed)
    opened = pair.model.open(pair.observation)
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=max_dead)
    prefix: Tokens = ()
    for _ in range(turns):
        nodes = random_tree(rng, int(rng.integers(1, 9)))
        assert_plain(pair, context.score(prefix, *nodes), prefix, *nodes)
        ends = ends_of(prefix, *nodes)
        prefix = ends[int(rng.integers(len(ends) // 2, len(ends)))]
        if rng.random() < 0.3:
            prefix = prefix[:-2]
    return context


ALTERNATING = [SLIDING, FULL] * 2


@pytest.mark.parametrize("window", [1, 2, 5, 16, 20])
@pytest.mark.parametrize("max_dead", [0, 64])
def test_trees_cross_the_windows_edge(tmp_path: Path, window: int, max_dead: int) -> None:
    """Windows that end within a tree, at the prompt's end (14 tokens) and within it; with evictions."""
    pair = windowed(tmp_path / "m", "qwen3", window, ALTERNATING)
    assert pair.prompt_tokens == 14
    context = walk(pair, max_dead, seed=window)
    assert (context.stats.gathers > 0) == (max_dead == 0)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl", "qwen2_5_vl", "mistral"])
@pytest.mark.parametrize("types", [ALTERNATING, [SLIDING] * 4])
def test_every_family_whose_config_has_windows(tmp_path: Path, family: str, types: list[str]) -> None:
    """With M-RoPE a window counts tokens, not positions: a picture's rows share few of those."""
    walk(windowed(tmp_path / "m", family, 9, types), max_dead=3, seed=5)


def difference(pair: Pair, change: Callable[[Any], Any]) -> float:
    """How far a tree's logits are from the reference with a decoder that is changed."""
    model = pair.model
    opened = model.open(pair.observation)
    context = VlmContext(change(model.decoder), opened._embed_prompt)
    prefix, nodes = (7, 8, 9, 10, 11), ((12, 13, 14, 15, 16), (0, 1, 0, 3, 4))
    found = context.score(prefix, *nodes)
    wanted = [pair.plain(path) for path in ends_of(prefix, *nodes)]
    return float(np.abs(found - np.stack(wanted)).max())


def with_spans(change: Callable[[AttentionSpan], AttentionSpan]) -> Callable[[Any], Any]:
    def changed(decoder: Any) -> Any:
        other = replace(decoder)
        spans = {name: change(span) for name, span in decoder.attention.items()}
        object.__setattr__(other, "attention", spans)
        return other

    return changed


@pytest.fixture(scope="module", params=["gemma3", "gemma4"])
def gemma(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param) / "m"
    return load_pair(request.param, getattr(checkpoints, request.param)(folder))


def test_windows_and_blocks_count(gemma: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that differs when one of them is left out makes the other tests say something."""
    assert difference(gemma, lambda decoder: decoder) < 1e-4
    assert difference(gemma, with_spans(lambda span: replace(span, window=None))) > 0.1
    assert difference(gemma, with_spans(lambda span: replace(span, image_blocks=False))) > 0.1

    def by_slot(slots: SlotTable, *others: Any) -> Any:
        slots.positions, kept = list(range(len(slots))), slots.positions
        try:
            return sees_by_type(slots, *others)
        finally:
            slots.positions = kept

    monkeypatch.setattr(context_module, "sees_by_type", by_slot)
    assert difference(gemma, lambda decoder: decoder) > 0.1


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        (
            "llama",
            {"layer_types": [SLIDING] * 4, "sliding_window": 4},
            "'llama': sliding-window attention is not",
        ),
        ("qwen3", {"layer_types": [SLIDING] * 4}, "'qwen3': sliding-window attention needs a width"),
        ("qwen2", {"layer_types": [FULL, "chunked_attention"] * 2}, "'qwen2': layers of .*chunked_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "'gemma3_text': all of its tokens see each"),
        ("gemma4_text", {"use_bidirectional_attention": "all"}, "'gemma4_text': all of its tokens see each"),
        ("gemma3", {"boi_token_index": 77}, "'gemma3': its tokenizer has no token 77, the boi_token_id"),
        ("gemma4", {"image_token_id": 60}, "'gemma4': its tokenizer has no token 60, the image's place"),
        ("gemma4", {"vision_config": None}, "'gemma4': it has no vision tower"),
        ("llama", {"model_type": "gemma4_unified"}, "'gemma4_unified' is not supported: .*torchvision"),
        ("llama", {"model_type": "gemma3n_text"}, "'gemma3n_text' is not supported: its layers hand on"),
        ("llama", {"model_type": "gemma2"}, "'gemma2' is not supported: the softcap within its attention"),
    ],
)
def test_what_is_not_covered_is_refused_with_the_reason(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    folder = getattr(checkpoints, family)(tmp_path / "m")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=f"^cannot load m: architecture {reason}") as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
