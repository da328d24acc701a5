"""One JSON file of figures that grows part by part; each row says when, where and how large it was run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from figures import Figure, commit, load, machine
from tqdm import tqdm

Part = Callable[[], Sequence[Figure]]


class Ledger:
    """The rows of one benchmark. A part that is run again takes the place of its earlier rows.

    `order` names all parts; rows are kept in that order.
    """

    def __init__(self, path: Path, order: Sequence[str], *, quick: bool) -> None:
        self._path = path
        self._order = tuple(order)
        self._quick = quick
        self._commit = commit()
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))["figures"]
            self.rows = [row for row in found if row.get("part") in self._order]

    def has(self, part: str) -> bool:
        """Return whether a part has been run at this commit and in this size."""
        known = [row for row in self.rows if row["part"] == part]
        return any(row["quick"] == self._quick and row["made"]["commit"] == self._commit for row in known)

    def put(self, part: str, figures: Sequence[Figure], seconds: float) -> None:
        """Write the rows of a part down."""
        made = {"date": time.strftime("%Y-%m-%d"), "commit": self._commit}
        made |= {"machine": machine(), "load": load(), "seconds": round(seconds, 1)}
        rows = [asdict(figure) | {"holds": figure.holds} for figure in figures]
        rows = [row | {"part": part, "quick": self._quick, "made": made} for row in rows]
        others = [row for row in self.rows if row["part"] != part]
        self.rows = sorted(others + rows, key=lambda row: self._order.index(row["part"]))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"figures": self.rows}, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


def part_arguments(page: str | None, parts: Sequence[str], out: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark in parts: `page` is its docstring, `out` its folder below out/."""
    parser = argparse.ArgumentParser(description=page.splitlines()[0] if page else None)
    parser.add_argument("--quick", action="store_true", help="smaller counts; under 10 minutes on 2 cores")
    parser.add_argument("--only", default="", help=f"of: {', '.join(parts)}")
    parser.add_argument("--resume", action="store_true", help="leave out parts that were measured already")
    parser.add_argument("--out", type=Path, default=Path("out") / out, help="folder of logs and results")
    parser.add_argument("--results", type=Path, help="file that takes the rows; default: in the folder")
    return parser


def parse_parts(
    parser: argparse.ArgumentParser, parts: Sequence[str]
) -> tuple[argparse.Namespace, Sequence[str]]:
    """Read the command line; return the options and the parts to run. Ends the program on an unknown part."""
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name] or parts
    if not set(wanted) <= set(parts):
        parser.error(f"--only: choose of {', '.join(parts)}")
    return options, wanted


def measure(parts: Mapping[str, Part], ledger: Ledger, wanted: Sequence[str], *, resume: bool) -> int:
    """Run parts, write each down as it ends, print all and one JSON line; return 1 if a bar is missed.

    With `resume` a part that the file has at this commit and in this size is not run again. A part without
    figures (what it needs is not there; it says so) leaves what the file has.
    """
    seen: list[dict[str, Any]] = []
    for name in tqdm(wanted, desc="parts", disable=None):
        if not (resume and ledger.has(name)):
            started_s = time.monotonic()
            if figures := parts[name]():
                ledger.put(name, figures, time.monotonic() - started_s)
        seen += [row for row in ledger.rows if row["part"] == name]
    for row in seen:
        mark = "holds" if row["holds"] else "MISSES"
        line_end = f"{row['sense']} {row['bar']:<6} {mark:7} {row['note']} ({row['made']['seconds']:.0f} s)"
        print(f"{row['name']:26} {row['value']:8.3f}  {line_end}")
    print(json.dumps({"figures": seen}))
    return 0 if all(row["holds"] for row in seen) else 1
