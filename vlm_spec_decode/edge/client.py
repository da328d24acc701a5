"""The edge's half of the wire protocol, without I/O: bytes and ticks in, bytes and events out.

Handshake, image pacing, heartbeat, recovery of what a link lost, and resuming a session under a new
epoch after the cloud forgot it (docs/protocol.md). What was committed here once is never taken back:
the robot may have acted on it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.errors import CloudError, CloudRefused, CloudUnreachable, ProtocolError
from vlm_spec_decode.core.sequence import Sequence
from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, Event, Hint, Tokens
from vlm_spec_decode.edge.pending import Pending
from vlm_spec_decode.edge.upload import ImageUpload
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import (
    AnyMessage,
    Close,
    Hello,
    ImageCredit,
    Ping,
    Pong,
    Refused,
    Welcome,
    WireCommit,
    WireEarly,
)


@dataclass(frozen=True, slots=True)
class Timing:
    """When the edge repeats itself and when it gives up, in seconds.

    `handshake_s` is the patience before the welcome, where encryption costs several round trips; without it,
    `give_up_s` counts there too.
    """

    hello_retry_s: float = 0.5
    ping_s: float = 0.3
    recover_s: float = 0.5
    give_up_s: float = 10.0
    handshake_s: float | None = None


@dataclass(slots=True)
class _Answer:
    """The open answer: its request, what is committed, and hints whose outcome is not known."""

    request: AnswerRequest
    mirror: Sequence
    upload: ImageUpload | None
    sent: bool = False
    pending: Pending = field(init=False)

    def __post_init__(self) -> None:
        self.pending = Pending(self.request.committed)


class EdgeProtocol:
    """State machine of one edge towards one cloud. All times are seconds of the caller's clock."""

    def __init__(self, hello: Hello, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.welcome: Welcome | None = None
        self.outbox: deque[bytes] = deque()
        self.events: deque[Event | CloudError] = deque()
        self.dropped: Counter[str] = Counter()
        self.rtt_s = 0.0
        self.image_bytes = 0
        self._hello = hello
        self._packer = codec.TokenPacker(hello.vocab_size)
        self._answer: _Answer | None = None
        self._delivered_images: set[bytes] = set()
        self._heard_s = self._progress_s = self._ping_s = self._hello_s = 0.0
        self._pass_s = 0.0
        self._dead = False

    # What the strategy asks for ------------------------------------------------------------------

    def connect(self, now_s: float) -> None:
        """Start the handshake; its end is `welcome`, or an error among the events."""
        self._heard_s = now_s
        self._dead = False
        self._say_hello(now_s)

    def open(self, request: AnswerRequest, now_s: float) -> None:
        """Open an answer; it is sent as soon as the handshake is done."""
        self.close(now_s)
        image = request.observation.image
        known = image is not None and image.digest in self._delivered_images
        upload = ImageUpload(image, wait_for_credit=known) if image else None
        mirror = Sequence(epoch=request.epoch)
        mirror.commit(Commit(request.answer, request.epoch, 0, request.committed, 0, 0, False))
        self._answer = _Answer(request, mirror, upload)
        self._heard_s = self._progress_s = now_s
        self.image_bytes = 0
        if self._dead:
            self.welcome = None
            self.connect(now_s)
        elif self.welcome:
            self._send_open(now_s)

    def submit(self, hint: Hint) -> None:
        """Send a hint, and keep it until a commit overtakes it in case the link loses it.

        A correction is a commit that was made here.
        """
        answer = self._answer
        if answer is None or answer.request.answer != hint.answer:
            return
        if isinstance(hint, Correction) and hint.token >= 0:
            token, epoch = hint.token, answer.mirror.epoch
            finished = answer.request.params.ends(hint.position + 1, token)
            answer.mirror.commit(Commit(hint.answer, epoch, hint.position, (token,), 0, 0, finished))
        answer.pending.add(hint)
        if answer.sent:
            self._send_hint(hint, answer.mirror.epoch)

    def close(self, now_s: float) -> None:
        """Tell the cloud that the open answer is over."""
        del now_s
        if self._answer and self._answer.sent:
            self._send(Close(self._answer.request.answer, self._answer.mirror.epoch))
        self._answer = None

    # What the link brings ------------------------------------------------------------------------

    def receive(self, data: bytes, now_s: float) -> None:
        """Take one message; what cannot be read or belongs to the past is counted and dropped."""
        try:
            message = codec.decode(data)
            self._heard_s = now_s
            self._dispatch(message, now_s)
        except ProtocolError:
            self.dropped["malformed"] += 1

    def tick(self, now_s: float) -> None:
        """Repeat what may have been lost. Call some ten times a second."""
        if self._dead:
            return
        silent_s = now_s - self._heard_s
        patience_s = self.timing.give_up_s
        if self.welcome is None and self.timing.handshake_s is not None:
            patience_s = self.timing.handshake_s
        if silent_s > patience_s and (self._answer or not self.welcome):
            self._fail(CloudUnreachable(f"nothing heard from the cloud for {silent_s:.1f} s"))
        elif self.welcome is None:
            if now_s - self._hello_s >= self.timing.hello_retry_s:
                self._say_hello(now_s)
        elif now_s - self._ping_s >= self.timing.ping_s:
            self._ping(now_s)

    def _dispatch(self, message: AnyMessage, now_s: float) -> None:
        match message:
            case Welcome():
                self._on_welcome(message, now_s)
            case Refused():
                self._on_refused(message, now_s)
            case Pong():
                self._on_pong(message, now_s)
            case ImageCredit() if self._is_current(message.answer, message.epoch):
                self._on_credit(message, now_s)
            case WireCommit() if self._is_current(message.answer, message.epoch):
                self._on_commit(self._packer.commit(message), now_s)
            case WireEarly() if self._is_current(message.answer, message.epoch):
                assert self._answer is not None
                early = codec.early(message)
                self.events.append(replace(early, epoch=self._answer.request.epoch))
            case _:
                self.dropped["stale"] += 1

    def _on_welcome(self, message: Welcome, now_s: float) -> None:
        again = self.welcome is not None
        self.welcome = message
        if self._answer and not (again and self._answer.sent):
            self._send_open(now_s)

    def _on_refused(self, message: Refused, now_s: float) -> None:
        if message.reason == "hello_first":
            self.welcome = None
            self._delivered_images.clear()
            if self._answer:
                self._begin_new_epoch(self._answer)
            self._say_hello(now_s)
        elif message.answer == 0:
            self._fail(CloudRefused(message.reason, message.detail))
        elif self._is_current(message.answer, message.epoch):
            self._answer = None
            self.events.append(CloudRefused(message.reason, message.detail))

    def _on_pong(self, message: Pong, now_s: float) -> None:
        self.rtt_s = max(0.0, now_s - message.stamp_us / 1e6)
        answer = self._answer
        lost = answer is not None and answer.sent and not message.known
        if answer and lost and self._is_current(message.answer, message.epoch):
            self._begin_new_epoch(answer)
            self._send_open(now_s)

    def _on_credit(self, message: ImageCredit, now_s: float) -> None:
        answer = self._answer
        if answer and answer.upload:
            answer.upload.credit(message.received)
            self._progress_s = now_s
            if answer.upload.is_done:
                self._delivered_images.add(answer.upload.image.digest)
            self._send_chunks(answer)

    def _on_commit(self, commit: Commit, now_s: float) -> None:
        assert self._answer is not None
        answer, mirror = self._answer, self._answer.mirror
        if mirror.is_gap(commit):
            self.dropped["gap"] += 1
            self._ping(now_s, recover=True)
            return
        start = len(mirror)
        new = mirror.commit(commit)
        is_open = commit.residual is not None and commit.start + len(commit.tokens) == len(mirror)
        if not new and not is_open:
            self.dropped["duplicate"] += 1
            return
        self._progress_s = now_s
        self._pass_s = commit.compute_s
        answer.pending.advance(new)
        residual = commit.residual if is_open else None
        epoch = answer.request.epoch
        self.events.append(replace(commit, start=start, tokens=new, epoch=epoch, residual=residual))

    # Sending -------------------------------------------------------------------------------------

    @property
    def committed(self) -> Tokens:
        """Tokens of the open answer that have been delivered."""
        return self._answer.mirror.tokens if self._answer else ()

    def _is_current(self, answer: int, epoch: int) -> bool:
        open_answer = self._answer
        if open_answer is None:
            return False
        return (answer, epoch) == (open_answer.request.answer, open_answer.mirror.epoch)

    def _begin_new_epoch(self, answer: _Answer) -> None:
        answer.mirror.epoch += 1
        answer.pending.forget_corrections()
        answer.sent = False
        if answer.upload:
            answer.upload.restart()

    def _send_open(self, now_s: float) -> None:
        assert self._answer is not None
        answer, mirror = self._answer, self._answer.mirror
        self._send(codec.open_message(answer.request, self._packer, mirror.epoch, mirror.tokens))
        answer.sent = True
        self._progress_s = self._ping_s = now_s
        self._send_chunks(answer)
        for hint in answer.pending.hints():
            self._send_hint(hint, mirror.epoch)

    def _send_chunks(self, answer: _Answer) -> None:
        assert self.welcome is not None
        if answer.upload is None:
            return
        for chunk in answer.upload.chunks(
            answer.request.answer, answer.mirror.epoch, self.welcome.image_window_bytes
        ):
            self.image_bytes += len(chunk.data)
            self._send(chunk)

    def _send_hint(self, hint: Hint, epoch: int) -> None:
        self._send(self._packer.hint_message(replace(hint, epoch=epoch)))

    def _ping(self, now_s: float, recover: bool = False) -> None:
        self._ping_s = now_s
        answer = self._answer
        if answer is None or not answer.sent:
            self._send(Ping(round(now_s * 1e6), 0, 0, 0, False))
            return
        patience_s = self.timing.recover_s + 2 * self._pass_s + 2 * self.rtt_s
        recover = recover or now_s - self._progress_s > patience_s
        epoch, have = answer.mirror.epoch, len(answer.mirror)
        self._send(Ping(round(now_s * 1e6), answer.request.answer, epoch, have, recover))
        if recover:
            self._progress_s = now_s
            for hint in answer.pending.hints():
                self._send_hint(hint, epoch)
            if answer.upload and not answer.upload.is_done:
                answer.upload.go_back()
                self._send_chunks(answer)

    def _say_hello(self, now_s: float) -> None:
        self._hello_s = now_s
        self._send(self._hello)

    def _send(self, message: AnyMessage) -> None:
        self.outbox.append(codec.encode(message))

    def _fail(self, error: CloudError) -> None:
        self._dead = True
        self._answer = None
        self.events.append(error)
