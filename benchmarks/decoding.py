"""Strategies against each other in virtual time, on a synthetic pair whose acceptance is known.

    python benchmarks/decoding.py [--quick] [--answers N] [--out FOLDER]

Durations are those of published hardware (config/profiles), bytes those of our codec on an emulated link.
--quick has fewer cells and answers. Prints a table; the last line is one JSON document. The exit code is 1 if
a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml
from figures import ROOT, Figure, report

from vlm_spec_decode.bench.run import Outcome, Setup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, from_mapping
from vlm_spec_decode.core.types import Observation, SamplingParams

STRATEGIES = ("speculative", "pipelined", "early_exit", "multi_branch", "colocated", "hybrid", "hybrid+")
CELLS = (
    ("go2_a100", 120.0, 0.47),
    ("go2_a100", 5.0, 0.47),
    ("go2_a100", 200.0, 0.47),
    ("go2_a100", 120.0, 0.70),
    ("go2_a100", 120.0, 0.92),
    ("rtx2080ti_a100", 47.0, 0.47),
)
TOKENS = 40


def answer(strategy: str, hardware: HardwareProfile, rtt_ms: float, acceptance: float, seed: int) -> Outcome:
    """Decode one answer of the pair of a seed."""
    draft, target = pair(PairSpec(acceptance, seed=seed))
    link = LinkProfile("bench", rtt_ms, up_mbps=100.0, down_mbps=100.0)
    name = strategy.rstrip("+")
    setup = Setup(name, hardware, link, has_helper=name == "colocated" or strategy.endswith("+"), seed=seed)
    return decode(setup, draft, target, Observation(None, "go"), SamplingParams(max_tokens=TOKENS))


def cell(profile: str, rtt_ms: float, acceptance: float, seeds: int) -> dict[str, dict[str, float]]:
    """Return speed-up, passes and GPU time of every strategy, medians over seeds."""
    text = (ROOT / "config" / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8")
    hardware = from_mapping(HardwareProfile, yaml.safe_load(text), profile)
    found: dict[str, dict[str, float]] = {}
    plain = [answer("autoregressive", hardware, rtt_ms, acceptance, seed) for seed in range(seeds)]
    for strategy in STRATEGIES:
        fast = [answer(strategy, hardware, rtt_ms, acceptance, seed) for seed in range(seeds)]
        both = list(zip(plain, fast, strict=True))
        if any(p.tokens != f.tokens for p, f in both):
            raise SystemExit(f"{strategy} says something else than autoregressive")
        found[strategy] = {
            "speed_up": statistics.median(p.total_s / f.total_s for p, f in both),
            "passes": statistics.median(f.passes for f in fast),
            "gpu": statistics.median(f.gpu_s / p.gpu_s for p, f in both),
            "uplink_bytes": statistics.median(f.up_bytes for f in fast),
            "total_s": statistics.median(f.total_s for f in fast),
        }
        print(f"{profile} {rtt_ms:g} ms a={acceptance}: {strategy:13} {found[strategy]['speed_up']:.2f}x")
    return found


def figures_of(cells: list[dict[str, Any]]) -> list[Figure]:
    """Hold what was measured against the bars."""
    by = {(c["profile"], c["rtt_ms"], c["acceptance"]): c["found"] for c in cells}
    home = by["go2_a100", 120.0, 0.47]
    others = max(row["speed_up"] for name, row in home.items() if not name.startswith("hybrid"))
    far, near = (by["go2_a100", rtt, 0.47]["hybrid"]["total_s"] for rtt in (200.0, 5.0))
    note = "Go2, a = 0.47"
    return [
        Figure("hybrid_over_autoregressive", home["hybrid"]["speed_up"], 1.9, "at least", note),
        Figure("hybrid_over_best_other", home["hybrid"]["speed_up"] / others, 1.3, "at least", note),
        Figure("speed_at_200_ms_over_5_ms", near / far, 0.9, "at least", note),
        Figure("gpu_over_autoregressive", home["hybrid"]["gpu"], 0.6, "at most", note),
    ]


def main() -> int:
    """Measure, print, and say whether every bar is held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="3 cells, 3 answers each")
    parser.add_argument("--answers", type=int, default=20, help="answers in each cell")
    parser.add_argument("--out", type=Path, default=Path("out/decoding"), help="folder of decoding.json")
    options = parser.parse_args()
    cells, seeds = (CELLS[:3], 3) if options.quick else (CELLS, options.answers)
    measured = [
        {"profile": p, "rtt_ms": r, "acceptance": a, "answers": seeds, "found": cell(p, r, a, seeds)}
        for p, r, a in cells
    ]
    return report(figures_of(measured), options.out / "decoding.json", cells=measured, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
