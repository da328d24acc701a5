"""What odd input, damaged lines and hasty users do to it: every part's figures against their bars.

    python benchmarks/hardening.py [--quick] [--only NAME,…] [--resume] [--results FILE]

Parts: environment (variables, files, limits, locales), terminal (start-up, the stop, `vsd say` and its
ends), sensors, bags, line (flipped bits), skips (tests that CI leaves out). Each part runs in a process of
its own, so that one that dies costs its own figures only, which then say so. `--quick` takes smaller counts,
under 10 minutes in all on 2 idle cores. Prints a table; the last line is one JSON document. The exit code is
1 if a figure misses its bar.

`skips` reads what `make test` has left in out/tests/. Where that is not of this code, or was only a selection
of the tests, it runs `make test` (half an hour); with --quick it is then reported as not measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from figures import ROOT, Figure
from ledger import Ledger, Part, measure, parse_parts, part_arguments

PARTS = ("environment", "terminal", "sensors", "bags", "line", "skips")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MUJOCO_GL": "osmesa",
    "PYOPENGL_PLATFORM": "osmesa",
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
}
"""As in the Makefile, where the caller has not set them."""

REPORTS = ("shared", "alone")
"""The two runs of pytest that `make test` makes."""

SELF = Path(__file__).resolve()


def in_process(name: str, *, quick: bool) -> list[Figure]:
    """Measure a part in a process of its own. If it ends without figures, return a figure with the reason."""
    with tempfile.TemporaryDirectory(prefix="vsd-hardening-") as folder:
        path = Path(folder) / "figures.json"
        size = ["--quick"] if quick else []
        command = [sys.executable, str(SELF), "--part", name, "--figures", str(path), *size]
        # The output of a part on the way is not part of the table.
        done = subprocess.run(command, env=ENVIRONMENT | os.environ, stdout=sys.stderr, check=False)
        if not path.exists():
            return [unmeasured(name, f"ended with exit code {done.returncode}")]
        found = [Figure(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    # JSON knows no infinity.
    return [replace(figure, value=min(figure.value, 1e9)) for figure in found]


def unmeasured(name: str, why: str) -> Figure:
    """Return a figure that misses its bar, for a part without figures."""
    return Figure(f"{name}_measured", 0, 1, "at least", f"not measured: {why}")


def figures_of(name: str, *, quick: bool) -> Sequence[Figure]:
    """Measure a part in this process."""
    if name == "skips":
        return [skips(quick=quick)]
    found: Sequence[Figure] = importlib.import_module(f"hardening_{name}").figures(quick)
    return found


def skips(*, quick: bool, folder: Path = ROOT / "out" / "tests") -> Figure:
    """Count the tests that a whole run of the suite left out, but for those that no registry could bring."""
    reports, lacking = read_reports(folder)
    if lacking and not quick:
        environment = {**os.environ, "CI": "true"}
        subprocess.run(["make", "test"], cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        reports, lacking = read_reports(folder)
    if lacking:
        return unmeasured("skips", f"{lacking}; run make test first")
    rows = [row for report in reports for row in report["skipped"]]
    refused = [row for row in rows if row["kind"] is None]
    allowed = sorted({row["kind"] for row in rows if row["kind"] is not None})
    count = sum(len(row["tests"]) for row in rows) - sum(len(row["tests"]) for row in refused)
    note = (
        f"{sum(report['ran'] for report in reports)} tests; {count} left out for {', '.join(allowed) or 'no'}"
    )
    note = "; ".join([note, *(f"{len(row['tests'])}: {row['reason']}" for row in refused)])
    return Figure("tests_skipped", sum(len(row["tests"]) for row in refused), 0, "at most", note)


def read_reports(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Return what both runs of `make test` wrote, and why that does not do; "" if it does."""
    paths = [folder / f"{name}.json" for name in REPORTS]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        return [], f"no report of the last run ({', '.join(absent)})"
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not all(is_of_this_code(report["commit"]) for report in reports):
        return reports, f"the last run was at commit {reports[0]['commit'][:7] or 'unknown'}"
    ran, known = sum(report["ran"] for report in reports), max(report["known"] for report in reports)
    return reports, "" if ran == known else f"the last run had {ran} of {known} tests"


def is_of_this_code(commit: str) -> bool:
    """Return whether nothing but documents differs between a commit and the working tree."""
    command = ["git", "diff", "--quiet", commit, "--", ".", ":(exclude)docs", ":(exclude)*.md"]
    return (
        bool(commit)
        and subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.DEVNULL).returncode == 0
    )


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = part_arguments(__doc__, PARTS, "hardening")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    options, wanted = parse_parts(parser, PARTS)
    if options.part:
        found = figures_of(options.part, quick=options.quick)
        options.figures.write_text(json.dumps([asdict(figure) for figure in found]), encoding="utf-8")
        return 0

    def part(name: str) -> Part:
        return lambda: in_process(name, quick=options.quick)

    results = options.results or options.out / "hardening.json"
    ledger = Ledger(results, PARTS, quick=options.quick)
    return measure({name: part(name) for name in PARTS}, ledger, wanted, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
