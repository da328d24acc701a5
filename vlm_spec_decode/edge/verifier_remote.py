"""The cloud behind a socket, as a `Verifier`: the protocol's state machine on the link's thread."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from vlm_spec_decode.core.errors import (
    Cancelled,
    CloudError,
    CloudRefused,
    CloudTimeout,
    CloudUnreachable,
    ProtocolStateError,
)
from vlm_spec_decode.core.ports import Clock, Verifier
from vlm_spec_decode.core.trace import NO_TRACER, LinkUsage, Tracer
from vlm_spec_decode.core.types import AnswerRequest, Event, Hint, ImageLimits, Uplink
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.protocol.messages import Hello, Welcome
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.connection import HandshakeFailure
from vlm_spec_decode.transport.dealer import DealerLink

_HANDSHAKE_FAILED = {
    HandshakeFailure.NO_ROOM: "the cloud takes no more connections: it has no file descriptors left for more",
    HandshakeFailure.KEY: "the cloud does not know our key",
    HandshakeFailure.PROTOCOL: "one end encrypts, the other does not",
    HandshakeFailure.BROKEN: "the handshake broke off: the network, or the cloud's key is another",
}
"""What failed handshakes mean, the most specific reasons first."""

_NETWORK_FAILURES = frozenset({HandshakeFailure.PROTOCOL, HandshakeFailure.BROKEN})
"""With these reasons an edge that had a Welcome before knows that the network failed, not the keys."""

_BROKE_OFF = "a new handshake broke off"

UPKEEP_S = 0.05
"""How long time-outs and the connection may be left alone while messages are on their way."""

PROBE_EVERY_S = 1.0
"""How often to probe whether anything listens at the addresses, once `refused_s` is over."""


class RemoteVerifier(Verifier):
    """Implements `Verifier` over a `DealerLink`. Only `wait` and `connect` block."""

    def __init__(
        self, link: DealerLink, hello: Hello, clock: Clock, timing: ProtocolTiming | None = None
    ) -> None:
        self._link = link
        self._clock = clock
        self._protocol = ClientProtocol(hello, timing, len(link.addresses))
        self._events: SimpleQueue[Event | CloudError | Cancelled] = SimpleQueue()
        self._answer = 0
        self._usage_before = (0, 0)
        self._upkeep_s = -math.inf
        self._welcomed = threading.Event()
        self._was_welcomed = False
        self._started = False
        self._tracer = NO_TRACER

    def connect(self, timeout_s: float = 5.0, refused_s: float = math.inf) -> Welcome:
        """Do the handshake. Raises CloudUnreachable, CloudRefused.

        `refused_s` is how long to wait while nothing listens at any address: the clouds may be starting.
        """
        if not self._started:
            self._started = True
            self._link.start(self._on_message, self._flush)
        self._welcomed.clear()
        self._run_on_link_thread(lambda: self._protocol.connect(self._clock.now()))
        deadline_s, probe_s = self._clock.now() + timeout_s, self._clock.now() + refused_s
        while not self._welcomed.wait(0.02):
            self._raise_if_refused()
            if self._clock.now() > deadline_s:
                raise self._unreachable(f"no answer within {timeout_s:.0f} s")
            if self._clock.now() > probe_s:
                self._raise_if_no_listener()
                probe_s = self._clock.now() + PROBE_EVERY_S
        assert self._protocol.welcome is not None
        return self._protocol.welcome

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Start one answer. It is sent at once; `wait` raises a refusal.

        Raises ProtocolStateError before `connect`.
        """
        if not self._started:
            raise ProtocolStateError("an answer was opened before `connect`")
        self._tracer = tracer
        tracer.opened(request)
        self._answer = request.answer
        self._usage_before = (self._link.sent_bytes, self._link.received_bytes)
        while not self._events.empty():
            self._events.get_nowait()
        self._run_on_link_thread(lambda: self._protocol.open(request, self._clock.now()))

    def submit(self, message: Hint) -> None:
        """Send a draft or a correction."""
        self._tracer.sent(message)
        self._run_on_link_thread(lambda: self._protocol.submit(message))

    def poll(self) -> Event | None:
        """Return the next event if one is there. Raises what the cloud or a cancel reported."""
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return None
            if self._is_mine(event):
                return self._return_or_raise(event)

    def wait(self, timeout_s: float) -> Event:
        """Block for the next event. Raises CloudTimeout, CloudUnreachable, CloudRefused, Cancelled."""
        deadline_s = self._clock.now() + timeout_s
        self._tracer.waiting()
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline_s - self._clock.now()))
            except Empty:
                raise CloudTimeout(f"no verdict within {timeout_s:.1f} s") from None
            if self._is_mine(event):
                return self._return_or_raise(event)

    def cancel(self) -> None:
        """Abandon the answer from any thread; a blocked `wait` raises Cancelled at once."""
        self._events.put(Cancelled("the answer was cancelled"))
        self._run_on_link_thread(lambda: self._protocol.close(self._clock.now()))

    def close(self) -> None:
        """End the open answer; the connection stays for the next one."""
        self._run_on_link_thread(lambda: self._protocol.close(self._clock.now()))

    def disconnect(self) -> None:
        """End the answer and the connection. Idempotent."""
        self.close()
        self._link.close()

    @property
    def usage(self) -> LinkUsage:
        """Bytes of the answer so far, before encryption; the uplink without the image's chunks."""
        sent, received = self._usage_before
        image_bytes = self._protocol.image_bytes
        up = self._link.sent_bytes - sent - image_bytes
        return LinkUsage(up, self._link.received_bytes - received, image_bytes)

    @property
    def clouds(self) -> str:
        """The clouds' addresses, with commas, starting with the one that is in use."""
        known, last = self._link.addresses, self._link.addresses.index(self._link.address)
        return ",".join((*known[last:], *known[:last]))

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the cloud's target can use, by its Welcome."""
        return self._protocol.image_limits

    @property
    def uplink(self) -> Uplink:
        """The link as the pictures so far have found it."""
        return self._protocol.uplink

    @property
    def shares_processor(self) -> bool:
        """Whether the cloud is on this machine, which has but one processor to give."""
        return len(os.sched_getaffinity(0)) == 1 and addresses.is_loopback(self._link.address)

    @property
    def rtt_s(self) -> float:
        """The last measured round trip, by echo of this machine's own clock."""
        return self._protocol.rtt_s

    # On the link's thread ------------------------------------------------------------------------

    def _on_message(self, data: bytes) -> None:
        self._protocol.receive(data, self._clock.now())

    def _flush(self) -> None:
        has_handed_over, now_s = self._hand_over(), self._clock.now()
        # Whoever waits for what was handed over cannot go on before this thread sleeps.
        if not has_handed_over or now_s - self._upkeep_s >= UPKEEP_S:
            self._upkeep_s = now_s
            self._protocol.tick(now_s)
            self._link.switch_to(self._protocol.cloud_index)
            self._protocol.maintain(self._link, now_s)
            self._hand_over()
        if self._protocol.is_welcome and not self._welcomed.is_set():
            self._was_welcomed = True
            self._welcomed.set()

    def _hand_over(self) -> bool:
        """Send and deliver what the protocol has; return whether there was anything."""
        has_any = bool(self._protocol.outbox or self._protocol.events)
        while self._protocol.outbox:
            self._link.send(self._protocol.outbox.popleft())
        while self._protocol.events:
            self._events.put(self._protocol.events.popleft())
        return has_any

    # On the caller's thread ----------------------------------------------------------------------

    def _run_on_link_thread(self, call: Callable[[], None]) -> None:
        """Do this soon; the link flushes after it (`DealerLink.start`)."""
        self._link.post(call)

    def _is_mine(self, event: Event | CloudError | Cancelled) -> bool:
        return isinstance(event, CloudError | Cancelled) or event.answer == self._answer

    def _return_or_raise(self, event: Event | CloudError | Cancelled) -> Event:
        if isinstance(event, CloudUnreachable):
            raise self._unreachable(str(event))
        if isinstance(event, CloudError | Cancelled):
            raise event
        self._tracer.received(event)
        return event

    def _raise_if_refused(self) -> None:
        try:
            event = self._events.get_nowait()
        except Empty:
            return
        if isinstance(event, CloudRefused):
            raise event

    def _raise_if_no_listener(self) -> None:
        """Raise CloudUnreachable if every cloud's machine refuses the TCP connection."""
        refusals = [addresses.refusal(address) for address in self._link.addresses]
        if all(refusals) and not self._welcomed.is_set():
            raise CloudUnreachable("; ".join(refusals) + ": is the cloud (`vsd cloud`) started there?")

    def _unreachable(self, detail: str) -> CloudUnreachable:
        details, failures = [f"cloud {self._link.address}: {detail}"], self._link.failures
        first = next((failure for failure in _HANDSHAKE_FAILED if failure in failures), None)
        if first in _NETWORK_FAILURES and self._was_welcomed:
            details.append(_BROKE_OFF)
        elif first:
            details.append(_HANDSHAKE_FAILED[first])
        return CloudUnreachable("; ".join(details))
