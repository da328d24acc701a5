"""Counts, over all families, the answers that are Transformers' own: prompts x settings x strategies.

    python benchmarks/families.py [--quick] [--only FAMILY,…]

Tiny checkpoints with random weights and the real vocabularies (`test/models/families/cases.py`), fp32, one
thread. The reference is the family's own `generate`, given only the rule that chooses. A prompt has a picture
of one of five shapes, or none; a setting is greedy or sampled, free or held to the grammar. Ends with one
JSON line: `matches` of `of` answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import ROOT, Figure, report

sys.path.insert(0, str(ROOT))

from test.models.families.cases import CASES
from test.models.families.reference import SETTINGS, STRATEGIES, Loaded, load_case, seen


def compared(family: Loaded, is_quick: bool) -> Iterator[tuple[str, bool]]:
    """Yield what was asked, and whether the answer was that of `generate`."""
    sizes = (family.sizes[0], family.sizes[-1]) if is_quick else family.sizes
    for size in dict.fromkeys(sizes):
        for setting in SETTINGS:
            wanted, _ = family.wanted(seen(size), setting)
            for name in STRATEGIES[:1] if is_quick else STRATEGIES:
                picture = f"{size[0]}x{size[1]}" if size else "no picture"
                yield f"{name}, {picture}, {setting}", family.said(name, seen(size), setting) == wanted


def main() -> int:
    """Run, print each family's count and every answer that differs."""
    parser = argparse.ArgumentParser(description="Count the answers that are Transformers' own.")
    parser.add_argument("--quick", action="store_true", help="two prompts and one strategy a family")
    parser.add_argument("--only", default=",".join(CASES), help="families, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, tuple[int, int]] = {}
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = list(compared(load_case(CASES[name], Path(folder) / name), options.quick))
        counts[name] = sum(same for _, same in found), len(found)
        print(f"{name:16} {counts[name][0]:4} of {counts[name][1]}", flush=True)
        for what, same in found:
            if not same:
                print(f"  differs: {what}")
    matches, of = (sum(parts) for parts in zip(*counts.values(), strict=True))
    figure = Figure("families_exact", matches / of, 1.0, "at least", f"{matches} of {of} answers")
    code = report([figure], ROOT / "out" / "families" / "families.json", families=counts)
    print(json.dumps({"matches": matches, "of": of}))
    return code


if __name__ == "__main__":
    sys.exit(main())
