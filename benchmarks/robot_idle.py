"""The case `idle` of benchmarks/robot.py: what the processes on the robot's computer take, idle and busy.

The nodes run as a launch starts them, without a lidar's scan, beside a terminal's node that listens to their
topics. Processor time is that of /proc, user and system, so that other work on the machine does not count.
Idle: nothing is asked; the console is served, first without a page, then with one that shows the video.
Busy: a mission walks and answers are decoded, the page still open.

Memory: resident, and the proportional share, in which pages that processes share are divided among them.
Energy: counters of the whole machine, where it has them: RAPL's of a processor, or a Jetson's INA3221.

`processes.json`, in the folder of the run, has every process; `benchmarks/tables.py` writes it as a table.
"""

from __future__ import annotations

import itertools
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import websockets.exceptions
import websockets.sync.client
from figures import Figure, commit, load, machine
from lib.energy import EnergyMeter, watts
from robot_bench import DDS_DOMAIN, SCAN, START_S, Bench
from robot_rig import cpu_s, until

from vlm_spec_decode.mission.state import END_STATES
from vlm_spec_decode.serve.console.app import SUBPROTOCOL

NODES = ("camera_node", "locomotion_node", "vlm_node", "monitor_node")
CONSOLE = "console_node"
INSTRUCTION = "walk to the red box"
SETTLE_S = 5.0
PING_S = 1.0
"""How often an open page says that it is there."""

LOCOMOTION_BAR, CLOSED_BAR, OPEN_BAR = 0.06, 0.15, 0.35


def idle(bench: Bench, count: int) -> list[Figure]:
    """Measure all; `count` tenths of a second, at most 30 s, for each state."""
    seconds = min(30.0, count / 20)
    robot = {"interface": "lo", "domain": DDS_DOMAIN}
    bench.kill("locomotion_node")
    bench.node("locomotion_node", **robot)
    bench.vlm()
    bench.node("monitor_node")
    port, token = _free_port(), secrets.token_hex(16)
    tokens = bench.folder / "console.tokens"
    tokens.touch(0o600)
    tokens.write_text(f"bench {token} command\n", encoding="utf-8")
    bench.node(CONSOLE, bind=f"127.0.0.1:{port}", tokens=tokens)
    until(lambda: _answers(port), START_S, "the console")
    found = {name: _Process() for name in (*NODES, CONSOLE)}
    power: dict[str, float | None] = {}
    try:
        _measure(bench, "idle", seconds, found, power)
        with _Page(port, token):
            _measure(bench, "open", seconds, found, power)
            mission = bench.name()
            bench.operator.ask(INSTRUCTION, mission)
            until(lambda: "answering" in bench.operator.states(mission), 60, "an answer")
            _measure(bench, "busy", min(10.0, seconds), found, power, settle_s=0.0)
        for name, process in found.items():
            process.resident_mb, process.share_mb = memory_mb(bench.pid(name))
    finally:
        if not END_STATES & set(bench.operator.states(mission := f"t{bench.trial}")):
            bench.operator.withdraw(mission)
        for name in ("vlm_node", "monitor_node", CONSOLE, "locomotion_node"):
            bench.kill(name)
        bench.node("locomotion_node", **robot, **SCAN)
        before = len(bench.operator.statuses)
        until(lambda: len(bench.operator.statuses) > before, START_S, "robot")
        bench.home()
    _write(bench, found, power, seconds)
    return _figures(found, power, seconds)


@dataclass(slots=True)
class _Process:
    """What one process takes: shares of a core by state, and memory."""

    cores: dict[str, float] = field(default_factory=dict)
    resident_mb: float = 0.0
    share_mb: float = 0.0


def _figures(
    found: Mapping[str, _Process], power: Mapping[str, float | None], seconds: float
) -> list[Figure]:
    def total(state: str, *names: str) -> tuple[float, str]:
        shares = {name: found[name].cores[state] for name in names or found}
        parts = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        return sum(shares.values()), f"{parts} of a core, over {seconds:.0f} s"

    nodes, nodes_note = total("idle", *NODES)
    closed, closed_note = total("idle")
    is_open, open_note = total("open")
    told = "; ".join(f"{state} {watts(value)}" for state, value in power.items())
    return [
        Figure("idle_locomotion_cores", found["locomotion_node"].cores["idle"], LOCOMOTION_BAR, "at most"),
        Figure("idle_nodes_cores", nodes, CLOSED_BAR, "at most", nodes_note),
        Figure("idle_console_closed_cores", closed, CLOSED_BAR, "at most", closed_note),
        Figure("idle_console_open_cores", is_open, OPEN_BAR, "at most", f"{open_note}; machine: {told}"),
    ]


def _write(
    bench: Bench, found: Mapping[str, _Process], power: Mapping[str, float | None], seconds: float
) -> None:
    made = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "load": load()}
    document = {
        "seconds": seconds,
        "processes": {name: asdict(process) for name, process in found.items()},
        "power_w": power,
        "made": made,
    }
    path = bench.out / "processes.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _measure(
    bench: Bench,
    state: str,
    seconds: float,
    found: Mapping[str, _Process],
    power: dict[str, float | None],
    *,
    settle_s: float = SETTLE_S,
) -> None:
    """Note what each process uses of a core from now on, and the machine's power."""
    time.sleep(settle_s)
    meter = EnergyMeter()
    before, began_s = {name: cpu_s(bench.pid(name)) for name in found}, time.monotonic()
    time.sleep(seconds)
    spent_s = time.monotonic() - began_s
    for name, process in found.items():
        process.cores[state] = (cpu_s(bench.pid(name)) - before[name]) / spent_s
    power[state] = meter.stop()


def memory_mb(pid: int) -> tuple[float, float]:
    """Return resident memory of a process, and its proportional share, in MB (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines[1:])}
    return kib["Rss"] * 1024e-6, kib["Pss"] * 1024e-6


class _Page:
    """What a page in a browser is to the console: a socket of events, and one of pictures that it shows."""

    def __init__(self, port: int, token: str) -> None:
        protocols = [SUBPROTOCOL, f"token.{token}"]
        self._events, self._video = (
            websockets.sync.client.connect(f"ws://127.0.0.1:{port}/api/{kind}/robot", subprotocols=protocols)
            for kind in ("events", "video")
        )
        self.pictures = 0
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._hear, self._watch)]

    def __enter__(self) -> _Page:
        """Open it, and wait for the first picture."""
        for thread in self._threads:
            thread.start()
        until(lambda: self.pictures, START_S, "a picture")
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._events.close()
        self._video.close()
        for thread in self._threads:
            thread.join(5)

    def _hear(self) -> None:
        due_s = 0.0
        with suppress(websockets.exceptions.ConnectionClosed):
            for number in itertools.count():
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + PING_S
                    self._events.send(json.dumps({"type": "ping", "id": number}))
                with suppress(TimeoutError):
                    self._events.recv(timeout=PING_S)

    def _watch(self) -> None:
        with suppress(websockets.exceptions.ConnectionClosed):
            while True:
                self._video.recv()
                self.pictures += 1
                self._video.send("shown")


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number
