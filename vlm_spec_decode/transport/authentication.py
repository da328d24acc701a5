"""Which clients may connect: robots with an authorised key, as long as there are file descriptors for them.

ZeroMQ asks at every handshake (ZAP). A robot for which there is none is refused with a status of its own,
and its connection is closed; connected robots keep theirs.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.transport import descriptors
from vlm_spec_decode.transport.access import AuthorizedKeys
from vlm_spec_decode.transport.connection import NO_ROOM_CODE

ZAP_DOMAIN = "vsd"

TELL_EVERY_S = 10.0
"""How often the log says that robots are turned away."""

FEW = 256
"""A cloud that has room for fewer robots says so when it starts."""

log = logging.getLogger(__name__)


class Authenticator(ThreadAuthenticator):  # type: ignore[misc]  # pyzmq's has no types
    """Answers ZeroMQ's questions on a thread of its own, from `start` to `stop`.

    Clients refused for want of descriptors are counted in `dropped` as `no_descriptors`. Without
    `authorized` (plaintext on loopback) every other client may connect.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        authorized: AuthorizedKeys | None,
        dropped: Counter[str],
        clock: Clock,
    ) -> None:
        super().__init__(context)
        self._dropped = dropped
        self._clock = clock
        self._told_s = float("-inf")
        if authorized:
            self.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=authorized)

    def tell_room(self) -> None:
        """Say for how many robots there are descriptors, if they are few."""
        room = max(0, descriptors.free() - descriptors.RESERVE)
        if room < FEW:
            log.warning(
                "the limit of %d file descriptors leaves room for %d robots: raise `ulimit -n`",
                descriptors.limit(),
                room,
            )

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answer one handshake."""
        if len(msg) >= 2 and descriptors.free() < descriptors.RESERVE:
            self._turn_away(msg[1])
        else:
            await super().handle_zap_message(msg)

    def _turn_away(self, request_id: bytes) -> None:
        self._dropped["no_descriptors"] += 1
        self._send_zap_reply(request_id, str(NO_ROOM_CODE).encode(), b"No file descriptors left")
        if self._clock.now() - self._told_s >= TELL_EVERY_S:
            self._told_s = self._clock.now()
            log.warning(
                "robots are turned away, %d so far: the limit of %d file descriptors is reached; "
                "raise `ulimit -n`",
                self._dropped["no_descriptors"],
                descriptors.limit(),
            )
