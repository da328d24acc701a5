"""One measured value beside its bar, how a run prints them, and how its file names where it was made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and the bar that it is held against."""

    name: str
    value: float
    bar: float
    sense: Literal["at least", "at most"]
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the bar."""
        return self.value >= self.bar if self.sense == "at least" else self.value <= self.bar


def report(figures: list[Figure], path: Path, **more: Any) -> int:
    """Print a table, write `path`, end with one JSON line; return the exit code, 1 if a bar is missed.

    The file also says when, from which commit and on what machine; `more` joins it.
    """
    for figure in figures:
        mark = "holds" if figure.holds else "MISSES"
        print(f"{figure.name:26} {figure.value:8.3f}  {figure.sense} {figure.bar:<6} {mark:7} {figure.note}")
    document = {"figures": [asdict(figure) | {"holds": figure.holds} for figure in figures]}
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "load": load()}
    path.write_text(json.dumps(document | {"made": made} | more, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 0 if all(figure.holds for figure in figures) else 1


def commit() -> str:
    """Return the short hash of the commit measured, with a mark if the code differs from it.

    Documents do not count: they hold what was measured.
    """
    head = _git("rev-parse", "--short", "HEAD").strip()
    differs = head and _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    return f"{head}-dirty" if differs else head or "no git"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def load() -> float:
    """Return the load average of the last five minutes, this process included."""
    return round(os.getloadavg()[1], 1)


def machine() -> str:
    """Return processor and core count."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names) or 1} cores"
