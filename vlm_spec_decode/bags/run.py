"""A whole evaluation: replay (`bags.parallel`), then figures, comparison and the report.

A run that was broken off goes on where it stopped if it is started again with the same settings.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_spec_decode.bags.events import Topics
from vlm_spec_decode.bags.parallel import Workers, check_folder, lines_of, replay_all, state_of
from vlm_spec_decode.bags.replay import ReplayConfig
from vlm_spec_decode.bags.report import write_report
from vlm_spec_decode.bags.score import compared, summary
from vlm_spec_decode.bags.settings import ReplaySettings
from vlm_spec_decode.bags.source import bag_name, num_unread
from vlm_spec_decode.bags.truncated_reader import open_bag
from vlm_spec_decode.core.config import same_as
from vlm_spec_decode.core.errors import BagError

SCHEMA = "vsd.replay/1"
COMPARED = (
    "same_actions",
    "same_way",
    "same_tokens",
    "off_m",
    "off_deg",
    "total_s",
    "target_passes",
    "gpu_s",
)
FILES = {"summary": "summary.json", "csv": "rows.csv", "report": "report.html"}
CSV_COLUMNS = (
    *(
        "bag",
        "question",
        "at_s",
        "cell",
        "instruction",
        "target",
        "draft",
        "rule",
        "temperature",
        "seed",
        "text",
        "error",
        "same_actions",
        "same_way",
        "same_tokens",
        "off_m",
        "off_deg",
        "declines",
    ),
    *("drafted", "accepted", "target_passes", "first_token_s", "first_action_s", "total_s", "gpu_s"),
    *("uplink_bytes", "downlink_bytes", "image_bytes"),
)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Settings of a replay: questions, output folder, processes, deadline and prices.

    `compare` is a folder of earlier results.
    """

    replay: ReplayConfig
    out: Path = same_as(ReplaySettings, "out")
    workers: Workers = field(default_factory=Workers)
    deadline_s: float = same_as(ReplaySettings, "deadline_s")
    price_per_gpu_s: float = same_as(ReplaySettings, "price_per_gpu_s")
    compare: Path | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """What a folder of results holds."""

    rows: list[dict[str, Any]]
    faults: dict[str, dict[str, int]]
    thumbs: dict[str, str]


def run(config: RunConfig) -> dict[str, Any]:
    """Replay, score and report. Returns the document that `summary.json` holds."""
    out = config.out
    for bag in config.replay.bags:
        _check_bag(bag, config.replay.topics)
    _check_compared(config)
    out.mkdir(parents=True, exist_ok=True)
    check_folder(out, state_of(config.replay))
    names = [bag_name(bag) for bag in config.replay.bags]
    if len(set(names)) < len(names):
        raise BagError("two bags of the same name; rename one, rows are told apart by it")
    replay_all(config.replay, out, config.workers)
    found = load(out, names)
    if not found.rows:
        raise BagError(
            f"nothing to ask about: no instruction holds for any frame ({_told(found.faults)}); "
            "give one with --instruction or --instructions"
        )
    cells = {cell.name: [r for r in found.rows if r["cell"] == cell.name] for cell in config.replay.cells}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "digest": config.replay.digest,
        "bags": names,
        "faults": found.faults,
        "unread_messages": {bag: num_unread(faults) for bag, faults in found.faults.items()},
        "settings": json.loads(json.dumps(asdict(config.replay), default=str)),
        "deadline_s": config.deadline_s,
        "price_per_gpu_s": config.price_per_gpu_s,
        "cells": {
            name: summary(rows, config.deadline_s, config.price_per_gpu_s) for name, rows in cells.items()
        },
        "artifacts": {name: str(out / file) for name, file in FILES.items()},
    }
    first, *others = cells.items()
    document["compared_with"] = first[0]
    document["compared"] = {
        name: {figure: compared(first[1], rows, figure) for figure in COMPARED} for name, rows in others
    }
    if config.compare:
        earlier = _rows_of(config.compare)
        document["compared_with_run"] = {
            "folder": str(config.compare),
            "cells": _compared(earlier, found.rows),
        }
    (out / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _write_csv(out / "rows.csv", found.rows)
    write_report(out / "report.html", document, found.rows, found.thumbs)
    return document


def _check_bag(bag: Path, topics: Topics) -> None:
    """Raise BagError before models are loaded if a bag cannot be read, or lacks the topics."""
    source = open_bag(bag)
    try:
        topics.choose(source.topics)
    finally:
        source.close()


def _check_compared(config: RunConfig) -> None:
    """Raise BagError before hours of work if there is nothing to compare them with."""
    earlier, names = config.compare, {cell.name for cell in config.replay.cells}
    if earlier and earlier.resolve() == config.out.resolve():
        raise BagError(f"{earlier} takes these results too; write them elsewhere with --out")
    if earlier and not names & {row["cell"] for row in _rows_of(earlier)}:
        raise BagError("the two runs share no way of decoding")


def _rows_of(folder: Path) -> list[dict[str, Any]]:
    try:
        names = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["bags"]
    except (OSError, ValueError, KeyError) as error:
        raise BagError(f"{folder}: no results of a replay ({error})") from error
    return load(folder, names).rows


def _compared(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, Any]:
    shared = sorted({r["cell"] for r in a} & {r["cell"] for r in b})
    if not shared:
        raise BagError("the two runs share no way of decoding")
    cells = {name: [[r for r in rows if r["cell"] == name] for rows in (a, b)] for name in shared}
    return {name: {figure: compared(x, y, figure) for figure in COMPARED} for name, (x, y) in cells.items()}


def load(out: Path, bags: list[str]) -> Results:
    """Read the parts that `run` wrote, bag by bag; a last line that broke off is left out."""
    rows: list[dict[str, Any]] = []
    faults, thumbs = {}, {}
    for name in bags:
        for line in lines_of(out / f"{name}.rows.jsonl"):
            if "faults" in line:
                faults[name] = line["faults"]
            elif "thumb" in line:
                thumbs[f"{name}/{line['question']}"] = line["thumb"]
            else:
                rows.append(line)
    return Results(rows, faults, thumbs)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _told(faults: Mapping[str, Mapping[str, int]]) -> str:
    said = [f"{count} x {fault}" for counts in faults.values() for fault, count in counts.items()]
    return "; ".join(said) or "no fault in the bags"
