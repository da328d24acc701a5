"""Open requests at the cloud: the state of each, the table of all, the images they share, and the counts.

A request lives from its Open to its end and creates jobs for the target; a job that fails keeps its
exception. The table is keyed by robot and answer number. Images are keyed by their digest: a later answer
about the same frame sends none.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.cloud.config import MAX_PATIENCE_S, MIN_PATIENCE_S, ServerLimits
from vlm_spec_decode.core.errors import GrammarError, ImageError, NotFinite, OutOfMemory, VsdError
from vlm_spec_decode.core.ports import Logits, ModelContext
from vlm_spec_decode.core.types import Commit, DraftMessage, Hint, Image, Observation
from vlm_spec_decode.decoding.policy import ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.protocol.messages import ImageChunk, Open

log = logging.getLogger(__name__)

FAILURES = (VsdError, RuntimeError, ValueError, MemoryError, ArithmeticError, LookupError)
"""What a job may raise; one answer's failure must not end the service of the others."""


def refusal(error: Exception) -> tuple[str, str]:
    """Return the name and detail by which a robot is told of a job that failed."""
    match error:
        case ImageError():
            return "image", str(error)
        case GrammarError():
            return "grammar", str(error)
        case NotFinite():
            log.error("an answer has ended: %s", error)
            return "not_finite", str(error)
        case OutOfMemory() | MemoryError():
            return "out_of_memory", "the target has no memory left for this answer"
    log.error("a job of the target failed", exc_info=error)
    return "target_failed", type(error).__name__


@dataclass(slots=True, kw_only=True)
class ServerCounts:
    """Counters since the start, and below them what holds now; written by the socket's thread alone.

    `passes` are forward passes of the target and `shared` the answers' shares of them, so their ratio is the
    mean batch. `refused` and `dropped` count by name. `wait_s` adds up the time that answers were ready for a
    pass before it began.
    """

    messages: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    opened: int = 0
    finished: int = 0
    commits: int = 0
    tokens: int = 0
    drafted: int = 0
    early: int = 0
    passes: int = 0
    shared: int = 0
    largest_batch: int = 0
    pass_s: float = 0.0
    wait_s: float = 0.0
    splits: int = 0
    evictions: int = 0
    image_hits: int = 0
    image_misses: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    robots: int = 0
    sessions: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    image_bytes: int = 0
    is_draining: bool = False

    def ran(self, shares: int, duration_s: float) -> None:
        """Count one pass and the answers that shared it."""
        self.passes += 1
        self.shared += shares
        self.largest_batch = max(self.largest_batch, shares)
        self.pass_s += duration_s


MAX_EARLY_DRAFTS = 64
"""Drafts held before a session begins; a peer that sends more loses them, which harms only itself."""

JobKind: TypeAlias = Literal["open", "prefill", "pass"]


@dataclass(slots=True, kw_only=True)
class ServerRequest:
    """State of one (peer, answer). `closed` entries are dropped once no job of theirs runs.

    `prefilled`: the prompt has been asked for; `filled`: its KV is in memory.
    `ready_s` is since when the target may have something to do for it, None while it waits for the edge.
    """

    peer: bytes
    message: Open
    touched_s: float = 0.0
    image: bytes | None = None
    received: bytearray = field(default_factory=bytearray)
    session: Session | None = None
    hints: list[Hint] = field(default_factory=list)
    running: bool = False
    prefilled: bool = False
    filled: bool = False
    closed: bool = False
    ready_s: float | None = None
    ran_s: float = 0.0
    nodes: int = 0
    tries: int = 0

    @property
    def core_image(self) -> Image | None:
        """The image as the observation holds it."""
        if self.image is None:
            return None
        return Image(self.image, self.message.image_width, self.message.image_height)

    @property
    def observation(self) -> Observation:
        """What the answer is about; complete once the image is here."""
        m = self.message
        return Observation(self.core_image, m.instruction, m.history, m.stamp_s, m.frame_id)

    @property
    def awaits_image(self) -> bool:
        """Whether bytes of the image are still to come."""
        return self.image is None and self.message.image_bytes > 0

    @property
    def is_finished(self) -> bool:
        """Whether the whole answer has been committed."""
        return self.session is not None and self.session.sequence.finished

    @property
    def kv_bytes(self) -> int:
        """Bytes that the answer's caches hold, the helper's included."""
        if self.session is None:
            return 0
        helper = self.session.helper
        return self.session.context.kv_bytes + (helper.context.kv_bytes if helper else 0)

    @property
    def due_s(self) -> float:
        """When a pass is due: those who wait longest come first, sooner if their edge has little patience."""
        patience_s = self.message.patience_ms / 1000 or MAX_PATIENCE_S
        return (self.ready_s or 0.0) + min(MAX_PATIENCE_S, max(MIN_PATIENCE_S, patience_s))

    def append(self, chunk: ImageChunk) -> bool:
        """Take the next bytes in order, ignoring what is out of order; True once all are here."""
        room = self.message.image_bytes - len(self.received)
        if chunk.offset == len(self.received):
            self.received += chunk.data[:room]
        return len(self.received) == self.message.image_bytes

    def digest_of_received(self) -> bytes:
        """SHA-256 of what arrived; the cloud trusts no name that it has not computed."""
        return hashlib.sha256(self.received).digest()

    def stir(self, now_s: float) -> None:
        """Note that there may be something to do for the target, since now unless it was so before."""
        if self.ready_s is None:
            self.ready_s = now_s

    def has_room(self, hint: Hint, limits: ServerLimits) -> bool:
        """Tell whether a hint may be taken: what one answer can pile up is bounded."""
        if not isinstance(hint, DraftMessage):
            return True
        self.nodes += len(hint.tokens)
        live = len(self.session.tree.nodes) if self.session else 0
        return self.nodes <= limits.nodes_per_answer and live + len(hint.tokens) <= limits.live_nodes

    def receive(self, hint: Hint, now_s: float) -> Commit | None:
        """Take a hint, also before the session has begun, and return what must be said at once."""
        if self.session:
            self.stir(now_s)
            return self.session.receive(hint, now_s)
        if len(self.hints) < MAX_EARLY_DRAFTS:
            self.hints.append(hint)
        return None

    def begin(self, session: Session) -> None:
        """The target has opened its context: hand over the drafts that came first."""
        self.session = session
        for hint in self.hints:
            session.receive(hint)
        self.hints.clear()

    def next_job(self, now_s: float) -> ServerJob | None:
        """Return what the target can do for this answer now, marking it as running, or None."""
        job = self._job(now_s)
        self.running = job is not None
        self.ready_s = None
        return job

    def forget(self) -> None:
        """Give up the caches; the next pass computes them again. Not while a job runs."""
        self.filled = False
        if self.session:
            self.session.context.forget()
            if self.session.helper:
                self.session.helper.context.forget()

    def release(self) -> None:
        """Free the target's context."""
        if self.session:
            self.session.close()
        self.session = None

    def _job(self, now_s: float) -> ServerJob | None:
        if self.session is None:
            return ServerJob("open", self, ready_s=now_s)
        ready_s = now_s if self.ready_s is None else self.ready_s
        plan = self.session.plan(now_s)
        if plan:
            self.prefilled = True
            return ServerJob("pass", self, plan, ready_s)
        if not self.prefilled:
            self.prefilled = True
            return ServerJob("prefill", self, ready_s=ready_s)
        return None


@dataclass(frozen=True, slots=True)
class ServerJob:
    """Work for the target: open a context, fill a prompt while waiting for a draft, or run a pass.

    `prefilled`: the prompt has been asked for; `filled`: its KV is in memory.
    `ready_s` is since when it could have begun.
    """

    kind: JobKind
    entry: ServerRequest
    plan: PassPlan | None = None
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What came of a job: `plan` is the pass as it was run. `failure` is why there is nothing."""

    context: ModelContext | None = None
    helper: ColocatedDraft | None = None
    plan: PassPlan | None = None
    logits: Logits | None = None
    compute_s: float = 0.0
    failure: Exception | None = None


Jobs: TypeAlias = tuple[ServerJob, ...]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch has ended: a result per job, the time of its pass, and how often it had to be split."""

    jobs: Jobs
    results: tuple[JobResult, ...]
    pass_s: float = 0.0
    splits: int = 0


class RequestTable(OrderedDict[tuple[bytes, int], ServerRequest]):
    """Entries in the order in which they were opened."""

    def current(self, peer: bytes, answer: int, epoch: int) -> ServerRequest | None:
        """Return the entry that a message is about, None if it is of another epoch or of no open answer."""
        entry = self.get((peer, answer))
        return entry if entry and entry.message.epoch == epoch else None

    def of(self, peer: bytes | None) -> list[ServerRequest]:
        """Return a robot's entries, the oldest first."""
        return [entry for entry in self.values() if entry.peer == peer]

    def silent(self, since_s: float) -> list[ServerRequest]:
        """Return the entries that nobody has asked about since."""
        return [entry for entry in self.values() if entry.touched_s < since_s]

    def under_way(self, since_s: float) -> bool:
        """Tell whether answers are open that have not ended and have been asked about since."""
        return any(not entry.is_finished and entry.touched_s >= since_s for entry in self.values())

    def end(self, entry: ServerRequest) -> None:
        """Close an entry; its context goes once no job of it runs."""
        self.pop((entry.peer, entry.message.answer), None)
        entry.closed = True
        if not entry.running:
            entry.release()


class ImageStore:
    """JPEGs by their SHA-256, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int, stats: ServerCounts) -> None:
        self._limit_bytes = limit_bytes
        self._stats = stats
        self._held: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, digest: bytes) -> bytes | None:
        """Return the image of this digest if it is still held."""
        if digest in self._held:
            self._held.move_to_end(digest)
            self._stats.image_hits += 1
        else:
            self._stats.image_misses += 1
        return self._held.get(digest)

    def put(self, digest: bytes, jpeg: bytes) -> None:
        """Hold an image whose digest the caller has computed."""
        if digest not in self._held:
            self._held[digest] = jpeg
            self._stats.image_bytes += len(jpeg)
        while self._stats.image_bytes > self._limit_bytes and len(self._held) > 1:
            self._stats.image_bytes -= len(self._held.popitem(last=False)[1])
