"""The cloud's end of the link: one ROUTER socket with CURVE and access control by keys.

Moves bytes between peers and the owner of the socket's thread, independent of their content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import zmq

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import MAX_MESSAGE_BYTES
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.access import (
    ZAP_DOMAIN,
    AccessControl,
    Authenticator,
    AuthorizedKeys,
    KeyLimits,
)
from vlm_spec_decode.transport.connection import (
    CLOUD_NEEDS,
    HANDSHAKE_MS,
    Waker,
    detect_dead_peers,
    has_message,
    require_descriptors,
)
from vlm_spec_decode.transport.keys import CloudKeys

_FIRST = zmq.NOBLOCK | zmq.SNDMORE

BURST = 256
"""Messages that are taken at once, at most, before whoever serves does something else."""


class RouterLink:
    """Owned by the thread that calls `poll`; only `wake` may be called from elsewhere.

    With `shares_port` other processes of the same user may listen at the same address, too: the kernel gives
    every new connection to one of them.
    """

    def __init__(
        self,
        bind: str,
        keys: CloudKeys | None,
        limits: KeyLimits | None = None,
        clock: Clock | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        endpoint, is_v6 = addresses.to_bind(bind)
        if keys is None:
            addresses.require_loopback(bind)
        self.unroutable = 0
        require_descriptors(CLOUD_NEEDS, "a cloud")
        self._context = zmq.Context()
        clock = clock or WallClock()
        authorized = AuthorizedKeys(keys.authorized, clock) if keys else None
        self.access = AccessControl(authorized, limits or KeyLimits(), clock)
        # It runs before the bind, or the first peers would be accepted unchecked.
        self._authenticator = Authenticator(self._context, authorized, self.access.dropped, clock)
        self._authenticator.start()
        self._socket = self._make_socket(keys)
        self._waker = Waker()
        self.watch(())
        try:
            self._socket.setsockopt(zmq.IPV6, is_v6)
            if shares_port:
                endpoint, listener = addresses.shared_listener(endpoint)
                self._socket.setsockopt(zmq.USE_FD, listener)
            self._socket.bind(endpoint)
        except (zmq.ZMQError, OSError) as error:
            self.close()
            raise CloudError(f"cannot listen on {bind}: {error.strerror}") from error
        self._authenticator.warn_if_few_descriptors()
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def poll(self, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        """Yield (peer, bytes) of each message received, after waiting at most `timeout_s` or until `wake`."""
        self.wait(timeout_s)
        for peer, _, data in self.receive():
            yield peer, data

    def wait(self, timeout_s: float) -> None:
        """Return when there are messages, here or at a socket of `watch`, after `timeout_s`, or at `wake`."""
        ready = dict(self._poller.poll(round(1000 * timeout_s)))
        if self._waker.fileno() in ready:
            self._waker.clear()

    def watch(self, more: Iterable[zmq.Socket[bytes]]) -> None:
        """Let `wait` return for messages of these sockets, too, in place of those of an earlier call."""
        self._poller = zmq.Poller()
        for source in (self._socket, self._waker.fileno(), *more):
            self._poller.register(source, zmq.POLLIN)

    def receive(self) -> Iterator[tuple[bytes, str, bytes]]:
        """Yield (peer, key of its connection, bytes) of the messages that are here and may pass.

        It takes at most `BURST`.
        """
        receive, admits = self._socket.recv, self.access.admits
        burst = BURST
        while burst and has_message(self._socket):
            burst -= 1
            peer = receive()
            frame = receive(copy=False)
            key, data = _key_of(frame), frame.bytes
            while frame.more:
                frame = receive(copy=False)
                data += frame.bytes
            if admits(key, peer, len(data)):
                yield peer, key, data

    def send(self, peer: bytes, data: bytes) -> None:
        """Send one message without waiting; if the peer is gone or does not read, count it as unroutable."""
        try:
            self._socket.send(peer, _FIRST)
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.ZMQError:
            self.unroutable += 1

    def announce_drain(self) -> None:
        """Do nothing: each robot is told when it begins an answer."""

    def stop_listening(self) -> None:
        """Take no more connections, and close those that there are once what was sent is on its way."""
        self._socket.unbind(self.address)

    @property
    def dropped(self) -> Counter[str]:
        """Counts of refused messages and connections, by reason."""
        return self.access.dropped

    def owner_of(self, peer: bytes) -> bytes:
        """Return whose robot a peer is: its key, or itself where there are none."""
        return self.access.owner_of(peer)

    def wake(self) -> None:
        """End a `poll` early. From any thread."""
        self._waker.wake()

    def close(self) -> None:
        """Free sockets and the authenticator's thread."""
        self._socket.close(200)
        self._waker.close()
        self._authenticator.stop()
        self._context.term()

    def _make_socket(self, keys: CloudKeys | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.SNDHWM, 256)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        detect_dead_peers(socket)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)  # else plaintext clients are not authenticated
        if keys:
            socket.curve_publickey = keys.public
            socket.curve_secretkey = keys.secret
            socket.curve_server = True
        return socket


def _key_of(frame: zmq.Frame) -> str:
    """Return the public key of the connection that delivered a frame; without CURVE the same for all."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""
