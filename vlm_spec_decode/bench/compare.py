"""Two runs against each other: how much faster is B than A, cell by cell, and is that more than chance?

The same questions were asked in both, so answers are compared in pairs (`bench.significance`); over all
cells p is corrected by Holm's method.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.bench.significance import LEVEL, holm, mean_ratio, p_value
from vlm_spec_decode.bench.sweep import SCHEMA
from vlm_spec_decode.core.errors import ConfigError

OF_A_RUN = frozenset({"objective", "temperature", "draft_length"})
"""Fields that are equal in all cells of one run; two runs to compare may differ in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`ratio` is A's time over B's, the geometric mean over answers: above 1, B is faster."""

    cell: str
    ratio: float
    low: float
    high: float
    p: float
    p_corrected: float
    answers: int

    @property
    def is_significant(self) -> bool:
        """Whether chance is an unlikely reason."""
        return self.p_corrected < LEVEL


def compare_runs(a: Path, b: Path) -> list[Difference]:
    """Return the differences of all cells that both have. Raises ConfigError if there is none."""
    first, second = _cells(a), _cells(b)
    common = [key for key in first if key in second]
    if not common:
        raise ConfigError(f"{a} and {b} have no cell in common")
    raw = []
    for key in common:
        pairs = zip(first[key], second[key], strict=False)
        raw.append(np.array([math.log(x["total_s"] / y["total_s"]) for x, y in pairs]))
    values = [p_value(ratios) for ratios in raw]
    rows = zip(common, raw, values, holm(values), strict=True)
    return [_difference(key, ratios, p, corrected) for key, ratios, p, corrected in rows]


def report(differences: list[Difference]) -> str:
    """Return a table as text."""
    lines = [f"{'cell':70} A/B time   95 % interval      p   Holm"]
    for d in differences:
        mark = " *" if d.is_significant else ""
        lines.append(
            f"{d.cell:70} {d.ratio:8.3f}   {d.low:.3f} to {d.high:.3f} {d.p:6.3f} {d.p_corrected:6.3f}{mark}"
        )
    return "\n".join(lines)


def as_rows(differences: list[Difference]) -> list[dict[str, Any]]:
    """Return what `--json` prints."""
    return [asdict(d) | {"significant": d.is_significant} for d in differences]


def _difference(cell: str, ratios: npt.NDArray[np.float64], p: float, corrected: float) -> Difference:
    ratio, low, high = mean_ratio(ratios)
    return Difference(
        cell=cell,
        ratio=ratio,
        low=low,
        high=high,
        p=p,
        p_corrected=corrected,
        answers=len(ratios),
    )


def _cells(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return each cell's answers by its name."""
    path = path / "bench.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is no result of `vsd bench` ({SCHEMA})")
    return {_name(c["cell"]): c["answers"] for c in document["cells"]}


def _name(cell: dict[str, Any]) -> str:
    return ", ".join(str(value) for key, value in cell.items() if key not in OF_A_RUN)
