"""Room for the keys and values of one layer of one answer, taken ahead so that adding a token copies nothing.

A cache that grows by concatenation copies all of itself with every token, and its tensors move. Here columns
are written behind each other into a tensor that has more of them than are in use; when they run out, a tensor
half as large again takes over. Knows no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 64
"""Columns come in multiples of this: kernels for attention want masks whose rows are aligned."""

SPARE = 64
"""Columns beyond the first ones, which are a prompt's: room for an answer and its drafts."""


class KvLayer:
    """Keys and values [1, heads, columns, width] of one layer; empty until the first are added."""

    def __init__(self) -> None:
        self.columns = 0
        self._keys = self._values = torch.empty(1, 0, 0, 0)

    @property
    def keys(self) -> Tensor:
        """The keys in use, a view that the next `update` leaves as it is."""
        return self._keys[:, :, : self.columns]

    @property
    def values(self) -> Tensor:
        """The values in use, likewise."""
        return self._values[:, :, : self.columns]

    @property
    def capacity(self) -> int:
        """Columns that there is room for."""
        return self._keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held, those of unused columns included."""
        return int(self._keys.nbytes + self._values.nbytes)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add columns; return all keys and values in use."""
        end = self.columns + keys.shape[2]
        self.reserve(end, keys, values)
        self._keys[:, :, self.columns : end] = keys
        self._values[:, :, self.columns : end] = values
        self.columns = end
        return self.keys, self.values

    def gather(self, columns: Tensor) -> None:
        """Keep these columns, in this order."""
        if not self.columns:
            return
        kept = columns.to(self._keys.device)
        for storage in (self._keys, self._values):
            storage[:, :, : len(kept)] = storage[:, :, kept]
        self.columns = len(kept)

    def cut(self, columns: int) -> None:
        """Keep the first `columns`, or all if there are fewer."""
        self.columns = min(self.columns, columns)

    def reserve(self, columns: int, keys: Tensor, values: Tensor) -> None:
        """Make room for `columns` of the heads, width, format and device of `keys` and `values`."""
        if columns <= self.capacity:
            return
        wanted = max(columns + SPARE, self.capacity * 3 // 2)
        wanted = -(-wanted // ALIGNMENT) * ALIGNMENT
        # Both are there before either is replaced: without memory for the second, nothing has changed.
        larger = [part.new_empty(1, part.shape[1], wanted, part.shape[3]) for part in (keys, values)]
        if self.columns:
            larger[0][:, :, : self.columns] = self.keys
            larger[1][:, :, : self.columns] = self.values
        self._keys, self._values = larger
