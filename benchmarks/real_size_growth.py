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
from real_size_steps import ROWS, SETTINGS, Prepare, decoder_of, draft_step, seconds
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


def step_of(inner: Decoder, rows: Tensor, name: str) -> Prepare:
    """Return what prepares one draft step of `ROWS` rows."""
    decoder = cast(Decoder, FreeDecoder(inner, rows, rows.shape[1]))
    return partial(draft_step, decoder, SETTINGS[name], ROWS, False)


def growth(turns: int) -> Iterator[Figure]:
    """Measure the growth of a draft step's own time; both sizes take turns, and the least times count.

    No code can do with less than to read every logit once, so the note says what that takes.
    """
    inner = decoder_of(SMALL, 256)
    for name, kind in (("greedy", "flat"), ("sampled", "sharp"), ("sampled", "flat")):
        rows = rows_of(kind, LARGE)
        steps = [step_of(inner, rows_of(kind, SMALL), name), step_of(inner, rows, name)]
        runs = [lambda step=step: seconds(step()) for step in steps]
        runs.append(lambda rows=rows: seconds(lambda: rows[:ROWS].amax(1)))
        small, large, read = np.min([[run() for run in runs] for _ in range(3 * turns + 2)], axis=0)
        note = (
            f"{kind} rows; {1000 * small:.1f} and {1000 * large:.1f} ms for {ROWS} rows, "
            f"{1000 * read:.1f} of which it takes to read the logits once"
        )
        yield Figure(f"growth_{name}_{kind}", float(large / small), GROWTH, "at most", note)
