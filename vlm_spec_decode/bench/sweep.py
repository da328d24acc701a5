"""A whole comparison: strategies x profiles x links x pairs, resumed where it stopped.

Files of the folder `out`: `cells.jsonl` (each finished cell, at once), `bench.json` (all of this run,
schema `vsd-bench/1`), `history.jsonl` (a line for each run), `index.html` (tables and plots).
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_spec_decode import __version__
from vlm_spec_decode.bench.cells import (
    BASELINE,
    MEASURED,
    Cell,
    answers_of,
    key_of,
    row_of,
    sources_digest,
    summary,
)
from vlm_spec_decode.bench.page import write_page
from vlm_spec_decode.bench.pairs import PairLibrary, measure_pair
from vlm_spec_decode.bench.settings import BenchConfig, all_strategies
from vlm_spec_decode.bench.wall_clock import wall_answers
from vlm_spec_decode.core.profiles import load_hardware, load_link

SCHEMA = "vsd-bench/1"


def cells_of(config: BenchConfig) -> list[Cell]:
    """Return the cells in order, the baseline of each place first. Raises ConfigError."""
    names = (BASELINE, *(s for s in config.strategies or all_strategies() if s != BASELINE))
    found = []
    for clock in config.clocks:
        profiles = config.profiles if clock == "virtual" else (MEASURED,)
        for pair, profile, link in itertools.product(config.pairs, profiles, config.links):
            cells = [
                Cell(
                    pair=pair,
                    profile=profile,
                    link=link,
                    strategy=name,
                    clock=clock,
                    objective=config.objective,
                    temperature=config.temperature,
                    draft_length=config.draft_length,
                )
                for name in names
            ]
            found += [cells[0].baseline, *cells[1:]]  # which knows no objective and no draft
    for link in config.links:
        load_link(link)
    for profile in config.profiles if "virtual" in config.clocks else ():
        load_hardware(profile)
    return found


@dataclass(slots=True)
class Results:
    """The cells of a folder: those that are done are read, the others decoded when they are asked for.

    `answers` bounds how many questions a cell may have.
    """

    out: Path
    answers: int
    library: PairLibrary = field(init=False)
    _done: dict[str, dict[str, Any]] = field(init=False)
    _sources: str = field(default_factory=sources_digest)

    def __post_init__(self) -> None:
        self.library = PairLibrary(self.answers)
        self.out.mkdir(parents=True, exist_ok=True)
        self._done = _read(self.out / "cells.jsonl")

    def row(self, cell: Cell, answers: int | None = None) -> dict[str, Any]:
        """Return a cell's entry of the results (`bench.cells.row_of`), with `answers` questions."""
        pair = self.library.pair(cell.pair)
        pair = replace(pair, questions=pair.questions[: answers or self.answers])
        key = key_of(cell, pair.about, len(pair.questions), self._sources)
        if key not in self._done:
            outcomes = answers_of(cell, pair) if cell.clock == "virtual" else wall_answers(cell, pair)
            self._done[key] = row_of(cell, outcomes)
            with (self.out / "cells.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **self._done[key]}) + "\n")
        return self._done[key]

    def summary(self, cell: Cell, answers: int | None = None) -> dict[str, Any]:
        """Return a cell's medians, its baseline decoded first."""
        return summary(self.row(cell, answers), self.row(cell.baseline, answers))

    def pair_statistics(self, pair: str) -> dict[str, Any]:
        """Return what a pair is worth by itself."""
        found = self.library.pair(pair)
        return asdict(measure_pair(found)) | {"about": found.about}


def run_sweep(config: BenchConfig, print_line: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run all cells that are not done yet and write the results; return them."""
    cells = cells_of(config)
    results = Results(config.out, config.answers)
    for name in config.pairs:
        results.library.pair(name)
    rows = [results.row(cell) for cell in tqdm(cells, desc="cells", mininterval=2, disable=None)]
    statistics_by_pair = {name: results.pair_statistics(name) for name in config.pairs}
    document = document_of(rows, statistics_by_pair, {k: v for k, v in asdict(config).items() if k != "out"})
    document = dict(json.loads(json.dumps(document, allow_nan=False)))
    _write(document, config.out)
    print_line(f"{len(rows)} cells in {config.out / 'bench.json'}, page in {config.out / 'index.html'}")
    return document


def document_of(
    rows: list[dict[str, Any]], pairs: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the results of one run with the summaries of all cells."""
    by_cell = {Cell(**row["cell"]): row for row in rows}
    cells = [row | {"summary": summary(row, by_cell[cell.baseline])} for cell, row in by_cell.items()]
    return {"schema": SCHEMA, "made": origin(), "settings": settings, "pairs": pairs, "cells": cells}


def mean_speed_ups(document: dict[str, Any]) -> dict[str, float]:
    """Return the geometric mean of each strategy's speed-ups over the cells."""
    found: dict[str, list[float]] = {}
    for cell in document["cells"]:
        found.setdefault(cell["cell"]["strategy"], []).append(cell["summary"]["speed_up"])
    return {name: geometric_mean(values) for name, values in found.items()}


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def origin() -> dict[str, str]:
    """Return when, from which commit and on what machine something was measured."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    machine = f"{names[0] if names else platform.machine()}, {len(names) or 1} cores"
    date = time.strftime("%Y-%m-%d")
    return {
        "date": date,
        "commit": described.stdout.strip() or "no git",
        "machine": machine,
        "version": __version__,
    }


def _read(log: Path) -> dict[str, dict[str, Any]]:
    """Return the finished cells by key; a line that an interruption cut off is left out, and ended."""
    found: dict[str, dict[str, Any]] = {}
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    if text and not text.endswith("\n"):
        log.write_text(text + "\n", encoding="utf-8")
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row.pop("key")] = row
    return found


def _write(document: dict[str, Any], out: Path) -> None:
    (out / "bench.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    line = {"made": document["made"], "settings": document["settings"], "speed_up": mean_speed_ups(document)}
    with (out / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    history = [json.loads(row) for row in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    write_page(document, history, out / "index.html")
