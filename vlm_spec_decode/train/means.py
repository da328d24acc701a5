"""Running means of what training steps measure, such as the loss."""

from __future__ import annotations

from collections.abc import Mapping

_NEW_SHARE = 0.02


def updated(means: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """Return the means after one more step; what is measured for the first time begins with its value."""
    return {k: (1 - _NEW_SHARE) * means.get(k, v) + _NEW_SHARE * v for k, v in new.items()}


def rounded(means: Mapping[str, float]) -> dict[str, float]:
    """Return them as records and logs show them."""
    return {name: round(value, 4) for name, value in means.items()}
