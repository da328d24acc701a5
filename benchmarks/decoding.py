"""Every bar of decoding: strategies against each other on recorded answers, and what our own code costs.

    python benchmarks/decoding.py [--quick] [--answers N] [--grid-answers N] [--out FOLDER]

Virtual time, unless a figure says otherwise: durations of published hardware (config/profiles), bytes of our
codec on an emulated link, tokens of real models. The paper's acceptance is that of the shipped target with
its draft early in training. --quick has fewer cells and answers and says so. Prints a table; the
last line is one JSON document. The exit code is 1 if a bar is missed. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import Figure, report
from lib.frames import uplink_per_round
from lib.hf_baseline import compare_with_assisted
from lib.overhead import overhead
from tqdm import tqdm

from vlm_spec_decode.bench.cells import BASELINE, Cell
from vlm_spec_decode.bench.settings import all_strategies
from vlm_spec_decode.bench.sweep import Results, geometric_mean
from vlm_spec_decode.core.profiles import load_hardware, load_link

WEAK, GOOD = "early47", "shipped"
ALL = all_strategies()
OTHERS = tuple(name for name in ALL if name != BASELINE and not name.startswith("hybrid"))
HOME = Cell(pair=WEAK, profile="go2_a100", link="go2_paper", strategy="hybrid")
DEFAULT = "hybrid+"
"""What is used where nobody chooses: `vsd cloud` keeps a copy of the draft where it fits and helps."""

PAIRS = (WEAK, "early69", GOOD)
PROFILES = (
    "go2_a100",
    "jetson_nano_a100",
    "rtx2080ti_a100",
    "agx_orin_qwen32b",
    "agx_orin_llama70b",
    "cpu",
    "orin_nano_h100_8b",
    "orin_nano_h100x4_32b",
    "orin_nano_h100x4_70b",
    "orin_nano_sparkx4_32b",
)
LINKS = (
    "rtt5_up100",
    "rtt20_up20",
    "rtt50_up1",
    "rtt50_up0.05",
    "rtt100_up20",
    "rtt200_up20",
    "lossy",
    "wifi_handover",
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    answers: int
    grid_answers: int
    profiles: tuple[str, ...]
    links: tuple[str, ...]


def cells_of(pair: str, profile: str, link: str) -> dict[str, Cell]:
    """Return the cells of all strategies for one pair, profile and link."""
    names = (name for name in ALL if name != BASELINE)
    return {
        name: Cell(pair=pair, profile=profile, link=link, strategy=name, with_image=False) for name in names
    }


def home(results: Results, size: Size) -> list[Figure]:
    """Measure on the Go2 profile at the paper's acceptance."""
    names = (*OTHERS, "hybrid", DEFAULT)
    found = {n: results.summary(replace(HOME, strategy=n), size.answers) for n in names}
    best = max(OTHERS, key=lambda name: found[name]["speed_up"])
    ahead = found["hybrid"]["speed_up"] / found[best]["speed_up"]
    near, far = (
        results.summary(replace(HOME, link=f"rtt{rtt}_up100"), size.answers)["total_s"] for rtt in (5, 200)
    )
    acceptance = results.pair_statistics(WEAK)["acceptance"]
    note = f"Go2, a = {acceptance:.2f}, {size.answers} answers"
    gain = found["hybrid"]["speed_up"]
    exact = replace(HOME, pair="synthetic:0.47", strategy=DEFAULT)
    met = results.summary(exact, size.answers)["speed_up"]
    told = f"Go2, simulated pair of a = 0.47, {size.answers} answers"
    return [
        Figure("default_over_autoregressive", found[DEFAULT]["speed_up"], 2.2, "at least", note),
        Figure("default_over_autoregressive_simulated", met, 2.2, "at least", told),
        Figure("hybrid_over_autoregressive", gain, 1.9, "at least", note),
        Figure("hybrid_over_best_other", ahead, 1.3, "at least", f"{note}; best other: {best}"),
        Figure("speed_at_200_ms_over_5_ms", near / far, 0.9, "at least", note),
        Figure("gpu_over_autoregressive", found["hybrid"]["gpu_ratio"], 0.6, "at most", note),
    ]


def good(results: Results, size: Size) -> list[Figure]:
    """Measure the shipped pair on the Go2 profile, an oracle's drafts beside it."""
    cell = replace(HOME, pair=GOOD)
    mine = results.summary(cell, size.answers)
    limits = [results.summary(replace(cell, pair="oracle", strategy=n), size.answers) for n in ALL]
    total_s = min(found["total_s"] for found in limits)
    action_s = min(found["first_action_s"] for found in limits)
    note = f"Go2, shipped pair, {size.answers} answers"
    limit = "limit: the fastest strategy with an oracle's drafts at the draft's speed"
    over = f"{mine['speed_up_first_action']:.2f}x of autoregressive"
    again = repeated(results, cell, size.answers)
    return [
        Figure("shipped_over_autoregressive", mine["speed_up"], 4.0, "at least", note),
        Figure("shipped_total_over_oracle", mine["total_s"] / total_s, 1.2, "at most", limit),
        Figure("shipped_first_action_over_oracle", mine["first_action_s"] / action_s, 1.2, "at most", over),
        Figure("shipped_gpu_over_autoregressive", mine["gpu_ratio"], 0.35, "at most", note),
        Figure("repeated_over_one_pass", again, 1.3, "at most", f"asked before; {note}"),
    ]


def repeated(results: Results, cell: Cell, answers: int) -> float:
    """Return the time of an answer that was given before, over upload, round trip and one prefill."""
    found = results.row(replace(cell, is_repeat=True), answers)["answers"]
    link, hardware = load_link(cell.link), load_hardware(cell.profile)
    ratios = []
    for answer in found:
        upload_s = 8 * answer["image_bytes"] / (link.up_mbps * 1e6)
        limit_s = upload_s + link.rtt_ms / 1000 + hardware.prefill_ms / 1000
        ratios.append(answer["total_s"] / limit_s)
    return sorted(ratios)[len(ratios) // 2]


def special(results: Results, size: Size) -> list[Figure]:
    """Measure what one bar each asks for: slow links, cost, the branch cache."""
    slow_links, costs = [], []
    for pair, mark in ((WEAK, "weak"), (GOOD, "shipped")):
        slow, fast = (
            results.summary(replace(HOME, pair=pair, link=link, with_image=False), size.answers)["total_s"]
            for link in ("kbit25", "rtt100_up100")
        )
        note = f"Go2, {pair}, RTT 100 ms, without the image"
        slow_links.append(Figure(f"speed_at_25_kbit_{mark}", fast / slow, 0.9, "at least", note))
        cost = results.summary(replace(HOME, pair=pair, objective="cost"), size.answers)
        bar, note = (0.5 if pair == WEAK else 0.3), f"Go2, {pair}, {cost['speed_up']:.2f}x the speed"
        costs.append(Figure(f"passes_at_cost_{mark}", cost["pass_ratio"], bar, "at most", note))
    ace = Cell(
        pair="early69",
        profile="agx_orin_qwen32b",
        link="pico_paper",
        strategy="multi_branch",
        with_image=False,
    )
    hits, acceptance = (
        results.summary(ace, size.answers)["hit_rate"],
        results.pair_statistics("early69")["acceptance"],
    )
    note = f"AGX Orin, 32B, a = {acceptance:.2f}, greedy"
    return [*slow_links, *costs, Figure("multi_branch_hit_rate", hits, 0.97, "at least", note)]


def grid(results: Results, size: Size) -> tuple[list[Figure], list[dict[str, Any]]]:
    """Measure every cell: profiles x links x pairs, without the image."""
    places = [(pair, p, link) for pair in PAIRS for p in size.profiles for link in size.links]
    rows = []
    for where in tqdm(places, desc="cells", mininterval=2, disable=None):
        found = {n: results.summary(c, size.grid_answers)["speed_up"] for n, c in cells_of(*where).items()}
        rows.append({"pair": where[0], "profile": where[1], "link": where[2], "speed_up": found})
    means = {name: geometric_mean(row["speed_up"][name] for row in rows) for name in (*OTHERS, "hybrid+")}
    single = max(OTHERS, key=means.__getitem__)
    edge_only = tuple(name for name in OTHERS if name != "colocated")
    copy, copy_at = _worst(rows, "hybrid+", OTHERS)
    alone, alone_at = _worst(rows, "hybrid", edge_only)
    plain, plain_at = min((min(r["speed_up"][n] for n in ("hybrid", DEFAULT)), _name(r)) for r in rows)
    note = f"{len(rows)} cells, {size.grid_answers} answers each"
    ahead = means["hybrid+"] / means[single]
    return [
        Figure("worst_cell_over_best_other", copy, 0.97, "at least", f"hybrid+; {copy_at}; {note}"),
        Figure("worst_cell_without_copies", alone, 0.97, "at least", f"hybrid, no colocated; {alone_at}"),
        Figure("mean_over_best_single_other", ahead, 1.25, "at least", f"hybrid+ over {single}; {note}"),
        Figure("worst_cell_over_autoregressive", plain, 0.98, "at least", f"hybrid, hybrid+; {plain_at}"),
    ], rows


def _worst(rows: list[dict[str, Any]], mine: str, others: tuple[str, ...]) -> tuple[float, str]:
    return min((r["speed_up"][mine] / max(r["speed_up"][n] for n in others), _name(r)) for r in rows)


def _name(row: dict[str, Any]) -> str:
    return f"{row['pair']}, {row['profile']}, {row['link']}"


def own_costs(answers: int) -> list[Figure]:
    """Measure bytes, overhead and speed of our own code; the last two in real time."""
    ids, q = uplink_per_round("coupled"), uplink_per_round("rejection")
    own, speeds = overhead(), compare_with_assisted(answers)
    cost = f"{1000 * own.rounds_s[0]:.2f} ms at best, {1000 * own.edge_cpu_s:.2f} ms of the edge's CPU"
    busy = f"two processes, CURVE, p50; {cost}; load average {os.getloadavg()[0]:.1f}"
    wire = "median of {}, at most {}; {:g} B on the wire"
    note = f"tokens per s of CPU time, {answers} answers, same tokens: {speeds.same_tokens}"
    ratio = speeds.ratio if speeds.same_tokens else 0.0
    return [
        Figure(
            "uplink_ids", ids.frames, 24, "at most", wire.format(ids.rounds, ids.largest, ids.on_the_wire)
        ),
        Figure("uplink_q", q.frames, 60, "at most", wire.format(q.rounds, q.largest, q.on_the_wire)),
        Figure("overhead_ms", own.p50_ms, 1.0, "at most", busy),
        Figure("colocated_over_assisted", ratio, 1.1, "at least", note),
    ]


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer answers, 18 cells in the grid")
    parser.add_argument("--answers", type=int, default=None, help="of each figure: 20, quick 4; at most 24")
    parser.add_argument("--grid-answers", type=int, default=None, help="of each cell of the grid: 4, quick 2")
    parser.add_argument("--out", type=Path, default=Path("out/decoding"), help="folder of decoding.json")
    options = parser.parse_args()
    size = Size(options.answers or 20, options.grid_answers or 4, PROFILES, LINKS)
    if options.quick:
        few = ("go2_a100", "agx_orin_qwen32b", "orin_nano_sparkx4_32b"), ("rtt20_up20", "rtt200_up20")
        size = Size(options.answers or 4, options.grid_answers or 2, *few)
    results = Results(options.out, size.answers)
    figures = [*home(results, size), *good(results, size), *special(results, size)]
    more, rows = grid(results, size)
    figures += [*more, *own_costs(min(8, size.answers))]
    table = [
        {"pair": pair, "link": HOME.link, "profile": HOME.profile, "strategy": name}
        | results.summary(replace(HOME, pair=pair, strategy=name), size.answers)
        for pair in (WEAK, GOOD, "oracle")
        for name in ALL
    ]
    worths = {pair: results.pair_statistics(pair) for pair in (WEAK, "early69", GOOD, "oracle")}
    extra = {"cells": table, "grid": rows, "pairs": worths, "size": [size.answers, size.grid_answers]}
    return report(figures, options.out / "decoding.json", quick=options.quick, **extra)


if __name__ == "__main__":
    sys.exit(main())
