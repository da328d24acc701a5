"""A flood of malformed frames on a real cloud while robots ask: does it survive, and does its memory grow?"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from vlm_spec_decode.bench.load import LoadFleet, load
from vlm_spec_decode.bench.settings import LoadConfig, RobotBehaviour
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudTimeout
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.router import RouterLink

from .fuzz import malformed
from .replica_setting import setting_of, synthetic_server

BURST = 500
"""Frames sent in one turn of the robots' loop."""

PER_CONNECTION = 20_000
"""Frames sent over one connection."""

WARM_SHARE = 0.1
"""Share of the frames after which memory is measured for the first time."""

START_S = 120.0


def flood(frames: int, robots: int = 4, seed: int = 0) -> dict[str, Any]:
    """Send `frames` malformed frames to a cloud in another process while `robots` ask; return the figures.

    The cloud has no limits per key, so that every frame reaches the codec. Half of the connections send Hello
    first, so that readable messages get further. Bounded and on loopback only.
    """
    setting = setting_of("synthetic")
    with _cloud() as (pid, address, calls):
        sender = MalformedSender(address, setting.identity.hello, frames, seed, pid)
        try:
            config = LoadConfig(cloud=address, robots=robots, seconds=3600, give_up_s=60)
            config = replace(config, behaviour=RobotBehaviour(deadline_s=300, busy_s=300), questions=10**6)
            asked = load(config, setting.questions, setting.identity, WallClock(), sender)
        finally:
            sender.close()
        calls.send("dropped")
        dropped = calls.recv() if calls.poll(START_S) else None
        report, after = asked.report(), memory_bytes(pid)
    return {
        "frames": sender.sent,
        "alive": dropped is not None,
        "dropped": dropped,
        "asked": report["asked"],
        "right": report["right"],
        "seconds": report["seconds"],
        "memory_before_bytes": sender.warm_bytes,
        "memory_after_bytes": after,
        "memory_growth": after / sender.warm_bytes - 1,
    }


@dataclass(slots=True)
class MalformedSender:
    """Sends the frames, a burst a turn of the robots' loop, and ends the robots' run when all are sent."""

    address: str
    hello: Hello
    frames: int
    seed: int
    pid: int
    sent: int = 0
    warm_bytes: int = 0
    connections: int = 0
    _context: zmq.Context[Any] = field(default_factory=zmq.Context)
    _socket: zmq.Socket[bytes] | None = None

    def __call__(self, fleet: LoadFleet) -> None:
        """Send a burst."""
        if fleet.limit is None or self.sent >= self.frames:
            fleet.limit = fleet.assigned
            return
        for data in itertools.islice(self._source(), min(BURST, self.frames - self.sent)):
            if self._socket is None or self.sent >= self.connections * PER_CONNECTION:
                self._connect()
            if not self._send(data):
                break
        if not self.warm_bytes and self.sent >= WARM_SHARE * self.frames:
            self.warm_bytes = memory_bytes(self.pid)

    def close(self) -> None:
        """Free the sockets."""
        self._context.destroy(0)

    def _source(self) -> Iterator[bytes]:
        return malformed(self.hello, self.seed + self.sent)

    def _send(self, data: bytes) -> bool:
        assert self._socket is not None
        while self._socket.poll(0):
            self._socket.recv_multipart()
        if not self._socket.poll(1000, zmq.POLLOUT):
            return False
        self._socket.send(data)
        self.sent += 1
        return True

    def _connect(self) -> None:
        if self._socket is not None:
            self._socket.close(1000)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"\x02" + os.urandom(8))
        self._socket.connect(self.address)
        self.connections += 1
        if self.connections % 2:
            self._socket.send(codec.encode(self.hello))


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _cloud() -> Iterator[tuple[int, str, Any]]:
    """Run a cloud of the synthetic target in a process of its own; yield its pid and address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        if not here.poll(START_S):
            raise CloudTimeout("the cloud's process did not start")
        yield process.pid or 0, str(here.recv()), here
    finally:
        process.terminate()
        process.join(10)


def _serve(calls: Connection) -> None:
    """Serve until the process is ended; send the counts of dropped messages on request."""
    import threading

    no_limit = KeyLimits(messages_per_s=1e9, bytes_per_s=1e12)
    server = synthetic_server(RouterLink("tcp://127.0.0.1:*", None, no_limit))
    threading.Thread(target=server.serve, daemon=True).start()
    calls.send(server.address)
    while calls.recv():
        calls.send(dict(server.protocol.dropped))
