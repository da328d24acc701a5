"""Open requests at the cloud: the state of each, the table of all, the images they share, and the counts.

A request exists from its Open to its end and creates jobs for the target; the result of a failed job holds
the exception. The table is keyed by robot and answer number. Images are keyed by their digest: a later
answer about the same frame need not send it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.cloud.config import MAX_PATIENCE_S, MIN_PATIENCE_S, ServerLimits
from vlm_spec_decode.core.errors import (
    GrammarError,
    ImageError,
    InstructionError,
    NotFinite,
    OutOfMemory,
    VsdError,
)
from vlm_spec_decode.core.ports import ModelContext, Scores
from vlm_spec_decode.core.types import Commit, DraftMessage, Hint, Image, Observation
from vlm_spec_decode.decoding.policy import ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import ImageChunk, Open

log = logging.getLogger(__name__)

FAILURES = (VsdError, RuntimeError, ValueError, MemoryError, ArithmeticError, LookupError)
"""Exceptions that fail one answer only; the service of the others continues."""


def refusal(error: Exception) -> tuple[str, str]:
    """Return reason and detail of the Refused for a job that failed."""
    match error:
        case ImageError():
            return "image", str(error)
        case InstructionError():
            return "instruction", str(error)
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
    """Counters since the start, and below them present values; written by the socket's thread alone.

    `passes` are forward passes of the target and `batched_answers` the sum of the answers in them, so their
    ratio is the mean batch. `refused` and `dropped` count by reason. `wait_s` adds up the time that answers
    were ready for a pass before it began.
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
    batched_answers: int = 0
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

    def count_pass(self, answers: int, duration_s: float) -> None:
        """Count one pass and the answers that shared it."""
        self.passes += 1
        self.batched_answers += answers
        self.largest_batch = max(self.largest_batch, answers)
        self.pass_s += duration_s


MAX_EARLY_MESSAGES = 64
"""Messages stored before a session begins; further ones are dropped, which harms only their sender."""

MAX_LOOKS = 8
"""Times that an image that does not grow is hashed, of one request."""

JobKind: TypeAlias = Literal["open", "prefill", "pass"]


@dataclass(slots=True, kw_only=True)
class ServerRequest:
    """State of one (peer, answer). `closed` entries are dropped once no job of theirs runs.

    `prefill_started`: a job for the prompt was created; `is_cached`: its KV is in memory.
    `ready_s` is since when the target may have work for it, None while it waits for the edge. `stood_at` is
    how much of the image there was when the edge last asked what was missing, `looks` how often it was hashed
    because it still stood there. `opened_s` is when the Open came.
    """

    peer: bytes
    message: Open
    touched_s: float = 0.0
    image: bytes | None = None
    received: bytearray = field(default_factory=bytearray)
    session: Session | None = None
    early_messages: list[Hint] = field(default_factory=list)
    running: bool = False
    prefill_started: bool = False
    is_cached: bool = False
    closed: bool = False
    ready_s: float | None = None
    ran_s: float = 0.0
    opened_s: float = 0.0
    nodes: int = 0
    tries: int = 0
    stood_at: int = -1
    looks: int = 0

    @property
    def core_image(self) -> Image | None:
        """The image for the observation, None until it has arrived."""
        if self.image is None:
            return None
        return Image(self.image, self.message.image_width, self.message.image_height)

    @property
    def observation(self) -> Observation:
        """The observation; complete once the image has arrived."""
        return codec.observed(self.message, self.core_image)

    @property
    def awaits_image(self) -> bool:
        """Whether bytes of the image are missing."""
        return self.image is None and self.message.image_bytes > 0

    @property
    def is_finished(self) -> bool:
        """Whether the whole answer has been committed."""
        return self.session is not None and self.session.sequence.finished

    @property
    def kv_bytes(self) -> int:
        """Bytes of the answer's caches, with that of the co-located draft."""
        if self.session is None:
            return 0
        colocated_draft = self.session.helper
        return self.session.context.kv_bytes + (colocated_draft.context.kv_bytes if colocated_draft else 0)

    @property
    def due_s(self) -> float:
        """When a pass is due without a deadline: `ready_s` plus the patience of the edge, within bounds."""
        patience_s = self.message.patience_ms / 1000 or MAX_PATIENCE_S
        return (self.ready_s or 0.0) + min(MAX_PATIENCE_S, max(MIN_PATIENCE_S, patience_s))

    @property
    def deadline_s(self) -> float | None:
        """When the answer must have come to its end to be of use; None: nobody has said so."""
        left_ms = self.message.deadline_ms
        return self.opened_s + left_ms / 1000 if left_ms else None

    def append(self, chunk: ImageChunk) -> bool:
        """Append the next bytes; ignore a chunk out of order. Return whether the image is complete."""
        room = self.message.image_bytes - len(self.received)
        if chunk.offset == len(self.received):
            self.received += chunk.data[:room]
        return len(self.received) == self.message.image_bytes

    def digest_of_received(self) -> bytes:
        """SHA-256 of the received bytes; the cloud does not trust a digest that it has not computed."""
        return hashlib.sha256(self.received).digest()

    def is_whole(self) -> bool:
        """Tell, when the edge asks what is missing, whether what has come is the image named by its digest.

        So it is if a line without encryption has made the Open's size larger: the edge has sent all of it,
        and both would wait. Hashed only where nothing has come since the edge last asked, at most
        `MAX_LOOKS` times.
        """
        stands, self.stood_at = self.stood_at == len(self.received), len(self.received)
        if not stands or self.looks >= MAX_LOOKS:
            return False
        self.looks += 1
        return self.digest_of_received() == self.message.image_digest

    def mark_ready(self, now_s: float) -> None:
        """Record that the target may have work for it, from now unless it had work already."""
        if self.ready_s is None:
            self.ready_s = now_s

    def has_room(self, message: Hint, limits: ServerLimits) -> bool:
        """Count the nodes of a draft; return whether they are within the limits of one answer."""
        if not isinstance(message, DraftMessage):
            return True
        self.nodes += len(message.tokens)
        live = len(self.session.tree.nodes) if self.session else 0
        return self.nodes <= limits.nodes_per_answer and live + len(message.tokens) <= limits.live_nodes

    def receive(self, message: Hint, now_s: float) -> Commit | None:
        """Handle a message, or store it until the session begins; return a commit to send, or None."""
        if self.session:
            self.mark_ready(now_s)
            return self.session.receive(message, now_s)
        if len(self.early_messages) < MAX_EARLY_MESSAGES:
            self.early_messages.append(message)
        return None

    def start_session(self, session: Session) -> None:
        """Start the session, once the target has opened its context, with the messages stored before."""
        self.session = session
        for message in self.early_messages:
            session.receive(message)
        self.early_messages.clear()

    def next_job(self, now_s: float) -> ServerJob | None:
        """Return what the target can do for this answer now, marking it as running, or None."""
        job = self._job(now_s)
        self.running = job is not None
        self.ready_s = None
        return job

    def forget(self) -> None:
        """Free the caches; the next pass computes them again. Not while a job runs."""
        self.is_cached = False
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
            self.prefill_started = True
            return ServerJob("pass", self, plan, ready_s)
        if not self.prefill_started:
            self.prefill_started = True
            return ServerJob("prefill", self, ready_s=ready_s)
        return None


@dataclass(frozen=True, slots=True)
class ServerJob:
    """Work for the target: open a context, fill a prompt while waiting for a draft, or run a pass.

    `ready_s` is since when it could have begun.
    """

    kind: JobKind
    request: ServerRequest
    plan: PassPlan | None = None
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Result of a job: `plan` is the pass as it was run. `failure` is the exception if it failed."""

    context: ModelContext | None = None
    colocated_draft: ColocatedDraft | None = None
    plan: PassPlan | None = None
    scores: Scores | None = None
    compute_s: float = 0.0
    failure: Exception | None = None


Jobs: TypeAlias = tuple[ServerJob, ...]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Result of a batch: a result per job, the time of its pass, and how often it was split."""

    jobs: Jobs
    results: tuple[JobResult, ...]
    pass_s: float = 0.0
    splits: int = 0


class RequestTable(OrderedDict[tuple[bytes, int], ServerRequest]):
    """Requests in the order in which they were opened."""

    def current(self, peer: bytes, answer: int, epoch: int) -> ServerRequest | None:
        """Return the request of a message, None if its epoch is another one or the answer is not open."""
        request = self.get((peer, answer))
        return request if request and request.message.epoch == epoch else None

    def of_peer(self, peer: bytes | None) -> list[ServerRequest]:
        """Return a robot's requests, the oldest first."""
        return [request for request in self.values() if request.peer == peer]

    def silent(self, since_s: float) -> list[ServerRequest]:
        """Return the requests without a message since then."""
        return [request for request in self.values() if request.touched_s < since_s]

    def under_way(self, since_s: float) -> bool:
        """Return whether there are unfinished answers with a message since then."""
        return any(not request.is_finished and request.touched_s >= since_s for request in self.values())

    @property
    def num_open(self) -> int:
        """How many answers have a session and are not finished: they share passes."""
        return sum(request.session is not None and not request.is_finished for request in self.values())

    def end(self, request: ServerRequest) -> None:
        """Close a request; its context is freed once no job of it runs."""
        self.pop((request.peer, request.message.answer), None)
        request.closed = True
        if not request.running:
            request.release()


class ImageStore:
    """JPEGs by their SHA-256; beyond `limit_bytes` the least recently used are dropped."""

    def __init__(self, limit_bytes: int, stats: ServerCounts) -> None:
        self._limit_bytes = limit_bytes
        self._stats = stats
        self._images: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, digest: bytes) -> bytes | None:
        """Return the image of this digest if it is still stored."""
        if digest in self._images:
            self._images.move_to_end(digest)
            self._stats.image_hits += 1
        else:
            self._stats.image_misses += 1
        return self._images.get(digest)

    def put(self, digest: bytes, jpeg: bytes) -> None:
        """Store an image whose digest the caller has computed."""
        if digest not in self._images:
            self._images[digest] = jpeg
            self._stats.image_bytes += len(jpeg)
        while self._stats.image_bytes > self._limit_bytes and len(self._images) > 1:
            self._stats.image_bytes -= len(self._images.popitem(last=False)[1])
