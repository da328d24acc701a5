"""The cloud's half of the wire protocol, without I/O: messages in, replies and jobs out.

One desk serves all peers. It never runs a model: it hands out jobs, and whoever owns the target (the
server's worker threads, or a test) runs them and hands the results back. Nothing that a peer sends can
raise out of `receive`: it ends in a reply by name or a counted drop.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from vlm_spec_decode.cloud.admission import Admission
from vlm_spec_decode.cloud.book import Book
from vlm_spec_decode.cloud.entry import Done, Entry, Job, JobResult
from vlm_spec_decode.cloud.failures import FAILURES, refusal
from vlm_spec_decode.cloud.images import ImageStore
from vlm_spec_decode.cloud.limits import DeskLimits
from vlm_spec_decode.cloud.peers import Peers
from vlm_spec_decode.cloud.replies import Replies
from vlm_spec_decode.cloud.scheduler import Scheduler
from vlm_spec_decode.cloud.stats import CloudStats
from vlm_spec_decode.core.errors import ProtocolError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.session import Session
from vlm_spec_decode.core.types import Early
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.strategies.registry import strategy

__all__ = ["CloudDesk", "DeskLimits"]


@dataclass(slots=True)
class CloudDesk:
    """All sessions of one target. `outbox` collects (peer, bytes) for the owner to send."""

    card: ModelCard
    grammar_digest: str
    limits: DeskLimits = field(default_factory=DeskLimits)
    has_helper: bool = False
    stats: CloudStats = field(default_factory=CloudStats)
    entries: Book = field(default_factory=Book)
    scheduler: Scheduler = field(init=False)
    _admission: Admission = field(init=False)
    _peers: Peers = field(init=False)
    _images: ImageStore = field(init=False)
    _packer: codec.TokenPacker = field(init=False)
    _replies: Replies = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, self.stats)
        self._admission = Admission(self.card, self.grammar_digest, self.limits)
        self._peers = Peers(self.limits.peers)
        self._images = ImageStore(self.limits.image_cache_bytes, self.stats)
        self._packer = codec.TokenPacker(self.card.vocab_size)
        self._replies = Replies(self._packer, self.stats, self.limits.retry_s)

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
            message = codec.decode(data)
        except ProtocolError as error:
            self.dropped["malformed"] += 1
            if str(error).startswith("protocol version"):
                self._replies.refuse(peer, 0, 0, "version", str(error))
            return
        if not isinstance(message, wire.Hello) and peer not in self._peers:
            self.dropped["before_hello"] += 1
            self._replies.refuse(peer, 0, 0, "hello_first")
            return
        try:
            self._dispatch(peer, message, now_s)
        except ProtocolError as error:
            self.dropped["invalid"] += 1
            if isinstance(message, wire.Open):
                self._replies.refuse(peer, message.answer, message.epoch, "invalid", str(error))

    def _dispatch(self, peer: bytes, message: wire.AnyMessage, now_s: float) -> None:
        self._peers.hear(peer, now_s)
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
            self._begin(Entry(peer, message, touched_s=now_s, ready_s=now_s))

    def _begin(self, entry: Entry) -> None:
        self.stats.opened += 1
        self.entries[entry.peer, entry.message.answer] = entry
        if entry.message.image_bytes:
            entry.image = self._images.get(entry.message.image_digest)
            self._replies.credit(entry)

    def _on_hint(self, entry: Entry, message: wire.WireDraft | wire.WireCorrection, now_s: float) -> None:
        hint = self._packer.hint(message)
        if not entry.has_room(hint, self.limits):
            self.dropped["too_many_nodes"] += 1
            return
        if isinstance(message, wire.WireDraft):
            self.stats.drafted += len(message.tokens) // self._packer.width
        if reply := entry.receive(hint, now_s):
            self._replies.commit(entry, reply)

    def _on_chunk(self, entry: Entry, chunk: wire.ImageChunk, now_s: float) -> None:
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

    def next_open(self, now_s: float = 0.0) -> Job | None:
        """Return the next answer whose context is to be opened, or None."""
        return self.scheduler.next_open(self.entries.values(), now_s)

    def next_batch(self, now_s: float = 0.0) -> tuple[Job, ...]:
        """Return the jobs of the next pass, none if there is nothing to do."""
        return self.scheduler.next_batch(self.entries.values(), now_s)

    def wake_s(self) -> float | None:
        """Return when a session that waits for a hint wants to be asked again."""
        return self.scheduler.wake_s(self.entries.values())

    def early(self, job: Job, early: Early) -> None:
        """Send an early verdict of a running pass."""
        if not job.entry.closed:
            self._replies.early(job.entry, early)

    def finish(self, done: Done, now_s: float = 0.0) -> None:
        """Take the results of a batch and tell the peers what came of it."""
        for job, result in zip(done.jobs, done.results, strict=True):
            job.entry.running = False
            if not job.entry.closed:
                self._finish(job, result, now_s)
            if job.entry.closed:
                job.entry.release()
        self.scheduler.ran(done, self.entries.values(), now_s)

    def _finish(self, job: Job, result: JobResult, now_s: float) -> None:
        entry = job.entry
        entry.stir(now_s)
        if result.refusal:
            if not self.scheduler.tries_again(job, result, self.entries.values(), now_s):
                self._fail(entry, *result.refusal)
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

    def _fail(self, entry: Entry, reason: str, detail: str) -> None:
        self._replies.refuse(entry.peer, entry.message.answer, entry.message.epoch, reason, detail)
        self.entries.end(entry)
