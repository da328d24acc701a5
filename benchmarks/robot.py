"""How safe the robot stays: the bars of stopping, dying, freezing, gate, obstacles and overlay, measured.

    python benchmarks/robot.py [--quick] [--only NAME,…] [--resume] [--results FILE] [--body physical]

Simulator, cloud and nodes run as processes of their own over DDS, ROS 2 and ZeroMQ; a tap hears what the
robot hears. `--quick` takes under 10 minutes on 2 idle cores, with smaller counts, which it states; in full
it is an hour. Every case is written down as it ends; `--only` measures some and leaves the file's other rows,
`--resume` goes on. Prints a table; the last line is one JSON document. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

# As on a robot: with LOCALHOST, rmw_fastrtps uses shared memory, which killed nodes can leave unusable.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
os.environ.setdefault("ROS_DOMAIN_ID", "57")

from figures import Figure
from ledger import Ledger, Part, measure, parse_parts, part_arguments
from robot_bench import Bench
from robot_cases import CASES
from robot_faults import faults, states
from robot_gate import obstacles, plans
from robot_missions import missions
from robot_start import starts

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.process_stack import Processes
from vlm_spec_decode.sim.physics.physical_world import BODIES

SEED = 20260


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each case is run; a cloud is lost in each of three ways so often."""

    stops: int
    kills: int
    clouds: int
    cameras: int
    obstacles: int
    frames: int
    plans: int = 100_000
    virtual: int = 100
    missions: int = 20
    states: int = 3
    faulty: int = 12


FULL = Counts(stops=200, kills=50, clouds=17, cameras=50, obstacles=100, frames=600)
QUICK = Counts(stops=20, kills=3, clouds=2, cameras=3, obstacles=3, frames=100, plans=20_000, virtual=50,
               missions=1, states=1, faulty=2)  # fmt: skip


COUNTED = {
    "idle": "frames",
    "overlay": "frames",
    "e_stop": "stops",
    "obstacle": "obstacles",
    "locomotion": "kills",
    "camera": "cameras",
    "vlm": "kills",
    "cloud": "clouds",
    "states": "states",
}
"""Which count each case takes."""

PARTS = (*CASES, "gate", "start", "faults", "missions")


def run(case: str, bench: Bench, count: int) -> list[Figure]:
    """Return a case's figures; if it could not be measured, one figure with the reason."""
    try:
        found = CASES[case](bench, count)
    except SystemExit as problem:
        found = [Figure(f"{case}_measured", 0, 1, "at least", f"not measured: {problem}")]
    # JSON knows no infinity.
    found = [replace(figure, value=min(figure.value, 1e9)) for figure in found]
    for figure in found:
        print_line(f"  {figure.name} {figure.value:.4g} ({figure.note})")
    return found


@contextmanager
def cases(counts: Counts, out: Path, body: str) -> Iterator[dict[str, Part]]:
    """Give the parts by name. The processes come up with the first part that needs them."""
    with ExitStack() as stack:

        @cache
        def bench() -> Bench:
            settings = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "osmesa"}
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsd-robot-"))
            processes = stack.enter_context(Processes(out / "logs", WallClock(), settings))
            return stack.enter_context(Bench(processes, Path(name), out, body))

        def gate() -> list[Figure]:
            return [plans(counts.plans, SEED), obstacles(counts.virtual, SEED)]

        def start() -> list[Figure]:
            return starts(5 * counts.virtual, SEED)

        def faulty() -> list[Figure]:
            return [*faults(counts.faulty, SEED), *states(counts.faulty, SEED)]

        def pairs() -> list[Figure]:
            return missions(counts.missions, out / "missions")

        def part(name: str) -> Part:
            return lambda: run(name, bench(), getattr(counts, COUNTED[name]))

        yield {name: part(name) for name in CASES} | {
            "gate": gate,
            "start": start,
            "faults": faulty,
            "missions": pairs,
        }


def print_line(text: str) -> None:
    """Print a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = part_arguments(__doc__, PARTS, "robot")
    parser.add_argument("--body", default="kinematic", choices=list(BODIES), help="of the simulated robot")
    options, wanted = parse_parts(parser, PARTS)
    options.out.mkdir(parents=True, exist_ok=True)
    counts = QUICK if options.quick else FULL
    print_line("counts: " + ", ".join(f"{count} {name}" for name, count in asdict(counts).items()))
    # Measuring threads must not wait 5 ms for the interpreter lock each time.
    sys.setswitchinterval(0.0005)
    results = options.results or options.out / f"{options.body}.json"
    ledger = Ledger(results, PARTS, quick=options.quick)
    with cases(counts, options.out, options.body) as parts:
        return measure(parts, ledger, wanted, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
