"""Figures of the quality of answers, with their uncertainty. Pure: rows in, figures out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Done, Forward, Stop, Strafe, Turn, Wait
from vlm_spec_decode.bags.questions import Executed
from vlm_spec_decode.core.errors import ActionParseError

NEAR_M, NEAR_DEG = 0.25, 10.0
"""Largest differences from the label's numbers at which an action counts as the same."""

STILL_M, STILL_DEG = 0.1, 8.0
"""Smaller motion than this counts as standing."""

Z95 = 1.96
RESAMPLES = 2000
BLOCK = 2_000_000
"""Number of values that resampling holds in memory at a time."""

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
    """Whether an answer has the same actions as the label, numbers within `NEAR_M` and `NEAR_DEG`."""
    try:
        actions, wanted = parse_answer(text), parse_answer(" ".join(label))
    except ActionParseError:
        return False
    return len(actions) == len(wanted) and all(map(_same, actions, wanted))


def _same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, (Forward, Strafe)) and isinstance(b, (Forward, Strafe)):
        return abs(a.distance_m - b.distance_m) <= NEAR_M + 1e-9
    if isinstance(a, Turn) and isinstance(b, Turn):
        return abs(a.angle_deg - b.angle_deg) <= NEAR_DEG + 1e-9
    return a == b


def goes_the_same_way(text: str, executed: Executed) -> bool:
    """Whether the first action of an answer is what the robot then did: turn, walk, step or stand."""
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


def declines(text: str, history: Sequence[str]) -> bool | None:
    """Whether a first answer has no actions, which is a refusal; None if unreadable, or not the first."""
    if history:
        return None
    try:
        return all(isinstance(action, (Done, Stop)) for action in parse_answer(text))
    except ActionParseError:
        return None


def planned(text: str, horizon_s: float, limits: SafetyLimits) -> Executed | None:
    """Return the motion of an answer within the horizon, at the highest speed; None if unreadable.

    Metres count along the body as it turns, as `Executed` does.
    """
    try:
        actions = parse_answer(text)
    except ActionParseError:
        return None
    moved = {"forward_m": 0.0, "left_m": 0.0, "turn_deg": 0.0}
    left_s = horizon_s
    for action in actions:
        if isinstance(action, (Forward, Strafe)):
            name, amount, speed = "left_m", action.distance_m, limits.max_speed_mps
            name = "forward_m" if isinstance(action, Forward) else name
        elif isinstance(action, Turn):
            name, amount, speed = "turn_deg", action.angle_deg, math.degrees(limits.max_turn_radps)
        else:
            left_s -= action.duration_s if isinstance(action, Wait) else 0.0
            continue
        # The action that exceeds the horizon is counted in part.
        share = min(1.0, max(0.0, left_s) * speed / max(1e-9, abs(amount)))
        moved[name] += share * amount
        left_s -= abs(amount) / speed
    return Executed(**moved)


def motion_error(
    text: str, executed: Executed | None, horizon_s: float, limits: SafetyLimits
) -> dict[str, float | None]:
    """Return how far the planned motion is from the executed one, in metres and degrees."""
    wanted = planned(text, horizon_s, limits) if executed else None
    if wanted is None or executed is None:
        return {"off_m": None, "off_deg": None}
    metres = math.hypot(wanted.forward_m - executed.forward_m, wanted.left_m - executed.left_m)
    return {"off_m": metres, "off_deg": abs(wanted.turn_deg - executed.turn_deg)}


def rate(flags: Sequence[bool]) -> Interval | None:
    """Return a share with Wilson's interval; None without data."""
    if not flags:
        return None
    n, share = len(flags), sum(flags) / len(flags)
    # Wilson: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n); it stays within [0, 1] for few answers.
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
    rng, found = np.random.default_rng(0), list[npt.NDArray[np.float64]]()
    # Percentile bootstrap: the figure of `RESAMPLES` samples drawn with replacement, its middle 95 %.
    block = max(1, min(RESAMPLES, BLOCK // len(data)))
    for begin in range(0, RESAMPLES, block):  # in blocks: many answers must not need much memory
        count = min(block, RESAMPLES - begin)
        found.append(figure(data[rng.integers(0, len(data), (count, len(data)))]))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
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

    def known(name: str) -> list[Any]:
        return [row[name] for row in rows if row.get(name) is not None]

    drafted = sum(row["drafted"] for row in done)
    figures = {
        "same_actions": rate(known("same_actions")),
        "same_way": rate(known("same_way")),
        "same_tokens": rate(known("same_tokens")),
        "off_m": mean(known("off_m")),
        "off_deg": mean(known("off_deg")),
        "declines": rate(known("declines")),
        "failed": rate([bool(row["error"]) for row in rows]),
        "late": rate([row["total_s"] > deadline_s for row in done]),
        "total_s": mean([row["total_s"] for row in done]),
        "total_p50_s": percentile([row["total_s"] for row in done], 50),
        "total_p95_s": percentile([row["total_s"] for row in done], 95),
        "first_action_s": mean(known("first_action_s")),
        "target_passes": mean([float(row["target_passes"]) for row in done]),
        "gpu_s": mean([row["gpu_s"] for row in done]),
        "price": mean([price_per_gpu_s * row["gpu_s"] for row in done]),
        "image_bytes": mean([float(row["image_bytes"]) for row in done]),
        "uplink_bytes": mean([float(row["uplink_bytes"]) for row in done]),
        "downlink_bytes": mean([float(row["downlink_bytes"]) for row in done]),
    }
    values = {name: found.as_dict() for name, found in figures.items() if found is not None}
    acceptance = sum(row["accepted"] for row in done) / drafted if drafted else None
    return {"answers": len(rows), "acceptance": acceptance} | values


def compared(a: Sequence[Row], b: Sequence[Row], name: str) -> dict[str, float] | None:
    """Compare a figure of two runs over their common questions: b minus a, with p of a sign-flip test.

    None if they share no question with that figure.
    """
    key = ("bag", "question")
    before = {tuple(row[k] for k in key): row[name] for row in a if row.get(name) is not None}
    pairs = [
        (float(before[k]), float(row[name]))
        for row in b
        if row.get(name) is not None and (k := tuple(row[part] for part in key)) in before
    ]
    if not pairs:
        return None
    differences = np.array([after - first for first, after in pairs])
    # Sign-flip test: if both runs were alike, each difference could as well have the other sign. p is the
    # share of random signs whose mean is at least as large; 1 is added above and below for those observed.
    rng, observed, extreme = np.random.default_rng(0), abs(differences.mean()), 0
    for _ in range(RESAMPLES):
        signs = rng.choice((-1.0, 1.0), len(differences))
        extreme += abs((signs * differences).mean()) >= observed - 1e-12
    p = (1 + int(extreme)) / (RESAMPLES + 1)
    interval = mean(differences.tolist())
    assert interval is not None
    first = float(np.mean([x for x, _ in pairs]))
    return {"before": first, "after": first + interval.value, "p": p} | {
        k: v for k, v in interval.as_dict().items() if k != "value"
    }
