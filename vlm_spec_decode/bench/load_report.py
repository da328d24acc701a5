"""What a load run comes to, in figures and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_spec_decode.bench.load_robots import Asked
from vlm_spec_decode.core.types import Tokens


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What came of it: all questions, the time that they took, bytes, and the truth they were held to."""

    asked: Sequence[Asked]
    elapsed_s: float
    traffic: dict[str, int]
    truth: Sequence[Tokens]

    def report(self) -> dict[str, Any]:
        """Return the figures: goodput counts right answers only."""
        counts = Counter(asked.outcome for asked in self.asked)
        right = [asked for asked in self.asked if asked.outcome == "right"]
        reasons = Counter(asked.why for asked in self.asked if asked.why)
        tokens = sum(len(asked.tokens) for asked in right)
        return {
            "asked": len(self.asked),
            **{name: counts[name] for name in ("right", "wrong", "refused", "failed")},
            "reasons": dict(reasons),
            "resumed": sum(asked.epochs > 0 for asked in self.asked),
            "seconds": round(self.elapsed_s, 3),
            "goodput_answers_per_s": round(len(right) / self.elapsed_s, 3),
            "goodput_tokens_per_s": round(tokens / self.elapsed_s, 2),
            "first_token_s": quantiles([a.first_token_s for a in right]),
            "first_action_s": quantiles([a.first_action_s for a in right]),
            "total_s": quantiles([a.total_s for a in right]),
            **self.traffic,
        }


def quantiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return median, 95 % and 99 % quantile of the values that there are, None without any."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    found = np.quantile(there, (0.5, 0.95, 0.99))
    return {name: round(float(value), 5) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def told(report: Mapping[str, Any]) -> str:
    """Return a report in a few lines."""
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(report["reasons"].items()))
    lines = [
        f"{report['right']} right, {report['wrong']} wrong, {report['refused']} refused, {report['failed']} "
        f"failed of {report['asked']} in {report['seconds']} s" + (f" ({reasons})" if reasons else ""),
        f"goodput {report['goodput_answers_per_s']} answers/s, {report['goodput_tokens_per_s']} tokens/s",
    ]
    for name in ("first_token_s", "first_action_s", "total_s"):
        if found := report[name]:
            times = ", ".join(f"{quantile} {1000 * value:.0f} ms" for quantile, value in found.items())
            lines.append(f"{name.removesuffix('_s').replace('_', ' ')}: {times}")
    return "\n".join(lines)
