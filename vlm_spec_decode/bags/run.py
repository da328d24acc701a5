"""A whole evaluation: bags in; rows, figures, comparison and report out.

The questions are divided over this machine's cores or a Ray cluster, and rows are written as they arrive. A
part is every n-th question of a bag. Rows do not depend on the process that made them, so the finished file
of a bag is the same, byte for byte, for any number of processes. Rows of an interrupted run are kept. A run
that was broken off goes on where it stopped if it is started again with the same settings.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from tqdm import tqdm

from vlm_spec_decode.bags.events import Topics
from vlm_spec_decode.bags.questions import Question
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.replay import QuestionShare, ReplayConfig, Replayer
from vlm_spec_decode.bags.report import write_report
from vlm_spec_decode.bags.score import compared, summary
from vlm_spec_decode.bags.settings import ReplaySettings
from vlm_spec_decode.bags.source import bag_name, num_unread
from vlm_spec_decode.core import extras
from vlm_spec_decode.core.config import same_as
from vlm_spec_decode.core.errors import BagError, ConfigError
from vlm_spec_decode.edge.factory import checkpoint_folders

THUMB_PX, THUMB_QUALITY = 200, 55
SHARES_PER_WORKER = 4
"""More shares than workers: a worker that finishes takes another, and an interrupted run loses less."""

Lines = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Workers:
    """`jobs` processes on this machine, or a Ray cluster ("auto": the one running here)."""

    jobs: int = 1
    ray_address: str = ""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """The work of one worker at a time. `known` are questions that are answered already."""

    config: ReplayConfig
    bag: Path
    share: QuestionShare
    known: frozenset[int]


def replay_all(config: ReplayConfig, out: Path, workers: Workers) -> None:
    """Replay all bags into their files in `out`. Raises BagError or ConfigError."""
    if workers.jobs == 1 and not workers.ray_address:
        replayer = Replayer(config)
        for bag in config.bags:
            _replay_here(replayer, bag, out)
        return
    shares = max(1, SHARES_PER_WORKER * workers.jobs // len(config.bags))
    for bag in config.bags:
        _drop_incomplete(out, bag, config)
    units = [
        WorkUnit(config, bag, QuestionShare(index, shares), frozenset(_known(out, bag)))
        for bag in config.bags
        if not _is_finished(out, bag)
        for index in range(shares)
    ]
    faults: dict[Path, Counter[str]] = {unit.bag: Counter() for unit in units}
    spread = _on_ray(units, workers.ray_address) if workers.ray_address else _on_cores(units, workers.jobs)
    for unit, lines, found in tqdm(spread, total=len(units), desc="shares"):
        # Every share has read the whole bag, so each has all of its faults.
        faults[unit.bag] |= found
        with _file(out, unit.bag).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    for bag, found in faults.items():
        _finish(_file(out, bag), found)


def state_of(config: ReplayConfig) -> str:
    """Return a short hash of what decides the rows: settings, and the present bags and models."""
    paths = (*config.bags, *checkpoint_folders(config.target, config.draft))
    files = [file for path in paths for file in (path, *sorted(path.rglob("*")))]
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
    return hashlib.sha256(f"{config.digest} {stamps}".encode()).hexdigest()[:16]


def check_folder(out: Path, digest: str) -> None:
    """Remove rows of other settings, or of another bag with the same name."""
    mark = out / "config.digest"
    if mark.exists() and mark.read_text().strip() != digest:
        for path in out.glob("*.rows.jsonl"):
            path.unlink()
    mark.write_text(digest + "\n")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of rows, without an incomplete last one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                return


def work(unit: WorkUnit) -> tuple[Lines, Counter[str]]:
    """Replay one share; return its lines and the bag's faults."""
    faults: Counter[str] = Counter()
    lines: Lines = []
    for question, rows in _replayer(unit.config).rows(unit.bag, faults, unit.known, unit.share):
        lines += _with_thumb(question, rows)
    return lines, faults


@lru_cache(maxsize=1)
def _replayer(config: ReplayConfig) -> Replayer:
    """Return a replayer that is cached, so that a worker loads its models once."""
    return Replayer(config)


def _replay_here(replayer: Replayer, bag: Path, out: Path) -> None:
    """Replay one bag in this process, and write its rows as they are made."""
    if _is_finished(out, bag):
        return
    config, path = replayer.config, _file(out, bag)
    _drop_incomplete(out, bag, config)
    known, faults = _known(out, bag), Counter[str]()
    with path.open("a", encoding="utf-8") as file, _progress_bar(bag, replayer) as bar:
        for question, rows in replayer.rows(bag, faults, known):
            file.write("".join(json.dumps(line) + "\n" for line in _with_thumb(question, rows)))
            file.flush()
            bar.set_postfix(answers=question.number * len(config.cells), refresh=False)
            bar.update(max(0.0, round(question.at_s, 1) - bar.n))
    _finish(path, faults)


def _progress_bar(bag: Path, replayer: Replayer) -> Any:
    """Return a progress bar over the seconds of the bag, if its length is known."""
    duration_s = replayer.duration_s(bag)
    form = "{l_bar}{bar}| {n:.0f}/{total_fmt} s of the bag [{elapsed}<{remaining}{postfix}]"
    known = {"total": round(duration_s, 1), "bar_format": form} if duration_s else {}
    return tqdm(desc=bag_name(bag), **known)


def _on_cores(units: list[WorkUnit], jobs: int) -> Iterator[tuple[WorkUnit, Lines, Counter[str]]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(jobs, len(units))), mp_context=context) as pool:
        running = {pool.submit(work, unit): unit for unit in units}
        try:
            for done in as_completed(running):
                yield running[done], *done.result()
        except BrokenProcessPool as error:
            raise BagError("a worker ended early, for want of memory perhaps; use fewer --jobs") from error
        finally:
            # If one share fails, all do: those that have not begun are cancelled.
            pool.shutdown(cancel_futures=True)


def _on_ray(units: list[WorkUnit], address: str) -> Iterator[tuple[WorkUnit, Lines, Counter[str]]]:
    """Distribute units over a cluster; the bags must be at the same paths on all of its machines."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"--ray-address needs Ray: {extras.install_command('cluster')}") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())[:200]}") from error
    try:
        task: Any = ray.remote(num_cpus=1)(work)
        running = {task.remote(unit): unit for unit in units}
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            try:
                yield running.pop(done), *ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise BagError(f"a worker failed: {error.cause}") from error
    finally:
        ray.shutdown()


def _with_thumb(question: Question, rows: Lines) -> Lines:
    return [*rows, {"question": question.number, "thumb": thumb(question)}]


def _file(out: Path, bag: Path) -> Path:
    return out / f"{bag_name(bag)}.rows.jsonl"


def _is_finished(out: Path, bag: Path) -> bool:
    return any("faults" in line for line in lines_of(_file(out, bag)))


def _known(out: Path, bag: Path) -> set[int]:
    return {line["question"] for line in lines_of(_file(out, bag))}


def _drop_incomplete(out: Path, bag: Path, config: ReplayConfig) -> None:
    """Keep the questions that have rows for all cells; an incomplete question is decoded again."""
    if _is_finished(out, bag):
        return
    kept = list(lines_of(_file(out, bag)))
    counts = Counter(line["question"] for line in kept)
    whole = {number for number, count in counts.items() if count == len(config.cells) + 1}
    _replace(_file(out, bag), (line for line in kept if line["question"] in whole))


def _finish(path: Path, faults: Counter[str]) -> None:
    """Sort the lines by question, and mark the file as finished."""
    lines = sorted(lines_of(path), key=lambda line: line["question"])
    _replace(path, [*lines, {"question": 0, "faults": dict(sorted(faults.items()))}])


def _replace(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    partial.replace(path)


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
    """The contents of a folder of results."""

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
            f"nothing to ask about: no instruction holds for any frame ({_faults_text(found.faults)}); "
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
    """Raise BagError before the work begins if there are no results to compare with."""
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
    """Read the files that `run` wrote, bag by bag, without an incomplete last line."""
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


def _faults_text(faults: Mapping[str, Mapping[str, int]]) -> str:
    parts = [f"{count} x {fault}" for counts in faults.values() for fault, count in counts.items()]
    return "; ".join(parts) or "no fault in the bags"
