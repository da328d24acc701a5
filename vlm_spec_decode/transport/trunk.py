"""The line between a front and a cloud behind it: the messages of many robots in one frame.

A front (`cloud.front`) has the robots' connections, the cloud has their answers. Up go (robot, its key,
message), down (robot, message); the content of messages is unknown to both ends. The cloud answers a robot
through the front that last carried a message of it, so that a robot may come by another front at any time.

With keys both ends have the cloud's own pair: who has it speaks for the cloud anyway. A robot's key opens no
trunk. What is lost with a trunk is sent again by the robots, as on any link.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec
import zmq

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import MAX_MESSAGE_BYTES
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.access import ZAP_DOMAIN, Authenticator
from vlm_spec_decode.transport.connection import (
    CLOUD_NEEDS,
    EDGE_NEEDS,
    HANDSHAKE_MS,
    Waker,
    detect_dead_peers,
    has_message,
    require_descriptors,
)
from vlm_spec_decode.transport.keys import CloudKeys
from vlm_spec_decode.transport.router import BURST

VERSION = 1
"""First element of every frame: fronts and clouds of other releases do not understand one another's."""

HEARTBEAT_S = 0.25
"""How often a front says that it is there; the cloud answers each time with its state."""

LOST_S = 3.0
"""A cloud that has not answered for so long is not chosen for robots, and a front is told nothing more."""

RENEW_S = 6.0
"""After so long a silence the connection is made anew: ZeroMQ does not replace one with unreadable data."""

SPLIT_BYTES = 1 << 20
"""A frame that has so many bytes of messages takes no more."""

FRAMES = 4
"""Frames that one `poll` takes at most; a front puts at most `router.BURST` messages into each."""

MAX_FRAME_BYTES = SPLIT_BYTES + MAX_MESSAGE_BYTES + 256 * BURST
MAX_ROBOTS = 65_536
LINGER_MS = 500

log = logging.getLogger(__name__)

Up: TypeAlias = tuple[bytes, str, bytes]
"""A robot, the public key of its connection ("" in plaintext), and the bytes from it."""

Down: TypeAlias = tuple[bytes, bytes]
"""A robot, and the bytes for it."""

T = TypeVar("T", Up, Down)


class TrunkState(enum.IntEnum):
    """What a cloud says of itself, and what a front knows of it."""

    OPEN = 0
    DRAINING = 1
    """It begins no new answers."""

    ENDED = 2
    DOWN = 3
    """It does not answer; never sent."""


_ENCODER = msgspec.msgpack.Encoder()
_UP: msgspec.msgpack.Decoder[tuple[int, int, list[Up]]] = msgspec.msgpack.Decoder(tuple[int, int, list[Up]])
_DOWN: msgspec.msgpack.Decoder[tuple[int, int, list[Down]]] = msgspec.msgpack.Decoder(
    tuple[int, int, list[Down]]
)


def split(messages: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the messages in order, in parts that fit into a frame each; all at once where they do."""
    first, size = 0, 0
    for index, message in enumerate(messages):
        size += len(message[-1])
        if size >= SPLIT_BYTES or index - first == BURST - 1:
            yield messages[first : index + 1]
            first, size = index + 1, 0
    if first < len(messages):
        yield messages[first:]


class _OwnKey:
    """The rule of a trunk: a front has the cloud's own key."""

    def __init__(self, own: bytes) -> None:
        self._own = own

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        """Answer ZeroMQ's authenticator, at the handshake."""
        return key == self._own


class TrunkLink:
    """The cloud's end: a `ServerLink` whose peers are robots that come by fronts.

    It is owned by the thread that calls `poll`; only `wake` may be called from elsewhere. What `send` is
    given goes with the next `poll`, which the server calls at once. Raises CloudError if it cannot listen.
    """

    def __init__(self, bind: str, keys: CloudKeys | None, clock: Clock | None = None) -> None:
        endpoint, is_v6 = addresses.to_bind(bind)
        if keys is None:
            addresses.require_loopback(bind)
        self.unroutable = 0
        self.dropped: Counter[str] = Counter()
        self._clock = clock or WallClock()
        self._state = TrunkState.OPEN
        self._fronts: dict[bytes, float] = {}
        self._robots: dict[bytes, tuple[bytes, str]] = {}
        self._out: dict[bytes, list[Down]] = {}
        require_descriptors(CLOUD_NEEDS, "a cloud")
        self._context = zmq.Context()
        allowed = _OwnKey(keys.public) if keys else None
        self._authenticator = Authenticator(self._context, allowed, self.dropped, self._clock)
        self._authenticator.start()
        self._socket = _socket(self._context, zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        if keys:
            self._socket.curve_publickey, self._socket.curve_secretkey = keys.public, keys.secret
            self._socket.curve_server = True
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._waker.fileno(), zmq.POLLIN)
        try:
            self._socket.setsockopt(zmq.IPV6, is_v6)
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise CloudError(f"cannot listen on {bind}: {error.strerror}") from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def poll(self, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Send what is due; yield (robot, bytes) of what has come, at most `timeout_s` later or at `wake`."""
        self._flush()
        ready = dict(self._poller.poll(round(1000 * timeout_s)))
        if self._waker.fileno() in ready:
            self._waker.clear()
        for _ in range(FRAMES if self._socket in ready else 0):
            if not has_message(self._socket):
                return
            front, *parts = self._socket.recv_multipart()
            yield from self._received(front, b"".join(parts))

    def send(self, peer: bytes, data: bytes) -> None:
        """Send to a robot, by the front that it came by last; without one it is counted as unroutable."""
        known = self._robots.get(peer)
        if known is None:
            self.unroutable += 1
        else:
            self._out.setdefault(known[0], []).append((peer, data))

    def owner_of(self, peer: bytes) -> bytes:
        """Return whose robot a peer is: its key, or itself where there are none."""
        return self._robots.get(peer, (b"", ""))[1].encode() or peer

    def announce_drain(self) -> None:
        """Tell the fronts that this cloud begins no new answers, so that they choose another one."""
        self._announce(TrunkState.DRAINING)

    def wake(self) -> None:
        """End a `poll` early. From any thread."""
        self._waker.wake()

    def close(self) -> None:
        """Tell the fronts that this cloud has ended, and free everything.

        The connection stays until they have seen that: ZeroMQ drops what was received, but not read yet, of a
        connection that ends, and what goes last are the last tokens of answers.
        """
        self._announce(TrunkState.ENDED)
        until_s = self._clock.now() + LINGER_MS / 1000
        self._flush()
        while self._fronts and (left_s := until_s - self._clock.now()) > 0:
            if self._socket.poll(round(1000 * left_s)):
                front, *parts = self._socket.recv_multipart()
                for _ in self._received(front, b"".join(parts)):
                    self.dropped["ended"] += 1
        self._socket.close(LINGER_MS)
        self._waker.close()
        self._authenticator.stop()
        self._context.term()

    def _announce(self, state: TrunkState) -> None:
        self._state = state
        since_s = self._clock.now() - LOST_S
        self._fronts = {front: at_s for front, at_s in self._fronts.items() if at_s >= since_s}
        for front in self._fronts:
            self._out.setdefault(front, [])

    def _received(self, front: bytes, frame: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            version, seen, messages = _UP.decode(frame)
        except msgspec.MsgspecError:
            version, seen, messages = 0, 0, []
        if version != VERSION:
            self.dropped["malformed"] += 1
            return
        self._fronts[front] = self._clock.now()
        if seen == TrunkState.ENDED:
            del self._fronts[front]
        if not messages:
            self._out.setdefault(front, [])
        robots = self._robots
        for peer, key, data in messages:
            robots[peer] = front, key
            yield peer, data
        while len(robots) > MAX_ROBOTS:
            del robots[next(iter(robots))]

    def _flush(self) -> None:
        if not self._out:
            return
        for front, messages in self._out.items():
            for part in split(messages) if messages else ((),):
                try:
                    self._socket.send_multipart(
                        (front, _ENCODER.encode((VERSION, self._state, part))), zmq.NOBLOCK
                    )
                except zmq.ZMQError:
                    self.unroutable += len(part)
        self._out.clear()


class Trunk:
    """A front's end of the line to one cloud; owned by one thread.

    `has_changed` is set when `socket` is another one than before.
    """

    def __init__(self, address: str, keys: CloudKeys | None, clock: Clock) -> None:
        if keys is None:
            addresses.require_loopback(address)
        require_descriptors(EDGE_NEEDS, "a connection to a cloud")
        self.address = address
        self.dropped = 0
        self.has_changed = True
        self._keys, self._clock = keys, clock
        self._context = zmq.Context()
        self._out: list[Up] = []
        self._said = TrunkState.DOWN
        self._must_confirm = False
        self._heard_s = self._beat_s = -math.inf
        self.socket = self._connect()

    @property
    def state(self) -> TrunkState:
        """What the cloud last said of itself; DOWN if that was too long ago."""
        return self._said if self._clock.now() - self._heard_s < LOST_S else TrunkState.DOWN

    def add(self, message: Up) -> None:
        """Send a robot's message with the next `flush`."""
        self._out.append(message)

    def flush(self) -> None:
        """Send what was added, and a sign of life where one is due. What cannot be sent is dropped."""
        now_s = self._clock.now()
        if self._out:
            messages, self._out = self._out, []
            for part in split(messages):
                self._send(part)
        if now_s - self._beat_s >= HEARTBEAT_S or self._must_confirm:
            self._must_confirm = False
            self._beat_s = now_s
            if now_s - max(self._heard_s, self._connected_s) > RENEW_S:
                self.socket.close(0)
                self.socket = self._connect()
                self.has_changed = True
            self._send(())

    def receive(self) -> Iterator[Down]:
        """Yield (robot, bytes) of what has come, of at most `FRAMES` frames."""
        for _ in range(FRAMES):
            if not has_message(self.socket):
                return
            try:
                version, said, messages = _DOWN.decode(b"".join(self.socket.recv_multipart()))
                state = TrunkState(said)
            except (msgspec.MsgspecError, ValueError):
                version, messages = 0, []
            if version != VERSION:
                log.warning("%s: not what a cloud behind fronts sends (`vsd cloud --fronts`)", self.address)
                continue
            self._heard_s, self._must_confirm = self._clock.now(), state is not self._said
            self._said = state
            yield from messages

    def close(self) -> None:
        """Send what was added, and free everything."""
        self.flush()
        self.socket.close(LINGER_MS)
        self._context.term()

    def _send(self, messages: Sequence[Up]) -> None:
        try:
            self.socket.send(_ENCODER.encode((VERSION, self._said, messages)), zmq.NOBLOCK)
        except zmq.ZMQError:
            # Without a connection, or one whose queue is full, nothing can be sent: the cloud has gone.
            self.dropped += len(messages)
            self._said = TrunkState.DOWN

    def _connect(self) -> zmq.Socket[bytes]:
        socket = _socket(self._context, zmq.DEALER)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.IPV6, addresses.needs_ipv6(self.address))
        if self._keys:
            socket.curve_publickey, socket.curve_secretkey = self._keys.public, self._keys.secret
            socket.curve_serverkey = self._keys.public
        socket.connect(self.address)
        self._connected_s = self._clock.now()
        return socket


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    """Return a socket with what both ends share."""
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    detect_dead_peers(socket)
    return socket
