"""Who should draft: the edge, a copy of the draft in the cloud, or nobody; and whether `hybrid` finds it.

    python benchmarks/regime_map.py [--answers N] [--out FILE]

Virtual time on simulated pairs, whose acceptance is met exactly. Each cell is a target's token time, a draft
step on the edge, a round trip and an acceptance; a draft step in the cloud takes a quarter of a token of
the target, at most the edge's step. `edge` is `hybrid` without a copy, `cloud` is `colocated`, `nobody` is
`autoregressive`, `default` is `hybrid` with a copy, as `vsd cloud` keeps one. Beside them every profile of
config/profiles with real pairs at one link. Writes docs/results/regimes.json, from which benchmarks/tables.py
writes docs/regimes.md; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_spec_decode.bench.cells import Cell, answers_of
from vlm_spec_decode.bench.pairs import PairLibrary
from vlm_spec_decode.bench.run import RunSetup, decode
from vlm_spec_decode.bench.sweep import origin
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, hardware_names
from vlm_spec_decode.core.types import Observation, SamplingParams

TOKEN_MS, DRAFT_MS, RTT_MS, ACCEPTANCE = (
    (7.0, 18.0, 52.0, 150.0, 620.0),
    (17.0, 72.0),
    (20.0, 200.0),
    (0.5, 0.7, 0.9),
)
WHO = {"nobody": "autoregressive", "edge": "hybrid", "cloud": "colocated", "default": "hybrid+"}
TOKENS = 40
PAIRS, LINK, PLACE_ANSWERS = ("early47", "early69", "shipped"), "rtt20_up20", 4
COMPARED = ("colocated", "early_exit", "multi_branch", "autodraft", "hybrid+")
OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "regimes.json"


def hardware(token_ms: float, draft_ms: float) -> HardwareProfile:
    """Return the profile of a cell; a prefill takes three tokens, a node past the fourth 1 %."""
    copy_ms = min(draft_ms, token_ms / 4)
    return HardwareProfile("cell", draft_ms, token_ms, token_ms, 3 * token_ms, copy_ms)


def total_s(
    who: str, profile: HardwareProfile, rtt_ms: float, acceptance: float, answers: int
) -> list[float]:
    """Return the seconds of each answer."""
    name = WHO[who]
    setup = RunSetup(
        strategy=name.rstrip("+"),
        hardware=profile,
        link=LinkProfile("cell", rtt_ms, 20, 20),
        has_colocated_draft=who in ("cloud", "default"),
    )
    found = []
    for seed in range(answers):
        draft, target = pair(PairSpec(acceptance=acceptance, seed=seed))
        params = SamplingParams(max_tokens=TOKENS)
        found.append(decode(setup, draft, target, Observation(None, "go"), params).total_s)
    return found


def cell(token_ms: float, draft_ms: float, rtt_ms: float, acceptance: float, answers: int) -> dict[str, Any]:
    """Return a cell's speed-ups over `nobody`, medians answer by answer."""
    profile = hardware(token_ms, draft_ms)
    times = {who: total_s(who, profile, rtt_ms, acceptance, answers) for who in WHO}
    speed_up = {
        who: statistics.median(plain / mine for plain, mine in zip(times["nobody"], found, strict=True))
        for who, found in times.items()
    }
    where = {"token_ms": token_ms, "draft_ms": draft_ms, "rtt_ms": rtt_ms, "acceptance": acceptance}
    return where | {"speed_up": speed_up}


def place(library: PairLibrary, name: str, profile: str) -> dict[str, Any]:
    """Return the speed-ups of a pair on a profile, without the image."""
    found, models = dict[str, list[float]](), library.pair(name)
    for strategy in ("autoregressive", *COMPARED):
        asked = Cell(pair=name, profile=profile, link=LINK, strategy=strategy, with_image=False)
        found[strategy] = [outcome.total_s for outcome in answers_of(asked, models)]
    plain = found.pop("autoregressive")
    speed_up = {
        strategy: statistics.median(before / after for before, after in zip(plain, times, strict=True))
        for strategy, times in found.items()
    }
    return {"pair": name, "profile": profile, "speed_up": speed_up}


def main() -> int:
    """Measure all cells and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=2, help="of each cell")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    cells = list(itertools.product(TOKEN_MS, DRAFT_MS, RTT_MS, ACCEPTANCE))
    rows = [cell(*where, options.answers) for where in tqdm(cells, desc="cells", mininterval=2, disable=None)]
    library = PairLibrary(PLACE_ANSWERS)
    asked = list(itertools.product(PAIRS, hardware_names()))
    places = [place(library, *where) for where in tqdm(asked, desc="places", mininterval=2, disable=None)]
    sizes = {"answers": options.answers, "place_answers": PLACE_ANSWERS, "link": LINK}
    document = {"made": origin(), **sizes, "rows": rows, "places": places}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    worst = min(row["speed_up"]["default"] / max(row["speed_up"].values()) for row in rows)
    print(json.dumps({"cells": len(rows), "worst_default_over_best": round(worst, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
