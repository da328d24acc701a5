"""The distances that answers tell: the farther, the coarser. For who teaches and for who guesses them."""

from __future__ import annotations

import math

GRIDS_M = ((1.2, 0.1), (2.4, 0.2), (math.inf, 0.5))
"""(distance, grid): distances up to the first are rounded to the second. Far objects are seen again later."""

NEAREST_M, MAX_DESCRIBED_M = 0.1, 5.0
"""No answer tells of a smaller distance, or of a larger one."""


def rounded_m(distance_m: float) -> float:
    """Return a rounded distance: the farther, the coarser."""
    grid_m = next(grid_m for limit_m, grid_m in GRIDS_M if distance_m < limit_m)
    return min(MAX_DESCRIBED_M, max(NEAREST_M, grid_m * round(distance_m / grid_m)))


def neighbours_m(told_m: float) -> tuple[float, float]:
    """Return the distances that are told below and above `told_m`, itself one that is told."""
    # Half a grid step leads to the edge of a cell, and a little more into the next one.
    sides_m = (told_m - 1e-6, told_m + 1e-6)
    below_m, above_m = (next(grid_m for limit_m, grid_m in GRIDS_M if side_m < limit_m) for side_m in sides_m)
    return rounded_m(told_m - 0.55 * below_m), rounded_m(told_m + 0.55 * above_m)
