"""The cloud's half of the wire protocol, without I/O: clients, admission, requests and responses.

One `ServerProtocol` serves all peers. It never runs a model: it creates jobs, and the owner of the target
(the server's worker threads, or a test) runs them and returns the results. `receive` raises nothing for any
input of a peer: it answers with Refused or counts the message as dropped. A client is admitted if its token
ids mean the same to the target and there is room for it.
"""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vlm_spec_decode.cloud.config import ServerLimits
from vlm_spec_decode.cloud.requests import (
    FAILURES,
    BatchResult,
    ImageStore,
    JobResult,
    RequestTable,
    ServerCounts,
    ServerJob,
    ServerRequest,
    refusal,
)
from vlm_spec_decode.cloud.scheduler import Scheduler
from vlm_spec_decode.core.errors import ConfigError, EngineStopped, ProtocolError, VersionMismatch
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import Commit, EarlyExitVerdict
from vlm_spec_decode.decoding.free_drafts import Memories
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.protocol.messages import (
    MAX_SENT_IMAGE_BYTES,
    AnyMessage,
    Busy,
    Hello,
    ImageCredit,
    Open,
    Refused,
    Welcome,
)
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy


class MessageTracer:
    """Receives every message, decoded already, on the serving thread; the default does nothing."""

    def polled(self) -> None:
        """The serving loop has polled its link."""

    def received(self, peer: bytes, num_bytes: int, message: AnyMessage | None) -> None:
        """A message of a robot was received; None if it could not be decoded."""

    def sent(self, peer: bytes, num_bytes: int, message: AnyMessage) -> None:
        """A message is sent to a robot."""


def read_message(peer: bytes, data: bytes, tracer: MessageTracer, dropped: Counter[str]) -> AnyMessage:
    """Decode a robot's message and pass it to the tracer. This process decodes messages nowhere else.

    Raises ProtocolError or VersionMismatch after counting the message as malformed.
    """
    try:
        message = codec.decode(data)
    except ProtocolError:
        tracer.received(peer, len(data), None)
        dropped["malformed"] += 1
        raise
    tracer.received(peer, len(data), message)
    return message


@dataclass(slots=True)
class ClientTable:
    """Robots ordered by the time of their last message, at most `limit` of them.

    `versions` are those of the protocol in which they speak.
    """

    limit: int
    versions: dict[bytes, int] = field(default_factory=dict)
    _last_message_s: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._last_message_s)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._last_message_s

    def refresh(self, peer: bytes, now_s: float) -> None:
        """Record that a known robot has sent a message now."""
        if peer in self._last_message_s:
            self._last_message_s[peer] = now_s
            self._last_message_s.move_to_end(peer)

    def welcome(self, peer: bytes, version: int, now_s: float) -> bytes | None:
        """Add a robot; return the longest silent one if it was removed to make room."""
        self._last_message_s[peer] = now_s
        self._last_message_s.move_to_end(peer)
        self.versions[peer] = version
        if len(self._last_message_s) <= self.limit:
            return None
        silent, _ = self._last_message_s.popitem(last=False)
        del self.versions[silent]
        return silent


class Responses:
    """Encodes and counts outgoing messages; collects (peer, bytes) in `outbox` for the owner of the link.

    A robot is answered in its own version of the protocol, one that is not in `versions` in the oldest,
    which all understand.
    """

    def __init__(
        self,
        packer: codec.TokenPacker,
        stats: ServerCounts,
        retry_s: float,
        tracer: MessageTracer,
        versions: Mapping[bytes, int],
    ) -> None:
        self._tracer = tracer
        self._versions = versions
        self.outbox: deque[tuple[bytes, bytes]] = deque()
        self._packer = packer
        self._stats = stats
        self._retry_s = retry_s

    def send(self, peer: bytes, message: AnyMessage) -> None:
        """Encode, count and queue one message."""
        data = codec.encode(message, self._versions.get(peer, wire.OLDEST_VERSION))
        self._stats.sent_bytes += len(data)
        self._tracer.sent(peer, len(data), message)
        self.outbox.append((peer, data))

    def send_refused(self, peer: bytes, answer: int, epoch: int, reason: str, detail: str = "") -> None:
        """Send Refused with a reason."""
        self._stats.refused[reason] += 1
        self.send(peer, Refused(answer, epoch, reason, detail))

    def send_busy(self, peer: bytes, answer: int, epoch: int, reason: str) -> None:
        """Send Busy with the time to try again, which differs by robot, so that not all try at once."""
        self._stats.refused[reason] += 1
        spread = 1 + zlib.crc32(peer) % 1000 / 1000
        self.send(peer, Busy(answer, epoch, reason, round(1000 * spread * self._retry_s)))

    def send_image_credit(self, request: ServerRequest) -> None:
        """Send how many bytes of the image have arrived; nothing if the answer has no image."""
        opened = request.message
        if opened.image_bytes:
            received = len(request.received if request.image is None else request.image)
            self.send(request.peer, ImageCredit(opened.answer, opened.epoch, received))

    def send_commit(self, request: ServerRequest, commit: Commit) -> None:
        """Send a commit."""
        self._stats.commits += 1
        self._stats.tokens += len(commit.tokens)
        self._stats.finished += commit.finished
        self.send(request.peer, self._packer.commit_to_wire(commit))

    def early(self, request: ServerRequest, early: EarlyExitVerdict) -> None:
        """Send an early-exit verdict."""
        self._stats.early += 1
        self.send(request.peer, codec.early_exit_to_wire(early))


RefusalReason = tuple[str, str]
"""The reason of a Refused and its detail."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules by which a client is admitted; the present clients are an argument."""

    card: ModelCard
    grammar_digest: str
    limits: ServerLimits

    def mismatch(self, hello: Hello) -> RefusalReason | None:
        """Return why a robot's token ids do not mean the same to the target, or None."""
        mine = {
            "vocabulary": self.card.vocab_size,
            "tokenizer": self.card.tokenizer_digest,
            "prompt": self.card.prompt_digest,
            "grammar": self.grammar_digest,
        }
        theirs = {
            "vocabulary": hello.vocab_size,
            "tokenizer": hello.tokenizer_digest,
            "prompt": hello.prompt_digest,
            "grammar": hello.grammar_digest,
        }
        for name, value in mine.items():
            if theirs[name] != value:
                detail = f"the robot's draft has {theirs[name]}, {self.card.model_id} has {value}"
                return f"{name}_mismatch", detail
        return None

    def welcome(self) -> Welcome:
        """Return the Welcome of an admitted robot."""
        card = self.card
        identity = (card.model_id, card.revision, card.num_layers, card.exit_layers)
        window_bytes = self.limits.image_window_bytes
        images = codec.limits_to_wire(card.image_limits)
        return Welcome(*identity, window_bytes, MAX_SENT_IMAGE_BYTES, tuple(STRATEGIES), images)

    def why_unsupported(self, message: Open, has_colocated_draft: bool) -> RefusalReason | None:
        """Return why an answer can never be served here, or None."""
        try:
            chosen = strategy(message.strategy)
        except ConfigError as error:
            return "unknown_strategy", str(error)
        if chosen.needs_helper and not has_colocated_draft:
            return "no_draft", f"{chosen.name} needs a draft beside the target (vsd cloud --draft)"
        if message.rule not in self.card.rules:
            known = ", ".join(self.card.rules)
            return (
                "unknown_rule",
                f"what runs {self.card.model_id} knows no rule {message.rule!r}, only {known}",
            )
        return None

    def lacking_room(self, message: Open, requests: RequestTable, has_memory: bool, is_draining: bool) -> str:
        """Return which resource has no room for one more answer, "" if all have.

        An answer that continues after a loss is not a new one: a draining cloud lets it end.
        """
        if is_draining and not message.committed:
            return "draining"
        if len(requests) >= self.limits.sessions:
            return "sessions"
        if not has_memory:
            return "memory"
        awaited = sum(request.message.image_bytes for request in requests.values() if request.awaits_image)
        return "images" if awaited + message.image_bytes > self.limits.image_inbox_bytes else ""


@dataclass(slots=True)
class ServerProtocol:
    """All sessions of one target. `outbox` collects (peer, bytes) for the owner to send.

    `memories` has the answers given so far, as free drafts, by what `owner_of` makes of a peer; None: nothing
    is remembered.
    """

    card: ModelCard
    grammar_digest: str
    limits: ServerLimits = field(default_factory=ServerLimits)
    has_colocated_draft: bool = False
    memories: Memories | None = field(default_factory=Memories)
    owner_of: Callable[[bytes], bytes] = bytes
    stats: ServerCounts = field(default_factory=ServerCounts)
    requests: RequestTable = field(default_factory=RequestTable)
    tracer: MessageTracer = field(default_factory=MessageTracer)
    scheduler: Scheduler = field(init=False)
    _admission: Admission = field(init=False)
    _peers: ClientTable = field(init=False)
    _images: ImageStore = field(init=False)
    _packer: codec.TokenPacker = field(init=False)
    _responses: Responses = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, self.stats)
        self._admission = Admission(self.card, self.grammar_digest, self.limits)
        self._peers = ClientTable(self.limits.peers)
        self._images = ImageStore(self.limits.image_cache_bytes, self.stats)
        self._packer = codec.TokenPacker(self.card.vocab_size)
        self._responses = Responses(
            self._packer, self.stats, self.limits.retry_s, self.tracer, self._peers.versions
        )

    @property
    def peers(self) -> int:
        """Robots that were admitted and not removed since."""
        return len(self._peers)

    @property
    def dropped(self) -> Counter[str]:
        """Counts of ignored messages, by reason."""
        return self.stats.dropped

    @property
    def outbox(self) -> deque[tuple[bytes, bytes]]:
        """Messages to send, as (peer, bytes)."""
        return self._responses.outbox

    def receive(self, peer: bytes, data: bytes, now_s: float) -> None:
        """Handle one message of one peer."""
        self.stats.messages += 1
        self.stats.received_bytes += len(data)
        try:
            message = read_message(peer, data, self.tracer, self.dropped)
        except VersionMismatch as error:
            self._responses.send_refused(peer, 0, 0, wire.OTHER_VERSION, str(error))
            return
        except ProtocolError:
            return
        if not isinstance(message, wire.Hello) and peer not in self._peers:
            self.dropped["before_hello"] += 1
            self._responses.send_refused(peer, 0, 0, wire.HELLO_FIRST)
            return
        try:
            self._dispatch(peer, message, data[0], now_s)
        except ProtocolError as error:
            self.dropped["invalid"] += 1
            if isinstance(message, wire.Open):
                self._responses.send_refused(peer, message.answer, message.epoch, "invalid", str(error))

    def _dispatch(self, peer: bytes, message: wire.AnyMessage, version: int, now_s: float) -> None:
        self._peers.refresh(peer, now_s)
        match message:
            case wire.Hello():
                self._on_hello(peer, message, version, now_s)
            case wire.Open():
                self._on_open(peer, message, now_s)
            case wire.Ping():
                self._on_ping(peer, message, now_s)
            case wire.Close():
                if request := self.requests.current(peer, message.answer, message.epoch):
                    self.requests.end(request)
            case wire.ImageChunk() | wire.WireDraft() | wire.WireCorrection():
                request = self.requests.current(peer, message.answer, message.epoch)
                if request is None:
                    self.dropped["stale"] += 1
                    return
                request.touched_s = now_s
                if isinstance(message, wire.ImageChunk):
                    self._on_chunk(request, message, now_s)
                else:
                    self._on_client_message(request, message, now_s)
            case _:
                self.dropped["unexpected"] += 1

    def _on_hello(self, peer: bytes, hello: wire.Hello, version: int, now_s: float) -> None:
        if reason := self._admission.mismatch(hello):
            self._responses.send_refused(peer, 0, 0, *reason)
            return
        if self.stats.is_draining and peer not in self._peers:
            self._responses.send_busy(peer, 0, 0, "draining")
            return
        forgotten = self._peers.welcome(peer, version, now_s)
        for request in self.requests.of_peer(forgotten):
            self.requests.end(request)
        self._responses.send(peer, self._admission.welcome())

    def _on_open(self, peer: bytes, message: wire.Open, now_s: float) -> None:
        known = self.requests.get((peer, message.answer))
        if known and known.message.epoch >= message.epoch:
            self._responses.send_image_credit(known)
            return
        codec.answer_request(message, self._packer, None)
        if reason := self._admission.why_unsupported(message, self.has_colocated_draft):
            self._responses.send_refused(peer, message.answer, message.epoch, *reason)
            return
        if known:
            self.requests.end(known)
        self._end_forgotten(peer, now_s)
        most = self.limits.sessions_per_peer
        if (count := len(self.requests.of_peer(peer))) >= most:
            detail = f"this robot has {count} open answers; the cloud allows {most} at a time"
            self._responses.send_refused(peer, message.answer, message.epoch, wire.TOO_MANY_ANSWERS, detail)
            return
        has_memory = self.scheduler.has_memory(self.requests.values(), now_s)
        if why := self._admission.lacking_room(message, self.requests, has_memory, self.stats.is_draining):
            self._responses.send_busy(peer, message.answer, message.epoch, why)
        else:
            self._begin(
                ServerRequest(peer=peer, message=message, touched_s=now_s, ready_s=now_s, opened_s=now_s)
            )

    def _end_forgotten(self, peer: bytes, now_s: float) -> None:
        """Make room for one more answer of a robot: end those whose Close was probably lost.

        The finished ones come first, then those that the robot has not mentioned for the longest time. It
        pings for each answer that it has open, so one that it does not mention is none; if it is one all the
        same, because the link was cut, the next ping says that it is not known here, and it is opened again.
        """
        mine = sorted(self.requests.of_peer(peer), key=lambda r: (not r.is_finished, r.touched_s))
        for request in mine[: max(0, len(mine) + 1 - self.limits.sessions_per_peer)]:
            if request.is_finished or now_s - request.touched_s > self.limits.silent_s:
                self.requests.end(request)

    def _begin(self, request: ServerRequest) -> None:
        self.stats.opened += 1
        self.requests[request.peer, request.message.answer] = request
        if request.message.image_bytes:
            request.image = self._images.get(request.message.image_digest)
            self._responses.send_image_credit(request)

    def _on_client_message(
        self, request: ServerRequest, message: wire.WireDraft | wire.WireCorrection, now_s: float
    ) -> None:
        client_message = self._packer.client_message_from_wire(message)
        if not request.has_room(client_message, self.limits):
            self.dropped["too_many_nodes"] += 1
            return
        if isinstance(message, wire.WireDraft):
            self.stats.drafted += len(message.tokens) // self._packer.width
        if reply := request.receive(client_message, now_s):
            self._responses.send_commit(request, reply)

    def _on_chunk(self, request: ServerRequest, chunk: wire.ImageChunk, now_s: float) -> None:
        if request.image is None and request.append(chunk):
            if request.digest_of_received() != request.message.image_digest:
                self._fail(request, "image_digest", "the image is not the one named")
                return
            self._keep_image(request, now_s)
        self._responses.send_image_credit(request)

    def _keep_image(self, request: ServerRequest, now_s: float) -> None:
        """Take what has arrived as the request's image, whose digest it has."""
        request.image, request.ready_s = bytes(request.received), now_s
        request.received.clear()
        self._images.put(request.message.image_digest, request.image)

    def _on_ping(self, peer: bytes, ping: wire.Ping, now_s: float) -> None:
        request = self.requests.current(peer, ping.answer, ping.epoch)
        known = request is not None or ping.answer == 0
        self._responses.send(peer, wire.Pong(ping.stamp_us, ping.answer, ping.epoch, known))
        if request is None:
            return
        request.touched_s = now_s
        if ping.recover and request.awaits_image:
            if request.is_whole():
                self._keep_image(request, now_s)
            self._responses.send_image_credit(request)
        elif ping.recover and request.session and (missed := request.session.replay(ping.committed)):
            self._responses.send_commit(request, missed)

    def next_open(self, now_s: float = 0.0) -> ServerJob | None:
        """Return the next answer whose context is to be opened, or None."""
        return self.scheduler.next_open(self.requests.values(), now_s)

    def next_batch(self, now_s: float = 0.0) -> tuple[ServerJob, ...]:
        """Return the jobs of the next pass, none if there is nothing to do."""
        return self.scheduler.next_batch(self.requests.values(), now_s)

    def wake_s(self) -> float | None:
        """Return when the first session that waits for a draft stops waiting, in seconds of the clock."""
        return self.scheduler.wake_s(self.requests.values())

    def early(self, job: ServerJob, early: EarlyExitVerdict) -> None:
        """Send an early-exit verdict of a running pass."""
        if not job.request.closed:
            self._responses.early(job.request, early)

    def finish(self, done: BatchResult, now_s: float = 0.0) -> None:
        """Apply the results of a batch and send them to the peers."""
        for job, result in zip(done.jobs, done.results, strict=True):
            job.request.running = False
            if not job.request.closed:
                self._finish(job, result, now_s)
            if job.request.closed:
                job.request.release()
        self.scheduler.on_batch_done(done, self.requests.values(), now_s)

    def _finish(self, job: ServerJob, result: JobResult, now_s: float) -> None:
        request = job.request
        request.mark_ready(now_s)
        if result.failure:
            if not self.scheduler.retry(job, result.failure, self.requests.values(), now_s):
                self._give_up(request, result.failure)
        elif result.context is not None:
            answer_request = codec.answer_request(request.message, self._packer, request.core_image)
            policy = strategy(answer_request.strategy).cloud()
            beside, copy = self.requests.num_open, result.colocated_draft
            memory = self.memories.of(self.owner_of(request.peer)) if self.memories else None
            session = Session(answer_request, result.context, policy, copy, beside=beside, memory=memory)
            request.start_session(session)
        elif (plan := result.plan or job.plan) and result.scores is not None and request.session:
            try:
                commit = request.session.complete(plan, result.scores, result.compute_s)
            except FAILURES as error:
                self._give_up(request, error)
            else:
                self._responses.send_commit(request, commit)

    def _give_up(self, request: ServerRequest, error: Exception) -> None:
        """End an answer whose job has failed; if the engine has, it may go on later, or at another cloud."""
        if isinstance(error, EngineStopped):
            self._responses.send_busy(request.peer, request.message.answer, request.message.epoch, "engine")
            self.requests.end(request)
        else:
            self._fail(request, *refusal(error))

    def under_way(self, now_s: float) -> bool:
        """Return whether there are unfinished answers of robots that still send messages."""
        return self.requests.under_way(now_s - self.limits.active_s)

    def expire(self, now_s: float) -> None:
        """Close the sessions without a message for `idle_s`; their edge can open them again."""
        for request in self.requests.silent(now_s - self.limits.idle_s):
            self.dropped["expired"] += 1
            self.requests.end(request)
        self.stats.robots, self.stats.sessions = len(self._peers), len(self.requests)

    def _fail(self, request: ServerRequest, reason: str, detail: str) -> None:
        self._responses.send_refused(
            request.peer, request.message.answer, request.message.epoch, reason, detail
        )
        self.requests.end(request)
