"""How safe the robot stays: the bars of stopping, dying, freezing, gate, obstacles and overlay, measured.

    python benchmarks/robot.py [--quick] [--only NAME,…] [--body kinematic|physical] [--out FOLDER]

Simulator, cloud and nodes run as processes of their own over DDS, ROS 2 and ZeroMQ; a tap hears what the
robot hears. `--quick` takes under 10 minutes on 2 idle cores, with smaller counts, which it states. Prints a
table; the last line is one JSON document. The exit code is 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", "57")

from figures import Figure, report
from robot_bench import Bench
from robot_cases import CASES
from robot_gate import obstacles, plans

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.processes import Processes
from vlm_spec_decode.sim.bodies import BODIES

SEED = 20260


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each case is run."""

    stops: int
    kills: int
    clouds: int
    cameras: int
    obstacles: int
    frames: int
    plans: int = 100_000
    virtual: int = 100


FULL = Counts(stops=200, kills=50, clouds=50, cameras=50, obstacles=100, frames=600)
QUICK = Counts(stops=20, kills=4, clouds=3, cameras=4, obstacles=4, frames=100)


COUNTED = {
    "idle": "frames",
    "overlay": "frames",
    "e_stop": "stops",
    "obstacle": "obstacles",
    "locomotion": "kills",
    "camera": "cameras",
    "vlm": "kills",
    "cloud": "clouds",
}
"""Which count each case takes."""


def run(case: str, bench: Bench, count: int) -> list[Figure]:
    """Return a case's figures; one that could not be measured is a figure that says so."""
    try:
        found = CASES[case](bench, count)
    except SystemExit as problem:
        found = [Figure(f"{case}_measured", 0, 1, "at least", f"not measured: {problem}")]
    # JSON knows no infinity.
    found = [replace(figure, value=min(figure.value, 1e9)) for figure in found]
    for figure in found:
        print(f"  {figure.name} {figure.value:.4g} ({figure.note})", file=sys.stderr, flush=True)
    return found


def measure(counts: Counts, only: set[str], out: Path, body: str) -> list[Figure]:
    """Run the cases asked for, those in processes first."""
    figures: list[Figure] = []
    wanted = [name for name in CASES if not only or name in only]
    if wanted:
        with (
            tempfile.TemporaryDirectory(prefix="vsd-robot-") as name,
            Processes(
                out / "logs", WallClock(), {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "osmesa"}
            ) as processes,
            Bench(processes, Path(name), body) as bench,
        ):
            for case in wanted:
                print(f"… {case}", file=sys.stderr, flush=True)
                figures += run(case, bench, getattr(counts, COUNTED[case]))
    if not only or "gate" in only:
        figures += [plans(counts.plans, SEED), obstacles(counts.virtual, SEED)]
    return figures


def main() -> int:
    """Measure, print, and say whether every bar is held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under 10 minutes on 2 cores")
    parser.add_argument("--only", default="", help=f"of: gate, {', '.join(CASES)}")
    parser.add_argument("--body", default="kinematic", choices=list(BODIES), help="of the simulated robot")
    parser.add_argument("--out", type=Path, default=Path("out/robot"), help="folder of logs and robot.json")
    options = parser.parse_args()
    only = {name for name in options.only.split(",") if name}
    if not only <= {"gate", *CASES}:
        parser.error(f"--only: choose of gate, {', '.join(CASES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    counts = QUICK if options.quick else FULL
    figures = measure(counts, only, options.out, options.body)
    return report(figures, options.out / "robot.json", quick=options.quick, body=options.body)


if __name__ == "__main__":
    sys.exit(main())
