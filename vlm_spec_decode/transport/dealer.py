"""The robot's end of the link: one DEALER socket, owned by one thread.

Moves bytes and knows nothing of what they mean. With a link profile, both directions are delayed as that
link would delay them.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import zmq
from zmq.utils import monitor

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.profiles import LinkProfile
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.keys import EdgeKeys
from vlm_spec_decode.transport.shaper import Shaper, shapers

TICK_S = 0.05
MAX_MESSAGE_BYTES = 64 * 1024


@dataclass(order=True)
class _Flight:
    """A message under way on the emulated link; an empty `seq` tie keeps the order of sending."""

    due_s: float
    seq: int
    data: bytes = field(compare=False)
    is_up: bool = field(compare=False)


class DealerLink:
    """Sends and receives messages on a thread of its own; callbacks run on that thread.

    `keys` None means plaintext, which `transport.address` allows on loopback only. `address` may name several
    clouds that share one key, with commas between them; it connects to the first and `go_to` another.
    """

    def __init__(
        self,
        address: str,
        keys: EdgeKeys | None,
        clock: Clock,
        profile: LinkProfile | None = None,
        seed: int = 0,
    ) -> None:
        self.addresses = addresses.split_list(address)
        for one in self.addresses if keys is None else ():
            addresses.require_loopback(one)
        self.address = self.addresses[0]
        self.sent_bytes = 0
        self.received_bytes = 0
        self._keys = keys
        self._clock = clock
        self._shapers: tuple[Shaper, Shaper] | None = shapers(profile, seed) if profile else None
        self._flights: list[_Flight] = []
        self._seq = itertools.count()
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._context = zmq.Context()
        self._wake_send = self._context.socket(zmq.PAIR)
        self._wake_receive = self._context.socket(zmq.PAIR)
        endpoint = f"inproc://wake-{os.urandom(8).hex()}"
        self._wake_receive.bind(endpoint)
        self._wake_send.connect(endpoint)
        self._wake_lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: zmq.Socket[bytes] | None = None

    def start(
        self,
        on_message: Callable[[bytes], None],
        on_tick: Callable[[], None],
        on_handshake_failed: Callable[[str], None],
    ) -> None:
        """Connect and begin to call back. `on_tick` comes after every message and every 50 ms."""
        run = (on_message, on_tick, on_handshake_failed)
        self._thread = threading.Thread(target=self._run, args=run, name="vsd-link", daemon=True)
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the link's thread soon. May be called from any thread."""
        self._calls.put(call)
        with self._wake_lock:
            if not self._stopping.is_set():
                self._wake_send.send(b"", zmq.NOBLOCK)

    def send(self, data: bytes) -> None:
        """Send one message. Only from the link's thread, that is from a callback."""
        self.sent_bytes += len(data)
        if self._shapers:
            self._fly(self._shapers[0], data, is_up=True)
        else:
            self._transmit(data)

    def go_to(self, place: int) -> None:
        """Leave the cloud for that at `addresses[place]`. Only from the link's thread."""
        if self._socket and self.address != self.addresses[place]:
            self._socket.disconnect(self.address)
            self.address = self.addresses[place]
            self._socket.connect(self.address)

    def close(self) -> None:
        """Send what is due, stop the thread and free the sockets. Idempotent."""
        with self._wake_lock:
            if self._stopping.is_set():
                return
            self._wake_send.send(b"", zmq.NOBLOCK)
            self._stopping.set()
        if self._thread:
            self._thread.join(timeout=5)
        self._wake_send.close(0)
        self._wake_receive.close(0)
        self._context.term()

    def _run(
        self,
        on_message: Callable[[bytes], None],
        on_tick: Callable[[], None],
        on_handshake_failed: Callable[[str], None],
    ) -> None:
        self._socket = self._connect()
        watch = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        poller = zmq.Poller()
        for socket in (self._socket, self._wake_receive, watch):
            poller.register(socket, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(math.ceil(1000 * self._patience_s())))
                if self._wake_receive in ready:
                    self._drain_calls()
                if self._socket in ready:
                    self._drain_socket(on_message)
                if watch in ready:
                    on_handshake_failed(
                        zmq.Event(monitor.recv_monitor_message(watch)["event"]).name or "failed"
                    )
                self._land(on_message)
                on_tick()
            self._drain_calls()
        finally:
            self._socket.disable_monitor()
            self._socket.close(200 if not self._shapers else 0)

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, b"\x01" + os.urandom(12))
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if self._keys:
            socket.curve_publickey = self._keys.public
            socket.curve_secretkey = self._keys.secret
            socket.curve_serverkey = self._keys.cloud_public
        socket.connect(self.address)
        return socket

    def _drain_calls(self) -> None:
        while self._wake_receive.poll(0):
            self._wake_receive.recv()
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            call()

    def _drain_socket(self, on_message: Callable[[bytes], None]) -> None:
        assert self._socket is not None
        while self._socket.poll(0):
            data = b"".join(self._socket.recv_multipart())
            self.received_bytes += len(data)
            if self._shapers:
                self._fly(self._shapers[1], data, is_up=False)
            else:
                on_message(data)

    def _fly(self, shaper: Shaper, data: bytes, is_up: bool) -> None:
        due_s = shaper.arrival(len(data), self._clock.now())
        heapq.heappush(self._flights, _Flight(due_s, next(self._seq), data, is_up))

    def _land(self, on_message: Callable[[bytes], None]) -> None:
        while self._flights and self._flights[0].due_s <= self._clock.now():
            flight = heapq.heappop(self._flights)
            if flight.is_up:
                self._transmit(flight.data)
            else:
                on_message(flight.data)

    def _transmit(self, data: bytes) -> None:
        """Hand a message to ZeroMQ; with no connection it is lost, as on any link."""
        assert self._socket is not None
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return

    def _patience_s(self) -> float:
        if not self._flights:
            return TICK_S
        return min(TICK_S, max(0.0, self._flights[0].due_s - self._clock.now()))
