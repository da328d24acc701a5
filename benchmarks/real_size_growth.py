"""How our own time grows with the vocabulary: all but the layers and the head, which cost nothing here.

A draft step as in `real_size`, whose decoder hands out ready-made logits. `sharp` rows have most of the
probability on a few ids, as trained models have; `flat` ones are those of random weights, in which every id
may still win under sampling, and so needs its noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from figures import Figure
from real_size_steps import ROWS, SETTINGS, decoder_of, draft_step, seconds
from torch import Tensor

from vlm_spec_decode.core.choices import Choices
from vlm_spec_decode.models.decoder import Decoder, VarlenEntry, choices_of

SMALL, LARGE = 379, 151_936
GROWTH = 1.5


@dataclass(frozen=True)
class FreeDecoder:
    """Stands in front of a decoder: no layer, no head."""

    inner: Decoder
    rows: Tensor
    vocab_size: int

    def __getattr__(self, name: str) -> Any:
        """Return what the decoder has."""
        return getattr(self.inner, name)

    def run_layers(self, entries: Seq[VarlenEntry]) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the states as they came."""
        yield self.inner.depth, [entry.embedded for entry in entries]

    def choices(self, layer: int, states: Tensor) -> Choices:  # noqa: ARG002
        """Return ready-made rows."""
        return choices_of(self.rows[: len(states)])


def rows_of(kind: str, vocabulary: int) -> Tensor:
    """Return logits [rows, vocab]."""
    rows = torch.randn(ROWS + 1, vocabulary, generator=torch.Generator().manual_seed(0))
    if kind == "sharp":
        rows[:, torch.arange(12) * 7 % vocabulary] += torch.linspace(18, 12, 12)
    return rows


def own_s(inner: Decoder, kind: str, vocabulary: int, name: str, turns: int) -> float:
    """Return the least processor time of one draft step of `ROWS` rows."""
    decoder = cast(Decoder, FreeDecoder(inner, rows_of(kind, vocabulary), vocabulary))
    prepare = partial(draft_step, decoder, SETTINGS[name], ROWS, False)
    return float(np.min([seconds(prepare()) for _ in range(turns + 2)]))


def growth(turns: int) -> Iterator[Figure]:
    """Measure the growth of a draft step's own time."""
    inner = decoder_of(SMALL, 256)
    for name, kind in (("greedy", "flat"), ("sampled", "sharp"), ("sampled", "flat")):
        small, large = (own_s(inner, kind, size, name, 3 * turns) for size in (SMALL, LARGE))
        note = f"{kind} rows; {1000 * small:.1f} and {1000 * large:.1f} ms for {ROWS} rows"
        yield Figure(f"growth_{name}_{kind}", large / small, GROWTH, "at most", note)
