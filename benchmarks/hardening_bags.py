"""Bags and pictures as recorders and cameras really leave them: bars of the bag matrix and of the encodings.

    python benchmarks/hardening_bags.py [--quick]

Every bag of test/bags/matrix.py; in full each storage is also cut off at 40 places and damaged at 20. A
message that lies in a bag in full must be read, or counted as not read. Every encoding is read from a bag
and from a message, with padded rows, in either byte order, and with 10 to 16 bits in use. Storages without
checksums (sqlite3, mcap without chunks) cannot tell a changed message from another; there only crashes
count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import ROOT, Figure, report
from test.bags import matrix, states
from test.bags.recorders import STORAGES
from test.bags.walks import Walk
from test.core import encodings
from vlm_spec_decode.bags.events import Events, Frame, Topics
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.core import pixels

NUM_CUTS, NUM_DAMAGES = 40, 20


def figures(quick: bool) -> list[Figure]:
    """Return the figures of bags and pictures."""
    return [*bag_figures(quick), encoding_figure()]


def bag_figures(quick: bool) -> list[Figure]:
    """Read every bag of the matrix, in full more of those that were cut off or damaged."""
    cases = list(matrix.CASES) + ([] if quick else list(_more()))
    outcomes = []
    for case in tqdm(cases, desc="bags", disable=None, leave=False):
        with tempfile.TemporaryDirectory(prefix="vsd-matrix-") as folder:
            found = matrix.outcome(case, Path(folder))
        outcomes.append((case, found))
        if not found.is_right(case):
            print(f"{case.name}: {found}", file=sys.stderr)
    known = [(case, found) for case, found in outcomes if case.has_checksums]
    uncounted = sum(found.uncounted for _, found in known)
    wrong = sum(found.wrong for _, found in known)
    uncaught = sum(not found.is_named for _, found in outcomes)
    mistaken = sum(bool(found.error) != case.is_refused for case, found in known)
    note = f"{len(cases)} bags, {sum(found.read for _, found in outcomes)} messages read"
    name = "bag matrix"
    return [
        Figure(f"{name}: bags", len(cases), 80, "at least"),
        Figure(
            f"{name}: readable messages that were not read and not counted", uncounted, 0, "at most", note
        ),
        Figure(f"{name}: uncaught errors", uncaught, 0, "at most", note),
        Figure(f"{name}: messages that were not recorded, or came twice", wrong, 0, "at most", note),
        Figure(f"{name}: refused though readable, or the reverse", mistaken, 0, "at most", note),
    ]


def _more() -> Iterator[matrix.Case]:
    """Yield bags cut off and damaged at random places, the same ones in every run."""
    rng = np.random.default_rng(17)
    for storage in STORAGES:
        for number in range(NUM_CUTS):
            share, has_metadata = float(rng.random()), bool(number % 2)
            write = partial(states.cut, storage=storage, share=share, has_metadata=has_metadata)
            yield matrix.Case(f"{storage}, cut at {share:.4f}, {number}", write, is_sorted=False)
        for number in range(NUM_DAMAGES):
            write = partial(states.scratched, storage=storage, seed=int(rng.integers(1 << 30)))
            has = storage in ("mcap", "mcap zstd", "mcap lz4")
            yield matrix.Case(f"{storage}, scratched, {number}", write, is_sorted=False, has_checksums=has)


def encoding_figure() -> Figure:
    """Return the share of picture encodings that are read correctly in every form."""
    read = {
        encoding
        for encoding in encodings.PICTURES
        if _is_live_right(encoding) and _is_recorded_right(encoding)
    }
    missing = ", ".join(sorted(set(encodings.PICTURES) - read)) or "none missing"
    note = f"{len(read)} of {len(encodings.PICTURES)}, from messages and from bags; {missing}"
    share = len(read) / len(encodings.PICTURES)
    return Figure(
        "image encodings read, of those of sensor_msgs that are pictures", share, 1.0, "at least", note
    )


def _is_live_right(encoding: str) -> bool:
    forms: list[dict[str, Any]] = [{}]
    if not encoding.startswith("nv"):
        forms.append({"pad": 6})
    if "16" in encoding:
        forms += [{"bits": bits, "big": big} for bits in (10, 12, 14, 16) for big in (0, 1)]
    wanted = encodings.wanted_of(encoding)
    return all(
        encodings.shows_it(pixels.to_rgb(encodings.message(encoding, **form)), wanted) for form in forms
    )


def _is_recorded_right(encoding: str) -> bool:
    sent = encodings.message(encoding)
    with tempfile.TemporaryDirectory(prefix="vsd-pixels-") as folder:
        walk = Walk(Path(folder, "walk"))
        kind = walk.types.types["sensor_msgs/msg/Image"]
        fields = (sent.height, sent.width, sent.encoding, sent.is_bigendian, sent.step, sent.data)
        walk.write("/front/image", kind(walk.header(0.0), *fields), 0.0)
        walk.close()
        source = open_bag(Path(folder, "walk"))
        events = Events(source, Topics().choose(source.topics))
        shown = [encodings.pixels_of(event.image.jpeg) for event in events if isinstance(event, Frame)]
        source.close()
    return len(shown) == 1 and encodings.shows_it(shown[0], encodings.wanted_of(encoding))


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="The matrix alone.")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "hardening_bags.json")
    arguments = parser.parse_args()
    return report(figures(arguments.quick), arguments.out, quick=arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
