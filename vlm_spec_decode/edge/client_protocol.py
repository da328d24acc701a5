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

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from vlm_spec_decode.core.types import AnswerRequest, Commit, Event, Hint
from vlm_spec_decode.edge.request_state import ImageUpload, RequestState
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire

ASLEEP_S = 2.0
"""Ticks come some ten times a second; a longer gap means that this process was stopped or starved."""

LONGEST_RTT_S = 1.5
"""A round trip that took longer was a stall, which says nothing of the next."""

FORGET = 0.7
"""What an echo leaves of the longest round trip before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolTiming:
    """Time-outs, all in seconds.

    `handshake_s` is the patience with each cloud until the first Welcome, since encryption costs several
    round trips; without it, `give_up_s` applies there too. An edge with several clouds tries the next after
    `elsewhere_s` of silence (less than `give_up_s`, or it never does); after the first Welcome the patience
    counts over all of them. `busy_s` is how long it retries busy ones. A connection without an echo for
    `renew_s` and two round trips is replaced, and so is one without a Welcome for `greet_s`.
    """

    hello_retry_s: float = 0.5
    ping_s: float = 0.3
    recover_s: float = 0.5
    give_up_s: float = 10.0
    handshake_s: float | None = None
    elsewhere_s: float = 2.0
    busy_s: float = 10.0
    renew_s: float = 1.0
    greet_s: float = 2.0

    @classmethod
    def walking(cls, silence_s: float, connect_s: float) -> ProtocolTiming:
        """Return the patience of a robot that walks: half for one cloud, half for the next to greet."""
        ping_s, half_s = min(0.3, silence_s / 4), silence_s / 2
        return cls(
            ping_s=ping_s,
            give_up_s=silence_s,
            handshake_s=connect_s,
            elsewhere_s=half_s,
            renew_s=min(1.0, half_s),
        )

    def patience_s(self, *, is_met: bool, clouds: int) -> float:
        """Return how long silence is tolerated at all; `is_met`: one of the clouds has greeted."""
        if is_met or self.handshake_s is None:
            return self.give_up_s
        return self.handshake_s * clouds

    def stay_s(self, *, is_welcome: bool, rtt_s: float) -> float:
        """Return how long silence is tolerated at one of several clouds.

        Before its welcome that is long enough to connect and be greeted.
        """
        if is_welcome:
            return self.elsewhere_s + rtt_s
        return max(self.elsewhere_s, 4 * self.hello_retry_s)


@dataclass(slots=True)
class SuspensionDetector:
    """Detects that this process was suspended, during which it could not receive anything."""

    _at_s: float = 0.0

    def excuse(self, now_s: float, *since_s: float) -> tuple[float, ...]:
        """Return when silences began, later by as long as this process was stopped. Call at every tick."""
        stopped_s, self._at_s = now_s - self._at_s, now_s
        if stopped_s < ASLEEP_S:
            return since_s
        return tuple(min(now_s, start_s + stopped_s) for start_s in since_s)


@dataclass(slots=True, kw_only=True)
class Echo:
    """Notices that a connection no longer carries both ways: pings, or greetings, are not answered.

    Messages that come by themselves do not count: a connection that is damaged upwards still brings commits.
    `since_s` is when the last answer came or the connection was last to be made anew, `missed` how often that
    was since. `is_here`: the last thing that happened is that an answer came.
    """

    timing: ProtocolTiming
    since_s: float = 0.0
    greeted_s: float = 0.0
    rtt_s: float = 0.0
    missed: int = 0
    is_here: bool = False

    def begin(self, now_s: float) -> None:
        """A cloud is greeted for the first time, or after it was given up."""
        self.since_s = self.greeted_s = now_s
        self.rtt_s, self.missed, self.is_here = 0.0, 0, False

    def answered(self, now_s: float, rtt_s: float | None = None) -> None:
        """Note that a ping or a greeting was answered; the time of the latter includes the handshake."""
        self.since_s, self.missed, self.is_here = now_s, 0, True
        if rtt_s is not None:
            self.rtt_s = min(LONGEST_RTT_S, max(rtt_s, FORGET * self.rtt_s))

    def is_missed(self, now_s: float, *, is_welcome: bool) -> bool:
        """Tell, once, that the connection is to be made anew; each time its successor has twice as long."""
        patience_s = self.timing.renew_s + 2 * self.rtt_s if is_welcome else self.timing.greet_s
        if now_s - self.since_s <= patience_s * 2**self.missed:
            return False
        self.since_s, self.missed, self.is_here = now_s, min(self.missed + 1, 4), False
        return True


class Renewable(Protocol):
    """A connection that may be damaged, or only slow."""

    def renew(self) -> None:
        """Begin a new connection beside it, which takes over once its handshake is done."""
        ...

    def settle(self) -> None:
        """Give up a new connection that was begun: the old one works."""
        ...

    def came_up(self) -> bool:
        """Tell, once, that a connection was made."""
        ...


class ClientState(Enum):
    """Where an edge stands towards its clouds."""

    NEW = "new"
    """Nothing has been said; `connect` begins."""

    GREETING = "greeting"
    """Hello has been said and no Welcome has come; an open answer waits."""

    READY = "ready"
    """A cloud has welcomed this edge, and no answer is open."""

    ANSWERING = "answering"
    """The cloud has the Open of the answer."""

    BACKING_OFF = "backing_off"
    """A cloud was busy; at `retry_s` the next one is greeted, and an open answer waits."""

    FAILED = "failed"
    """The last error is among the events; `connect` or `open` begins anew."""


_S = ClientState
TRANSITIONS: Mapping[ClientState, frozenset[ClientState]] = {
    _S.NEW: frozenset({_S.GREETING}),
    _S.GREETING: frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.READY: frozenset({_S.GREETING, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.ANSWERING: frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.BACKING_OFF: frozenset({_S.GREETING, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.FAILED: frozenset({_S.GREETING}),
}
"""Every state and those that may follow it."""

UNDER_WAY = frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF})
"""States in which a cloud is spoken with."""


class ClientProtocol:
    """State machine of one edge towards its clouds. All times are seconds of the caller's clock.

    `place` is the index in `clouds` of the cloud to use: the owner of the connection connects there
    before it sends the content of `outbox`, and passes its connection to `tend`.
    """

    def __init__(self, hello: wire.Hello, timing: ProtocolTiming | None = None, clouds: int = 1) -> None:
        self.timing = timing or ProtocolTiming()
        self.state = ClientState.NEW
        self.request: RequestState | None = None
        self.welcome: wire.Welcome | None = None
        self.outbox: deque[bytes] = deque()
        self.events: deque[Event | CloudError] = deque()
        self.dropped: Counter[str] = Counter()
        self.place, self.rtt_s, self.image_bytes = 0, 0.0, 0
        self._wants_renewal = False
        self._clouds, self._hello = clouds, hello
        self._packer = codec.TokenPacker(hello.vocab_size)
        self._model: tuple[str, str] | None = None
        self._delivered_images: deque[bytes] = deque(maxlen=64)
        self._heard_s = self._moved_s = self._ping_s = self._hello_s = self._retry_s = 0.0
        self._busies, self._is_met = 0, False
        self._suspension = SuspensionDetector()
        self._echo = Echo(timing=self.timing)

    @property
    def epoch(self) -> int:
        """Epoch of the open answer: how often it was opened again."""
        return self.request.sequence.epoch if self.request else 0

    @property
    def is_welcome(self) -> bool:
        """Whether the present cloud has greeted this edge and takes answers."""
        return self.state in {ClientState.READY, ClientState.ANSWERING}

    # Calls of the owner ---------------------------------------------------------------------------

    def connect(self, now_s: float) -> None:
        """Start the handshake; its end is `welcome`, or an error among the events.

        An edge that a cloud has welcomed already only says Hello once more.
        """
        self._wants_renewal |= self.state is ClientState.FAILED  # another connection may carry more
        self._heard_s = self._moved_s = now_s
        self._is_met = False
        self._echo.begin(now_s)
        if self.state in {ClientState.NEW, ClientState.FAILED}:
            self.welcome = None
            self._enter(ClientState.GREETING)
        self._say_hello(now_s)

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
        self._heard_s = self._moved_s = now_s
        self._busies = self.image_bytes = 0
        if self.state is ClientState.FAILED:
            self.connect(now_s)
        elif self.welcome:
            self._send_open(now_s)
        elif self.state is ClientState.BACKING_OFF:
            self._enter(ClientState.GREETING)

    def submit(self, hint: Hint) -> None:
        """Send a hint, and keep it until a commit overtakes it in case the link loses it."""
        answer = self.request
        if answer and answer.request.answer == hint.answer:
            answer.add(hint)
            if answer.is_sent:
                self._send(answer.message(hint))

    def close(self, now_s: float) -> None:  # noqa: ARG002
        """Tell the cloud that the open answer is over."""
        if self.request and self.request.is_sent:
            self._send(wire.Close(*self.request.names))
        self._end_request()

    def receive(self, data: bytes, now_s: float) -> None:
        """Take one message; what cannot be read or belongs to the past is counted and dropped."""
        try:
            message = codec.decode(data)
            self._heard_s = self._moved_s = now_s
            if self.state in UNDER_WAY:
                self._dispatch(message, now_s)
            else:
                self.dropped["stale"] += 1
        except ProtocolError:
            self.dropped["malformed"] += 1

    def tick(self, now_s: float) -> None:
        """Repeat what may have been lost. Call some ten times a second."""
        excused = self._suspension.excuse(now_s, self._heard_s, self._moved_s, self._echo.since_s)
        self._heard_s, self._moved_s, self._echo.since_s = excused
        match self.state:
            case ClientState.BACKING_OFF:
                if now_s >= self._retry_s:
                    self._heard_s = now_s  # nobody had anything to say until now
                    self._move(now_s)
            case ClientState.GREETING:
                if not self._gave_up(now_s) and now_s - self._hello_s >= self.timing.hello_retry_s:
                    self._say_hello(now_s)
            case ClientState.READY | ClientState.ANSWERING:
                if not self._gave_up(now_s) and now_s - self._ping_s >= self.timing.ping_s:
                    self._ping(now_s)

    def tend(self, connection: Renewable, now_s: float) -> None:
        """Have the connection made anew if nothing is echoed over it, and left alone if something is.

        Over one that has just been made, what was said before is said again: it is lost.
        """
        if connection.came_up():
            if self.state is ClientState.GREETING:
                self._say_hello(now_s)
            elif self.is_welcome:
                self._ping(now_s, recover=True)
        if self._wants_renewal:
            self._wants_renewal = False
            connection.renew()
        elif self._echo.is_here:
            connection.settle()

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
                self._on_commit(answer, self._packer.commit(message), now_s)
            case wire.WireEarly() if answer := self._current(message.answer, message.epoch):
                self.events.append(replace(codec.early(message), epoch=answer.request.epoch))
            case _:
                self.dropped["stale"] += 1

    def _on_welcome(self, message: wire.Welcome, now_s: float) -> None:
        self._echo.answered(now_s, now_s - self._echo.greeted_s)
        model, answer = (message.model_id, message.revision), self.request
        if answer and len(answer.sequence) and self._model not in {None, model}:
            self._fail(CloudRefused("model_changed", f"an answer of {self._model} cannot go on with {model}"))
            return
        self.welcome, self._model, self._is_met = message, model, True
        # In another state this Welcome answers a Hello that was said twice.
        if self.state is ClientState.GREETING and answer:
            self._send_open(now_s)
        elif self.state is ClientState.GREETING:
            self._enter(ClientState.READY)

    def _on_refused(self, message: wire.Refused, now_s: float) -> None:
        if message.reason == wire.HELLO_FIRST:
            self._begin_anew(now_s)
        elif message.answer == 0:
            self._fail(CloudRefused(message.reason, message.detail))
        elif self._current(message.answer, message.epoch):
            self._end_request()
            self.events.append(CloudRefused(message.reason, message.detail))

    def _on_busy(self, message: wire.Busy, now_s: float) -> None:
        """Come again later, elsewhere if there is an elsewhere, until patience ends."""
        self._echo.answered(now_s)
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
        self._busies += 1
        asked_all = self._busies % self._clouds == 0
        self._retry_s = now_s + (min(message.retry_after_ms / 1000, self.timing.busy_s) if asked_all else 0.0)
        self._enter(ClientState.BACKING_OFF)

    def _on_pong(self, message: wire.Pong, now_s: float) -> None:
        self.rtt_s = max(0.0, now_s - message.stamp_us / 1e6)
        self._echo.answered(now_s, self.rtt_s)
        answer = self._current(message.answer, message.epoch)
        if answer and self.state is ClientState.ANSWERING and not message.known:
            answer.begin_epoch()
            self._send_open(now_s)

    def _on_credit(self, answer: RequestState, message: wire.ImageCredit, now_s: float) -> None:
        if answer.upload:
            answer.upload.credit(message.received)
            answer.progress_s = now_s
            if answer.upload.is_done:
                self._delivered_images.append(answer.upload.image.digest)
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
        return mine if mine and mine.names == (answer, epoch) else None

    # Steps ----------------------------------------------------------------------------------------

    def _enter(self, state: ClientState) -> None:
        """Take a step of `TRANSITIONS`. Raises ProtocolStateError for any other."""
        if state not in TRANSITIONS[self.state]:
            raise ProtocolStateError(f"no step leads from {self.state.value} to {state.value}")
        self.state = state

    def _gave_up(self, now_s: float) -> bool:
        """Look how long the cloud has been silent: leave it for another, or fail, if that is too long."""
        if self._echo.is_missed(now_s, is_welcome=self.is_welcome):
            self._wants_renewal = True
        if self.state is ClientState.READY:
            return False  # nobody waits for anything
        silent_s = now_s - self._heard_s
        if silent_s > self.timing.patience_s(is_met=self._is_met, clouds=self._clouds):
            self._fail(CloudUnreachable(f"nothing heard from the cloud for {silent_s:.1f} s"))
            return True
        stay_s = self.timing.stay_s(is_welcome=self.is_welcome, rtt_s=self.rtt_s)
        if self._clouds > 1 and now_s - self._moved_s > stay_s:
            self._move(now_s)
            return True
        return False

    def _move(self, now_s: float) -> None:
        """Go to the next cloud, which may be the same, and begin anew there."""
        self.place = (self.place + 1) % self._clouds
        self._moved_s = now_s
        self._echo.begin(now_s)
        self._begin_anew(now_s)

    def _begin_anew(self, now_s: float) -> None:
        """Greet a cloud that knows nothing of this edge."""
        self.welcome = None
        self._delivered_images.clear()
        if self.request:
            self.request.begin_epoch()
        self._enter(ClientState.GREETING)
        self._say_hello(now_s)

    def _send_open(self, now_s: float) -> None:
        assert self.request is not None
        assert self.welcome is not None
        self._enter(ClientState.ANSWERING)
        self.request.progress_s = self._ping_s = now_s
        self._send(*self.request.opening(self.welcome.image_window_bytes))

    def _end_request(self) -> None:
        """Forget the open answer; what else is under way goes on."""
        self.request = None
        if self.state is ClientState.ANSWERING:
            self._enter(ClientState.READY)

    def _ping(self, now_s: float, recover: bool = False) -> None:
        self._ping_s = now_s
        answer, stamp_us = self.request, round(now_s * 1e6)
        if answer is None or not answer.is_sent:
            self._send(wire.Ping(stamp_us, 0, 0, 0, False))
            return
        patience_s = self.timing.recover_s + 2 * answer.pass_s + 2 * self.rtt_s
        recover = recover or now_s - answer.progress_s > patience_s
        self._send(answer.ping(stamp_us, recover))
        if recover:
            answer.progress_s = now_s
            self._send(*answer.recovery())

    def _say_hello(self, now_s: float) -> None:
        self._hello_s = now_s
        self._send(self._hello)

    def _send(self, *messages: wire.AnyMessage) -> None:
        for message in messages:
            if isinstance(message, wire.ImageChunk):
                self.image_bytes += len(message.data)
            self.outbox.append(codec.encode(message))

    def _fail(self, error: CloudError) -> None:
        self.request = None
        self._enter(ClientState.FAILED)
        self.events.append(error)
