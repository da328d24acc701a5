"""Each paper's figures beside ours at its acceptance, hardware and link, its baselines included.

    python benchmarks/reproduction.py [--answers N] [--out FOLDER]

Pairs of known acceptance in virtual time, γ = 4, 40 tokens an answer; `hybrid` stands beside every setting.
Writes reproduction.json, from which benchmarks/tables.py makes docs/reproduction.md. Resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lib.papers import REPORTED, PaperFigure, PaperSetting, reckoned
from tqdm import tqdm

from vlm_spec_decode.bench.cells import Cell
from vlm_spec_decode.bench.sweep import Results, origin
from vlm_spec_decode.core.profiles import load_hardware, load_link


def cell(at: PaperSetting, strategy: str) -> Cell:
    """Return a setting's cell."""
    return Cell(pair=f"synthetic:{at.acceptance}", profile=at.profile, link=at.link, strategy=strategy)


def ours(results: Results, row: PaperFigure) -> float:
    """Return our value of a paper's figure."""
    if row.how == "reckoned":
        return reckoned(row.system, load_hardware(row.at.profile), load_link(row.at.link), row.at)
    found = results.summary(cell(row.at, row.system))
    if row.how == "hits":
        return float(found["hit_rate"])
    return float(found["speed_up"] / results.summary(cell(row.at, row.baseline))["speed_up"])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Put each paper's figures beside ours.")
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/reproduction"))
    options = parser.parse_args()
    results = Results(options.out, options.answers)
    rows: list[dict[str, Any]] = []
    for row in tqdm(REPORTED, desc="figures", mininterval=2, disable=None):
        hybrid = results.summary(cell(row.at, "hybrid"))["speed_up"]
        where = {"paper": row.paper, "setting": row.setting, "acceptance": row.at.acceptance}
        what = {"system": row.system, "baseline": row.baseline, "how": row.how, "why": row.why}
        rows.append({**where, **what, "reported": row.value, "ours": ours(results, row), "hybrid": hybrid})
    document = {"rows": rows, "made": origin(), "answers": options.answers}
    (options.out / "reproduction.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} figures in {options.out / 'reproduction.json'}")


if __name__ == "__main__":
    main()
