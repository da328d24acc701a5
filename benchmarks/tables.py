"""Writes the measured tables of README.md from the JSON files in docs/results/.

    python benchmarks/tables.py          write README.md
    python benchmarks/tables.py --check  exit with 1 if README.md says something else

`docs/results/main_job.json` is what benchmarks/main_job.py leaves in its folder, with the machine it ran on;
`docs/results/demo.json` is the run.json of a `vsd demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MEANINGS = {
    "go_to_success": "missions that end within 0.7 m of the named object, untouched, with `done()`",
    "acceptance_greedy": "draft tokens equal to the target's own next token, greedy",
    "forward_error_m": "`forward(1.6)`: error of the distance walked, m",
    "turn_error_deg": "`turn(20)`: error of the angle, degrees",
    "watchdog_reaction_s": "silence of the commander until the stop is commanded, s",
    "watchdog_standstill_s": "from that command to standstill, s",
    "e_stop_reaction_s": "e-stop call until the stop is commanded, s",
    "e_stop_standstill_s": "from that command to standstill, s",
    "same_tokens": "answers of `speculative` with exactly the tokens of `autoregressive`",
}


def figures_table(document: Mapping[str, Any]) -> str:
    """Return the table of benchmarks/main_job.py's figures."""
    rows = ["| what | measured | bar | how |", "| --- | --- | --- | --- |"]
    for figure in document["figures"]:
        bar = f"{figure['sense']} {figure['bar']:g}" + ("" if figure["holds"] else ", **missed**")
        rows.append(f"| {MEANINGS[figure['name']]} | {figure['value']:.3g} | {bar} | {figure['note']} |")
    return "\n".join(rows)


def demo_table(run: Mapping[str, Any]) -> str:
    """Return the comparison at the end of a demo."""
    baseline = run["autoregressive"]
    names = {
        "tokens": "tokens",
        "target_passes": "target passes",
        "answer_s": "time for all answers, s",
        "uplink_bytes": "bytes up, without images",
        "downlink_bytes": "bytes down",
    }
    rows = [f'| "{run["instruction"]}" | {run["strategy"]} | autoregressive |', "| --- | --- | --- |"]
    rows += [f"| {title} | {_short(run[key])} | {_short(baseline[key])} |" for key, title in names.items()]
    rows.append(f"| draft tokens accepted | {run['acceptance_rate']:.0%} | |")
    return "\n".join(rows)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def render(readme: str) -> str:
    """Return the README with its marked tables written anew."""
    tables = {
        "main_job": figures_table(json.loads((RESULTS / "main_job.json").read_text(encoding="utf-8"))),
        "demo": demo_table(json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))),
    }
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = readme.split(begin)
        _, after = rest.split(end)
        readme = f"{before}{begin}\n{table}\n{end}{after}"
    return readme


def main() -> int:
    """Write or check README.md."""
    parser = argparse.ArgumentParser(description="Write the measured tables of README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if they differ")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    written = render(text)
    if not check:
        readme.write_text(written, encoding="utf-8")
    return int(check and written != text)


if __name__ == "__main__":
    sys.exit(main())
