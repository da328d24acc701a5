"""Rotary embeddings looked up instead of computed: a tiny draft spends a twentieth of its step on them.

Knows a Transformers rotary module and positions; nothing of layers, caches or prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import embedding

Cosines: TypeAlias = tuple[Tensor, Tensor]
Compute: TypeAlias = Callable[[Tensor, Tensor], Cosines]

FIXED_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds whose angles depend on the position alone; others look at how long the sequence is."""

FIRST_SIZE = 512


class RotaryTable:
    """Cosines and sines of every position so far, from `compute` (a model's `rotary_emb`), grown by doubling.

    What is looked up is what `compute` says, bit by bit: of any positions it treats each by itself.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._is_fixed = getattr(compute, "rope_type", "") in FIXED_TYPES
        self._table: Cosines | None = None

    def __call__(self, hidden: Tensor, positions: Tensor, end: int) -> Cosines:
        """Return both of [1, n, width] for `positions` [1, n], all below `end`, in the format of `hidden`."""
        if not self._is_fixed or positions.dim() > 2:  # M-RoPE mixes three rows of positions
            return self._compute(hidden, positions)
        cosines, sines = self._grown(hidden, end)
        return embedding(positions, cosines), embedding(positions, sines)

    def _grown(self, hidden: Tensor, end: int) -> Cosines:
        if self._table is None or len(self._table[0]) < end:
            size = max(FIRST_SIZE, 1 << (end - 1).bit_length())
            cosines, sines = self._compute(hidden, torch.arange(size, device=hidden.device)[None])
            self._table = cosines[0], sines[0]
        return self._table
