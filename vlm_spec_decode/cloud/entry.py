"""One answer at the cloud's desk, from its Open to its end, and the jobs that it gives the target."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.core.ports import Logits, ModelContext
from vlm_spec_decode.core.session import Helper, PassPlan, Session
from vlm_spec_decode.core.types import Commit, Hint, Image, Observation
from vlm_spec_decode.protocol.messages import ImageChunk, Open

MAX_EARLY_DRAFTS = 64
"""Drafts held before a session begins; a peer that sends more loses them, which harms only itself."""

JobKind: TypeAlias = Literal["open", "prefill", "pass"]


@dataclass(slots=True)
class Entry:
    """State of one (peer, answer). `closed` entries are dropped once no job of theirs runs."""

    peer: bytes
    message: Open
    touched_s: float = 0.0
    image: bytes | None = None
    received: bytearray = field(default_factory=bytearray)
    session: Session | None = None
    hints: list[Hint] = field(default_factory=list)
    running: bool = False
    prefilled: bool = False
    closed: bool = False

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

    def append(self, chunk: ImageChunk) -> bool:
        """Take the next bytes in order, ignoring what is out of order; True once all are here."""
        room = self.message.image_bytes - len(self.received)
        if chunk.offset == len(self.received):
            self.received += chunk.data[:room]
        return len(self.received) == self.message.image_bytes

    def digest_of_received(self) -> bytes:
        """SHA-256 of what arrived; the cloud trusts no name that it has not computed."""
        return hashlib.sha256(self.received).digest()

    def receive(self, hint: Hint, now_s: float) -> Commit | None:
        """Take a hint, also before the session has begun, and return what must be said at once."""
        if self.session:
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

    def next_job(self, now_s: float) -> Job | None:
        """Return what the target can do for this answer now, marking it as running, or None."""
        if self.running or (self.message.image_bytes and self.image is None):
            return None
        job = self._job(now_s)
        self.running = job is not None
        return job

    def release(self) -> None:
        """Free the target's context."""
        if self.session:
            self.session.close()
        self.session = None

    def _job(self, now_s: float) -> Job | None:
        if self.session is None:
            return Job("open", self)
        plan = self.session.plan(now_s)
        if plan:
            self.prefilled = True
            return Job("pass", self, plan)
        if not self.prefilled:
            self.prefilled = True
            return Job("prefill", self)
        return None


@dataclass(frozen=True, slots=True)
class Job:
    """Work for the target: open a context, fill a prompt while waiting for a draft, or run a pass."""

    kind: JobKind
    entry: Entry
    plan: PassPlan | None = None


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of a job: `plan` is the pass as it was run. `refusal` is (reason, detail) for the peer."""

    context: ModelContext | None = None
    helper: Helper | None = None
    plan: PassPlan | None = None
    logits: Logits | None = None
    compute_s: float = 0.0
    refusal: tuple[str, str] | None = None


class ImageStore:
    """JPEGs by their SHA-256, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._held_bytes = 0

    def get(self, digest: bytes) -> bytes | None:
        """Return the image of this digest if it is still held."""
        if digest in self._held:
            self._held.move_to_end(digest)
        return self._held.get(digest)

    def put(self, digest: bytes, jpeg: bytes) -> None:
        """Hold an image whose digest the caller has computed."""
        if digest not in self._held:
            self._held[digest] = jpeg
            self._held_bytes += len(jpeg)
        while self._held_bytes > self._limit_bytes and len(self._held) > 1:
            self._held_bytes -= len(self._held.popitem(last=False)[1])
