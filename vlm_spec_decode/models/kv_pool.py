"""One store of keys and values for all answers of a model: a column is a token of some answer.

For a GPU, where a kernel costs as much to start as to run: all answers' new columns are written by one
operation, and read by one, whichever answers take part in a pass. An answer holds the numbers of its columns
in their order, so that dropping, reordering and cutting change a list and move no tensor. Tensors stay where
they are until the store grows. Knows no model and no tree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 64
"""Columns come in multiples of this: kernels for attention want masks whose rows are aligned."""

FIRST_COLUMNS = 4096
"""Columns of a new store."""

SPARE_COLUMN = 0
"""Belongs to nobody: rows that only pad a pass are written to it, and columns that pad it are read there."""


class KvPool:
    """Keys and values [heads, columns, width] of each layer. `generation` counts how often tensors moved."""

    def __init__(self) -> None:
        self.generation = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._columns = SPARE_COLUMN + 1
        self._free: list[int] = []

    @property
    def column_bytes(self) -> int:
        """Bytes of one column in all layers that a pass has reached."""
        parts = [part for both in self._layers.values() for part in both]
        return sum(part.shape[0] * part.shape[2] * part.element_size() for part in parts)

    def take(self, count: int) -> list[int]:
        """Return the numbers of `count` columns that belong to nobody, with room for them in every layer.

        Takes none if memory runs out.
        """
        reused = self._free[max(0, len(self._free) - count) :]
        fresh = range(self._columns, self._columns + count - len(reused))
        for layer, (keys, values) in list(self._layers.items()):
            self._layer(layer, keys, values, fresh.stop)
        self._columns = fresh.stop
        del self._free[len(self._free) - len(reused) :]
        return [*reused, *fresh]

    def release(self, columns: list[int]) -> None:
        """Give back columns that were taken; `columns` is empty afterwards."""
        self._free.extend(columns)
        columns.clear()

    def write(self, layer: int, keys: Tensor, values: Tensor, columns: Tensor) -> None:
        """Write keys and values [heads, n, width] of a layer to `columns` [n]."""
        for stored, new in zip(self._layer(layer, keys, values, self._columns), (keys, values), strict=True):
            stored.index_copy_(1, columns, new)

    def read(self, layer: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [heads, n, width] of a layer from `columns` [n]."""
        keys, values = self._layers[layer]
        return keys.index_select(1, columns), values.index_select(1, columns)

    def _layer(self, layer: int, keys: Tensor, values: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Return a layer's tensors with room for `columns`, in the heads, width and format of `keys`."""
        held = self._layers.get(layer)
        if held is not None and held[0].shape[1] >= columns:
            return held
        least = -(-columns // ALIGNMENT) * ALIGNMENT
        sizes = max(FIRST_COLUMNS if held is None else 2 * held[0].shape[1], least), least
        both = _room(keys, values, sizes)
        if held is not None:
            for new, old in zip(both, held, strict=True):
                new[:, : old.shape[1]] = old
        self._layers[layer] = both
        self.generation += 1
        return both


def _room(keys: Tensor, values: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return zeros for as many columns as the first of `sizes` says, or the second if memory is short."""
    for size in sizes:
        try:
            return (
                keys.new_zeros(keys.shape[0], size, keys.shape[2]),
                values.new_zeros(values.shape[0], size, values.shape[2]),
            )
        except torch.OutOfMemoryError:
            if size == sizes[1]:
                raise
    raise AssertionError


def numbers(columns: list[int], size: int) -> npt.NDArray[np.int64]:
    """Return the numbers of an answer's columns [size], the spare one where it has no more."""
    padded = np.full(size, SPARE_COLUMN, dtype=np.int64)
    padded[: len(columns)] = columns
    return padded
