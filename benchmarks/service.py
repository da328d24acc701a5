"""The verifier as a service: many robots, hostile links, strangers at the door, measured against their bars.

    python benchmarks/service.py [--quick] [--only NAME,…] [--out FOLDER]

Batching is measured in virtual time: real desk, protocol and models, a profile's durations. Killed clouds,
floods and strangers are real processes and sockets, around a target that is a hash. `--quick` takes under 10
minutes on 2 idle cores, with smaller counts, which it states. Prints a table; the last line is one JSON
document. The exit code is 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import service_faults
import service_fleet
import service_hostile
import service_replicas
from figures import Figure, report

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.processes import Processes


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of each case is run."""

    robots: int
    batched: int
    first_action: int
    overload: int
    killed: int
    two_clouds: int
    replica: int
    link_runs: int
    malformed: int
    strangers: int
    soak: int


FULL = Counts(64, 6, 10, 4, 100, 100, 100, 10_000, 1_000_000, 10_000, 10_000)
QUICK = Counts(64, 2, 2, 2, 10, 40, 40, 100, 50_000, 500, 2000)


def cases(counts: Counts, processes: Processes, folder: Path) -> dict[str, Callable[[], list[Figure]]]:
    """Return the cases by name, those in virtual time first."""
    rooms: list[service_fleet.Room] = []

    def room() -> service_fleet.Room:
        rooms[:] = rooms or [service_fleet.Room()]
        return rooms[0]

    return {
        "equal": lambda: service_fleet.equal(room(), counts.robots),
        "batched": lambda: service_fleet.batched(room(), counts.batched),
        "first_action": lambda: service_fleet.first_action(room(), counts.first_action),
        "overload": lambda: service_fleet.overload(room(), counts.overload),
        "killed": lambda: service_faults.killed(processes, folder, counts.killed),
        "two_clouds": lambda: service_faults.two_clouds(processes, folder, counts.two_clouds),
        "replica": lambda: service_replicas.replica_killed(folder, counts.replica),
        "link_runs": lambda: service_hostile.link_runs(counts.link_runs),
        "malformed": lambda: service_hostile.malformed(processes, folder, counts.malformed),
        "strangers": lambda: service_hostile.strangers(folder, counts.strangers),
        "soak": lambda: service_faults.soak(processes, folder, counts.soak),
    }


def measure(counts: Counts, only: set[str], out: Path) -> tuple[list[Figure], dict[str, float]]:
    """Run the cases that are wanted; return their figures and how long each took."""
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="vsd-service-") as name,
        Processes(out / "logs", WallClock(), {"OMP_NUM_THREADS": "1"}) as processes,
    ):
        for case, run in cases(counts, processes, Path(name)).items():
            if only and case not in only:
                continue
            print(f"… {case}", file=sys.stderr, flush=True)
            started_s = time.monotonic()
            figures += run()
            seconds[case] = round(time.monotonic() - started_s, 1)
    return figures, seconds


def main() -> int:
    """Measure, print, and say whether every bar is held."""
    known = ", ".join(cases(QUICK, Processes(Path(), WallClock(), {}), Path()))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="smaller counts; under 10 minutes on 2 cores")
    parser.add_argument("--only", default="", help=f"of: {known}")
    parser.add_argument(
        "--out", type=Path, default=Path("out/service"), help="folder of logs and service.json"
    )
    options = parser.parse_args()
    only = {name for name in options.only.split(",") if name}
    if not only <= set(known.split(", ")):
        parser.error(f"--only: choose of {known}")
    options.out.mkdir(parents=True, exist_ok=True)
    figures, seconds = measure(QUICK if options.quick else FULL, only, options.out)
    return report(figures, options.out / "service.json", quick=options.quick, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
