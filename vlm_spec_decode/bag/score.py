"""How good answers are, in numbers with their uncertainty. Pure: rows in, figures out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Forward, Strafe, Turn
from vlm_spec_decode.bag.questions import Executed
from vlm_spec_decode.core.errors import ActionParseError

NEAR_M, NEAR_DEG = 0.25, 10.0
"""Within this of the label's numbers an action counts as the same."""

STILL_M, STILL_DEG = 0.1, 8.0
"""Less motion than this is standing."""

Z95 = 1.96
RESAMPLES = 2000

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """Return plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.count}


def agrees(text: str, label: Sequence[str]) -> bool:
    """Whether an answer asks for the same actions as the label, numbers within `NEAR_M` and `NEAR_DEG`."""
    try:
        said, wanted = parse_answer(text), parse_answer(" ".join(label))
    except ActionParseError:
        return False
    return len(said) == len(wanted) and all(map(_same, said, wanted))


def _same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, (Forward, Strafe)) and isinstance(b, (Forward, Strafe)):
        return abs(a.distance_m - b.distance_m) <= NEAR_M + 1e-9
    if isinstance(a, Turn) and isinstance(b, Turn):
        return abs(a.angle_deg - b.angle_deg) <= NEAR_DEG + 1e-9
    return a == b


def goes_the_same_way(text: str, executed: Executed) -> bool:
    """Whether the first thing that an answer does is what the robot then did: turn, walk, step or stand."""
    try:
        actions = parse_answer(text)
    except ActionParseError:
        return False
    for action in actions:
        if isinstance(action, Turn) and abs(action.angle_deg) > STILL_DEG:
            return abs(executed.turn_deg) > STILL_DEG and action.angle_deg * executed.turn_deg > 0
        if isinstance(action, Forward) and abs(action.distance_m) > STILL_M:
            return abs(executed.forward_m) > STILL_M and action.distance_m * executed.forward_m > 0
        if isinstance(action, Strafe) and abs(action.distance_m) > STILL_M:
            return abs(executed.left_m) > STILL_M and action.distance_m * executed.left_m > 0
    return math.hypot(executed.forward_m, executed.left_m) <= STILL_M and abs(executed.turn_deg) <= STILL_DEG


def rate(flags: Sequence[bool]) -> Interval | None:
    """Return a share with Wilson's interval; None without data."""
    if not flags:
        return None
    n, share = len(flags), sum(flags) / len(flags)
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


def resampled(
    values: Sequence[float], figure: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> Interval | None:
    """Return a figure of `values` (axis -1) with its percentile bootstrap interval; None without data."""
    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(figure(data[drawn]), [2.5, 97.5])
    return Interval(float(figure(data)), float(low), float(high), len(data))


def mean(values: Sequence[float]) -> Interval | None:
    """Return the mean with its interval."""
    return resampled(values, lambda v: v.mean(axis=-1))


def percentile(values: Sequence[float], q: float) -> Interval | None:
    """Return a percentile with its interval."""
    return resampled(values, lambda v: np.percentile(v, q, axis=-1))


def summary(rows: Sequence[Row], deadline_s: float, price_per_gpu_s: float) -> dict[str, Any]:
    """Return the figures of one run over one cell's rows."""
    done = [row for row in rows if not row["error"]]
    drafted = sum(row["drafted"] for row in done)
    figures = {
        "same_actions": rate([row["same_actions"] for row in rows if row["same_actions"] is not None]),
        "same_way": rate([row["same_way"] for row in rows if row["same_way"] is not None]),
        "same_tokens": rate([row["same_tokens"] for row in rows if row["same_tokens"] is not None]),
        "failed": rate([bool(row["error"]) for row in rows]),
        "late": rate([row["total_s"] > deadline_s for row in done]),
        "total_s": mean([row["total_s"] for row in done]),
        "total_p50_s": percentile([row["total_s"] for row in done], 50),
        "total_p95_s": percentile([row["total_s"] for row in done], 95),
        "first_action_s": mean([row["first_action_s"] for row in done if row["first_action_s"] is not None]),
        "target_passes": mean([float(row["target_passes"]) for row in done]),
        "gpu_s": mean([row["gpu_s"] for row in done]),
        "price": mean([price_per_gpu_s * row["gpu_s"] for row in done]),
        "uplink_bytes": mean([float(row["uplink_bytes"]) for row in done]),
        "downlink_bytes": mean([float(row["downlink_bytes"]) for row in done]),
    }
    said = {name: found.as_dict() for name, found in figures.items() if found is not None}
    acceptance = sum(row["accepted"] for row in done) / drafted if drafted else None
    return {"answers": len(rows), "acceptance": acceptance} | said


def compared(a: Sequence[Row], b: Sequence[Row], name: str) -> dict[str, float] | None:
    """Compare a figure of two runs over the questions that both asked: b minus a, with p of a sign-flip test.

    None if they share no question with that figure.
    """
    key = ("bag", "question")
    before = {tuple(row[k] for k in key): row[name] for row in a if row[name] is not None}
    pairs = [
        (float(before[k]), float(row[name]))
        for row in b
        if row[name] is not None and (k := tuple(row[part] for part in key)) in before
    ]
    if not pairs:
        return None
    differences = np.array([after - first for first, after in pairs])
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (RESAMPLES, len(differences)))
    observed = abs(differences.mean())
    p = (1 + int((np.abs((signs * differences).mean(axis=1)) >= observed - 1e-12).sum())) / (RESAMPLES + 1)
    interval = mean(differences.tolist())
    assert interval is not None
    first = float(np.mean([x for x, _ in pairs]))
    return {"before": first, "after": first + interval.value, "p": p} | {
        k: v for k, v in interval.as_dict().items() if k != "value"
    }
