"""The edge's half of the wire protocol and its time-outs, without I/O: bytes and ticks in, events out.

It is a state machine (`edge.client_states`, docs/protocol.md). `requests` are the open answers, each with all
of its state: committed sequence, draft tree, unacknowledged messages. Committed tokens are never taken back:
the robot may have acted on them. One connection carries several answers, told apart by their numbers: what
ends, delays or repeats one leaves the others as they are.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from dataclasses import replace
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
from vlm_spec_decode.edge.client_states import CONNECTED_STATES, TRANSITIONS, ClientState
from vlm_spec_decode.edge.protocol_timing import EchoMonitor, ProtocolTiming, SuspensionDetector
from vlm_spec_decode.edge.request_state import ImageUpload, RequestState, Traffic
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.strategies.estimators import UplinkRate

log = logging.getLogger(__name__)

QUEUED_IMAGE_BYTES = 32 * 1024
"""Bytes of images that may queue before the link, with a draft behind them."""

REMEMBERED_CLOSES = 8
"""Ended answers whose Close is sent again on a new connection: a cloud that missed it counts them as open."""

LOST_CLOSE_S = 3.0
"""So long after a Close an answer beyond the cloud's limit is opened again: that Close may have been lost."""


OLD_CLOUD = "old_cloud"
"""Reason of a CloudRefused that is made here: this cloud would answer something else than the chat."""


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


class ClientProtocol:
    """State machine of one edge towards its clouds. All times are seconds of the caller's clock.

    `cloud_index` is the number of the cloud to use, below `clouds`: the owner of the connection connects to
    it before it sends the content of `outbox`, and passes its connection to `maintain`. `ranking` is the
    order in which clouds are tried.
    """

    def __init__(self, hello: wire.Hello, timing: ProtocolTiming | None = None, clouds: int = 1) -> None:
        self.timing = timing or ProtocolTiming()
        self.state = ClientState.NEW
        self.requests: dict[int, RequestState] = {}
        self.welcome: wire.Welcome | None = None
        self.outbox: deque[bytes] = deque()
        self.events: deque[Event | CloudError] = deque()
        self.dropped: Counter[str] = Counter()
        self.cloud_index, self.rtt_s = 0, 0.0
        self.image_limits = UNKNOWN_LIMITS
        self._uplink_rate = UplinkRate()
        self._version, self._lowered_s = wire.VERSION, -math.inf
        self._needs_renewal = False
        self._clouds, self._hello = clouds, hello
        self.ranking = tuple(range(clouds))
        self._packer = codec.TokenPacker(hello.vocab_size)
        self._model: tuple[str, str] | None = None
        self._delivered_images: deque[bytes] = deque(maxlen=64)
        self._newest, self._traffic = 0, Traffic()
        self._closed: dict[int, wire.Close] = {}
        self._closed_s = -math.inf
        self._last_received_s = self._last_progress_s = self._last_ping_s = self._last_hello_s = (
            self._retry_s
        ) = 0.0
        self._busy_count, self._was_welcomed = 0, False
        self._suspension = SuspensionDetector()
        self._echo_monitor = EchoMonitor(timing=self.timing)

    @property
    def request(self) -> RequestState | None:
        """The newest answer, None once it has ended."""
        return self.requests.get(self._newest)

    @property
    def epoch(self) -> int:
        """Epoch of the newest answer: how often it was opened again."""
        return self.request.sequence.epoch if self.request else 0

    @property
    def image_bytes(self) -> int:
        """Bytes of its image that the newest answer has sent."""
        return self._traffic.image_bytes

    @property
    def is_welcome(self) -> bool:
        """Whether the present cloud has sent a Welcome and takes answers."""
        return self.state is ClientState.ANSWERING or self.state is ClientState.READY

    def is_heard(self, now_s: float) -> bool:
        """Return whether a cloud takes answers and was heard lately: it is pinged while none is open, too."""
        silent_s = now_s - self._last_received_s
        longest_s = self.timing.total_timeout_s(was_welcomed=True, clouds=self._clouds) + self.timing.ping_s
        return self.is_welcome and silent_s <= longest_s

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

    def open(self, request: AnswerRequest, now_s: float, traffic: Traffic | None = None) -> None:
        """Open an answer beside those that are open; it is sent as soon as the handshake is done.

        One of the same number is replaced, and those that have come to their end are closed. `traffic` counts
        its bytes. Raises ProtocolStateError before `connect`.
        """
        if self.state is ClientState.NEW:
            raise ProtocolStateError("an answer was opened before `connect`")
        for number in [n for n, r in self.requests.items() if n == request.answer or r.sequence.finished]:
            self.close(now_s, number)
        if not self.requests:
            # Nothing was expected of the cloud. Else its silence goes on counting for those that wait.
            self._last_received_s = self._last_progress_s = now_s
            self._busy_count = 0
        image = request.observation.image
        known = image is not None and image.digest in self._delivered_images
        self._newest, self._traffic = request.answer, traffic or Traffic()
        self._closed.pop(request.answer, None)
        opened = self.requests[request.answer] = RequestState(
            request=request,
            packer=self._packer,
            upload=ImageUpload(image, wait_for_credit=known) if image else None,
            patience_ms=round(1000 * self.timing.give_up_s),
            progress_s=now_s,
            asked_s=now_s,
            traffic=self._traffic,
        )
        if self.state is ClientState.FAILED:
            self.connect(now_s)
        elif self.welcome:
            self._enter(ClientState.ANSWERING)
            self._send_open(opened, now_s)
        elif self.state is ClientState.BACKING_OFF:
            self._enter(ClientState.GREETING)

    def submit(self, message: Hint) -> None:
        """Send a draft or correction, and store it until a commit acknowledges it: the link may lose it."""
        answer = self.requests.get(message.answer)
        if answer:
            answer.add(message)
            if answer.is_sent:
                self._send(answer.to_wire(message))

    def close(self, now_s: float, number: int | None = None) -> None:
        """Send Close for the answer of this number if it is open, without one for all; the others go on."""
        ending = [answer for n, answer in self.requests.items() if number in {None, n}]
        for answer in sorted(ending, key=lambda each: each.is_sent):
            if answer.is_sent:
                closing = self._closed[answer.request.answer] = wire.Close(*answer.key)
                self._closed_s = now_s
                self._send(closing)
            self._end_request(answer, now_s)
        while len(self._closed) > REMEMBERED_CLOSES:
            del self._closed[next(iter(self._closed))]

    def leave(self) -> None:
        """Tell the present cloud that the open answers end there; `move_to` opens them at another one."""
        self._send(*(wire.Close(*answer.key) for answer in self.requests.values() if answer.is_sent))

    def move_to(self, cloud: int, now_s: float) -> None:
        """Go to another cloud than the present one, which works: a handshake there, and all answers go on."""
        self._switch_cloud(now_s, cloud)

    def receive(self, data: bytes, now_s: float) -> None:
        """Handle one message; an unreadable or outdated one is counted and dropped."""
        try:
            message = codec.decode(data)
            self._last_received_s = self._last_progress_s = now_s
            if self.state in CONNECTED_STATES:
                self._count_received(message, len(data))
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
                if self._check_silence(now_s):
                    return
                self._open_again(now_s)
                if now_s - self._last_ping_s >= self.timing.ping_s:
                    self._ping(now_s)

    def maintain(self, connection: RenewableConnection, now_s: float) -> None:
        """Renew the connection if pings go unanswered on it; cancel the renewal if they are answered.

        On a connection that was just established, Hello or Ping is sent again: the former one is lost.
        """
        if connection.was_connected():
            if self.state is ClientState.GREETING:
                self._send_hello(now_s)
            elif self.is_welcome:
                self._send_closed()
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
        model = (message.model_id, message.revision)
        begun = [r for r in self.requests.values() if len(r.sequence)]
        if begun and self._model not in {None, model}:
            error = CloudRefused("model_changed", f"an answer of {self._model} cannot go on with {model}")
            if len(begun) == len(self.requests):
                self._fail(error)
                return
            for answer in begun:
                self._end_with(answer, error, now_s)
        self.welcome, self.image_limits, wrong = codec.read_welcome(message)
        if wrong:
            self.dropped["welcome"] += 1
            log.warning("the cloud's Welcome is out of bounds: %s", "; ".join(wrong))
        self._model, self._was_welcomed = model, True
        # In another state this Welcome answers a Hello that was sent twice.
        if self.state is ClientState.GREETING:
            self._send_closed()
            self._enter(ClientState.ANSWERING if self.requests else ClientState.READY)
            for answer in tuple(self.requests.values()):
                self._send_open(answer, now_s)

    def _on_refused(self, message: wire.Refused, now_s: float) -> None:
        if message.reason == wire.HELLO_FIRST:
            self._restart_handshake(now_s)
        elif message.reason == wire.OTHER_VERSION:
            self._on_version_refused(message, now_s)
        elif message.answer == 0:
            self._fail(CloudRefused(message.reason, message.detail))
        elif answer := self._current(message.answer, message.epoch):
            if message.reason == wire.TOO_MANY_ANSWERS and now_s - self._closed_s < LOST_CLOSE_S:
                # The cloud may count one whose Close was lost. It notices soon, or hears it now.
                self._send_closed()
                answer.on_busy(now_s, now_s + self.timing.hello_retry_s)
                self._back_off(now_s, self.timing.hello_retry_s)
                return
            self._end_with(answer, CloudRefused(message.reason, message.detail), now_s)

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
        """Try again later, for at most `busy_s`: here if another answer is served, else at the next cloud."""
        self._echo_monitor.record_echo(now_s)
        refused = list(self.requests.values())
        if message.answer:
            named = self._current(message.answer, message.epoch)
            if named is None:
                self.dropped["stale"] += 1
                return
            refused = [named]
        for answer in refused:
            retry_s = now_s + min(message.retry_after_ms / 1000, self.timing.busy_s)
            if answer.on_busy(now_s, retry_s) > self.timing.busy_s:
                error = CloudBusy(message.reason, message.retry_after_ms / 1000)
                self._end_with(answer, error, now_s)
        if self.requests.keys() & {answer.request.answer for answer in refused} or not refused:
            self._back_off(now_s, message.retry_after_ms / 1000)

    def _back_off(self, now_s: float, retry_after_s: float) -> None:
        """Wait for the stated time once all clouds were asked; not while an answer is served here."""
        if any(answer.is_sent for answer in self.requests.values()):
            return
        self._busy_count += 1
        asked_all = self._busy_count % self._clouds == 0
        self._retry_s = now_s + (min(retry_after_s, self.timing.busy_s) if asked_all else 0.0)
        self._enter(ClientState.BACKING_OFF)

    def _on_pong(self, message: wire.Pong, now_s: float) -> None:
        self.rtt_s = max(0.0, now_s - message.stamp_us / 1e6)
        self._echo_monitor.record_echo(now_s, self.rtt_s)
        answer = self._current(message.answer, message.epoch)
        if answer and self.state is ClientState.ANSWERING and not message.known:
            answer.begin_epoch()
            self._send_open(answer, now_s)

    def _on_credit(self, answer: RequestState, message: wire.ImageCredit, now_s: float) -> None:
        if answer.upload:
            answer.upload.acknowledge(message.received, now_s)
            answer.progress_s = now_s
            if answer.upload.is_done:
                self._delivered_images.append(answer.upload.image.digest)
                self._uplink_rate.learn(*answer.upload.take_transmission())
            self._send_chunks()

    def _on_commit(self, answer: RequestState, commit: Commit, now_s: float) -> None:
        if answer.sequence.is_gap(commit):
            self.dropped["gap"] += 1
            self._ping(now_s, recover=True, only=answer)
        elif new := answer.commit(commit):
            answer.progress_s = now_s
            self.events.append(new)
        else:
            self.dropped["duplicate"] += 1

    def _current(self, answer: int, epoch: int) -> RequestState | None:
        mine = self.requests.get(answer)
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

    def _switch_cloud(self, now_s: float, cloud: int | None = None) -> None:
        """Go to a cloud, by default the next one, which may be the same, and start the handshake there."""
        following = self.ranking[(self.ranking.index(self.cloud_index) + 1) % self._clouds]
        self.cloud_index, self._version = following if cloud is None else cloud, wire.VERSION
        self._last_progress_s = now_s
        self._echo_monitor.restart(now_s)
        self._restart_handshake(now_s)

    def _restart_handshake(self, now_s: float) -> None:
        """Send Hello to a cloud that has no state of this edge."""
        self.welcome = None
        self._delivered_images.clear()
        for answer in self.requests.values():
            answer.begin_epoch()
        self._enter(ClientState.GREETING)
        self._send_hello(now_s)

    def _window_bytes(self) -> int:
        """Return how many bytes of an image may be under way: a queue, and what fills the round trip."""
        in_flight = (self._uplink_rate.bps or 0.0) / 8 * self._echo_monitor.rtt_s
        most = self.welcome.image_window_bytes if self.welcome else QUEUED_IMAGE_BYTES
        return int(min(most, QUEUED_IMAGE_BYTES + in_flight))

    def _send_open(self, answer: RequestState, now_s: float) -> None:
        assert self.welcome is not None
        if answer.request.observation.chat is not None and self._version < wire.CHAT_VERSION:
            detail = (
                f"the cloud speaks version {self._version} of the protocol, chats take {wire.CHAT_VERSION}"
            )
            self._end_with(answer, CloudRefused(OLD_CLOUD, detail), now_s)
            return
        answer.progress_s = self._last_ping_s = now_s
        opening, *messages = answer.open_messages(now_s)
        self._send(opening)
        self._send_chunks()
        self._send(*messages)

    def _open_again(self, now_s: float) -> None:
        """Open the answers again that were busy beside one that is served, and whose time has come."""
        for answer in tuple(self.requests.values()):
            if not answer.is_sent and now_s >= answer.retry_s:
                answer.begin_epoch()
                self._send_open(answer, now_s)

    def _send_chunks(self) -> None:
        """Send what the window allows of the images, the oldest answer's first: it is the first to begin.

        All images share one window, so that a draft waits no longer behind several than behind one.
        """
        uploads = [answer for answer in self.requests.values() if answer.upload and answer.is_sent]
        under_way = sum(answer.upload.under_way for answer in uploads if answer.upload)
        room = max(0, self._window_bytes() - under_way)
        for answer in uploads:
            for chunk in answer.chunks(room):
                room -= len(chunk.data)
                self._send(chunk)

    def _send_closed(self) -> None:
        """Send the Close of answers again that may have been lost with the connection before."""
        self._send(*self._closed.values())
        self._closed.clear()

    def _end_request(self, answer: RequestState, now_s: float) -> None:
        """Drop an open answer; the connection and the other answers stay as they are."""
        self._forget_request(answer)
        if self.state is not ClientState.ANSWERING or any(r.is_sent for r in self.requests.values()):
            return
        self._enter(ClientState.BACKING_OFF if self.requests else ClientState.READY)
        # Nothing is served here any more: who was busy beside it may go to the next cloud.
        self._retry_s = min((r.retry_s for r in self.requests.values()), default=now_s)

    def _end_with(self, answer: RequestState, error: CloudError, now_s: float) -> None:
        """End one answer and say why."""
        self._end_request(answer, now_s)
        error.answer = answer.request.answer
        self.events.append(error)

    def _forget_request(self, answer: RequestState) -> None:
        if answer.upload:
            # Also what arrived of an image that was given up tells how fast the link is.
            self._uplink_rate.learn(*answer.upload.take_transmission())
        self.requests.pop(answer.request.answer, None)

    def _ping(self, now_s: float, recover: bool = False, only: RequestState | None = None) -> None:
        """Ping for each answer that was sent, or `only` for one; without any, for the connection."""
        self._last_ping_s = now_s
        stamp_us = round(now_s * 1e6)
        sent = [only] if only else [answer for answer in self.requests.values() if answer.is_sent]
        if not sent:
            self._send(wire.Ping(stamp_us, 0, 0, 0, False))
        for answer in sent:
            patience_s = self.timing.recover_s + 2 * answer.pass_s + 2 * self.rtt_s
            is_late = recover or now_s - answer.progress_s > patience_s
            self._send(answer.ping(stamp_us, is_late))
            if is_late:
                answer.progress_s = now_s
                self._send(*answer.messages_to_resend())
                self._send_chunks()

    def _send_hello(self, now_s: float) -> None:
        self._last_hello_s = now_s
        self._send(self._hello)

    def _send(self, *messages: wire.AnyMessage) -> None:
        for message in messages:
            data = codec.encode(message, self._version)
            if traffic := self._traffic_of(message):
                traffic.up_bytes += len(data)
                traffic.image_bytes += len(message.data) if isinstance(message, wire.ImageChunk) else 0
            self.outbox.append(data)

    def _count_received(self, message: wire.AnyMessage, num_bytes: int) -> None:
        if traffic := self._traffic_of(message):
            traffic.down_bytes += num_bytes

    def _traffic_of(self, message: wire.AnyMessage) -> Traffic | None:
        answer = self.requests.get(getattr(message, "answer", 0))
        return answer.traffic if answer else None

    def _fail(self, error: CloudError) -> None:
        for answer in list(self.requests.values()):
            self._forget_request(answer)
        self._enter(ClientState.FAILED)
        self.events.append(error)
