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
import time
from dataclasses import asdict, dataclass, replace
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
QUICK = Counts(stops=20, kills=3, clouds=2, cameras=3, obstacles=3, frames=100, plans=20_000, virtual=50)


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
        say(f"  {figure.name} {figure.value:.4g} ({figure.note})")
    return found


def measure(counts: Counts, only: set[str], out: Path, body: str) -> list[Figure]:
    """Run the cases asked for, those in processes first."""
    # What measures must not wait 5 ms for the interpreter each time that two of its threads want it.
    sys.setswitchinterval(0.0005)
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
                began_s = time.monotonic()
                figures += run(case, bench, getattr(counts, COUNTED[case]))
                say(f"… {case}: {time.monotonic() - began_s:.0f} s")
    if not only or "gate" in only:
        figures += [plans(counts.plans, SEED), obstacles(counts.virtual, SEED)]
    return figures


def say(text: str) -> None:
    """Tell how it goes on, beside the table."""
    print(text, file=sys.stderr, flush=True)


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
    counts, began_s = QUICK if options.quick else FULL, time.monotonic()
    say("counts: " + ", ".join(f"{count} {name}" for name, count in asdict(counts).items()))
    figures = measure(counts, only, options.out, options.body)
    spent_s = round(time.monotonic() - began_s)
    more = {"quick": options.quick, "body": options.body, "counts": asdict(counts), "spent_s": spent_s}
    return report(figures, options.out / "robot.json", **more)


if __name__ == "__main__":
    sys.exit(main())
