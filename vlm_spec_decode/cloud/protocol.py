"""The cloud's half of the wire protocol, without I/O: clients, admission, requests and responses.

One `ServerProtocol` serves all peers. It never runs a model: it creates jobs, and the owner of the target
(the server's worker threads, or a test) runs them and returns the results. No input from a peer raises out
of `receive`: it ends in a named reply or a counted drop. A client is admitted if its token ids mean the
same to the target and there is room for it.
"""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict, deque
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
from vlm_spec_decode.core.errors import ConfigError, ProtocolError, VersionMismatch
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import Commit, EarlyExitVerdict
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
    """Is told of every message, decoded already, on the serving thread; by default does nothing."""

    def polled(self) -> None:
        """The serving loop has turned."""

    def received(self, peer: bytes, num_bytes: int, message: AnyMessage | None) -> None:
        """A message has come from a robot; None: it could not be read."""

    def sent(self, peer: bytes, num_bytes: int, message: AnyMessage) -> None:
        """A message goes to a robot."""


def read_message(peer: bytes, data: bytes, tracer: MessageTracer, dropped: Counter[str]) -> AnyMessage:
    """Decode a robot's message, the only time that this process does, and tell the tracer.

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
    """Robots ordered by the time of their last message, at most `limit` of them."""

    limit: int
    _heard_s: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._heard_s)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._heard_s

    def refresh(self, peer: bytes, now_s: float) -> None:
        """Note that a robot was heard now; one that is not known stays unknown."""
        if peer in self._heard_s:
            self._heard_s[peer] = now_s
            self._heard_s.move_to_end(peer)

    def welcome(self, peer: bytes, now_s: float) -> bytes | None:
        """Add a robot; return the longest silent one if it had to make room."""
        self._heard_s[peer] = now_s
        self._heard_s.move_to_end(peer)
        return self._heard_s.popitem(last=False)[0] if len(self._heard_s) > self.limit else None


class Responses:
    """Encodes and counts outgoing messages; collects (peer, bytes) in `outbox` for the owner of the link."""

    def __init__(
        self, packer: codec.TokenPacker, stats: ServerCounts, retry_s: float, tracer: MessageTracer
    ) -> None:
        self._tracer = tracer
        self.outbox: deque[tuple[bytes, bytes]] = deque()
        self._packer = packer
        self._stats = stats
        self._retry_s = retry_s

    def send(self, peer: bytes, message: AnyMessage) -> None:
        """Encode, count and queue one message."""
        data = codec.encode(message)
        self._stats.sent_bytes += len(data)
        self._tracer.sent(peer, len(data), message)
        self.outbox.append((peer, data))

    def refuse(self, peer: bytes, answer: int, epoch: int, reason: str, detail: str = "") -> None:
        """Send a Refused: this cannot be served, for the named reason."""
        self._stats.refused[reason] += 1
        self.send(peer, Refused(answer, epoch, reason, detail))

    def busy(self, peer: bytes, answer: int, epoch: int, reason: str) -> None:
        """Send a Busy with the time to try again, which differs by robot, so that not all come at once."""
        self._stats.refused[reason] += 1
        spread = 1 + zlib.crc32(peer) % 1000 / 1000
        self.send(peer, Busy(answer, epoch, reason, round(1000 * spread * self._retry_s)))

    def credit(self, entry: ServerRequest) -> None:
        """Send how many bytes of the image have arrived; nothing if the answer has none."""
        opened = entry.message
        if opened.image_bytes:
            received = opened.image_bytes if entry.image is not None else len(entry.received)
            self.send(entry.peer, ImageCredit(opened.answer, opened.epoch, received))

    def commit(self, entry: ServerRequest, commit: Commit) -> None:
        """Send a commit."""
        self._stats.commits += 1
        self._stats.tokens += len(commit.tokens)
        self._stats.finished += commit.finished
        self.send(entry.peer, self._packer.commit_to_wire(commit))

    def early(self, entry: ServerRequest, early: EarlyExitVerdict) -> None:
        """Send an early-exit verdict."""
        self._stats.early += 1
        self.send(entry.peer, codec.early_exit_to_wire(early))


Trouble = tuple[str, str]
"""The name of a refusal and its detail."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules by which a client is admitted; the present clients are an argument."""

    card: ModelCard
    grammar_digest: str
    limits: ServerLimits

    def mismatch(self, hello: Hello) -> Trouble | None:
        """Return why a robot's tokens do not mean the same here, or None."""
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
        """Return the Welcome of a robot whose tokens mean the same here."""
        card = self.card
        identity = (card.model_id, card.revision, card.num_layers, card.exit_layers)
        return Welcome(*identity, self.limits.image_window_bytes, MAX_SENT_IMAGE_BYTES, tuple(STRATEGIES))

    def unserved(self, message: Open, has_helper: bool) -> Trouble | None:
        """Return why an answer can never be served here, or None."""
        try:
            chosen = strategy(message.strategy)
        except ConfigError as error:
            return "unknown_strategy", str(error)
        if chosen.needs_helper and not has_helper:
            return "no_draft", f"{chosen.name} needs a draft beside the target (vsd cloud --draft)"
        return None

    def full(self, message: Open, book: RequestTable, has_memory: bool, is_draining: bool) -> str:
        """Return what there is no room of for one more answer now, "" if there is room of everything.

        An answer that goes on after a loss is no new one: a cloud that is to end lets it come to its end.
        """
        if is_draining and not message.committed:
            return "draining"
        if len(book) >= self.limits.sessions:
            return "sessions"
        if not has_memory:
            return "memory"
        awaited = sum(entry.message.image_bytes for entry in book.values() if entry.awaits_image)
        return "images" if awaited + message.image_bytes > self.limits.image_inbox_bytes else ""


@dataclass(slots=True)
class ServerProtocol:
    """All sessions of one target. `outbox` collects (peer, bytes) for the owner to send."""

    card: ModelCard
    grammar_digest: str
    limits: ServerLimits = field(default_factory=ServerLimits)
    has_helper: bool = False
    stats: ServerCounts = field(default_factory=ServerCounts)
    entries: RequestTable = field(default_factory=RequestTable)
    tracer: MessageTracer = field(default_factory=MessageTracer)
    scheduler: Scheduler = field(init=False)
    _admission: Admission = field(init=False)
    _peers: ClientTable = field(init=False)
    _images: ImageStore = field(init=False)
    _packer: codec.TokenPacker = field(init=False)
    _replies: Responses = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, self.stats)
        self._admission = Admission(self.card, self.grammar_digest, self.limits)
        self._peers = ClientTable(self.limits.peers)
        self._images = ImageStore(self.limits.image_cache_bytes, self.stats)
        self._packer = codec.TokenPacker(self.card.vocab_size)
        self._replies = Responses(self._packer, self.stats, self.limits.retry_s, self.tracer)

    @property
    def peers(self) -> int:
        """Robots that have shaken hands and are not forgotten."""
        return len(self._peers)

    @property
    def dropped(self) -> Counter[str]:
        """Messages that were ignored, by name."""
        return self.stats.dropped

    @property
    def outbox(self) -> deque[tuple[bytes, bytes]]:
        """What is to be sent."""
        return self._replies.outbox

    def receive(self, peer: bytes, data: bytes, now_s: float) -> None:
        """Take one message of one peer."""
        self.stats.messages += 1
        self.stats.received_bytes += len(data)
        try:
            message = read_message(peer, data, self.tracer, self.dropped)
        except VersionMismatch as error:
            self._replies.refuse(peer, 0, 0, "version", str(error))
            return
        except ProtocolError:
            return
        if not isinstance(message, wire.Hello) and peer not in self._peers:
            self.dropped["before_hello"] += 1
            self._replies.refuse(peer, 0, 0, wire.HELLO_FIRST)
            return
        try:
            self._dispatch(peer, message, now_s)
        except ProtocolError as error:
            self.dropped["invalid"] += 1
            if isinstance(message, wire.Open):
                self._replies.refuse(peer, message.answer, message.epoch, "invalid", str(error))

    def _dispatch(self, peer: bytes, message: wire.AnyMessage, now_s: float) -> None:
        self._peers.refresh(peer, now_s)
        match message:
            case wire.Hello():
                self._on_hello(peer, message, now_s)
            case wire.Open():
                self._on_open(peer, message, now_s)
            case wire.Ping():
                self._on_ping(peer, message, now_s)
            case wire.Close():
                if entry := self.entries.current(peer, message.answer, message.epoch):
                    self.entries.end(entry)
            case wire.ImageChunk() | wire.WireDraft() | wire.WireCorrection():
                entry = self.entries.current(peer, message.answer, message.epoch)
                if entry is None:
                    self.dropped["stale"] += 1
                    return
                entry.touched_s = now_s
                if isinstance(message, wire.ImageChunk):
                    self._on_chunk(entry, message, now_s)
                else:
                    self._on_hint(entry, message, now_s)
            case _:
                self.dropped["unexpected"] += 1

    def _on_hello(self, peer: bytes, hello: wire.Hello, now_s: float) -> None:
        if trouble := self._admission.mismatch(hello):
            self._replies.refuse(peer, 0, 0, *trouble)
            return
        if self.stats.is_draining and peer not in self._peers:
            self._replies.busy(peer, 0, 0, "draining")
            return
        forgotten = self._peers.welcome(peer, now_s)
        for entry in self.entries.of(forgotten):
            self.entries.end(entry)
        self._replies.send(peer, self._admission.welcome())

    def _on_open(self, peer: bytes, message: wire.Open, now_s: float) -> None:
        known = self.entries.get((peer, message.answer))
        if known and known.message.epoch >= message.epoch:
            self._replies.credit(known)
            return
        codec.answer_request(message, self._packer, None)
        if trouble := self._admission.unserved(message, self.has_helper):
            self._replies.refuse(peer, message.answer, message.epoch, *trouble)
            return
        if known:
            self.entries.end(known)
        mine = self.entries.of(peer)
        for entry in mine[: max(0, len(mine) + 1 - self.limits.sessions_per_peer)]:
            self.entries.end(entry)
        has_memory = self.scheduler.has_memory(self.entries.values(), now_s)
        if why := self._admission.full(message, self.entries, has_memory, self.stats.is_draining):
            self._replies.busy(peer, message.answer, message.epoch, why)
        else:
            self._begin(ServerRequest(peer=peer, message=message, touched_s=now_s, ready_s=now_s))

    def _begin(self, entry: ServerRequest) -> None:
        self.stats.opened += 1
        self.entries[entry.peer, entry.message.answer] = entry
        if entry.message.image_bytes:
            entry.image = self._images.get(entry.message.image_digest)
            self._replies.credit(entry)

    def _on_hint(
        self, entry: ServerRequest, message: wire.WireDraft | wire.WireCorrection, now_s: float
    ) -> None:
        hint = self._packer.client_message_from_wire(message)
        if not entry.has_room(hint, self.limits):
            self.dropped["too_many_nodes"] += 1
            return
        if isinstance(message, wire.WireDraft):
            self.stats.drafted += len(message.tokens) // self._packer.width
        if reply := entry.receive(hint, now_s):
            self._replies.commit(entry, reply)

    def _on_chunk(self, entry: ServerRequest, chunk: wire.ImageChunk, now_s: float) -> None:
        if entry.image is None and entry.append(chunk):
            if entry.digest_of_received() != entry.message.image_digest:
                self._fail(entry, "image_digest", "the image is not the one named")
                return
            entry.image, entry.ready_s = bytes(entry.received), now_s
            entry.received.clear()
            self._images.put(entry.message.image_digest, entry.image)
        self._replies.credit(entry)

    def _on_ping(self, peer: bytes, ping: wire.Ping, now_s: float) -> None:
        entry = self.entries.current(peer, ping.answer, ping.epoch)
        known = entry is not None or ping.answer == 0
        self._replies.send(peer, wire.Pong(ping.stamp_us, ping.answer, ping.epoch, known))
        if entry is None:
            return
        entry.touched_s = now_s
        if ping.recover and entry.awaits_image:
            self._replies.credit(entry)
        elif ping.recover and entry.session and (missed := entry.session.replay(ping.committed)):
            self._replies.commit(entry, missed)

    def next_open(self, now_s: float = 0.0) -> ServerJob | None:
        """Return the next answer whose context is to be opened, or None."""
        return self.scheduler.next_open(self.entries.values(), now_s)

    def next_batch(self, now_s: float = 0.0) -> tuple[ServerJob, ...]:
        """Return the jobs of the next pass, none if there is nothing to do."""
        return self.scheduler.next_batch(self.entries.values(), now_s)

    def wake_s(self) -> float | None:
        """Return when a session that waits for a hint wants to be asked again."""
        return self.scheduler.wake_s(self.entries.values())

    def early(self, job: ServerJob, early: EarlyExitVerdict) -> None:
        """Send an early verdict of a running pass."""
        if not job.entry.closed:
            self._replies.early(job.entry, early)

    def finish(self, done: BatchResult, now_s: float = 0.0) -> None:
        """Take the results of a batch and tell the peers what came of it."""
        for job, result in zip(done.jobs, done.results, strict=True):
            job.entry.running = False
            if not job.entry.closed:
                self._finish(job, result, now_s)
            if job.entry.closed:
                job.entry.release()
        self.scheduler.ran(done, self.entries.values(), now_s)

    def _finish(self, job: ServerJob, result: JobResult, now_s: float) -> None:
        entry = job.entry
        entry.stir(now_s)
        if result.failure:
            if not self.scheduler.tries_again(job, result.failure, self.entries.values(), now_s):
                self._fail(entry, *refusal(result.failure))
        elif result.context is not None:
            request = codec.answer_request(entry.message, self._packer, entry.core_image)
            policy = strategy(request.strategy).cloud()
            entry.begin(Session(request, result.context, policy, result.helper))
        elif (plan := result.plan or job.plan) and result.logits is not None and entry.session:
            try:
                commit = entry.session.complete(plan, result.logits, result.compute_s)
            except FAILURES as error:
                self._fail(entry, *refusal(error))
            else:
                self._replies.commit(entry, commit)

    def under_way(self, now_s: float) -> bool:
        """Tell whether answers are open that have not ended and whose robots are there."""
        return self.entries.under_way(now_s - self.limits.active_s)

    def expire(self, now_s: float) -> None:
        """Forget sessions that nobody has asked about for too long; their edge reopens them."""
        for entry in self.entries.silent(now_s - self.limits.idle_s):
            self.dropped["expired"] += 1
            self.entries.end(entry)
        self.stats.robots, self.stats.sessions = len(self._peers), len(self.entries)

    def _fail(self, entry: ServerRequest, reason: str, detail: str) -> None:
        self._replies.refuse(entry.peer, entry.message.answer, entry.message.epoch, reason, detail)
        self.entries.end(entry)
