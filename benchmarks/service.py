"""The verifier as a service: many robots, hostile links, strangers at the door, measured against their bars.

    python benchmarks/service.py [--quick] [--only NAME,…] [--resume] [--out FOLDER] [--results FILE]

Batching is measured in virtual time: real server protocol and models, a profile's durations. Killed clouds,
floods and strangers are real processes and sockets, around a target that is a hash. `--quick` takes under 10
minutes on 2 idle cores, with smaller counts, which it states. Each part is written down as it ends, with
date, commit, machine and load of its own; `--resume` leaves out those that are there, at this commit and in
this size. Prints a table; the last line is one JSON document. The exit code is 1 if a figure misses its bar.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import service_faults
import service_front
import service_hostile
import service_replicas
from figures import Figure
from ledger import Ledger, Part, measure, parse_parts, part_arguments

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.process_stack import Processes


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
    front_load: int
    front_replaced: int
    site_moved: int
    link_runs: int
    malformed: int
    strangers: int
    soak: int


FULL = Counts(64, 6, 10, 4, 100, 100, 100, 1000, 100, 100, 10_000, 1_000_000, 10_000, 10_000)
QUICK = Counts(64, 2, 2, 2, 10, 40, 40, 500, 30, 30, 100, 50_000, 500, 2000)


def cases(counts: Counts, processes: Processes, folder: Path) -> dict[str, Part]:
    """Return the name of each part and its function, those in virtual time first."""
    return {
        "equal": _in_room("equal", counts.robots),
        "batched": _in_room("batched", counts.batched),
        "first_action": _in_room("first_action", counts.first_action),
        "overload": _in_room("overload", counts.overload),
        "killed": lambda: service_faults.killed(processes, folder, counts.killed),
        "two_clouds": lambda: service_faults.two_clouds(processes, folder, counts.two_clouds),
        "replica": lambda: service_replicas.replicas(folder / "replicas", counts.replica),
        "front_load": lambda: service_front.load(processes, folder, counts.front_load),
        "front_replaced": lambda: service_front.replaced(processes, folder, counts.front_replaced),
        "site_moved": lambda: service_front.moved(processes, folder, counts.site_moved),
        "link_runs": lambda: service_hostile.link_runs(counts.link_runs),
        "malformed": lambda: service_hostile.malformed(processes, folder, counts.malformed),
        "strangers": lambda: service_hostile.strangers(folder, counts.strangers),
        "soak": lambda: service_faults.soak(processes, folder, counts.soak),
    }


def _in_room(name: str, count: int) -> Part:
    """Return a part that needs the shipped models, which only it loads."""

    def run() -> Sequence[Figure]:
        import service_fleet

        figures: Sequence[Figure] = getattr(service_fleet, name)(service_fleet.room(), count)
        return figures

    return run


PARTS = tuple(cases(QUICK, Processes(Path(), WallClock(), {}), Path()))


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = part_arguments(__doc__, PARTS, "service")
    options, wanted = parse_parts(parser, PARTS)
    ledger = Ledger(options.results or options.out / "service.json", PARTS, quick=options.quick)
    with (
        tempfile.TemporaryDirectory(prefix="vsd-service-") as name,
        Processes(options.out / "logs", WallClock(), {"OMP_NUM_THREADS": "1"}) as processes,
    ):
        parts = cases(QUICK if options.quick else FULL, processes, Path(name))
        return measure(parts, ledger, wanted, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
