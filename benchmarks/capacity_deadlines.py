"""How many answers come in time from one GPU, as robots come: real strategies and scheduler, virtual time.

python benchmarks/capacity_deadlines.py          every cell (some hours of one core)
python benchmarks/capacity_deadlines.py --quick  one profile and link, three sizes, two rivals
python benchmarks/capacity_deadlines.py --cell PROFILE LINK ROBOTS DEADLINE  one cell

Writes docs/results/capacity_deadlines.json, cell by cell, with what each strategy did (`lib/strategy_fleet`):
answers in time, answers in all, and the GPU's seconds for each. `--quick` and `--cell` print only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lib.strategy_fleet import Load, StrategyFleet, ask

from vlm_spec_decode.core.profiles import load_hardware, load_link

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "capacity_deadlines.json"
PROFILES = ("go2_a100", "agx_orin_qwen32b", "agx_orin_llama70b")
LINKS = ("wifi", "lte")
ROBOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DEADLINES_S = (3.0, 1.5)
SINGLE = ("autoregressive", "speculative", "early_exit", "pipelined", "multi_branch")
ANSWERS, LEAST_S = 120, 16.0
"""Of a cell with few robots; virtual time of one with many."""

FAIR_ROBOTS, FAIR_S = 32, 200.0


def load(profile: str, link: str, robots: int, deadline_s: float) -> Load:
    """Return one cell; what is asked does not depend on the strategy."""
    return Load(
        robots=robots,
        hardware=load_hardware(profile),
        links=(load_link(link),),
        deadlines_s=(deadline_s,),
        seconds=max(LEAST_S, 10.0 * ANSWERS / robots),
    )


def figures(fleet: StrategyFleet, seconds: float) -> dict[str, Any]:
    """Return what a strategy did in one cell. GPU seconds are those of the run over the answers ended."""
    ended = [asked for asked in fleet.asked if asked.ended_s is not None]
    return {
        "asked": sum(len(robot.times_s) for robot in fleet.robots),
        "in_time": sum(asked.is_in_time for asked in ended),
        "ended": len(ended),
        "gpu_s": fleet.busy_s / len(ended) if ended else None,
        "busy": fleet.busy_s / seconds,
    }


def cell(
    profile: str, link: str, robots: int, deadline_s: float, rivals: tuple[str, ...] = SINGLE
) -> dict[str, Any]:
    """Run one cell with `hybrid`, without and with prices, and its rivals."""
    wanted = load(profile, link, robots, deadline_s)
    did = {name: figures(ask(name, wanted), wanted.seconds) for name in ("hybrid", *rivals)}
    did["hybrid with prices"] = figures(ask("hybrid", replace(wanted, prices=True)), wanted.seconds)
    best = max(did[name]["in_time"] for name in rivals)
    return {
        "profile": profile,
        "link": link,
        "robots": robots,
        "deadline_s": deadline_s,
        # Where nobody is in time there is nothing to lose.
        "in_time_over_best": did["hybrid"]["in_time"] / best if best else 1.0,
        "strategies": did,
    }


def fairness(robots: int = FAIR_ROBOTS, seconds: float = FAIR_S) -> dict[str, float]:
    """Return the worst robot's p99 over the median robot's, with mixed deadlines and links."""
    mixed = Load(
        robots=robots,
        hardware=load_hardware("agx_orin_qwen32b"),
        links=tuple(load_link(name) for name in LINKS),
        deadlines_s=(1.5, 3.0, 3.0, 1.5),
        seconds=seconds,
    )
    p99_s = []
    for robot in ask("hybrid", mixed).robots:
        took_s = [asked.ended_s - asked.due_s for asked in robot.asked if asked.ended_s is not None]
        if took_s:
            p99_s.append(float(np.quantile(took_s, 0.99)))
    return {"robots": robots, "worst_s": max(p99_s), "median_s": float(np.median(p99_s))}


def main() -> None:
    """Run the cells that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cell", nargs=4, metavar=("PROFILE", "LINK", "ROBOTS", "DEADLINE"))
    args = parser.parse_args()
    if args.cell:
        profile, link, robots, deadline = args.cell
        print(json.dumps(cell(profile, link, int(robots), float(deadline)), indent=1))
        return
    if args.quick:
        for robots in (1, 32, 128):
            print(json.dumps(cell("agx_orin_qwen32b", "wifi", robots, 3.0, SINGLE[:2])), flush=True)
        print(json.dumps(fairness(8, 60.0)))
        return
    cells = []
    for where in ((p, k, n, d) for p in PROFILES for k in LINKS for n in ROBOTS for d in DEADLINES_S):
        cells.append(cell(*where))
        RESULT.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
    RESULT.write_text(json.dumps({"cells": cells, "fairness": fairness()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
