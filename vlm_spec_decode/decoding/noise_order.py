"""The ids with the greatest noise of a position, greatest first: where a search for the best scores begins.

The noise of a position is the same for every row there, siblings of a tree, draft and target alike. So the
pass over the vocabulary that makes it is paid once a position, and a row looks at a few ids of the order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlm_spec_decode.core.choices import Ids
from vlm_spec_decode.decoding.sampling import Floats, gumbel_noise_at, noise_counter, noise_pieces

PIECE = 32768
"""Ids whose noise is made at a time: three such buffers lie in a processor's second-level cache."""

PART, LEAST = 64, 2048
"""A vocabulary's 64th is kept, or all of a small one. See `models.row_search` for how many are needed."""

CLOSE = 1e-9
"""How far the noise's two logarithms may be off."""


@dataclass(frozen=True)
class NoiseOrder:
    """Ids [n] and their exact noise [n], descending. Every other id's noise is at most `floor`."""

    ids: Ids
    noise: Floats
    floor: float

    def beyond(self, end: int) -> float:
        """Return what the noise of every id that is not among the first `end` is at most."""
        return float(self.noise[end - 1]) if end < len(self.ids) else self.floor


@lru_cache(maxsize=128)
def noise_order(seed: int, position: int, size: int) -> NoiseOrder:
    """Return the order of the ids 0 to size - 1 at one position of one answer."""
    kept = max(LEAST, size // PART)
    # u, the noise's uniform number, is at least `least` / 2**64 exactly if the bits that it is made of are at
    # least `least`; whose lower 33 bits are 0, so that their highest 31, which come first, decide.
    least = 0 if kept >= size else int((1 - kept / size) * 2**31) << 33
    found = [
        np.flatnonzero(x >= np.uint64(least)) + start
        for start, x, _ in noise_pieces(noise_counter(seed, position), None, size, PIECE)
    ]
    ids = np.concatenate(found)
    noise = gumbel_noise_at(seed, position, ids)
    order = np.argsort(-noise)
    floor = -math.log(-math.log(least / 2**64)) + CLOSE if least else -math.inf
    return NoiseOrder(ids[order], noise[order], floor)
