"""What benchmarks/robot.py measures with: a tap on the robot's DDS, and a link to cut.

All times are of the monotonic clock, which the processes of one machine share.
"""

from __future__ import annotations

import bisect
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration
from unitree_sdk2py.idl.unitree_api.msg.dds_ import Request_
from unitree_sdk2py.idl.unitree_go.msg.dds_ import SportModeState_

from vlm_spec_decode.sim.go2.dds import open_domain

STOP_MOVE, MOVE = 1003, 1008


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Return the first true value of `condition`; after `timeout_s` end the benchmark with `what`."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := condition():
            return found
        time.sleep(0.005)
    raise SystemExit(f"{what}: not within {timeout_s:.0f} s")


class Tap:
    """Records the requests to the sport service and the robot's states, by a DDS reader like the robot's."""

    def __init__(self, domain: int) -> None:
        self._dds = open_domain(domain, "lo")
        qos = Qos(Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.History.KeepLast(64))
        part = self._dds.participant
        self._requests = DataReader(part, Topic(part, "rt/api/sport/request", Request_), qos)
        self._states = DataReader(part, Topic(part, "rt/sportmodestate", SportModeState_))
        self.requests: list[tuple[float, int]] = []
        self.states: list[tuple[float, float, float, float, float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            # Samples without data mean that a writer was removed: a driver was killed.
            for request in (r for r in self._requests.take(N=64) if isinstance(r, Request_)):
                self.requests.append((time.monotonic(), request.header.identity.api_id))
            for state in (s for s in self._states.take(N=8) if isinstance(s, SportModeState_)):
                speed = math.hypot(state.velocity[0], state.velocity[1])
                x, y, yaw = state.position[0], state.position[1], state.imu_state.rpy[2]
                self.states.append((time.monotonic(), x, y, yaw, speed, abs(state.yaw_speed)))
            time.sleep(0.001)

    def first_stop(self, after_s: float) -> float | None:
        """Return when the first StopMove after a moment arrived."""
        return next((at for at, api in list(self.requests) if api == STOP_MOVE and at >= after_s), None)

    def moves(self, after_s: float, before_s: float = math.inf) -> int:
        """Return how many Moves arrived in between."""
        return sum(api == MOVE and after_s <= at < before_s for at, api in list(self.requests))

    @property
    def speed_mps(self) -> float:
        """Newest speed."""
        return self.states[-1][4] if self.states else 0.0

    @property
    def is_still(self) -> bool:
        """Whether the body stands."""
        return bool(self.states) and self.states[-1][4] < 0.03 and self.states[-1][5] < 0.05

    @property
    def pose(self) -> tuple[float, float, float]:
        """Newest pose."""
        return self.states[-1][1:4]

    def braking(self, from_s: float) -> tuple[float, float]:
        """Return time and distance from a moment to standstill."""
        states = list(self.states)
        first = max(0, bisect.bisect([row[0] for row in states], from_s) - 1)
        x, y = states[first][1:3]
        for at, now_x, now_y, _, speed, turning in states[first:]:
            if at > from_s and speed < 0.03 and turning < 0.05:
                return at - from_s, math.hypot(now_x - x, now_y - y)
        return math.inf, math.inf

    def close(self) -> None:
        """Stop the thread."""
        self._ended.set()
        self._thread.join(2)


class Wire:
    """A TCP proxy in front of the cloud that can be cut: the sockets stay open, but no bytes pass."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.is_cut = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
            except OSError:
                if self._server.fileno() < 0:
                    return
                near.close()
                continue
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self.is_cut.is_set():
                    sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def mend(self) -> None:
        """Let new connections pass again; the open ones break, as after an outage."""
        self.is_cut.clear()
        for end in self._open:
            end.close()
        self._open.clear()

    def close(self) -> None:
        """Close everything."""
        self._server.close()
        self.mend()


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    parts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def freeze(pid: int, frozen: bool) -> None:
    """Suspend a process, or let it continue."""
    os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)
