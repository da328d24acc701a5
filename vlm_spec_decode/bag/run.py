"""A whole evaluation: bags on this machine's cores, rows to disk as they come, then figures and the report.

A run that was broken off goes on where it stopped if it is started again with the same settings.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from tqdm import tqdm

from vlm_spec_decode.bag.questions import Question
from vlm_spec_decode.bag.replay import ReplayConfig, Replayer
from vlm_spec_decode.bag.report import write_report
from vlm_spec_decode.bag.score import compared, summary
from vlm_spec_decode.bag.source import bag_name
from vlm_spec_decode.core.errors import BagError

SCHEMA = "vsd.replay/1"
THUMB_PX, THUMB_QUALITY = 200, 55
COMPARED = ("same_actions", "same_way", "same_tokens", "total_s", "target_passes", "gpu_s")
FILES = {"summary": "summary.json", "csv": "rows.csv", "report": "report.html"}
CSV_COLUMNS = (
    *(
        "bag",
        "question",
        "at_s",
        "cell",
        "instruction",
        "text",
        "error",
        "same_actions",
        "same_way",
        "same_tokens",
    ),
    *("drafted", "accepted", "target_passes", "first_token_s", "first_action_s", "total_s", "gpu_s"),
    *("uplink_bytes", "downlink_bytes", "image_bytes"),
)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A replay, where its results go, and what counts as late and as dear."""

    replay: ReplayConfig
    out: Path = Path("out/replay")
    jobs: int = 1
    deadline_s: float = 3.0
    price_per_gpu_s: float = 0.001


@dataclass(frozen=True, slots=True)
class Results:
    """What a folder of results holds."""

    rows: list[dict[str, Any]]
    faults: dict[str, dict[str, int]]
    thumbs: dict[str, str]


def run(config: RunConfig) -> dict[str, Any]:
    """Replay, score and report. Returns the document that `summary.json` holds."""
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    _check_folder(out, config.replay.digest)
    names = [bag_name(bag) for bag in config.replay.bags]
    if len(set(names)) < len(names):
        raise BagError("two bags of the same name; rename one, rows are told apart by it")
    _replay(config)
    found = load(out, names)
    if not found.rows:
        raise BagError(f"nothing to ask about: no instruction holds for any frame ({_told(found.faults)})")
    cells = {cell.name: [r for r in found.rows if r["cell"] == cell.name] for cell in config.replay.cells}
    document = {
        "schema": SCHEMA,
        "digest": config.replay.digest,
        "bags": names,
        "faults": found.faults,
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
    (out / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _write_csv(out / "rows.csv", found.rows)
    write_report(out / "report.html", document, found.rows, found.thumbs)
    return document


def compare_runs(a: Path, b: Path) -> dict[str, Any]:
    """Compare two folders of results, cell by cell of the same name, over the questions both asked."""
    runs = []
    for folder in (a, b):
        try:
            names = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["bags"]
        except (OSError, ValueError, KeyError) as error:
            raise BagError(f"{folder}: no results of a replay ({error})") from error
        runs.append(load(folder, names).rows)
    shared = sorted({r["cell"] for r in runs[0]} & {r["cell"] for r in runs[1]})
    if not shared:
        raise BagError("the two runs share no way of decoding")
    cells = {name: [[r for r in rows if r["cell"] == name] for rows in runs] for name in shared}
    return {name: {figure: compared(x, y, figure) for figure in COMPARED} for name, (x, y) in cells.items()}


def load(out: Path, bags: list[str]) -> Results:
    """Read the parts that `run` wrote, bag by bag; a last line that broke off is left out."""
    rows: list[dict[str, Any]] = []
    faults, thumbs = {}, {}
    for name in bags:
        for line in _lines(out / f"{name}.rows.jsonl"):
            if "faults" in line:
                faults[name] = line["faults"]
            elif "thumb" in line:
                thumbs[f"{name}/{line['question']}"] = line["thumb"]
            else:
                rows.append(line)
    return Results(rows, faults, thumbs)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                return


def _check_folder(out: Path, digest: str) -> None:
    mark = out / "config.digest"
    if mark.exists() and mark.read_text().strip() != digest:
        for path in out.glob("*.rows.jsonl"):
            path.unlink()
    mark.write_text(digest + "\n")


def _replay(config: RunConfig) -> None:
    bags = config.replay.bags
    if config.jobs == 1 or len(bags) == 1:
        replayer = Replayer(config.replay)
        for bag in bags:
            replay_bag(replayer, bag, config.out, show=True)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.jobs, len(bags)), mp_context=context) as pool:
        jobs = [pool.submit(replay_alone, config.replay, bag, config.out) for bag in bags]
        for job in tqdm(jobs, desc="bags"):
            job.result()


def replay_alone(config: ReplayConfig, bag: Path, out: Path) -> None:
    """Replay one bag in a process of its own."""
    replay_bag(Replayer(config), bag, out, show=False)


def replay_bag(replayer: Replayer, bag: Path, out: Path, *, show: bool) -> None:
    """Replay one bag into its file; questions that are there already, with all cells, are not asked again."""
    path = out / f"{bag_name(bag)}.rows.jsonl"
    kept = list(_lines(path))
    if any("faults" in line for line in kept):
        return
    counts: dict[int, int] = {}
    for line in kept:
        counts[line["question"]] = counts.get(line["question"], 0) + ("cell" in line)
    whole = {number for number, count in counts.items() if count == len(replayer.config.cells)}
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept if line["question"] in whole)
    partial.replace(path)
    faults: Counter[str] = Counter()
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(desc=bag_name(bag), unit="answers", disable=not show) as bar,
    ):
        for question, rows in replayer.rows(bag, faults, whole):
            lines = [*rows, {"question": question.number, "thumb": thumb(question)}]
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            bar.update(len(rows))
        file.write(json.dumps({"question": 0, "faults": dict(faults)}) + "\n")


def thumb(question: Question) -> str:
    """Return a small JPEG of the frame as base64, for the report."""
    image = question.observation.image
    if image is None:
        return ""
    picture = PilImage.open(io.BytesIO(image.jpeg))
    picture.thumbnail((THUMB_PX, THUMB_PX))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=THUMB_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _told(faults: Mapping[str, Mapping[str, int]]) -> str:
    said = [f"{count} x {fault}" for counts in faults.values() for fault, count in counts.items()]
    return "; ".join(said) or "no fault in the bags"
