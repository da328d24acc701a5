"""One robot's connection to its cloud, and a second one beside it while the first may be damaged.

ZeroMQ makes a lost TCP connection again, but not one over which it could not read: a client that met a
damaged frame connects no more, and a damaged length makes either end wait for bytes that never come. The
caller that notices the silence calls `renew`. The new connection takes the same routing id, so that the
cloud continues with the same robot, and takes over once its handshake is done; until then the old one may
recover. Below: TCP options of both ends, and the file descriptors that a link needs.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
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
"""How long a handshake may take: three and a half round trips, so that lines of 1.5 s are served."""

NO_ROOM_CODE = 500
"""The status by which a cloud's authenticator says that it has no room, of the three that ZeroMQ knows."""


class HandshakeFailure(Enum):
    """Why a handshake with a cloud failed."""

    NO_ROOM = "no_room"
    """The cloud has no file descriptor left for one more connection."""

    KEY = "key"
    """The cloud does not know this robot's key."""

    PROTOCOL = "protocol"
    """One end encrypts and the other does not."""

    BROKEN = "broken"
    """It broke off without a reason: the network, or the cloud's key is another."""


KEEPALIVE_S, KEEPALIVE_EVERY_S, KEEPALIVE_COUNT = 5, 2, 3
UNACKNOWLEDGED_MS = 10_000
"""TCP finds out who is gone for good within some ten seconds; what is only silent the edge's pings find."""

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
"""Not HANDSHAKE_FAILED_PROTOCOL: libzmq 4.3.5 tells of it before it looks at errno, which telling changes,
and then holds the connection instead of closing it. It shows as a disconnection without another reason."""

_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED


@dataclass(eq=False, slots=True)
class _Wire:
    """A socket with one connection, its monitor, and whether its handshake is done.

    `is_explained`: the reason of a failed handshake was reported; its disconnection adds nothing.
    """

    socket: zmq.Socket[bytes]
    watch: zmq.Socket[bytes] | None
    is_up: bool = False
    is_explained: bool = False

    def events(self) -> Iterator[tuple[int, int]]:
        """Yield (event, its value) since the last call."""
        while self.watch is not None and self.watch.poll(0):
            told = monitor.recv_monitor_message(self.watch)
            yield int(told["event"]), int(told["value"])

    def unwatch(self) -> None:
        if self.watch is not None:
            self.socket.disable_monitor()
        self.watch = None

    def close(self, linger_ms: int = 0) -> None:
        self.unwatch()
        self.socket.close(linger_ms)


class Connection:
    """Owned by one thread. `keys` None means plaintext.

    `watched`: report failed handshakes, and replace a broken connection before its silence is noticed;
    without it a connection needs two sockets less. `failures` says why handshakes failed since one succeeded.
    """

    def __init__(
        self, context: zmq.Context[Any], address: str, keys: EdgeKeys | None, *, watched: bool = True
    ) -> None:
        self.failures: set[HandshakeFailure] = set()
        self.has_changed = False
        self._came_up = False
        self._context = context
        self._address = address
        self._keys = keys
        self._is_watched = watched
        self._routing_id = b"\x01" + os.urandom(12)
        self._unread: deque[bytes] = deque()
        self._spare: _Wire | None = None
        self._wire = self._connect(watched=watched)

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Return what to poll for `receive`, until `has_changed` says that there are others."""
        self.has_changed = False
        found: list[zmq.Socket[bytes]] = [self._wire.socket]
        for wire in (self._wire, self._spare):
            if wire is not None and wire.watch is not None:
                found.append(wire.watch)
        return found

    def send(self, data: bytes) -> None:
        """Hand a message to ZeroMQ; with no connection it is lost, as on any link."""
        try:
            self._wire.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return

    def receive(self) -> Iterator[bytes]:
        """Yield what has come; the receiver may call anything here meanwhile."""
        self._take_events()
        while self._unread or self._wire.socket.poll(0):
            yield self._unread.popleft() if self._unread else self._read(self._wire)

    def renew(self) -> None:
        """Begin a new connection beside the present one, instead of any that was begun before."""
        self.settle()
        self._spare = self._connect(watched=True)
        self.has_changed = True

    def settle(self) -> None:
        """The present connection is well: begin no other."""
        if self._spare is not None:
            self._spare.close()
            self.has_changed = True
        self._spare = None

    def came_up(self) -> bool:
        """Tell, once, that a connection was made."""
        came_up, self._came_up = self._came_up, False
        return came_up

    def go_to(self, address: str) -> None:
        """Leave the cloud for another."""
        self.settle()
        self._address = address
        self._wire.close()
        self._wire = self._connect(watched=self._is_watched)
        self.has_changed = True

    def close(self, linger_ms: int) -> None:
        """Free the sockets once what was sent has gone, or after `linger_ms`."""
        self.settle()
        self._wire.close(linger_ms)

    def _take_events(self) -> None:
        present, spare = self._wire, self._spare
        for event, value in present.events():
            self._note(present, event, value)
            if event & (zmq.EVENT_DISCONNECTED | _FAILED) and present.is_up:
                self._replace(self._spare or self._connect(watched=self._is_watched))
                break
        if spare is None:
            return
        for event, value in spare.events():
            self._note(spare, event, value)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and spare is self._spare:
                self._replace(spare)

    def _note(self, wire: _Wire, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            wire.is_up = self._came_up = True
            self.failures.clear()
        elif event & _FAILED and not wire.is_up:
            wire.is_explained = True
            self._note_failure(event, value)
        elif event == zmq.EVENT_DISCONNECTED and not wire.is_up:
            if not wire.is_explained:
                self.failures.add(HandshakeFailure.PROTOCOL)
            wire.is_explained = False

    def _note_failure(self, event: int, value: int) -> None:
        if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.failures.add(HandshakeFailure.BROKEN)
            return
        # The authenticator's last answer counts: it may have found room, or the key, since.
        self.failures -= {HandshakeFailure.NO_ROOM, HandshakeFailure.KEY}
        self.failures.add(HandshakeFailure.NO_ROOM if value == NO_ROOM_CODE else HandshakeFailure.KEY)

    def _replace(self, wire: _Wire) -> None:
        """Go on with another connection; what the old one has brought is kept."""
        old, self._wire, self._spare = self._wire, wire, None
        while old.socket.poll(0):
            self._unread.append(self._read(old))
        old.close()
        if not self._is_watched:
            wire.unwatch()
        self.has_changed = True

    @staticmethod
    def _read(wire: _Wire) -> bytes:
        return b"".join(wire.socket.recv_multipart())

    def _connect(self, *, watched: bool) -> _Wire:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._routing_id)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        notice_who_is_gone(socket)
        socket.setsockopt(zmq.IPV6, addresses.needs_ipv6(self._address))
        if self._keys:
            socket.curve_publickey = self._keys.public
            socket.curve_secretkey = self._keys.secret
            socket.curve_serverkey = self._keys.cloud_public
        watch = socket.get_monitor_socket(_WATCHED) if watched else None
        socket.connect(self._address)
        return _Wire(socket, watch)


def notice_who_is_gone(socket: zmq.Socket[bytes]) -> None:
    """Let TCP find out that the other end is gone, at either end.

    Not ZeroMQ's heartbeat: its timer ends the process (`Assertion failed: !_io_error`, libzmq 4.3.5) where a
    peer hangs up whose messages are held back, because a queue is full or one of them could not be read.
    """
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_EVERY_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_MS)


RESERVE = 12
"""Descriptors that a cloud keeps for itself: key files, HTTP, the log, and connections that shake hands."""

CLOUD_NEEDS = 24 + RESERVE
"""Descriptors of a cloud's link before the first robot, its authenticator's among them."""

EDGE_NEEDS = 24
"""Descriptors of one robot's link: ZeroMQ's own, its sockets and their watchers, two connections."""

# The process has a limit of open files, which every socket and connection counts against. libzmq ends the
# process if it finds no descriptor for a socket's own signals, and a cloud that has none left can read no key
# file. So what is needed is asked for before, and a few are kept back.

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
    """Return how many descriptors may still be opened; 0 if there is none left to look with."""
    try:
        # One of the files found is the folder itself, opened for this count.
        return max(0, descriptor_limit() - len(list(_OPEN_FILES.iterdir())) + 1)
    except OSError as error:
        return 0 if error.errno in {errno.EMFILE, errno.ENFILE} else descriptor_limit()


def require_descriptors(count: int, purpose: str) -> None:
    """Make sure that `count` descriptors are free. Raises ConfigError that names limit and remedy."""
    left = free_descriptors()
    if left < count:
        raise ConfigError(
            f"{purpose} needs {count} file descriptors and {left} of {descriptor_limit()} are left: "
            "raise `ulimit -n`"
        )


class SpareDescriptor:
    """A descriptor that is held so that there is one when all others are used up."""

    def __init__(self) -> None:
        self._held: int | None = None
        self._hold()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the block have it."""
        self.close()
        try:
            yield
        finally:
            self._hold()

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._held is not None:
            os.close(self._held)
        self._held = None

    def _hold(self) -> None:
        try:
            self._held = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._held = None
