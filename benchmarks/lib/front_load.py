"""Many robots' pings over real sockets from one process: what a front, or a cloud, carries and how fast.

One ROUTER socket connects once for each robot, every connection with its own routing id, so that the load
costs little beside what is measured. Every robot pings ten times a second, as with an answer under way.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zmq

from vlm_spec_decode.core.types import MAX_MESSAGE_BYTES
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import Hello, Ping, Pong, Welcome
from vlm_spec_decode.transport.keys import edge_keys

PERIOD_S = 0.1
"""Every robot sends a message so often."""

HANDSHAKES = 32
"""Connections that are under way at the same time, at most: a robot's handshake costs a millisecond."""

HELLO_S = 1.0
"""A robot that was not welcomed says Hello again after this time: no cloud may have been there."""

START_S = 60.0


@dataclass(slots=True, kw_only=True)
class Carried:
    """What came back: round trips in seconds, messages sent, and how long it took."""

    rtts_s: list[float] = field(default_factory=list)
    sent: int = 0
    seconds: float = 0.0

    def rtt_ms(self, percentile: float) -> float:
        """Return a percentile of the round trips; infinity if none came back."""
        return 1000 * float(np.percentile(self.rtts_s, percentile)) if self.rtts_s else float("inf")

    @property
    def lost(self) -> int:
        """Messages that nothing came back for."""
        return self.sent - len(self.rtts_s)


class Crowd:
    """Robots that are connected and welcome until `close`."""

    def __init__(self, address: str, keys: Path, robots: int, hello: Hello) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        own = edge_keys(keys)
        self._socket.curve_publickey, self._socket.curve_secretkey = own.public, own.secret
        self._socket.curve_serverkey = own.cloud_public
        self._names = [number.to_bytes(4, "big") for number in range(1, robots + 1)]
        self._welcome: set[bytes] = set()
        greeting, until_s = codec.encode(hello), time.monotonic() + START_S
        for first in range(0, robots, HANDSHAKES):
            group = self._names[first : first + HANDSHAKES]
            for name in group:
                self._socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(12))
                self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, name)
                self._socket.connect(address)
            hello_s = 0.0
            while waiting := [name for name in group if name not in self._welcome]:
                if time.monotonic() > until_s:
                    raise TimeoutError(f"{len(self._welcome)} of {robots} robots were welcomed")
                if time.monotonic() >= hello_s:
                    hello_s = time.monotonic() + HELLO_S
                    for name in waiting:
                        self._socket.send_multipart([name, greeting])
                self._receive(0.05, Carried())

    def ping(self, seconds: float) -> Carried:
        """Let every robot ping for so long, spread evenly over each period."""
        found = Carried()
        started_s = due_s = time.monotonic()
        gap_s, turn = PERIOD_S / len(self._names), 0
        while due_s < started_s + seconds:
            self._receive(max(0.0, due_s - time.monotonic()), found)
            while due_s <= (now_s := time.monotonic()) and due_s < started_s + seconds:
                ping = Ping(round(now_s * 1e6), 0, 0, 0, False)
                self._socket.send(self._names[turn], zmq.SNDMORE)
                self._socket.send(codec.encode(ping))
                found.sent += 1
                turn, due_s = (turn + 1) % len(self._names), due_s + gap_s
        found.seconds = time.monotonic() - started_s
        until_s = time.monotonic() + 2.0
        while found.lost and time.monotonic() < until_s:
            self._receive(0.05, found)
        return found

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(0)
        self._context.term()

    def _receive(self, timeout_s: float, found: Carried) -> None:
        if not self._socket.poll(round(1000 * timeout_s)):
            return
        while True:
            try:
                name = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = codec.decode(self._socket.recv())
            if isinstance(message, Pong):
                found.rtts_s.append(time.monotonic() - message.stamp_us / 1e6)
            elif isinstance(message, Welcome):
                self._welcome.add(name)
