"""Storage taken ahead holds what concatenation would, and stays where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_spec_decode.models.families.base import AnswerCache, KvLayer
from vlm_spec_decode.models.kv_pool import ALIGNMENT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_a_random_life_equals_concatenation(seed: int, dtype: torch.dtype) -> None:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    layer, keys, values = KvLayer(), *(torch.empty(1, 2, 0, 4, dtype=dtype) for _ in range(2))
    for _ in range(60):
        match int(rng.integers(0, 5)):
            case 0:
                kept = torch.from_numpy(np.flatnonzero(rng.random(layer.columns) < 0.8))
                layer.gather(kept)
                keys, values = keys[:, :, kept], values[:, :, kept]
            case 1:
                end = int(rng.integers(0, layer.columns + 9))
                layer.cut(end)
                keys, values = keys[:, :, :end], values[:, :, :end]
            case _:
                new = torch.randn(2, 1, 2, int(rng.integers(1, 40)), 4, generator=generator).to(dtype)
                seen = layer.update(*new)
                keys, values = torch.cat((keys, new[0]), dim=2), torch.cat((values, new[1]), dim=2)
                assert torch.equal(seen[0], keys)
                assert torch.equal(seen[1], values)
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert layer.capacity % ALIGNMENT == 0


def test_tokens_are_added_without_moving_anything() -> None:
    layer = KvLayer()
    layer.update(*torch.randn(2, 1, 2, 100, 4))
    place, held = layer.keys.data_ptr(), layer.nbytes
    for _ in range(60):
        layer.update(*torch.randn(2, 1, 2, 1, 4))
    assert (layer.keys.data_ptr(), layer.nbytes) == (place, held)
    moves = set()
    for _ in range(5000):
        layer.update(*torch.randn(2, 1, 2, 1, 4))
        moves.add(layer.keys.data_ptr())
    # Half as large again each time: 192 to 5,160 columns are nine steps.
    assert len(moves) <= 10
    assert layer.capacity <= 5160 * 3 / 2 + ALIGNMENT


def test_without_memory_for_more_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache()
    first = torch.randn(2, 1, 2, 64, 4)
    for number in range(3):
        cache.update(*first, number)
    allocate, calls = torch.Tensor.new_empty, []

    def full(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:  # room for the keys, none for the values
            raise torch.OutOfMemoryError("no room")
        return allocate(*args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            cache.update(*torch.randn(2, 1, 2, 300, 4), 1)
    cache.cut(64)
    assert all(torch.equal(layer.keys, first[0]) for layer in cache.layers)
    assert torch.equal(cache.update(*first, 1)[1], torch.cat((first[1], first[1]), dim=2))
