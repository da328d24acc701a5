"""The order of the noise holds the ids with the greatest noise, bit by bit that of the formulas."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_spec_decode.decoding.noise_order import LEAST, PART, noise_order
from vlm_spec_decode.decoding.sampling import gumbel_noise


@pytest.mark.parametrize("size", [1, 5, 379, LEAST, LEAST + 1, 32_768, 50_257, 151_936])
@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**64 - 1, 95), (-3, 100_000)])
def test_all_others_have_less_noise(size: int, seed: int, position: int) -> None:
    order, noise = noise_order(seed, position, size), gumbel_noise(seed, position, size)
    assert np.array_equal(order.noise, noise[order.ids])
    assert np.all(np.diff(order.noise) <= 0)
    assert len(np.unique(order.ids)) == len(order.ids)
    for end in {1, len(order.ids) // 2, len(order.ids)} - {0}:
        others = np.delete(noise, order.ids[:end])
        assert others.size == 0 or others.max() <= order.beyond(end)


def test_it_holds_a_part_of_a_vocabulary_that_is_large() -> None:
    sizes = [len(noise_order(7, position, 151_936).ids) for position in range(20)]
    assert np.mean(sizes) == pytest.approx(151_936 / PART, rel=0.05)
    assert len(noise_order(7, 0, LEAST).ids) == LEAST
