"""Rows of logits and the greatest of every 128: one pass over the vocabulary says where to look.

The pass is a reduction over finished logits, not a part of the head's product: cut into blocks of the
vocabulary that stay in the cache, the product itself takes longer (28 to 32 ms for 24 rows of 256 by
151,936) than the reduction, which takes what reading the logits does (0.7 ms of it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import Ids, Logits

BLOCK = 128
"""Entries of a row that are first looked at by their maximum alone."""

LOWEST = float(np.finfo(np.float32).min)
"""Below every finite logit: entries at -inf have no chance and are never found."""

Values = npt.NDArray[np.float32]


def whole_blocks(scores: Tensor) -> Tensor:
    """Return rows [n, vocab] by blocks, without a copy [n, vocab // BLOCK, BLOCK]; what is left is not in."""
    whole = scores.shape[1] // BLOCK
    return scores[:, : whole * BLOCK].unflatten(1, (whole, BLOCK))


@dataclass(frozen=True)
class BlockedRows:
    """Rows [n, vocab] in host memory and the greatest value of each block [n, blocks]; the last may be short.

    NaN in a block makes its maximum NaN.
    """

    values: Logits
    maxima: Values

    @staticmethod
    def of(scores: Tensor) -> BlockedRows:
        """Read rows [n, vocab]; those of another device are copied."""
        scores = scores.float().cpu()
        blocks = whole_blocks(scores)
        maxima = blocks.amax(2)
        rest = scores[:, blocks.shape[1] * BLOCK :]
        if rest.shape[1]:
            maxima = torch.cat([maxima, rest.amax(1, keepdim=True)], dim=1)
        return BlockedRows(scores.numpy(), maxima.numpy())

    def nth(self, count: int) -> Values:
        """Return of each row a bound [n] that at least `count` entries reach: close below the count-th best.

        The count-th greatest of the blocks' maxima is one, for each of those blocks has an entry that
        reaches it. Where there are fewer entries, all reach it.
        """
        scores = self.maxima if self.maxima.shape[1] >= count else self.values
        place = max(0, scores.shape[1] - count)
        return np.partition(scores, place, axis=1)[:, place]

    def at_least(self, bounds: Values) -> tuple[Ids, Ids, Values]:
        """Return (rows, ids, values) [m] of all entries that reach their row's bound [n], by row and id.

        Only blocks whose maximum reaches it are read. Entries at -inf are left out.
        """
        bounds = np.maximum(bounds, np.float32(LOWEST))
        rows, blocks = np.nonzero(self.maxima >= bounds[:, None])
        values = self.block_values(rows, blocks)
        found, places = np.nonzero(values >= bounds[rows, None])
        return rows[found], blocks[found] * BLOCK + places, values[found, places]

    def greatest(self, row: int, count: int) -> tuple[Ids, Values]:
        """Return ids and values [m] of one row's `count` greatest entries, and perhaps of others; by id."""
        one = BlockedRows(self.values[row : row + 1], self.maxima[row : row + 1])
        return one.at_least(one.nth(count))[1:]

    def block_values(self, rows: Ids, blocks: Ids) -> Values:
        """Return the entries of blocks of rows [m, BLOCK], -inf beyond a row's end."""
        size = self.values.shape[1]
        whole = size // BLOCK
        if whole == self.maxima.shape[1]:
            return self._whole(whole)[rows, blocks]
        found = np.full((len(rows), BLOCK), -np.inf, dtype=np.float32)
        is_whole = blocks < whole
        found[is_whole] = self._whole(whole)[rows[is_whole], blocks[is_whole]]
        found[~is_whole, : size - whole * BLOCK] = self.values[rows[~is_whole], whole * BLOCK :]
        return found

    def _whole(self, whole: int) -> Values:
        return self.values[:, : whole * BLOCK].reshape(len(self.values), whole, BLOCK)
