"""One robot's connection to its cloud, and a second one beside it while the first may be damaged.

ZeroMQ reconnects a lost TCP connection, but not one with unreadable data: after a damaged frame a client
does not connect again, and after a damaged length either end waits for bytes that never come. The caller
that notices the silence calls `renew`. The new connection has the same routing id, so that the cloud
continues with the same robot, and takes over once its handshake is done; until then the old one may
recover. This module also has what both ends share: the TCP options, the pipe that wakes a link's thread, and
the count of the file descriptors of a link.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import monitor

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import MAX_MESSAGE_BYTES
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.keys import EdgeKeys

HANDSHAKE_MS = 6000
"""How long a handshake may take. It has 3.5 round trips, so links with a round trip of 1.5 s work."""

NO_ROOM_CODE = 500
"""ZAP status with which a cloud's authenticator refuses a client for lack of file descriptors."""


LEAVE_MS = 200
"""How long what was sent to a cloud that is left may take to go out."""

_READABLE = int(zmq.POLLIN)
_PIPE_BYTES = 4096


class HandshakeFailure(Enum):
    """Why a handshake with a cloud failed."""

    NO_ROOM = "no_room"
    """The cloud has no file descriptor left for one more connection."""

    KEY = "key"
    """The cloud does not know this robot's key."""

    PROTOCOL = "protocol"
    """One end encrypts and the other does not."""

    BROKEN = "broken"
    """It ended without a reason: the network failed, or the cloud has another key; or one end encrypts and
    the other does not, and it hung up before its greeting was read."""


KEEPALIVE_S, KEEPALIVE_EVERY_S, KEEPALIVE_COUNT = 5, 2, 3
UNACKNOWLEDGED_MS = 10_000
"""TCP detects a dead peer within some ten seconds; the edge's pings detect one that is only silent."""

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
"""Without HANDSHAKE_FAILED_PROTOCOL: libzmq 4.3.5 reports that event before it reads errno. Reporting changes
errno, and libzmq then keeps the connection open. This failure shows as a disconnection without a reason."""

_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED


@dataclass(eq=False, slots=True)
class _MonitoredSocket:
    """A socket with one connection, its monitor, and whether its handshake is done.

    `is_explained`: the reason of a failed handshake was reported, so the disconnection after it is ignored.
    """

    socket: zmq.Socket[bytes]
    monitor_socket: zmq.Socket[bytes] | None
    is_up: bool = False
    is_explained: bool = False

    def events(self) -> Iterator[tuple[int, int]]:
        """Yield (event, its value) since the last call."""
        while self.monitor_socket is not None and has_message(self.monitor_socket):
            report = monitor.recv_monitor_message(self.monitor_socket)
            yield int(report["event"]), int(report["value"])

    def stop_monitoring(self) -> None:
        if self.monitor_socket is not None:
            self.socket.disable_monitor()
        self.monitor_socket = None

    def close(self, linger_ms: int = 0) -> None:
        self.stop_monitoring()
        self.socket.close(linger_ms)


class Connection:
    """Owned by one thread. `keys` None means plaintext.

    `watched`: report failed handshakes, and replace a broken connection before its silence is noticed;
    without it a connection needs two sockets less. `failures` has the reasons of the failed handshakes since
    the last one that succeeded.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        keys: EdgeKeys | None,
        *,
        watched: bool = True,
        ipv6: bool | None = None,
    ) -> None:
        self.failures: set[HandshakeFailure] = set()
        self.has_changed = False
        self._was_connected = False
        self._context = context
        self._address = address
        self._keys = keys
        self._is_watched = watched
        self._ipv6 = addresses.needs_ipv6(address) if ipv6 is None else ipv6
        self._routing_id = b"\x01" + os.urandom(12)
        self._unread: deque[bytes] = deque()
        self._spare: _MonitoredSocket | None = None
        self._next: _MonitoredSocket | None = None
        self._next_address = ""
        self._current = self._connect(watched=watched)

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Return the sockets to poll before `receive`; they are valid until `has_changed` is set."""
        self.has_changed = False
        found: list[zmq.Socket[bytes]] = [self._current.socket]
        for monitored in (self._current, self._spare, self._next):
            if monitored is not None and monitored.monitor_socket is not None:
                found.append(monitored.monitor_socket)
        return found

    def send(self, data: bytes) -> None:
        """Pass a message to ZeroMQ; without a connection it is lost, as on any link."""
        try:
            self._current.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return

    def receive(self) -> Iterator[bytes]:
        """Yield the messages that have arrived; the caller may call any method of this object meanwhile."""
        self._process_events()
        while self._unread or has_message(self._current.socket):
            yield self._unread.popleft() if self._unread else self._read(self._current)

    def renew(self) -> None:
        """Start a second connection beside the present one, in place of an earlier second one."""
        self.cancel_renewal()
        self._spare = self._connect(watched=True)
        self.has_changed = True

    def cancel_renewal(self) -> None:
        """Close the second connection if there is one: the present one works."""
        if self._spare is not None:
            self._spare.close()
            self.has_changed = True
        self._spare = None

    def was_connected(self) -> bool:
        """Return True once for each connection that was established."""
        was_connected, self._was_connected = self._was_connected, False
        return was_connected

    def prepare(self, address: str) -> None:
        """Start a connection to another cloud; the present one is in use until `enter_prepared`."""
        self.cancel_preparation()
        self._next_address = address
        self._next = self._connect(watched=True, address=address)
        self.has_changed = True

    @property
    def is_prepared(self) -> bool:
        """Whether the connection of `prepare` has done its handshake."""
        if self._next is not None:
            for event, _ in self._next.events():
                self._next.is_up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return self._next is not None and self._next.is_up

    def enter_prepared(self) -> None:
        """Use the connection of `prepare` from now on; what was sent on the present one still goes out."""
        assert self._next is not None
        self.cancel_renewal()
        self._address, self._ipv6 = self._next_address, addresses.needs_ipv6(self._next_address)
        self._current.close(LEAVE_MS)
        self._current, self._next = self._next, None
        if not self._is_watched:
            self._current.stop_monitoring()
        self._unread.clear()
        self._was_connected, self.has_changed = False, True

    def cancel_preparation(self) -> None:
        """Close the connection of `prepare` if there is one."""
        if self._next is not None:
            self._next.close()
            self.has_changed = True
        self._next = None

    def switch_to(self, address: str) -> None:
        """Disconnect, and connect to another cloud."""
        self.cancel_renewal()
        self.cancel_preparation()
        self._address, self._ipv6 = address, addresses.needs_ipv6(address)
        self._current.close()
        self._current = self._connect(watched=self._is_watched)
        self.has_changed = True

    def close(self, linger_ms: int) -> None:
        """Free the sockets once all messages are sent, or after `linger_ms`."""
        self.cancel_renewal()
        self.cancel_preparation()
        self._current.close(linger_ms)

    def _process_events(self) -> None:
        present, spare = self._current, self._spare
        for event, value in present.events():
            self._on_event(present, event, value)
            if event & (zmq.EVENT_DISCONNECTED | _FAILED) and present.is_up:
                self._replace(self._spare or self._connect(watched=self._is_watched))
                break
        if spare is None:
            return
        for event, value in spare.events():
            self._on_event(spare, event, value)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and spare is self._spare:
                self._replace(spare)

    def _on_event(self, monitored: _MonitoredSocket, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            monitored.is_up = self._was_connected = True
            self.failures.clear()
        elif event & _FAILED and not monitored.is_up:
            monitored.is_explained = True
            self._on_failure(event, value)
        elif event == zmq.EVENT_DISCONNECTED and not monitored.is_up:
            if not monitored.is_explained:
                self.failures.add(HandshakeFailure.PROTOCOL)
            monitored.is_explained = False

    def _on_failure(self, event: int, value: int) -> None:
        if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.failures.add(HandshakeFailure.BROKEN)
            return
        # Only the authenticator's last answer counts: room or key may have changed.
        self.failures -= {HandshakeFailure.NO_ROOM, HandshakeFailure.KEY}
        self.failures.add(HandshakeFailure.NO_ROOM if value == NO_ROOM_CODE else HandshakeFailure.KEY)

    def _replace(self, monitored: _MonitoredSocket) -> None:
        """Use another connection; store the messages that the old one has received."""
        old, self._current, self._spare = self._current, monitored, None
        while has_message(old.socket):
            self._unread.append(self._read(old))
        old.close()
        if not self._is_watched:
            monitored.stop_monitoring()
        self.has_changed = True

    @staticmethod
    def _read(monitored: _MonitoredSocket) -> bytes:
        return b"".join(monitored.socket.recv_multipart())

    def _connect(self, *, watched: bool, address: str = "") -> _MonitoredSocket:
        address = address or self._address
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._routing_id)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        detect_dead_peers(socket)
        is_present = address == self._address
        socket.setsockopt(zmq.IPV6, self._ipv6 if is_present else addresses.needs_ipv6(address))
        if self._keys:
            socket.curve_publickey = self._keys.public
            socket.curve_secretkey = self._keys.secret
            socket.curve_serverkey = self._keys.cloud_public
        monitor_socket = socket.get_monitor_socket(_WATCHED) if watched else None
        socket.connect(address)
        return _MonitoredSocket(socket, monitor_socket)


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Tell whether a message can be received at once; in half of the time that `Socket.poll` takes."""
    return bool(zmq.zmq_poll([(socket, _READABLE)], 0))


def detect_dead_peers(socket: zmq.Socket[bytes]) -> None:
    """Set TCP keep-alive, with which either end detects that its peer is gone.

    ZeroMQ's heartbeat is not used: its timer aborts the process (`Assertion failed: !_io_error`, libzmq
    4.3.5) if a peer disconnects while its messages are held back, because a queue is full or one of them
    could not be read.
    """
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_EVERY_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_MS)


class Waker:
    """A pipe to be polled beside sockets: `wake` makes it readable, `clear` takes that back.

    It ends a poll early, from another thread, for less than a pair of ZeroMQ's sockets costs.
    """

    def __init__(self) -> None:
        self._receive, self._send = os.pipe()
        os.set_blocking(self._receive, False)
        os.set_blocking(self._send, False)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._receive

    def wake(self) -> None:
        """End the poll that goes on, or the next one. From any thread; after `close` nothing happens."""
        # The lock keeps the byte out of another file that has been given the number of a closed one.
        with self._lock, suppress(BlockingIOError):  # a full pipe wakes as well
            if not self._closed:
                os.write(self._send, b"\0")

    def clear(self) -> None:
        """Forget all wake-ups so far. Only from the thread that polls."""
        with suppress(BlockingIOError):
            while len(os.read(self._receive, _PIPE_BYTES)) == _PIPE_BYTES:
                pass

    def close(self) -> None:
        """Free the pipe. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._receive)
                os.close(self._send)


RESERVE = 12
"""Descriptors that a cloud reserves: key files, HTTP, the log, and connections during their handshake."""

CLOUD_NEEDS = 24 + RESERVE
"""Descriptors of a cloud's link before the first robot, its authenticator's among them."""

EDGE_NEEDS = 24
"""Descriptors of one robot's link: ZeroMQ's own, its sockets and their watchers, two connections."""

# Every socket and connection counts against the process's limit of open files. libzmq aborts the process if
# it gets no descriptor for a socket's own signals, and a cloud that has none left can read no key file. So
# the number needed is checked in advance, and a few are reserved.

_OPEN_FILES = Path("/proc/self/fd")


def descriptor_limit() -> int:
    """Return how many descriptors this process may have, after raising the limit as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # some systems say "unlimited" and mean less
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def free_descriptors() -> int:
    """Return how many descriptors may still be opened; 0 if none is left to count them with."""
    try:
        # One of the files found is the folder itself, opened for this count.
        return max(0, descriptor_limit() - len(list(_OPEN_FILES.iterdir())) + 1)
    except OSError as error:
        return 0 if error.errno in {errno.EMFILE, errno.ENFILE} else descriptor_limit()


def require_descriptors(count: int, purpose: str) -> None:
    """Check that `count` descriptors are free. Raises ConfigError with the limit and how to raise it."""
    left = free_descriptors()
    if left < count:
        raise ConfigError(
            f"{purpose} needs {count} file descriptors and {left} of {descriptor_limit()} are left: "
            "raise `ulimit -n`"
        )


class SpareDescriptor:
    """Holds a descriptor open, so that one can be freed when all others are used up."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._reserve()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free the descriptor for the block."""
        self.close()
        try:
            yield
        finally:
            self._reserve()

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _reserve(self) -> None:
        try:
            self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = None
