"""A replay's questions, divided over this machine's cores or a Ray cluster; rows are written as they arrive.

A part is every n-th question of a bag. Rows do not depend on the process that made them, so the finished
file of a bag is the same, byte for byte, for any number of processes. Rows of an interrupted run are kept.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from tqdm import tqdm

from vlm_spec_decode.bags.questions import Question
from vlm_spec_decode.bags.replay import QuestionShare, ReplayConfig, Replayer
from vlm_spec_decode.bags.source import bag_name
from vlm_spec_decode.core.errors import BagError, ConfigError
from vlm_spec_decode.edge.local_pair import folders

THUMB_PX, THUMB_QUALITY = 200, 55
SHARES_PER_WORKER = 4
"""More shares than workers: who is done first takes another, and less is lost when a run breaks off."""

Lines = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Workers:
    """`jobs` processes on this machine, or a Ray cluster ("auto": the one that is running here)."""

    jobs: int = 1
    ray_address: str = ""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """What one worker does at a time. `known` are questions that are answered already."""

    config: ReplayConfig
    bag: Path
    share: QuestionShare
    known: frozenset[int]


def replay_all(config: ReplayConfig, out: Path, workers: Workers) -> None:
    """Replay all bags into their files in `out`. Raises BagError or ConfigError."""
    if workers.jobs == 1 and not workers.ray_address:
        replayer = Replayer(config)
        for bag in config.bags:
            _alone(replayer, bag, out)
        return
    shares = max(1, SHARES_PER_WORKER * workers.jobs // len(config.bags))
    for bag in config.bags:
        _tidy(out, bag, config)
    units = [
        WorkUnit(config, bag, QuestionShare(index, shares), frozenset(_known(out, bag)))
        for bag in config.bags
        if not _is_finished(out, bag)
        for index in range(shares)
    ]
    faults: dict[Path, Counter[str]] = {unit.bag: Counter() for unit in units}
    spread = _on_ray(units, workers.ray_address) if workers.ray_address else _on_cores(units, workers.jobs)
    for unit, lines, found in tqdm(spread, total=len(units), desc="shares"):
        # Every share has read the whole bag, so each knows all that is wrong with it.
        faults[unit.bag] |= found
        with _file(out, unit.bag).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    for bag, found in faults.items():
        _finish(_file(out, bag), found)


def state_of(config: ReplayConfig) -> str:
    """Return a short hash of what decides the rows: settings, and bags and models as they lie there now."""
    paths = (*config.bags, *folders(config.target, config.draft))
    files = [file for path in paths for file in (path, *sorted(path.rglob("*")))]
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
    return hashlib.sha256(f"{config.digest} {stamps}".encode()).hexdigest()[:16]


def check_folder(out: Path, digest: str) -> None:
    """Drop rows that other settings, or another bag of the same name, have left."""
    mark = out / "config.digest"
    if mark.exists() and mark.read_text().strip() != digest:
        for path in out.glob("*.rows.jsonl"):
            path.unlink()
    mark.write_text(digest + "\n")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of rows; a last one that broke off is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                return


def work(unit: WorkUnit) -> tuple[Lines, Counter[str]]:
    """Replay one share; return its lines and what the bag held back."""
    faults: Counter[str] = Counter()
    lines: Lines = []
    for question, rows in _replayer(unit.config).rows(unit.bag, faults, unit.known, unit.share):
        lines += _told(question, rows)
    return lines, faults


@lru_cache(maxsize=1)
def _replayer(config: ReplayConfig) -> Replayer:
    """Keep the models of a worker from share to share."""
    return Replayer(config)


def _alone(replayer: Replayer, bag: Path, out: Path) -> None:
    """Replay one bag here, its rows to disk as they come."""
    if _is_finished(out, bag):
        return
    config, path = replayer.config, _file(out, bag)
    _tidy(out, bag, config)
    known, faults = _known(out, bag), Counter[str]()
    with path.open("a", encoding="utf-8") as file, _bar(bag, replayer) as bar:
        for question, rows in replayer.rows(bag, faults, known):
            file.write("".join(json.dumps(line) + "\n" for line in _told(question, rows)))
            file.flush()
            bar.set_postfix(answers=question.number * len(config.cells), refresh=False)
            bar.update(max(0.0, round(question.at_s, 1) - bar.n))
    _finish(path, faults)


def _bar(bag: Path, replayer: Replayer) -> Any:
    """Return a bar over the seconds of the bag, where its length is known."""
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
            # What one share cannot do no other can: nobody waits for those that have not begun.
            pool.shutdown(cancel_futures=True)


def _on_ray(units: list[WorkUnit], address: str) -> Iterator[tuple[WorkUnit, Lines, Counter[str]]]:
    """Spread units over a cluster; the bags must lie at the same paths on all of its machines."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError("--ray-address needs Ray: pip install 'vlm_spec_decode[cluster]'") from error
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


def _told(question: Question, rows: Lines) -> Lines:
    return [*rows, {"question": question.number, "thumb": thumb(question)}]


def _file(out: Path, bag: Path) -> Path:
    return out / f"{bag_name(bag)}.rows.jsonl"


def _is_finished(out: Path, bag: Path) -> bool:
    return any("faults" in line for line in lines_of(_file(out, bag)))


def _known(out: Path, bag: Path) -> set[int]:
    return {line["question"] for line in lines_of(_file(out, bag))}


def _tidy(out: Path, bag: Path, config: ReplayConfig) -> None:
    """Keep the questions that are there with all cells; a question that broke off is asked again."""
    if _is_finished(out, bag):
        return
    kept = list(lines_of(_file(out, bag)))
    counts = Counter(line["question"] for line in kept)
    whole = {number for number, count in counts.items() if count == len(config.cells) + 1}
    _replace(_file(out, bag), (line for line in kept if line["question"] in whole))


def _finish(path: Path, faults: Counter[str]) -> None:
    """Bring the lines into the order of the questions, and close the list."""
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
