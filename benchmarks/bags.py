"""The figures of the rosbags, measured.

    python benchmarks/bags.py [--quick] [--public DIR] [--only PART,…] [--resume]
        [--out DIR] [--place DIR] [--results FILE]

`--public` names a folder of bags that no one here wrote; without it that figure is not measured. `--place`
takes the bags that are written on the way, one of 10 GB (`--quick`: 0.5 GB), and is left empty. Each part
is written down as it ends, with date, commit, machine and load of its own; `--resume` leaves out those that
are there, at this commit and in this size. Prints a table; the last line is one JSON document. The exit code
is 1 if a figure misses its bar.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import bag_cases as cases
from figures import Figure
from ledger import Ledger, measure, parse_parts, part_arguments
from tqdm import tqdm

from vlm_spec_decode.bags.questions import AskPlan
from vlm_spec_decode.bags.replay import Cell, ReplayConfig, Replayer
from vlm_spec_decode.bags.settings import SAMPLE
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import BagError
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.demo.process_stack import Processes

WIFI, GO2_A100 = load_link("wifi"), load_hardware("go2_a100")
CELLS = (Cell("speculative", WIFI, GO2_A100),)
VSD = ["-m", "vlm_spec_decode.cli"]
ROS_DOMAIN = 68
PARTS = ("public", "round_trip", "overhead", "truncation", "large", "live")


def public(folder: Path | None) -> list[Figure]:
    """Share of camera and motion messages that are read or named, over bags of other people."""
    if folder is None:
        print("bags of other people: not measured, name a folder with --public", file=sys.stderr)
        return []
    bags = tqdm(list(cases.public_bags(folder)), desc="bags", disable=None, leave=False)
    found = {bag: cases.survey(bag) for bag in bags}
    opened = [s for s in found.values() if s is not None]
    total, read = sum(s.total for s in opened), sum(s.read for s in opened)
    named = sum(s.named for s in opened)
    kinds = sorted({kind.rpartition("/")[2] for s in opened for kind in s.kinds})
    refused = len(found) - len(opened)
    note = f"{read} read and {named} named of {total}, {len(found)} bags, {refused} refused by name; "
    share = (read + named) / total if total else 0.0
    return [Figure("public_bags_read", share, 1.0, "at least", note + ", ".join(kinds))]


def round_trip(folder: Path) -> list[Figure]:
    """Messages that stock readers give back byte for byte, and answers that a replay of them repeats."""
    messages = cases.rows_of(SAMPLE)
    wanted = Counter((m.topic, m.at_ns, m.data) for m in messages)
    same = tokens = asked = 0
    first = tokens_of(SAMPLE, 8)
    for storage in ("mcap", "sqlite3"):
        file = cases.recorded(folder / storage, storage, messages)
        for found in (cases.read_by_others(file), cases.read_by_rosbags(file.parent)):
            same += (Counter(found) & wanted).total()
        again = tokens_of(file.parent, 8)
        asked += len(first)
        tokens += sum(a == b for a, b in zip(first, again, strict=True))
    note = f"{len(messages)} messages, mcap and sqlite3, each by rosbags and by mcap or sqlite3"
    return [
        Figure("round_trip_bytes", same / (4 * len(messages)), 1.0, "at least", note),
        Figure("round_trip_answers", tokens / asked, 1.0, "at least", f"{asked} answers"),
    ]


def tokens_of(bag: Path, limit: int) -> list[Any]:
    """Return the tokens of a bag's first answers, replayed."""
    replayer = Replayer(ReplayConfig((bag,), CELLS, plan=AskPlan(limit=limit)))
    return [row["token_ids"] for _, rows in replayer.rows(bag, Counter()) for row in rows]


def live(folder: Path, logs: Path) -> list[Figure]:
    """Answers of a live replay through the real nodes that a fast replay repeats token for token."""
    environment = {"ROS_DOMAIN_ID": str(ROS_DOMAIN), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    with Processes(logs, WallClock(), environment | {"OMP_NUM_THREADS": "1"}) as processes:
        options = ["--bind", "tcp://127.0.0.1:*", "--insecure", "--json"]
        cloud = processes.start("cloud", [*VSD, "cloud", *options])
        address = processes.wait_ready(cloud, 120.0)["address"]
        code = "import sys; from vlm_spec_decode.ros.entry_points import vlm_main; sys.exit(vlm_main())"
        values = {"use_sim_time": "true", "cloud": address, "temperature": "0.8", "seed": "5"}
        settings = [part for key, value in values.items() for part in ("-p", f"{key}:={value}")]
        processes.start("vlm_node", ["-c", code, "--ros-args", *settings])
        command = [
            sys.executable,
            *VSD,
            "replay",
            "--live",
            "--sample",
            "--out",
            str(folder / "live"),
            "--json",
        ]
        subprocess.run(command, check=True, env=os.environ | environment, capture_output=True)
        processes.stop(["vlm_node"])
        processes.stop(["cloud"])
    figures = []
    for name, bag, note in (
        ("live_replay_tokens", folder / "live" / "bag", "live to the nodes, hybrid, temperature 0.8"),
        ("robot_tokens", SAMPLE, "the simulated robot's walk that ships, hybrid, greedy"),
    ):
        replayer = Replayer(ReplayConfig((bag,), CELLS))
        rows = [row for _, found in replayer.rows(bag, Counter()) for row in found]
        same = sum(row["same_tokens"] is True for row in rows) / len(rows)
        figures.append(Figure(name, same, 1.0, "at least", f"{len(rows)} answers; {note}"))
    return figures


class TimedReplayer(Replayer):
    """Adds up the time in which tokens are decoded."""

    decoding_s = 0.0

    def _decode(self, *arguments: Any) -> Any:
        begin_s = time.perf_counter()
        try:
            return super()._decode(*arguments)
        finally:
            self.decoding_s += time.perf_counter() - begin_s


def overhead(rounds: int) -> list[Figure]:
    """Share of a replay's time that is not decoding: reading, pictures, scoring."""
    whole_s = decoding_s = 0.0
    replayer = TimedReplayer(ReplayConfig((SAMPLE,), CELLS))
    for number in tqdm(range(rounds + 1), desc="rounds", disable=None, leave=False):
        replayer.decoding_s, begin_s = 0.0, time.perf_counter()
        answers = len(list(replayer.rows(SAMPLE, Counter())))
        if number:  # the first round loads the models
            whole_s += time.perf_counter() - begin_s
            decoding_s += replayer.decoding_s
    note = f"{whole_s:.1f} s for {rounds} x {answers} answers, {decoding_s:.1f} s of it decoding"
    return [Figure("replay_overhead", whole_s / decoding_s - 1, 0.1, "at most", note)]


def large(folder: Path, num_bytes: int) -> list[Figure]:
    """Peak memory over a large bag, interrupted in the middle and resumed."""
    bag, out = folder / "large", folder / "large_out"
    seconds = cases.large_bag(bag, num_bytes)
    command = [sys.executable, *VSD, "replay", str(bag), "--every", f"{seconds / 12:.3f}", "--jobs", "1"]
    command += ["--strategy", "speculative", "--out", str(out), "--json"]
    rows = out / "large.rows.jsonl"
    peak_first = watched(command, lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 6)
    kept = rows.read_bytes().count(b"\n") // 2
    peak = max(peak_first, watched(command, lambda: False))
    numbers = [line["question"] for line in map(json.loads, rows.read_text().splitlines()) if "cell" in line]
    is_whole = numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 12
    note = f"{num_bytes / 1e9:.1f} GB, raw 720p, models and libraries included"
    resumed = f"killed after {kept} of {len(numbers)} answers; each asked once"
    shutil.rmtree(bag)
    return [
        Figure("large_bag_memory_gb", peak / 1e9, 1.0, "at most", note),
        Figure("large_bag_resumed", float(is_whole and kept < len(numbers)), 1.0, "at least", resumed),
    ]


def watched(command: list[str], is_enough: Any) -> int:
    """Run a command, kill it when it is enough; return the most memory it held, in bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    try:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            held = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            peak = max([peak, *(1024 * int(kilobytes) for kilobytes in held)])
            if is_enough():
                process.kill()
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    return peak


def truncation(folder: Path, cuts: int) -> list[Figure]:
    """Cuts at random bytes that crash nothing and lose nothing that lies before them."""
    rng, crashes, lost, total = random.Random(0), 0, 0, 0
    messages = cases.rows_of(SAMPLE, seconds=6.0)
    for storage in ("mcap", "sqlite3"):
        file = cases.recorded(folder / f"whole_{storage}", storage, messages)
        whole = cases.events_of(file.parent)
        at = {m.at_ns: end for m, end in zip(messages, cases.ends(file, messages), strict=True)}
        data, cut = file.read_bytes(), folder / f"cut{file.suffix}"
        for _ in tqdm(range(cuts // 2), desc=storage, disable=None, leave=False):
            length = rng.randrange(len(data))
            cut.write_bytes(data[:length])
            wanted = Counter(event for event in whole if at[event[1]] <= length)
            try:
                found = Counter(cases.events_of(cut))
            except BagError:
                found = Counter()  # the error says that there is nothing to ask about
            except Exception as error:  # noqa: BLE001  this is what is counted
                print(f"{storage} cut at {length}: {type(error).__name__}: {error}", file=sys.stderr)
                crashes, found = crashes + 1, Counter()
            # Without a frame there is nothing to evaluate, and the bag is refused with a named error.
            if any(kind == "Frame" for kind, _ in wanted):
                lost += (wanted - found).total()
                total += wanted.total()
    note = f"{cuts} cuts, half of mcap, half of sqlite3"
    return [
        Figure("truncation_crashes", float(crashes), 0.0, "at most", note),
        Figure(
            "truncation_read", 1 - lost / total, 1.0, "at least", f"{total - lost} of {total} before a cut"
        ),
    ]


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = part_arguments(__doc__, PARTS, "bags")
    parser.add_argument("--public", type=Path, help="folder of bags of other people")
    parser.add_argument("--place", type=Path, help="folder for bags on the way; default: the system's /tmp")
    options, wanted = parse_parts(parser, PARTS)
    for folder in filter(None, (options.out, options.place)):
        folder.mkdir(parents=True, exist_ok=True)
    quick = options.quick
    ledger = Ledger(options.results or options.out / "bags.json", PARTS, quick=quick)
    with tempfile.TemporaryDirectory(prefix="vsd-bags-", dir=options.place) as place:
        folder = Path(place)
        parts = {
            "public": lambda: public(options.public),
            "round_trip": lambda: round_trip(folder),
            "overhead": lambda: overhead(1 if quick else 5),
            "truncation": lambda: truncation(folder, 100 if quick else 1000),
            "large": lambda: large(folder, 500_000_000 if quick else 10_000_000_000),
            "live": lambda: live(folder, options.out / "logs"),
        }
        return measure(parts, ledger, wanted, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
