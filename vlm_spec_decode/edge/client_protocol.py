"""The edge's half of the wire protocol and its time-outs, without I/O: bytes and ticks in, events out.

It is a state machine (docs/protocol.md). `request` is the open answer and its only state: committed sequence,
draft tree, unacknowledged messages. Committed tokens are never taken back: the robot may have acted on them.

::

                  connect                Welcome                 open, or an answer waits
        NEW ──────────────► GREETING ──────────────► READY ──────────────────────────────► ANSWERING
                              ▲  ▲                     ◄──────── close, Refused, too busy ─────┘
          connect, open       │  │ no answer of the cloud for too long, or it has forgotten the robot
        FAILED ───────────────┘  └───────────────────── READY, ANSWERING, BACKING_OFF
           ▲
           └── silence beyond all patience, Refused, another model: from every state but NEW

        BACKING_OFF: a cloud was busy. Entered by Busy from GREETING, READY and ANSWERING; left for GREETING
        at the next cloud when its time has come, or by open.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Protocol

from vlm_spec_decode.core.errors import (
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    ProtocolError,
    ProtocolStateError,
)
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, AnswerRequest, Commit, Event, Hint, Uplink
from vlm_spec_decode.edge.protocol_timing import EchoMonitor, ProtocolTiming, SuspensionDetector
from vlm_spec_decode.edge.request_state import ImageUpload, RequestState
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.strategies.estimators import UplinkRate

log = logging.getLogger(__name__)

QUEUED_IMAGE_BYTES = 32 * 1024
"""Bytes of an image that may queue before the link, with a draft behind them."""


class RenewableConnection(Protocol):
    """A connection that can be replaced if it is damaged, or only slow."""

    def renew(self) -> None:
        """Start a second connection, which takes over once its handshake is done."""
        ...

    def cancel_renewal(self) -> None:
        """Close the second connection if there is one: the first one works."""
        ...

    def was_connected(self) -> bool:
        """Return True once for each connection that was established."""
        ...


class ClientState(Enum):
    """State of the edge's half of the protocol."""

    NEW = "new"
    """Nothing has been sent; `connect` starts the handshake."""

    GREETING = "greeting"
    """Hello was sent and no Welcome has come; an open answer waits."""

    READY = "ready"
    """A cloud has welcomed this edge, and no answer is open."""

    ANSWERING = "answering"
    """The cloud has the Open of the answer."""

    BACKING_OFF = "backing_off"
    """A cloud was busy. At `_retry_s` the next one gets a Hello; an open answer waits."""

    FAILED = "failed"
    """The error is the last of the events; `connect` or `open` starts again."""


_S = ClientState
TRANSITIONS: Mapping[ClientState, frozenset[ClientState]] = {
    _S.NEW: frozenset({_S.GREETING}),
    _S.GREETING: frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.READY: frozenset({_S.GREETING, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.ANSWERING: frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.BACKING_OFF: frozenset({_S.GREETING, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.FAILED: frozenset({_S.GREETING}),
}
"""Every state and the states that may follow it."""

CONNECTED_STATES = frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF})
"""States in which messages of a cloud are handled."""


class ClientProtocol:
    """State machine of one edge towards its clouds. All times are seconds of the caller's clock.

    `cloud_index` is the number of the cloud to use, below `clouds`: the owner of the connection connects to
    it before it sends the content of `outbox`, and passes its connection to `maintain`.
    """

    def __init__(self, hello: wire.Hello, timing: ProtocolTiming | None = None, clouds: int = 1) -> None:
        self.timing = timing or ProtocolTiming()
        self.state = ClientState.NEW
        self.request: RequestState | None = None
        self.welcome: wire.Welcome | None = None
        self.outbox: deque[bytes] = deque()
        self.events: deque[Event | CloudError] = deque()
        self.dropped: Counter[str] = Counter()
        self.cloud_index, self.rtt_s, self.image_bytes = 0, 0.0, 0
        self.image_limits = UNKNOWN_LIMITS
        self._uplink_rate = UplinkRate()
        self._version, self._lowered_s = wire.VERSION, -math.inf
        self._needs_renewal = False
        self._clouds, self._hello = clouds, hello
        self._packer = codec.TokenPacker(hello.vocab_size)
        self._model: tuple[str, str] | None = None
        self._delivered_images: deque[bytes] = deque(maxlen=64)
        self._last_received_s = self._last_progress_s = self._last_ping_s = self._last_hello_s = (
            self._retry_s
        ) = 0.0
        self._busy_count, self._was_welcomed = 0, False
        self._suspension = SuspensionDetector()
        self._echo_monitor = EchoMonitor(timing=self.timing)

    @property
    def epoch(self) -> int:
        """Epoch of the open answer: how often it was opened again."""
        return self.request.sequence.epoch if self.request else 0

    @property
    def is_welcome(self) -> bool:
        """Whether the present cloud has sent a Welcome and takes answers."""
        return self.state is ClientState.ANSWERING or self.state is ClientState.READY

    @property
    def uplink(self) -> Uplink:
        """The link as the images so far have found it."""
        most = self.welcome.max_image_bytes if self.welcome else wire.MAX_SENT_IMAGE_BYTES
        return Uplink(
            bps=self._uplink_rate.bps,
            measured_bytes=self._uplink_rate.most_bytes,
            window_bytes=self._window_bytes(),
            rtt_s=self._echo_monitor.rtt_s,
            max_bytes=most,
        )

    # Calls of the owner ---------------------------------------------------------------------------

    def connect(self, now_s: float) -> None:
        """Start the handshake; it ends with `welcome` set, or with an error among the events.

        An edge that already has a Welcome only sends Hello once more.
        """
        self._needs_renewal |= self.state is ClientState.FAILED  # another connection may carry more
        self._last_received_s = self._last_progress_s = now_s
        self._was_welcomed = False
        self._echo_monitor.restart(now_s)
        if self.state in {ClientState.NEW, ClientState.FAILED}:
            self.welcome, self._version = None, wire.VERSION
            self._enter(ClientState.GREETING)
        self._send_hello(now_s)

    def open(self, request: AnswerRequest, now_s: float) -> None:
        """Open an answer; it is sent as soon as the handshake is done.

        Raises ProtocolStateError before `connect`.
        """
        if self.state is ClientState.NEW:
            raise ProtocolStateError("an answer was opened before `connect`")
        self.close(now_s)
        image = request.observation.image
        known = image is not None and image.digest in self._delivered_images
        self.request = RequestState(
            request=request,
            packer=self._packer,
            upload=ImageUpload(image, wait_for_credit=known) if image else None,
            patience_ms=round(1000 * self.timing.give_up_s),
            progress_s=now_s,
        )
        self._last_received_s = self._last_progress_s = now_s
        self._busy_count = self.image_bytes = 0
        if self.state is ClientState.FAILED:
            self.connect(now_s)
        elif self.welcome:
            self._send_open(now_s)
        elif self.state is ClientState.BACKING_OFF:
            self._enter(ClientState.GREETING)

    def submit(self, message: Hint) -> None:
        """Send a draft or correction, and store it until a commit acknowledges it: the link may lose it."""
        answer = self.request
        if answer and answer.request.answer == message.answer:
            answer.add(message)
            if answer.is_sent:
                self._send(answer.to_wire(message))

    def close(self, now_s: float) -> None:  # noqa: ARG002
        """Send Close for the open answer, if there is one."""
        if self.request and self.request.is_sent:
            self._send(wire.Close(*self.request.key))
        self._end_request()

    def receive(self, data: bytes, now_s: float) -> None:
        """Handle one message; an unreadable or outdated one is counted and dropped."""
        try:
            message = codec.decode(data)
            self._last_received_s = self._last_progress_s = now_s
            if self.state in CONNECTED_STATES:
                self._dispatch(message, now_s)
            else:
                self.dropped["stale"] += 1
        except ProtocolError:
            self.dropped["malformed"] += 1

    def tick(self, now_s: float) -> None:
        """Send again what may have been lost. Call it some ten times a second."""
        excused = self._suspension.shift_starts(
            now_s, self._last_received_s, self._last_progress_s, self._echo_monitor.last_echo_s
        )
        self._last_received_s, self._last_progress_s, self._echo_monitor.last_echo_s = excused
        match self.state:
            case ClientState.BACKING_OFF:
                if now_s >= self._retry_s:
                    self._last_received_s = now_s  # no message was due until now
                    self._switch_cloud(now_s)
            case ClientState.GREETING:
                if not self._check_silence(now_s) and now_s - self._last_hello_s >= self.timing.hello_retry_s:
                    self._send_hello(now_s)
            case ClientState.READY | ClientState.ANSWERING:
                if not self._check_silence(now_s) and now_s - self._last_ping_s >= self.timing.ping_s:
                    self._ping(now_s)

    def maintain(self, connection: RenewableConnection, now_s: float) -> None:
        """Renew the connection if pings go unanswered on it; cancel the renewal if they are answered.

        On a connection that was just established, Hello or Ping is sent again: the former one is lost.
        """
        if connection.was_connected():
            if self.state is ClientState.GREETING:
                self._send_hello(now_s)
            elif self.is_welcome:
                self._ping(now_s, recover=True)
        if self._needs_renewal:
            self._needs_renewal = False
            connection.renew()
        elif self._echo_monitor.is_alive:
            connection.cancel_renewal()

    # Messages of the cloud ------------------------------------------------------------------------

    def _dispatch(self, message: wire.AnyMessage, now_s: float) -> None:
        match message:
            case wire.Welcome():
                self._on_welcome(message, now_s)
            case wire.Refused():
                self._on_refused(message, now_s)
            case wire.Busy():
                self._on_busy(message, now_s)
            case wire.Pong():
                self._on_pong(message, now_s)
            case wire.ImageCredit() if answer := self._current(message.answer, message.epoch):
                self._on_credit(answer, message, now_s)
            case wire.WireCommit() if answer := self._current(message.answer, message.epoch):
                self._on_commit(answer, self._packer.commit_from_wire(message), now_s)
            case wire.WireEarly() if answer := self._current(message.answer, message.epoch):
                self.events.append(replace(codec.early_exit_from_wire(message), epoch=answer.request.epoch))
            case _:
                self.dropped["stale"] += 1

    def _on_welcome(self, message: wire.Welcome, now_s: float) -> None:
        self._echo_monitor.record_echo(now_s, now_s - self._echo_monitor.hello_s)
        model, answer = (message.model_id, message.revision), self.request
        if answer and len(answer.sequence) and self._model not in {None, model}:
            self._fail(CloudRefused("model_changed", f"an answer of {self._model} cannot go on with {model}"))
            return
        self.welcome, self.image_limits, wrong = codec.read_welcome(message)
        if wrong:
            self.dropped["welcome"] += 1
            log.warning("the cloud's Welcome is out of bounds: %s", "; ".join(wrong))
        self._model, self._was_welcomed = model, True
        # In another state this Welcome answers a Hello that was sent twice.
        if self.state is ClientState.GREETING and answer:
            self._send_open(now_s)
        elif self.state is ClientState.GREETING:
            self._enter(ClientState.READY)

    def _on_refused(self, message: wire.Refused, now_s: float) -> None:
        if message.reason == wire.HELLO_FIRST:
            self._restart_handshake(now_s)
        elif message.reason == wire.OTHER_VERSION:
            self._on_version_refused(message, now_s)
        elif message.answer == 0:
            self._fail(CloudRefused(message.reason, message.detail))
        elif self._current(message.answer, message.epoch):
            self._end_request()
            self.events.append(CloudRefused(message.reason, message.detail))

    def _on_version_refused(self, message: wire.Refused, now_s: float) -> None:
        """Say Hello in the version before; fail if the oldest one is refused as well."""
        if self._version > wire.OLDEST_VERSION:
            self._version, self._lowered_s = self._version - 1, now_s
            self._restart_handshake(now_s)
        elif self.is_welcome or now_s - self._lowered_s < self.timing.welcome_timeout_s:
            self.dropped["stale"] += 1  # the refusal of something sent in the newer version
        else:
            self._fail(CloudRefused(message.reason, message.detail))

    def _on_busy(self, message: wire.Busy, now_s: float) -> None:
        """Try again later, at the next cloud if there are several, for at most `busy_s`."""
        self._echo_monitor.record_echo(now_s)
        answer = self.request
        if message.answer and not self._current(message.answer, message.epoch):
            self.dropped["stale"] += 1
            return
        if answer:
            answer.is_sent = False
            answer.busy_since_s = now_s if answer.busy_since_s is None else answer.busy_since_s
            if now_s - answer.busy_since_s > self.timing.busy_s:
                self._end_request()
                self.events.append(CloudBusy(message.reason, message.retry_after_ms / 1000))
                return
        self._busy_count += 1
        asked_all = self._busy_count % self._clouds == 0
        self._retry_s = now_s + (min(message.retry_after_ms / 1000, self.timing.busy_s) if asked_all else 0.0)
        self._enter(ClientState.BACKING_OFF)

    def _on_pong(self, message: wire.Pong, now_s: float) -> None:
        self.rtt_s = max(0.0, now_s - message.stamp_us / 1e6)
        self._echo_monitor.record_echo(now_s, self.rtt_s)
        answer = self._current(message.answer, message.epoch)
        if answer and self.state is ClientState.ANSWERING and not message.known:
            answer.begin_epoch()
            self._send_open(now_s)

    def _on_credit(self, answer: RequestState, message: wire.ImageCredit, now_s: float) -> None:
        if answer.upload:
            answer.upload.acknowledge(message.received, now_s)
            answer.progress_s = now_s
            if answer.upload.is_done:
                self._delivered_images.append(answer.upload.image.digest)
                self._uplink_rate.learn(*answer.upload.take_transmission())
            self._send(*answer.chunks())

    def _on_commit(self, answer: RequestState, commit: Commit, now_s: float) -> None:
        if answer.sequence.is_gap(commit):
            self.dropped["gap"] += 1
            self._ping(now_s, recover=True)
        elif new := answer.commit(commit):
            answer.progress_s = now_s
            self.events.append(new)
        else:
            self.dropped["duplicate"] += 1

    def _current(self, answer: int, epoch: int) -> RequestState | None:
        mine = self.request
        return mine if mine and mine.key == (answer, epoch) else None

    # Steps ----------------------------------------------------------------------------------------

    def _enter(self, state: ClientState) -> None:
        """Go to a state that `TRANSITIONS` allows. Raises ProtocolStateError for any other."""
        if state not in TRANSITIONS[self.state]:
            raise ProtocolStateError(f"no step leads from {self.state.value} to {state.value}")
        self.state = state

    def _check_silence(self, now_s: float) -> bool:
        """Switch to another cloud, or fail, if this one is silent for too long; return True if so."""
        if self._echo_monitor.check_missed(now_s, is_welcome=self.is_welcome):
            self._needs_renewal = True
        if self.state is ClientState.READY:
            return False  # no answer is expected
        silent_s = now_s - self._last_received_s
        if silent_s > self.timing.total_timeout_s(was_welcomed=self._was_welcomed, clouds=self._clouds):
            self._fail(CloudUnreachable(f"nothing heard from the cloud for {silent_s:.1f} s"))
            return True
        per_cloud_timeout_s = self.timing.per_cloud_timeout_s(is_welcome=self.is_welcome, rtt_s=self.rtt_s)
        if self._clouds > 1 and now_s - self._last_progress_s > per_cloud_timeout_s:
            self._switch_cloud(now_s)
            return True
        return False

    def _switch_cloud(self, now_s: float) -> None:
        """Go to the next cloud, which may be the same one, and start the handshake there."""
        self.cloud_index, self._version = (self.cloud_index + 1) % self._clouds, wire.VERSION
        self._last_progress_s = now_s
        self._echo_monitor.restart(now_s)
        self._restart_handshake(now_s)

    def _restart_handshake(self, now_s: float) -> None:
        """Send Hello to a cloud that has no state of this edge."""
        self.welcome = None
        self._delivered_images.clear()
        if self.request:
            self.request.begin_epoch()
        self._enter(ClientState.GREETING)
        self._send_hello(now_s)

    def _window_bytes(self) -> int:
        """Return how many bytes of an image may be under way: a queue, and what fills the round trip."""
        in_flight = (self._uplink_rate.bps or 0.0) / 8 * self._echo_monitor.rtt_s
        most = self.welcome.image_window_bytes if self.welcome else QUEUED_IMAGE_BYTES
        return int(min(most, QUEUED_IMAGE_BYTES + in_flight))

    def _send_open(self, now_s: float) -> None:
        assert self.request is not None
        assert self.welcome is not None
        self._enter(ClientState.ANSWERING)
        self.request.progress_s = self._last_ping_s = now_s
        self._send(*self.request.open_messages(self._window_bytes()))

    def _end_request(self) -> None:
        """Drop the open answer; the connection stays as it is."""
        self._forget_request()
        if self.state is ClientState.ANSWERING:
            self._enter(ClientState.READY)

    def _forget_request(self) -> None:
        if self.request and self.request.upload:
            # Also what arrived of an image that was given up tells how fast the link is.
            self._uplink_rate.learn(*self.request.upload.take_transmission())
        self.request = None

    def _ping(self, now_s: float, recover: bool = False) -> None:
        self._last_ping_s = now_s
        answer, stamp_us = self.request, round(now_s * 1e6)
        if answer is None or not answer.is_sent:
            self._send(wire.Ping(stamp_us, 0, 0, 0, False))
            return
        patience_s = self.timing.recover_s + 2 * answer.pass_s + 2 * self.rtt_s
        recover = recover or now_s - answer.progress_s > patience_s
        self._send(answer.ping(stamp_us, recover))
        if recover:
            answer.progress_s = now_s
            self._send(*answer.messages_to_resend())

    def _send_hello(self, now_s: float) -> None:
        self._last_hello_s = now_s
        self._send(self._hello)

    def _send(self, *messages: wire.AnyMessage) -> None:
        for message in messages:
            if isinstance(message, wire.ImageChunk):
                self.image_bytes += len(message.data)
            self.outbox.append(codec.encode(message, self._version))

    def _fail(self, error: CloudError) -> None:
        self._forget_request()
        self._enter(ClientState.FAILED)
        self.events.append(error)
