"""Use of a terminal, measured: start-up, the stop, instructions while recording, ends of `vsd say`.

    python benchmarks/hardening_terminal.py [--quick] [--out FILE]

Simulator, cloud and nodes are processes of their own and the robot's DDS is listened to from outside, as in
benchmarks/robot.py. Every command is a process that starts anew, so all times hold the start of Python.
Needs two idle cores: the models decode beside everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import random
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, report
from robot_bench import DDS_DOMAIN, Bench
from robot_rig import until
from rosbags.highlevel import AnyReader

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.process_stack import Processes

VSD = (sys.executable, "-m", "vlm_spec_decode.cli")
GOAL = "walk to the red box"
WALKS_MPS = 0.15
REST_S = 1.5
SAY_S = 60.0
ENDS = ("SIGINT", "SIGTERM", "SIGHUP", "closed terminal", "kill -9")


def cpu_of(command: tuple[str, ...], times: int) -> float:
    """Return the median processor time of a command, in seconds."""
    spent = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


def start_up(times: int) -> Figure:
    """Measure the processor time of `vsd --help` beyond that of an interpreter that does nothing."""
    bare_s, help_s = cpu_of((sys.executable, "-c", "pass"), times), cpu_of((*VSD, "--help"), times)
    note = f"CPU seconds: {help_s:.2f}, `python -c pass` {bare_s:.2f}; median of {times}"
    return Figure("help_cpu_s", help_s - bare_s, 0.3, "at most", note)


def stops(bench: Bench, times: int) -> Figure:
    """Measure the time from the start of `vsd stop` to the StopMove at the robot's DDS service."""
    spent, bad = [], 0
    for _ in range(times):
        until(lambda: bench.tap.is_still, 20, "standstill")
        time.sleep(0.3)
        began_s = time.monotonic()
        done = subprocess.run((*VSD, "stop"), capture_output=True, text=True, timeout=60, check=False)
        at_s = bench.tap.first_stop(began_s)
        spent.append(60.0 if at_s is None else at_s - began_s)
        bad += done.returncode != 0
        bench.operator.estop(False)
    note = f"median of {times}; worst {max(spent):.2f} s, {bad} with another code than 0"
    return Figure("stop_median_s", statistics.median(spent), 1.0, "at most", note)


@dataclass(frozen=True, slots=True)
class SayRun:
    """One run of `vsd say`: its exit code, mission, final status, and its text for people."""

    code: int
    mission: str
    status: str
    words: str


def say_while_recording(bench: Bench, folder: Path, count: int, rng: random.Random) -> list[Figure]:
    """Run `vsd say` at random times while `vsd record` runs, and look for each request in node and bag."""
    bag = folder / "bag"
    recorder = bench.processes.start("record", ["-m", "vlm_spec_decode.cli", "record", str(bag), "--json"])
    until(lambda: "recording" in recorder.log.read_text(), 30, "vsd record")
    time.sleep(2.0)
    runs = []
    for _ in range(count):
        time.sleep(rng.uniform(0.0, 0.5))
        command = (*VSD, "say", GOAL, "--dry-run", "--timeout", str(SAY_S), "--json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=SAY_S + 30, check=False)
        lines = done.stdout.strip().splitlines()
        document = json.loads(lines[-1]) if lines else {}
        words = done.stderr
        runs.append(SayRun(done.returncode, document.get("mission", ""), document.get("status", ""), words))
    time.sleep(1.0)
    os.kill(recorder.popen.pid, signal.SIGINT)
    recorder.popen.wait(30)
    document = json.loads(recorder.log.read_text().strip().splitlines()[-1])
    bench.processes.stop(["record"])
    missions = {one.mission for one in runs}
    taken = missions & {status.mission for _, status in list(bench.operator.vlm_statuses)}
    recorded = missions & requests_in(bag)
    silent = sum(not one.words.strip() or not one.status for one in runs)
    codes = sorted({one.code for one in runs})
    note = f"of {count}; exit codes {codes}"
    missed = f"of {count}; the recorder counts {document['missed']} missed messages"
    return [
        Figure("say_taken", float(len(taken)), float(count), "at least", note),
        Figure("say_recorded", float(len(recorded)), float(count), "at least", missed),
        Figure("say_in_silence", float(silent), 0.0, "at most", note),
    ]


def requests_in(bag: Path) -> set[str]:
    """Return the missions whose requests are in a bag."""
    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic.endswith("vlm/request")]
        found = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages(connections)]
    return {message.mission for message in found}


class Terminal:
    """`vsd say` in a pseudo-terminal of its own, as in a desktop window or over ssh."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.execv(VSD[0], [*VSD, *arguments])
        self.output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._closing = threading.Event()
        self._reader.start()

    def _read(self) -> None:
        """Read with short waits: a blocking read would keep the terminal open beyond its close."""
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                if select.select([self._end], [], [], 0.01)[0]:
                    self.output += os.read(self._end, 4096)

    def close(self) -> None:
        """Close the terminal: the kernel sends SIGHUP, and all writes fail from now on."""
        if not self._closing.is_set():
            self._closing.set()
            self._reader.join()
            os.close(self._end)

    def wait(self) -> int:
        """Wait for the process; return its exit code."""
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return 999


def ended(bench: Bench, times: int) -> list[Figure]:
    """End `vsd say` in every way while the robot walks; measure the time until it stands."""
    figures = []
    for way in ENDS:
        spent = [end_one(bench, way) for _ in range(times)]
        rested = sum(second <= REST_S for second in spent) / times
        note = f"share at rest within {REST_S} s, of {times}; worst {max(spent):.2f} s"
        figures.append(Figure(f"rest_{way.replace(' ', '_')}", rested, 1.0, "at least", note))
    return figures


def end_one(bench: Bench, way: str) -> float:
    """Return the seconds from the end of one `vsd say` to standstill."""
    if bench.operator.pose[0] > -1.2:
        bench.home()
    actions: dict[str, Callable[[Terminal], None]] = {
        "closed terminal": Terminal.close,
        "kill -9": lambda terminal: os.kill(terminal.pid, signal.SIGKILL),
    }
    end = actions.get(way, lambda terminal: os.kill(terminal.pid, getattr(signal, way)))
    for _ in range(5):
        terminal = Terminal("say", GOAL)
        deadline_s = time.monotonic() + SAY_S
        while time.monotonic() < deadline_s and bench.tap.speed_mps < WALKS_MPS:
            time.sleep(0.005)
        if bench.tap.speed_mps >= WALKS_MPS:
            at_s = time.monotonic()
            end(terminal)
            stands_s = standing(bench, at_s)
            terminal.wait()
            terminal.close()
            return stands_s
        terminal.close()
        terminal.wait()
        bench.home()
    raise SystemExit(f"the robot does not walk: {terminal.output.decode(errors='replace')[-400:]}")


def standing(bench: Bench, from_s: float) -> float:
    """Return the seconds until the robot stands for at least a second."""
    deadline_s = from_s + 20.0
    while time.monotonic() < deadline_s:
        time.sleep(0.05)
        states = [row for row in list(bench.tap.states) if row[0] >= from_s]
        moving = [row[0] for row in states if row[4] >= 0.03 or row[5] >= 0.05]
        if states and (not moving or states[-1][0] - moving[-1] > 1.0) and states[-1][0] > from_s + 1.0:
            return moving[-1] - from_s if moving else 0.0
    return deadline_s - from_s


def figures(quick: bool) -> list[Figure]:
    """Return all figures of this file."""
    found = [start_up(3 if quick else 10)]
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    environment = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "osmesa", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with (
            Processes(folder / "logs", WallClock(), environment) as processes,
            Bench(processes, folder) as bench,
        ):
            bench.vlm()
            found.append(stops(bench, 5 if quick else 20))
            found += say_while_recording(bench, folder, 10 if quick else 100, random.Random(17))
            found += ended(bench, 2 if quick else 20)
    return found


def main() -> int:
    """Run, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Fewer of each; two minutes.")
    parser.add_argument("--out", type=Path, default=Path("out/hardening_terminal.json"))
    options = parser.parse_args()
    return report(figures(options.quick), options.out, dds_domain=DDS_DOMAIN)


if __name__ == "__main__":
    sys.exit(main())
