"""How sure a ratio of times is: its interval, and whether chance alone would do as much.

Answers to the same questions are compared in pairs, by the logarithm of the ratio of their times. p is the
share of all ways (or of many drawn ones) to swap the two within pairs that differ at least as much in the
mean log ratio.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

DRAWS = 4096
EXACT_UP_TO = 12
LEVEL = 0.05


def mean_ratio(ratios: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the geometric mean of log ratios [n], and its 95 % interval by resampling."""
    drawn = np.random.default_rng(0).choice(ratios, size=(DRAWS, len(ratios))).mean(axis=1)
    low, high = np.exp(np.quantile(drawn, (0.025, 0.975)))
    return math.exp(float(ratios.mean())), float(low), float(high)


def p_value(ratios: npt.NDArray[np.float64]) -> float:
    """Return the two-sided p of a sign-flip test of the mean of `ratios` [n]."""
    count = len(ratios)
    if count <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(DRAWS, count))
        signs[0] = 1
    means = np.abs(signs @ ratios)
    return float(np.mean(means >= abs(ratios.sum()) - 1e-12))


def holm(values: list[float]) -> list[float]:
    """Return p-values corrected for their number, in the given order."""
    corrected, floor = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        floor = max(floor, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = floor
    return corrected
