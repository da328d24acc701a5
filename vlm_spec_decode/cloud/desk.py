"""The cloud's half of the wire protocol, without I/O: messages in, replies and jobs out.

One desk serves all peers. It never runs a model: it hands out jobs, and whoever owns the target (the
server's worker thread, or a test) runs them and hands the results back. Nothing that a peer sends can
raise out of `receive`: it ends in a reply by name or a counted drop.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from vlm_spec_decode.cloud.entry import Entry, ImageStore, Job, JobResult
from vlm_spec_decode.core.errors import ConfigError, GrammarError, ProtocolError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.session import Session
from vlm_spec_decode.core.types import Early
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import (
    MAX_IMAGE_BYTES,
    AnyMessage,
    Close,
    Hello,
    ImageChunk,
    ImageCredit,
    Open,
    Ping,
    Pong,
    Refused,
    Welcome,
    WireCorrection,
    WireDraft,
)
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """What one cloud process takes on; sessions idle longer than `idle_s` are forgotten."""

    sessions_per_peer: int = 2
    sessions: int = 64
    peers: int = 1024
    image_cache_bytes: int = 64 * 1024 * 1024
    image_window_bytes: int = 32 * 1024
    idle_s: float = 120.0


@dataclass(slots=True)
class CloudDesk:
    """All sessions of one target. `outbox` collects (peer, bytes) for the owner to send."""

    card: ModelCard
    grammar_digest: str
    limits: DeskLimits = field(default_factory=DeskLimits)
    has_helper: bool = False
    outbox: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    dropped: Counter[str] = field(default_factory=Counter)
    entries: OrderedDict[tuple[bytes, int], Entry] = field(default_factory=OrderedDict)
    _peers: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    _images: ImageStore = field(init=False)
    _packer: codec.TokenPacker = field(init=False)

    def __post_init__(self) -> None:
        self._images = ImageStore(self.limits.image_cache_bytes)
        self._packer = codec.TokenPacker(self.card.vocab_size)

    @property
    def peers(self) -> int:
        """Robots that have shaken hands and are not forgotten."""
        return len(self._peers)

    # Messages ------------------------------------------------------------------------------------

    def receive(self, peer: bytes, data: bytes, now_s: float) -> None:
        """Take one message of one peer."""
        try:
            message = codec.decode(data)
        except ProtocolError as error:
            self.dropped["malformed"] += 1
            if str(error).startswith("protocol version"):
                self._refuse(peer, 0, 0, "version", str(error))
            return
        if not isinstance(message, Hello) and peer not in self._peers:
            self.dropped["before_hello"] += 1
            self._refuse(peer, 0, 0, "hello_first", "")
            return
        try:
            self._dispatch(peer, message, now_s)
        except ProtocolError as error:
            self.dropped["invalid"] += 1
            answer, epoch = getattr(message, "answer", 0), getattr(message, "epoch", 0)
            if isinstance(message, Open):
                self._refuse(peer, answer, epoch, "invalid", str(error))

    def _dispatch(self, peer: bytes, message: AnyMessage, now_s: float) -> None:
        if peer in self._peers:
            self._peers[peer] = now_s
            self._peers.move_to_end(peer)
        match message:
            case Hello():
                self._on_hello(peer, message, now_s)
            case Open():
                self._on_open(peer, message, now_s)
            case Ping():
                self._on_ping(peer, message, now_s)
            case Close():
                self._on_close(peer, message)
            case ImageChunk() | WireDraft() | WireCorrection():
                entry = self._current(peer, message.answer, message.epoch)
                if entry is None:
                    self.dropped["stale"] += 1
                    return
                entry.touched_s = now_s
                if isinstance(message, ImageChunk):
                    self._on_chunk(entry, message)
                else:
                    reply = entry.receive(self._packer.hint(message), now_s)
                    if reply:
                        self._send(peer, self._packer.commit_message(reply))
            case _:
                self.dropped["unexpected"] += 1

    def _on_hello(self, peer: bytes, hello: Hello, now_s: float) -> None:
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
                self._refuse(peer, 0, 0, f"{name}_mismatch", detail)
                return
        self._peers[peer] = now_s
        while len(self._peers) > self.limits.peers:
            self._forget_peer(next(iter(self._peers)))
        welcome = Welcome(
            self.card.model_id,
            self.card.revision,
            self.card.num_layers,
            self.card.exit_layers,
            self.limits.image_window_bytes,
            MAX_IMAGE_BYTES,
            tuple(STRATEGIES),
        )
        self._send(peer, welcome)

    def _on_open(self, peer: bytes, message: Open, now_s: float) -> None:
        known = self.entries.get((peer, message.answer))
        if known and known.message.epoch >= message.epoch:
            self._credit(known)
            return
        codec.answer_request(message, self._packer, None)
        try:
            chosen = strategy(message.strategy)
        except ConfigError as error:
            self._refuse(peer, message.answer, message.epoch, "unknown_strategy", str(error))
            return
        if chosen.needs_helper and not self.has_helper:
            detail = f"{chosen.name} needs a draft beside the target (vsd cloud --draft)"
            self._refuse(peer, message.answer, message.epoch, "no_draft", detail)
            return
        if known:
            self._end(known)
        self._make_room(peer)
        if len(self.entries) >= self.limits.sessions:
            self._refuse(
                peer, message.answer, message.epoch, "busy", f"{len(self.entries)} sessions are open"
            )
            return
        entry = Entry(peer, message, touched_s=now_s)
        self.entries[peer, message.answer] = entry
        if message.image_bytes:
            entry.image = self._images.get(message.image_digest)
            self._credit(entry)

    def _on_chunk(self, entry: Entry, chunk: ImageChunk) -> None:
        if entry.image is None and entry.append(chunk):
            if entry.digest_of_received() != entry.message.image_digest:
                self._refuse(
                    entry.peer, chunk.answer, chunk.epoch, "image_digest", "the image is not the one named"
                )
                self._end(entry)
                return
            entry.image = bytes(entry.received)
            self._images.put(entry.message.image_digest, entry.image)
        self._credit(entry)

    def _on_ping(self, peer: bytes, ping: Ping, now_s: float) -> None:
        entry = self._current(peer, ping.answer, ping.epoch)
        self._send(peer, Pong(ping.stamp_us, ping.answer, ping.epoch, entry is not None or ping.answer == 0))
        if entry is None:
            return
        entry.touched_s = now_s
        if ping.recover and entry.image is None and entry.message.image_bytes:
            self._credit(entry)
        elif ping.recover and entry.session:
            missed = entry.session.replay(ping.committed)
            if missed:
                self._send(peer, self._packer.commit_message(missed))

    def _on_close(self, peer: bytes, message: Close) -> None:
        entry = self._current(peer, message.answer, message.epoch)
        if entry:
            self._end(entry)

    # Jobs ----------------------------------------------------------------------------------------

    def next_job(self, now_s: float = 0.0) -> Job | None:
        """Return the next piece of work, taking turns among the sessions, or None."""
        for key in list(self.entries):
            job = self.entries[key].next_job(now_s)
            if job:
                self.entries.move_to_end(key)
                return job
        return None

    def wake_s(self) -> float | None:
        """Return when a session that waits for a hint wants to be asked again."""
        times = [e.session.wake_s for e in self.entries.values() if e.session and not e.running]
        return min((time for time in times if time is not None), default=None)

    def early(self, entry: Entry, early: Early) -> None:
        """Send an early verdict of a running pass."""
        if not entry.closed:
            self._send(entry.peer, codec.early_message(early))

    def finish(self, job: Job, result: JobResult) -> None:
        """Take the result of a job and tell the peer what came of it."""
        entry = job.entry
        entry.running = False
        if result.refusal:
            self._refuse(entry.peer, entry.message.answer, entry.message.epoch, *result.refusal)
            self._end(entry)
        elif result.context is not None:
            request = codec.answer_request(entry.message, self._packer, entry.core_image)
            policy = strategy(request.strategy).cloud()
            entry.begin(Session(request, result.context, policy, result.helper))
        elif (
            (plan := result.plan or job.plan)
            and result.logits is not None
            and entry.session
            and not entry.closed
        ):
            try:
                commit = entry.session.complete(plan, result.logits, result.compute_s)
            except GrammarError as error:
                self._refuse(entry.peer, entry.message.answer, entry.message.epoch, "grammar", str(error))
                self._end(entry)
            else:
                self._send(entry.peer, self._packer.commit_message(commit))
        if entry.closed:
            entry.release()

    def expire(self, now_s: float) -> None:
        """Forget sessions that nobody has asked about for too long; their edge reopens them."""
        for entry in [e for e in self.entries.values() if now_s - e.touched_s > self.limits.idle_s]:
            self.dropped["expired"] += 1
            self._end(entry)

    # Helpers -------------------------------------------------------------------------------------

    def _current(self, peer: bytes, answer: int, epoch: int) -> Entry | None:
        entry = self.entries.get((peer, answer))
        return entry if entry and entry.message.epoch == epoch else None

    def _make_room(self, peer: bytes) -> None:
        mine = [entry for (owner, _), entry in self.entries.items() if owner == peer]
        for entry in mine[: max(0, len(mine) + 1 - self.limits.sessions_per_peer)]:
            self._end(entry)

    def _forget_peer(self, peer: bytes) -> None:
        del self._peers[peer]
        for entry in [e for e in self.entries.values() if e.peer == peer]:
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        self.entries.pop((entry.peer, entry.message.answer), None)
        entry.closed = True
        if not entry.running:
            entry.release()

    def _credit(self, entry: Entry) -> None:
        if entry.message.image_bytes:
            received = entry.message.image_bytes if entry.image is not None else len(entry.received)
            self._send(entry.peer, ImageCredit(entry.message.answer, entry.message.epoch, received))

    def _refuse(self, peer: bytes, answer: int, epoch: int, reason: str, detail: str) -> None:
        self._send(peer, Refused(answer, epoch, reason, detail))

    def _send(self, peer: bytes, message: AnyMessage) -> None:
        self.outbox.append((peer, codec.encode(message)))
