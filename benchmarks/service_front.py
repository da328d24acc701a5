"""Fronts and sites of benchmarks/service.py: what a front carries, and what is lost when one is replaced."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

from figures import ROOT, Figure
from lib.front_load import Carried, Crowd
from service_cloud import HELLO
from service_faults import START_S, cloud
from service_robot import Asking, footprint
from tqdm import tqdm

from vlm_spec_decode.demo.process_stack import ChildProcess, Processes
from vlm_spec_decode.transport.keys import generate

sys.path.insert(0, str(ROOT))

from test.net.line import lines_to

ADDED_MS = 5.0
"""Bar: what a front may add to the 99th percentile of the round trips."""

ROBOTS = 500
"""Bar: so many robots, at ten messages a second each."""

WINDOWS, WINDOW_S, WARM_S = 20, 0.5, 1.0
REPLACE_EVERY_S = 1.0
ASKERS = 4
NEAR_S, FAR_S = 0.001, 0.15


def front(
    processes: Processes, name: str, keys: Path, clouds: str, bind: str = "tcp://127.0.0.1:*"
) -> tuple[ChildProcess, str]:
    """Start a front with room for any load; return its process and address."""
    room = ["--key-robots", "100000", "--key-messages-per-s", "1000000", "--http", "off"]
    where = ["--bind", bind, "--keys", str(keys), "--clouds", clouds]
    process = processes.start(name, ["-m", "vlm_spec_decode.cli", "front", "--json", *where, *room])
    return process, str(processes.wait_ready(process, START_S)["address"])


def load(processes: Processes, folder: Path, most: int) -> list[Figure]:
    """What one front adds to the round trips of up to `most` robots, beside the same cloud without it.

    Both ways are measured in turn, in short windows, and the middle one of each counts: what other work on
    the machine does to some of them says nothing of the front. `ROBOTS` has to be `most` or half of it.
    """
    keys = folder / "load"
    generate(keys)
    _, direct = cloud(processes, "direct", keys, "tcp://127.0.0.1:*", "--open-door")
    _, behind = cloud(processes, "behind", keys, "tcp://127.0.0.1:*", "--fronts")
    process, address = front(processes, "front", keys, behind)
    added, told, carried = {}, {}, 0
    for robots in (most // 2, most):
        crowds = [Crowd(where, keys, robots, HELLO) for where in (direct, address)]
        for crowd in crowds:
            crowd.ping(WARM_S)
        past, through, spent_s = list[Carried](), list[Carried](), 0.0
        for _ in range(WINDOWS):
            past.append(crowds[0].ping(WINDOW_S))
            before_s = footprint(process.popen.pid).cpu_s
            through.append(crowds[1].ping(WINDOW_S))
            spent_s += footprint(process.popen.pid).cpu_s - before_s
        for crowd in crowds:
            crowd.close()
        sent, lost = sum(each.sent for each in through), sum(each.lost for each in through)
        added[robots] = _middle_ms(through, 99) - _middle_ms(past, 99)
        if added[robots] <= ADDED_MS and not lost:
            carried = robots
        told[robots] = (
            f"{robots} robots, {WINDOWS} windows of {WINDOW_S} s each way, {lost} of {sent} messages lost; "
            f"p99 {_middle_ms(through, 99):.1f} ms over {_middle_ms(past, 99):.1f}, "
            f"p50 {_middle_ms(through, 50):.1f} over {_middle_ms(past, 50):.1f}; "
            f"worst window {_worst_ms(through):.0f} over {_worst_ms(past):.0f}; "
            f"the front takes {1e6 * spent_s / sent:.0f} us of a core for a message and its reply"
        )
    processes.stop(["front", "behind", "direct"])
    steps = ", ".join(f"{robots}: {ms:.1f} ms" for robots, ms in added.items())
    return [
        Figure("front_added_p99_ms", added[ROBOTS], ADDED_MS, "at most", told[ROBOTS]),
        Figure("front_robots", carried, ROBOTS, "at least", f"p99 added by robots: {steps}"),
    ]


def _middle_ms(windows: list[Carried], percentile: float) -> float:
    """Return the median of the windows' percentiles."""
    return median(each.rtt_ms(percentile) for each in windows)


def _worst_ms(windows: list[Carried]) -> float:
    """Return the worst window's 99th percentile."""
    return max(each.rtt_ms(99) for each in windows)


def replaced(processes: Processes, folder: Path, answers: int) -> list[Figure]:
    """Answers lost while one of two fronts at one address is replaced all the time."""
    keys = folder / "replaced"
    generate(keys)
    _, behind = cloud(processes, "behind", keys, "tcp://127.0.0.1:*", "--fronts")
    _, address = front(processes, "front 0", keys, behind)
    front(processes, "front 1", keys, behind, address)
    askers = [Asking(address, keys, max_tokens=40).start() for _ in range(ASKERS)]
    number = 2

    def replace() -> None:
        nonlocal number
        front(processes, f"front {number}", keys, behind, address)
        processes.stop([f"front {number - 2}"])
        number += 1
        time.sleep(REPLACE_EVERY_S)

    _while_asked(askers, answers, replace)
    outcomes, total, text = _ended(askers)
    processes.stop([f"front {number - 2}", f"front {number - 1}", "behind"])
    note = f"{total} answers of {ASKERS} robots, {number - 2} fronts drained and replaced; {text}"
    return [Figure("front_replaced_lost", total - outcomes["right"], 0, "at most", note)]


def moved(processes: Processes, folder: Path, answers: int) -> list[Figure]:
    """Answers lost while the near one of two sites goes far away and all robots leave it."""
    keys = folder / "moved"
    generate(keys)
    clouds = [cloud(processes, name, keys)[1] for name in ("near", "far")]
    with (
        lines_to(clouds[0], 1, (NEAR_S, NEAR_S)) as (near,),
        lines_to(clouds[1], 1, (NEAR_S, NEAR_S)) as (far,),
    ):
        both = f"{near.address},{far.address}"
        askers = [Asking(both, keys, max_tokens=60, is_nearest=True).start() for _ in range(2 * ASKERS)]

        def worsen() -> None:
            if sum(sum(asker.outcomes.values()) for asker in askers) > answers // 4:
                near.delay_s = (FAR_S, FAR_S)
            time.sleep(0.05)

        _while_asked(askers, answers, worsen, lambda: all(asker.at == far.address for asker in askers))
        outcomes, total, text = _ended(askers)
    processes.stop(["near", "far"])
    away = sum(asker.at == far.address for asker in askers)
    note = f"{total} answers, {away} of {len(askers)} robots left the site whose round trip went from "
    note += f"{2000 * NEAR_S:.0f} to {2000 * FAR_S:.0f} ms; {text}"
    lost = total - outcomes["right"] + (len(askers) - away)
    return [Figure("site_moved_lost", lost, 0, "at most", note)]


def _while_asked(
    askers: list[Asking], answers: int, act: Callable[[], None], is_over: Callable[[], bool] = lambda: True
) -> None:
    """Repeat something until so many answers have ended and it `is_over`."""
    with tqdm(total=answers, desc="answers", disable=None, leave=False) as bar:
        while (done := sum(sum(asker.outcomes.values()) for asker in askers)) < answers or not is_over():
            bar.update(done - bar.n)
            act()


def _ended(askers: list[Asking]) -> tuple[Counter[str], int, str]:
    """Return the outcomes of all robots, how many they are, and what they are in words."""
    outcomes = sum((asker.stop() for asker in askers), Counter[str]())
    text = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    return outcomes, sum(outcomes.values()), text
