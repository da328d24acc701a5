"""What decoding costs at the size that users have: 151,936 ids, the widths of a 2B VLM, whole answers.

    python benchmarks/real_size.py [--quick] [--only PART] [--out FILE]

Parts: `steps` (a draft step and a target pass over the bare layers and head), `growth` (our own time from 379
ids to 151,936), `overhead` (a round over a socket, models that cost nothing), `process` and `socket` (whole
answers with drafts that never agree, are slower than the target, or always agree). Random weights, one
thread; processor time except over sockets. Prints each figure with its bar and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from figures import Figure, report
from lib.overhead import overhead
from real_size_growth import growth
from real_size_pairs import one_process, over_a_socket
from real_size_steps import steps

OVERHEAD_MS = {64: 1.0, 151_936: 1.2}
TURNS, ANSWERS, RUNS = 9, 6, 3


def overheads(runs: int) -> Iterator[Figure]:
    """Measure our own time per round, the least of some runs' medians: other programs only add to it."""
    for vocabulary, bar in OVERHEAD_MS.items():
        found = [overhead(vocabulary=vocabulary) for _ in range(runs)]
        best = min(found, key=lambda run: run.p50_ms)
        note = (
            f"ms; two processes, CURVE, p50, least of {runs} runs; {1000 * best.rounds_s[0]:.2f} ms at best; "
            f"load average {os.getloadavg()[0]:.1f}"
        )
        yield Figure(f"overhead_{vocabulary}", best.p50_ms, bar, "at most", note)


def figures(only: str, *, quick: bool) -> Iterator[Figure]:
    """Measure all parts, or one."""
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "steps": lambda: steps(3 if quick else TURNS),
        "growth": lambda: growth(3 if quick else TURNS),
        "overhead": lambda: overheads(1 if quick else RUNS),
        "process": lambda: one_process(3 if quick else ANSWERS),
        "socket": lambda: over_a_socket(3 if quick else ANSWERS),
    }
    for name, part in parts.items():
        if only in ("", name):
            for figure in part():
                print(f"{figure.name}: {figure.value:.3f}  {figure.note}", file=sys.stderr)
                yield figure


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns and answers")
    parser.add_argument("--only", default="", help="one part")
    parser.add_argument("--out", type=Path, default=Path("out/real_size/real_size.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    return report(list(figures(options.only, quick=options.quick)), options.out, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
