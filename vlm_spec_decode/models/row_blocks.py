"""Rows of logits in host memory, and the greatest of every 128: one pass over them says where to look.

The pass is a reduction over finished logits, not a part of the head's product: cut into blocks of the
vocabulary that stay in the cache, the product itself takes longer (28 to 32 ms for 24 rows of 256 by
151,936) than the reduction, which takes what reading the logits does (0.7 ms of it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import Ids, LegalTokens, Logits
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.sampling import TINY_TEMPERATURE, Floats, require_finite

BLOCK = 128
"""Entries of a row that are first looked at by their maximum alone."""

FEW_IDS = 4096
"""So many ids that a mask or cut leaves are taken by themselves; of more, the others are put at -inf."""

LOWEST = float(np.finfo(np.float32).min)
"""Below every finite logit: entries at -inf have no chance and are never found."""

Values = npt.NDArray[np.float32]


def whole_blocks(scores: Tensor) -> Tensor:
    """Return rows [n, vocab] by blocks, without a copy [n, vocab // BLOCK, BLOCK]; what is left is not in."""
    whole = scores.shape[1] // BLOCK
    return scores[:, : whole * BLOCK].reshape(len(scores), whole, BLOCK)


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


def exact_scores(logits: Values, best: float | Values, params: SamplingParams) -> Floats:
    """Return z / T in float64, as `decoding.sampling.log_probs` has it before the cuts."""
    scores = logits.astype(np.float64)
    if params.temperature < TINY_TEMPERATURE:
        with np.errstate(over="ignore"):  # to -inf, which is what such a difference comes to
            return np.asarray((scores - best) / params.temperature)
    scores /= params.temperature
    return scores


@dataclass(frozen=True)
class Row:
    """One row's ids that may still be chosen, ascending, and their logits; `ids` None: all of them.

    A row of all ids is row `number` of `blocks`.
    """

    logits: Values
    ids: Ids | None
    blocks: BlockedRows | None = None
    number: int = 0

    @staticmethod
    def of(blocks: BlockedRows, number: int = 0, legal: LegalTokens | None = None) -> Row:
        """Return the legal part of one of some rows."""
        row = Row(blocks.values[number], None, blocks, number)
        if legal is None:
            return row
        return row.only(legal.ids) if legal.count <= FEW_IDS else row.masked(legal.mask)

    def __len__(self) -> int:
        """Return the number of entries, ids at -inf among them."""
        return len(self.logits)

    @cached_property
    def best(self) -> float:
        """The greatest logit. Raises NotFinite."""
        best = float((self.logits if self.ids is not None else self.maxima).max(initial=-math.inf))
        require_finite(best)
        return best

    @property
    def maxima(self) -> Values:
        """The greatest logit of each block of a row of all ids [blocks]."""
        assert self.blocks is not None
        return np.asarray(self.blocks.maxima[self.number])

    @property
    def first(self) -> int:
        """The entry of the greatest logit, the lowest of several."""
        return int(self.logits.argmax())

    def only(self, entries: Ids) -> Row:
        """Return some entries, ascending."""
        return Row(self.logits[entries], entries if self.ids is None else self.ids[entries])

    def masked(self, kept: npt.NDArray[np.bool_]) -> Row:
        """Return the whole row with all others at -inf."""
        logits = np.where(kept, self.logits, np.float32(-np.inf))
        return Row(logits, None, BlockedRows.of(torch.from_numpy(logits)[None]))

    def where(self, kept: npt.NDArray[np.bool_]) -> Row:
        """Return the entries of a mask: by themselves if they are few."""
        is_few = self.ids is not None or np.count_nonzero(kept) <= FEW_IDS
        return self.only(np.flatnonzero(kept)) if is_few else self.masked(kept)

    def top_k(self, count: int) -> Row:
        """Return the `count` likeliest entries, of equal ones the lowest."""
        if not 0 < count < len(self):
            return self
        if self.blocks is None:
            return self.only(np.sort(np.argsort(-self.logits, kind="stable")[:count]))
        ids, values = self.blocks.greatest(self.number, count)
        kept = ids[np.argsort(-values, kind="stable")[:count]]
        if count <= FEW_IDS:
            return self.only(np.sort(kept))
        mask = np.zeros(len(self), dtype=np.bool_)
        mask[kept] = True
        return self.masked(mask)
