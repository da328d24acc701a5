"""The cloud behind a socket, as a `Verifier`: the protocol's state machine on the link's thread.

A `CloudConnection` carries several answers, each with a `RemoteVerifier` of its own; `RemoteVerifier.another`
makes one more.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeAlias

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
from vlm_spec_decode.core.types import MAX_OPEN_ANSWERS, AnswerRequest, Event, Hint, ImageLimits, Uplink
from vlm_spec_decode.edge.client_protocol import ClientProtocol
from vlm_spec_decode.edge.client_states import ClientState
from vlm_spec_decode.edge.nearest import PROBE_EVERY_S, PROBE_TIMEOUT_S, NearestCloud
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.request_state import Traffic
from vlm_spec_decode.protocol.messages import Hello, Welcome
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.connection import HandshakeFailure
from vlm_spec_decode.transport.dealer import DealerLink

_ONE_ENCRYPTS = "one end encrypts, the other does not"

_HANDSHAKE_FAILED = {
    HandshakeFailure.NO_ROOM: "the cloud takes no more connections: it has no file descriptors left for more",
    HandshakeFailure.KEY: "the cloud does not know our key",
    HandshakeFailure.PROTOCOL: _ONE_ENCRYPTS,
    HandshakeFailure.BROKEN: "the handshake broke off: the network, or the cloud's key is another, "
    f"or {_ONE_ENCRYPTS}",
}
"""What failed handshakes mean, the most specific reasons first."""

_NETWORK_FAILURES = frozenset({HandshakeFailure.PROTOCOL, HandshakeFailure.BROKEN})
"""With these reasons an edge that had a Welcome before knows that the network failed, not the keys."""

_CLOSED = "the connection is closed"

_BROKE_OFF = "a new handshake broke off"

UPKEEP_S = 0.05
"""How long time-outs and the connection may be left alone while messages are on their way."""

LISTENER_EVERY_S = 1.0
"""How often to look whether anything listens at the addresses, once `refused_s` is over."""


Inbox: TypeAlias = "SimpleQueue[Event | CloudError | Cancelled]"
"""What has come for one answer, for the thread that decodes it."""


PREPARE_S = 5.0
"""How long the handshake with a nearer cloud may take."""

log = logging.getLogger(__name__)


class _Moves:
    """Takes a robot to the nearest of its clouds. Everything but the probes runs on the link's thread.

    The present cloud is left only once a connection to the other one is ready.
    """

    def __init__(self, link: DealerLink, protocol: ClientProtocol, clock: Clock) -> None:
        self._link, self._protocol, self._clock = link, protocol, clock
        self._nearest = NearestCloud(len(link.addresses))
        self._present = protocol.cloud_index
        self._target: int | None = None
        self._began_s = self._rtt_s = 0.0
        self._ended = threading.Event()

    def start(self) -> None:
        """Start to probe."""
        threading.Thread(target=self._probe, name="vsd-probes", daemon=True).start()

    def end(self) -> None:
        """Probe no more. From any thread."""
        self._ended.set()

    def go_on(self, hand_over: Callable[[], object]) -> None:
        """Begin a move, or end one whose connection is ready; `hand_over` sends what the protocol has."""
        protocol, now_s = self._protocol, self._clock.now()
        if protocol.cloud_index != self._present:
            self._on_left(now_s)
        if not protocol.is_welcome:
            return
        if protocol.rtt_s != self._rtt_s:
            self._rtt_s = protocol.rtt_s
            self._nearest.record_ping(self._present, self._rtt_s, now_s)
        if self._target is None:
            is_answering = protocol.state is ClientState.ANSWERING
            self._target = self._nearest.better_than(self._present, now_s, is_answering=is_answering)
            if self._target is not None:
                self._began_s = now_s
                self._link.prepare(self._target)
        elif self._link.is_prepared:
            log.info("moving from %s to %s", self._link.address, self._link.addresses[self._target])
            protocol.leave()
            hand_over()
            protocol.move_to(self._target, now_s)
            self._link.enter_prepared(self._target)
            self._nearest.on_moved(now_s)
            self._present, self._target = self._target, None
        elif now_s - self._began_s > PREPARE_S:
            self._nearest.avoid(self._target, now_s)
            self._give_up()

    def _on_left(self, now_s: float) -> None:
        """The protocol has gone to another cloud: the one before was busy or silent."""
        self._nearest.avoid(self._present, now_s)
        self._present = self._protocol.cloud_index
        self._protocol.ranking = self._nearest.ranking(now_s)
        self._give_up()

    def _give_up(self) -> None:
        self._target = None
        self._link.cancel_preparation()

    def _probe(self) -> None:
        while not self._ended.wait(PROBE_EVERY_S):
            found = addresses.round_trips(self._link.addresses, PROBE_TIMEOUT_S)
            if not self._link.post(lambda found=found: self._on_probes(found)):  # type: ignore[misc]
                return

    def _on_probes(self, found: list[float | None]) -> None:
        self._nearest.record_probes(found)
        self._protocol.ranking = self._nearest.ranking(self._clock.now())


class CloudConnection:
    """One connection to a cloud, for all open answers of a robot. `protocol` lives on the link's thread.

    With `is_nearest` it goes to whichever of several clouds is nearest.
    """

    def __init__(
        self,
        link: DealerLink,
        hello: Hello,
        clock: Clock,
        timing: ProtocolTiming | None,
        *,
        is_nearest: bool = False,
    ) -> None:
        self.link = link
        self.clock = clock
        self.protocol = ClientProtocol(hello, timing, len(link.addresses))
        several = is_nearest and len(link.addresses) > 1
        self._moves = _Moves(link, self.protocol, clock) if several else None
        self.is_started = self.is_closed = False
        self._inboxes: dict[int, Inbox] = {}
        self._errors: SimpleQueue[CloudError] = SimpleQueue()
        self._upkeep_s = -math.inf
        self._welcomed = threading.Event()
        self._was_welcomed = False

    def connect(self, timeout_s: float, refused_s: float) -> Welcome:
        """Do the handshake. Raises CloudUnreachable, CloudRefused."""
        if not self.is_started:
            self.is_started = True
            self.link.start(self._on_message, self._flush, self._end_answers)
            if self._moves:
                self._moves.start()
        self._welcomed.clear()
        while not self._errors.empty():
            self._errors.get_nowait()
        self.run_on_link_thread(lambda: self.protocol.connect(self.clock.now()))
        deadline_s, probe_s = self.clock.now() + timeout_s, self.clock.now() + refused_s
        while not self._welcomed.wait(0.02):
            self._raise_if_refused()
            if self.clock.now() > deadline_s:
                raise self.unreachable(f"no answer within {timeout_s:.0f} s")
            if self.clock.now() > probe_s:
                self._raise_if_no_listener()
                probe_s = self.clock.now() + LISTENER_EVERY_S
        assert self.protocol.welcome is not None
        return self.protocol.welcome

    def open(self, request: AnswerRequest, inbox: Inbox, traffic: Traffic) -> None:
        """Open an answer; what comes for it goes to `inbox`, at once CloudUnreachable after `disconnect`."""

        def begin() -> None:
            self._inboxes[request.answer] = inbox
            self.protocol.open(request, self.clock.now(), traffic)

        if not self.run_on_link_thread(begin):
            inbox.put(CloudUnreachable(_CLOSED))

    def close(self, answer: int) -> None:
        """Close an answer; the others go on."""

        def end() -> None:
            self._inboxes.pop(answer, None)
            self.protocol.close(self.clock.now(), answer)

        self.run_on_link_thread(end)

    def run_on_link_thread(self, call: Callable[[], None]) -> bool:
        """Do this soon; the link flushes after it (`DealerLink.start`). False: its thread has ended."""
        return self.link.post(call)

    def unreachable(self, detail: str) -> CloudUnreachable:
        """Return the error that says what is known of a cloud that does not answer."""
        details, failures = [f"cloud {self.link.address}: {detail}"], self.link.failures
        first = next((failure for failure in _HANDSHAKE_FAILED if failure in failures), None)
        if first in _NETWORK_FAILURES and self._was_welcomed:
            details.append(_BROKE_OFF)
        elif first:
            details.append(_HANDSHAKE_FAILED[first])
        return CloudUnreachable("; ".join(details))

    # On the link's thread ------------------------------------------------------------------------

    def _on_message(self, data: bytes) -> None:
        self.protocol.receive(data, self.clock.now())

    def _flush(self) -> None:
        has_handed_over, now_s = self._hand_over(), self.clock.now()
        # Whoever waits for what was handed over cannot go on before this thread sleeps.
        if not has_handed_over or now_s - self._upkeep_s >= UPKEEP_S:
            self._upkeep_s = now_s
            self.protocol.tick(now_s)
            self.link.switch_to(self.protocol.cloud_index)
            if self._moves:
                self._moves.go_on(self._hand_over)
            self.protocol.maintain(self.link, now_s)
            self._hand_over()
        if self.protocol.is_welcome and not self._welcomed.is_set():
            self._was_welcomed = True
            self._welcomed.set()

    def _hand_over(self) -> bool:
        """Send and deliver what the protocol has; return whether there was anything."""
        has_any = bool(self.protocol.outbox or self.protocol.events)
        while self.protocol.outbox:
            self.link.send(self.protocol.outbox.popleft())
        while self.protocol.events:
            event = self.protocol.events.popleft()
            if event.answer in self._inboxes:
                self._inboxes[event.answer].put(event)
            elif isinstance(event, CloudError) and not event.answer:
                self._errors.put(event)
                for inbox in self._inboxes.values():
                    inbox.put(event)
        return has_any

    def _end_answers(self) -> None:
        """Tell all who wait for an event that none will come. The last call of the link's thread."""
        self.is_closed = True
        if self._moves:
            self._moves.end()
        for inbox in self._inboxes.values():
            inbox.put(CloudUnreachable(_CLOSED))

    # On the caller's thread ----------------------------------------------------------------------

    def _raise_if_refused(self) -> None:
        try:
            event = self._errors.get_nowait()
        except Empty:
            return
        if isinstance(event, CloudRefused):
            raise event

    def _raise_if_no_listener(self) -> None:
        """Raise CloudUnreachable if every cloud's machine refuses the TCP connection."""
        refusals = [addresses.refusal(address) for address in self.link.addresses]
        if all(refusals) and not self._welcomed.is_set():
            raise CloudUnreachable("; ".join(refusals) + ": is the cloud (`vsd cloud`) started there?")


class RemoteVerifier(Verifier):
    """Implements `Verifier` over a `DealerLink`. Only `wait` and `connect` block."""

    def __init__(
        self,
        link: DealerLink,
        hello: Hello,
        clock: Clock,
        timing: ProtocolTiming | None = None,
        *,
        is_nearest: bool = False,
    ) -> None:
        """With `is_nearest` the link's clouds are used by their measured round trips, not in their order."""
        self._begin(CloudConnection(link, hello, clock, timing, is_nearest=is_nearest))

    def _begin(self, connection: CloudConnection) -> None:
        self._connection = connection
        self._clock = connection.clock
        self._inbox: Inbox = SimpleQueue()
        self._answer = 0
        self._traffic = Traffic()
        self._tracer = NO_TRACER

    @property
    def max_answers(self) -> int:
        """How many answers one connection carries; a cloud may be set to serve fewer, and then refuses."""
        return MAX_OPEN_ANSWERS

    def another(self) -> RemoteVerifier:
        """Return the verifier of one more answer on the same connection."""
        verifier = RemoteVerifier.__new__(RemoteVerifier)
        verifier._begin(self._connection)
        return verifier

    def connect(self, timeout_s: float = 5.0, refused_s: float = math.inf) -> Welcome:
        """Do the handshake. Raises CloudUnreachable, CloudRefused.

        `refused_s` is how long to wait while nothing listens at any address: the clouds may be starting.
        """
        return self._connection.connect(timeout_s, refused_s)

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Start one answer. It is sent at once; `wait` raises a refusal.

        Raises ProtocolStateError before `connect`.
        """
        if not self._connection.is_started:
            raise ProtocolStateError("an answer was opened before `connect`")
        self.close()
        self._tracer = tracer
        tracer.opened(request)
        # Another inbox and count for each answer: the link's thread may still fill those of the one before.
        self._answer, self._inbox, self._traffic = request.answer, SimpleQueue(), Traffic()
        self._connection.open(request, self._inbox, self._traffic)

    def submit(self, message: Hint) -> None:
        """Send a draft or a correction."""
        self._tracer.sent(message)
        self._connection.run_on_link_thread(lambda: self._connection.protocol.submit(message))

    def poll(self) -> Event | None:
        """Return the next event if one is there. Raises what the cloud or a cancel reported."""
        try:
            return self._return_or_raise(self._inbox.get_nowait())
        except Empty:
            return None

    def wait(self, timeout_s: float) -> Event:
        """Block for the next event. Raises CloudTimeout, CloudUnreachable, CloudRefused, Cancelled."""
        self._tracer.waiting()
        try:
            return self._return_or_raise(self._inbox.get(timeout=max(0.0, timeout_s)))
        except Empty:
            raise CloudTimeout(f"no verdict within {timeout_s:.1f} s") from None

    def cancel(self) -> None:
        """Abandon the answer from any thread; a blocked `wait` raises Cancelled at once."""
        self._inbox.put(Cancelled("the answer was cancelled"))
        self.close()

    def close(self) -> None:
        """End the open answer; the connection, and the other answers on it, go on."""
        if self._answer:
            self._connection.close(self._answer)

    def disconnect(self) -> None:
        """End all answers and the connection. Idempotent."""
        self._connection.run_on_link_thread(lambda: self._connection.protocol.close(self._clock.now()))
        self._connection.link.close()

    @property
    def usage(self) -> LinkUsage:
        """Bytes of the answer so far, before encryption; the uplink without the image's chunks."""
        traffic = self._traffic
        up_bytes = traffic.up_bytes - traffic.image_bytes
        return LinkUsage(up_bytes, traffic.down_bytes, traffic.image_bytes)

    @property
    def clouds(self) -> str:
        """The clouds' addresses, with commas, starting with the one that is in use."""
        link = self._connection.link
        known, last = link.addresses, link.addresses.index(link.address)
        return ",".join((*known[last:], *known[:last]))

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the cloud's target can use, by its Welcome."""
        return self._connection.protocol.image_limits

    @property
    def is_reachable(self) -> bool:
        """Whether a cloud takes answers and was heard lately, and the connection is not closed."""
        connection = self._connection
        return not connection.is_closed and connection.protocol.is_heard(self._clock.now())

    @property
    def uplink(self) -> Uplink:
        """The link as the pictures so far have found it."""
        return self._connection.protocol.uplink

    @property
    def shares_processor(self) -> bool:
        """Whether the cloud is on this machine, which has but one processor to give."""
        return len(os.sched_getaffinity(0)) == 1 and addresses.is_loopback(self._connection.link.address)

    @property
    def rtt_s(self) -> float:
        """The last measured round trip, by echo of this machine's own clock."""
        return self._connection.protocol.rtt_s

    def _return_or_raise(self, event: Event | CloudError | Cancelled) -> Event:
        if isinstance(event, CloudUnreachable):
            raise self._connection.unreachable(str(event))
        if isinstance(event, CloudError | Cancelled):
            raise event
        self._tracer.received(event)
        return event
