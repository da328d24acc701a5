"""How reliable an early exit is: its calibration, and the confidence that an early verdict carries.

Uses rows of logits and shares of right answers, independent of their source.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from vlm_spec_decode.core.ports import ModelContext, Scores
from vlm_spec_decode.decoding.choices import as_choices

Bins: TypeAlias = tuple[tuple[float, float], ...]
"""(highest confidence, share that was right) of each bin, ascending."""


@dataclass(frozen=True, slots=True)
class ExitCalibration:
    """A confusion table by exit layer: of the first choices made so surely, how many were the final ones."""

    layers: Mapping[int, Bins] = field(default_factory=dict)

    def chance(self, exit_layer: int, confidence: float) -> float:
        """Return how likely a first choice so sure is final; of an exit without a table, the confidence."""
        bins = self.layers.get(exit_layer, ())
        if not bins:
            return confidence
        # The bin whose upper end is the first at or above the confidence; beyond the last bin, the last.
        return bins[min(bisect_left(bins, (confidence,)), len(bins) - 1)][1]


def verdict_chance(context: ModelContext, exit_layer: int, scores: Scores, row: int, token: int) -> float:
    """Return how likely `token` is what the target will say, by a row of what an exit says.

    The table is about first choices; of another token, drawn with the answer's noise, the exit's own
    probability is all that is known. Under a grammar both are of the legal tokens alone.
    """
    # P(final choice = x | exit says x with confidence c) is tabulated for first choices only.
    confidence, is_first = as_choices(scores).confidence(row, token)
    return context.exit_chance(exit_layer, confidence) if is_first else confidence
