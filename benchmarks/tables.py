"""Writes the measured tables of README.md and docs/ from the JSON files in docs/results/.

    python benchmarks/tables.py          write all
    python benchmarks/tables.py --check  exit with 1 if one of them says something else

`docs/results/models.json` is what a full benchmarks/models.py leaves, for docs/model_cards.md;
`docs/results/text.json` is what benchmarks/models.py --text leaves, for the same page;
`docs/results/main_job.json` is what benchmarks/main_job.py leaves in its folder, with the machine it ran on;
`docs/results/demo.json` is the run.json of a `vsd demo`; `decoding.json` and `reproduction.json` are what
benchmarks/decoding.py and benchmarks/reproduction.py leave, `regimes.json` what
benchmarks/regime_map.py does, `robot.json` what benchmarks/robot.py does, `processes.json` what its case
`idle` leaves in its folder,
`bodies.json` what benchmarks/bodies.py does, `bags.json` what benchmarks/bags.py does, `service.json` what
benchmarks/service.py does, `hardening.json` what benchmarks/hardening.py does; robot, bags,
service and hardening take the name of the file as `--results`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bag_tables
import bodies_tables
import decoding_tables
import hardening_tables
import robot_tables
import service_tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SOURCES = {"kinds": "models", "regimes_places": "regimes", "regimes_2026": "regimes"} | {
    f"decoding_{part}": "decoding" for part in ("bars", "grid", "headline", "pairs")
}
"""Files of tables that are not named after theirs."""

HEADLINE_2026 = "orin_nano_sparkx4_32b"
"""The profile of today's hardware that the README shows."""

MEANINGS = {
    **decoding_tables.MEANINGS,
    **robot_tables.MEANINGS,
    **bag_tables.MEANINGS,
    **service_tables.MEANINGS,
    **hardening_tables.MEANINGS,
    "success_all": "episodes of all motion instructions that succeed",
    "success_go_to": 'of those, "go to"',
    "collisions_per_100": "collisions in 100 episodes",
    "declined": "unsafe, impossible, unknown or absent: declined",
    "declined_a_proper_one": "proper instructions declined",
    "acceptance_temperature_1": "the same at temperature 1, coupled",
    "mean_accepted_of_8": "tokens accepted of 8 drafted, mean",
    "acceptance_numbers": "draft tokens equal to the target's, numbers alone",
    "text_plan_exact": "language-only pair: plans that are the teacher's, in held-out rooms",
    "text_plan_near": "language-only pair: plans of the same actions and nearly the same numbers",
    "text_acceptance_greedy": "language-only pair: draft tokens equal to the target's own, greedy",
    "text_acceptance_temperature_1": "language-only pair: the same at temperature 1, coupled",
    "exit_half_agrees": "the exit at half depth says what the last layer says",
    "step_ratio": "time of a target's step over a draft's",
    "shipped_mb": "all files of all models that ship, MB",
    "phrasing_right": "held-out phrasings: the right thing",
    "phrasing_another_motion": "held-out phrasings: another motion than asked",
    "phrasing_right_or_stands": "held-out phrasings: right, or stands still and says why",
    "number_exact": "said numbers: exact to the action language's grid",
    "number_off_a_quarter": "said numbers: off by more than a quarter",
    "no_motion": "negated, impossible, unsafe, meaningless, other language: no motion",
    "success_held_out_phrasings": "episodes told in held-out phrasings that succeed",
    "success_held_out_pairs": "episodes about held-out pairs of colour and kind that succeed",
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
    """Return the table of a benchmark's figures; rows that were measured apart say when and where."""
    apart = any("made" in figure for figure in document["figures"])
    rows = ["| what | measured | bar | how |", "| --- | --- | --- | --- |"]
    if apart:
        rows = [f"{rows[0]} run |", f"{rows[1]} --- |"]
    for figure in document["figures"]:
        bar = f"{figure['sense']} {figure['bar']:g}" + ("" if figure["holds"] else ", **missed**")
        meaning = MEANINGS.get(figure["name"], figure["name"])
        row = f"| {meaning} | {figure['value']:.3g} | {bar} | {figure['note']} |"
        rows.append(f"{row} {_run(figure)} |" if apart else row)
    return "\n".join(rows)


def _run(figure: Mapping[str, Any]) -> str:
    by, size = figure["made"], "`--quick`" if figure["quick"] else "full"
    return f"{size}, {by['date']}, {by['commit']}, load {by['load']}"


def apart(document: Mapping[str, Any]) -> str:
    """Return a table whose rows were measured apart, and on which machines."""
    machines = sorted({figure["made"]["machine"] for figure in document["figures"]})
    beside = "Load: processes that wanted a core, the measurement's own among them."
    return f"{figures_table(document)}\n\nMeasured on {'; '.join(machines)}. {beside}"


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


def kinds_table(found: Mapping[str, Any]) -> str:
    """Return success by kind of instruction."""
    rows = ["| instruction | succeeded |", "| --- | --- |"]
    rows += [f"| {kind} | {share} |" for kind, share in found["success_by_kind"].items()]
    rows += [f"| declined: {kind} | {share} |" for kind, share in found["declined_by_kind"].items()]
    return "\n".join(rows)


def made(document: Mapping[str, Any]) -> str:
    """Return when and where a file was measured."""
    by = document["made"]
    beside = f", load average {by['load']}" if "load" in by else ""
    return f"Measured {by['date']} at commit {by['commit']} on {by['machine']}{beside}."


def reproduction(document: Mapping[str, Any]) -> str:
    """Return the papers' figures beside ours."""
    table = decoding_tables.reproduction_table(document)
    return f"{table}\n\nMedians of {document['answers']} answers. {made(document)}"


def bodies(document: Mapping[str, Any]) -> str:
    """Return both bodies' figures."""
    table = bodies_tables.bodies_table(document)
    return f"{table}\n\nEach case {document['times']} times. {made(document)}"


def processes(document: Mapping[str, Any]) -> str:
    """Return what the processes on the robot's computer take."""
    table = robot_tables.processes_table(document)
    times = f"Over {document['seconds']:g} s, on the mission over its first 10 s at most."
    return f"{table} {times} {made(document)}"


def render(text: str) -> str:
    """Return a document with those of its marked tables written anew that it has."""

    def load(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

    def decoding(table: Callable[[Mapping[str, Any]], str]) -> str:
        document = load("decoding")
        return f"{table(document)}\n\n{document['size'][0]} answers. {made(document)}"

    def regimes(table: Callable[[Mapping[str, Any]], str]) -> str:
        document = load("regimes")
        return f"{table(document)}\n\n{made(document)}"

    tables = {
        "main_job": lambda: f"{figures_table(load('main_job'))}\n\n{made(load('main_job'))}",
        "bags": lambda: apart(load("bags")),
        "robot": lambda: apart(load("robot")),
        "processes": lambda: processes(load("processes")),
        "bodies": lambda: bodies(load("bodies")),
        "service": lambda: apart(load("service")),
        "hardening": lambda: apart(load("hardening")),
        "demo": lambda: demo_table(load("demo")),
        "models": lambda: f"{figures_table(load('models'))}\n\n{made(load('models'))}",
        "decoding": lambda: decoding(decoding_tables.home_table),
        "decoding_bars": lambda: decoding(figures_table),
        "decoding_headline": lambda: decoding(decoding_tables.headline_table),
        "decoding_grid": lambda: decoding(decoding_tables.grid_table),
        "decoding_pairs": lambda: decoding(decoding_tables.pairs_table),
        "reproduction": lambda: reproduction(load("reproduction")),
        "regimes": lambda: regimes(decoding_tables.regimes_table),
        "regimes_places": lambda: regimes(decoding_tables.places_table),
        "regimes_2026": lambda: regimes(partial(decoding_tables.places_table, profile=HEADLINE_2026)),
        "text": lambda: f"{figures_table(load('text'))}\n\n{made(load('text'))}",
        "kinds": lambda: kinds_table(load("models")["found"]),
    }
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin in text and (RESULTS / f"{SOURCES.get(name, name)}.json").exists():
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


def main() -> int:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description="Write the measured tables of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if they differ")
    check = parser.parse_args().check
    differ = False
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = document.read_text(encoding="utf-8")
        written = render(text)
        differ |= written != text
        if not check:
            document.write_text(written, encoding="utf-8")
    return int(check and differ)


if __name__ == "__main__":
    sys.exit(main())
