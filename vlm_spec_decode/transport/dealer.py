"""The robot's end of the link: one DEALER socket, owned by one thread.

Moves bytes independent of their content. With a link profile, both directions are delayed as on that link.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import zmq

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.profiles import LinkProfile
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.connection import (
    EDGE_NEEDS,
    Connection,
    HandshakeFailure,
    Waker,
    require_descriptors,
)
from vlm_spec_decode.transport.emulation import EmulatedDirection, emulated_directions
from vlm_spec_decode.transport.keys import EdgeKeys

TICK_S = 0.05


@dataclass(order=True)
class _DelayedMessage:
    """A message under way on the emulated link; `seq` keeps the order of sending at equal times."""

    due_s: float
    seq: int
    data: bytes = field(compare=False)
    is_up: bool = field(compare=False)


class DealerLink:
    """Sends and receives messages on a thread of its own; callbacks run on that thread.

    `keys` None means plaintext, which `transport.address` allows on loopback only. `address` may name several
    clouds that share one key, with commas between them; it connects to the first and `switch_to` another.
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
        self._needs_ipv6 = {one: addresses.needs_ipv6(one) for one in self.addresses}
        self.sent_bytes = 0
        self.received_bytes = 0
        self._keys = keys
        self._clock = clock
        self._emulation: tuple[EmulatedDirection, EmulatedDirection] | None = (
            emulated_directions(profile, seed) if profile else None
        )
        self._delayed: list[_DelayedMessage] = []
        self._seq = itertools.count()
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._posting = threading.Lock()
        self._takes_calls = True
        require_descriptors(EDGE_NEEDS, "a connection to a cloud")
        self._context = zmq.Context()
        self._waker = Waker()
        self._closing = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None

    @property
    def failures(self) -> set[HandshakeFailure]:
        """Why handshakes failed since one succeeded."""
        return set(self._connection.failures) if self._connection else set()

    def start(
        self,
        on_message: Callable[[bytes], None],
        on_tick: Callable[[], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect and start the link's thread.

        `on_tick` is called every 50 ms and after what came together, messages and posted calls; `on_end`
        once, when the thread ends: all posted calls have run by then, and no more are taken.
        """
        run = (on_message, on_tick, on_end)
        self._thread = threading.Thread(target=self._run, args=run, name="vsd-link", daemon=True)
        self._thread.start()

    def post(self, call: Callable[[], None]) -> bool:
        """Run `call` on the link's thread soon; return False if that has ended. From any thread."""
        with self._posting:
            if not self._takes_calls:
                return False
            self._calls.put(call)
        self._waker.wake()
        return True

    def send(self, data: bytes) -> None:
        """Send one message. Only from the link's thread, that is from a callback."""
        self.sent_bytes += len(data)
        if self._emulation:
            self._delay(self._emulation[0], data, is_up=True)
        else:
            self._transmit(data)

    def switch_to(self, index: int) -> None:
        """Connect to the cloud at `addresses[index]` instead. Only from the link's thread."""
        if self._connection and self.address != self.addresses[index]:
            self.address = self.addresses[index]
            self._connection.switch_to(self.address)

    def prepare(self, index: int) -> None:
        """Start a connection to the cloud at `addresses[index]` beside the one in use.

        Only from the link's thread, as the next three.
        """
        if self._connection:
            self._connection.prepare(self.addresses[index])

    @property
    def is_prepared(self) -> bool:
        """Whether that connection is ready to be used."""
        return self._connection is not None and self._connection.is_prepared

    def enter_prepared(self, index: int) -> None:
        """Use that connection, to the cloud at `addresses[index]`, and leave the other one."""
        if self._connection:
            self.address = self.addresses[index]
            self._connection.enter_prepared()

    def cancel_preparation(self) -> None:
        """Close that connection if there is one."""
        if self._connection:
            self._connection.cancel_preparation()

    def renew(self) -> None:
        """Start a second connection (see `Connection`). Only from the link's thread."""
        if self._connection:
            self._connection.renew()

    def cancel_renewal(self) -> None:
        """Close the second connection if there is one. Only from the link's thread."""
        if self._connection:
            self._connection.cancel_renewal()

    def was_connected(self) -> bool:
        """Return True once for each connection that was established. Only from the link's thread."""
        return self._connection is not None and self._connection.was_connected()

    def close(self) -> None:
        """Send what was posted, stop the thread and free the sockets. Idempotent."""
        with self._closing:
            if self._stopping.is_set():
                return
            self._stopping.set()
        self._waker.wake()
        if self._thread:
            self._thread.join(timeout=5)
        self._waker.close()
        self._context.term()

    def _run(
        self, on_message: Callable[[bytes], None], on_tick: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        ipv6 = self._needs_ipv6[self.address]
        self._connection = Connection(self._context, self.address, self._keys, ipv6=ipv6)
        try:
            poller = self._poller(self._connection)
            while not self._stopping.is_set():
                if self._connection.has_changed:
                    poller = self._poller(self._connection)
                ready = [source for source, _ in poller.poll(math.ceil(1000 * self._poll_timeout_s()))]
                if is_woken := self._waker.fileno() in ready:
                    self._waker.clear()
                self._drain_calls()
                if len(ready) > is_woken:
                    self._drain_connection(on_message)
                self._deliver_due(on_message)
                on_tick()
            self._refuse_calls()
            self._drain_calls()
            on_tick()
        finally:
            self._refuse_calls()  # also after an error
            on_end()
            self._connection.close(200 if not self._emulation else 0)

    def _poller(self, connection: Connection) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._waker.fileno(), zmq.POLLIN)
        for socket in connection.sockets():
            poller.register(socket, zmq.POLLIN)
        return poller

    def _refuse_calls(self) -> None:
        with self._posting:
            self._takes_calls = False

    def _drain_calls(self) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            call()

    def _drain_connection(self, on_message: Callable[[bytes], None]) -> None:
        assert self._connection is not None
        for data in self._connection.receive():
            self.received_bytes += len(data)
            if self._emulation:
                self._delay(self._emulation[1], data, is_up=False)
            else:
                on_message(data)

    def _delay(self, direction: EmulatedDirection, data: bytes, is_up: bool) -> None:
        due_s = direction.arrival(len(data), self._clock.now())
        heapq.heappush(self._delayed, _DelayedMessage(due_s, next(self._seq), data, is_up))

    def _deliver_due(self, on_message: Callable[[bytes], None]) -> None:
        while self._delayed and self._delayed[0].due_s <= self._clock.now():
            delayed = heapq.heappop(self._delayed)
            if delayed.is_up:
                self._transmit(delayed.data)
            else:
                on_message(delayed.data)

    def _transmit(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.send(data)

    def _poll_timeout_s(self) -> float:
        if not self._delayed:
            return TICK_S
        return min(TICK_S, max(0.0, self._delayed[0].due_s - self._clock.now()))
