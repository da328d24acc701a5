"""All state of one open answer at the edge, across connections and clouds. `ClientProtocol` owns them.

It holds the committed sequence, the tree of the sent drafts, the messages that no commit has acknowledged,
and how far the image has arrived. Messages are sent again from it. Only the link's thread uses it; the
strategy, on its own thread, gets the commits that `commit` returns.

Lost draft messages must not stop an answer whose cloud waits for one. So drafts are kept while one of their
nodes may still be accepted, and corrections until a commit shows that they have arrived; both are sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, DraftMessage, Hint, Image, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree, chain_parents
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import AnyMessage, ImageChunk, Ping

CHUNK_BYTES = 4096
"""33 ms of a 1 Mbit/s link: the longest that a draft may wait behind a chunk."""


@dataclass(slots=True)
class ImageUpload:
    """Go-back-N over one image. `wait_for_credit`: the cloud probably has it, so let it ask.

    `first` and `last` are when the first and the last credit came (seconds), with the bytes that the cloud
    had.
    """

    image: Image
    wait_for_credit: bool = False
    acknowledged: int = 0
    sent: int = 0
    first: tuple[float, int] | None = None
    last: tuple[float, int] | None = None

    @property
    def under_way(self) -> int:
        """Bytes that were sent and are not acknowledged."""
        return self.sent - self.acknowledged

    @property
    def is_done(self) -> bool:
        """Whether the cloud holds all bytes."""
        return self.acknowledged >= len(self.image.jpeg)

    def acknowledge(self, received: int, now_s: float) -> None:
        """Record that the cloud has the first `received` bytes.

        A smaller number than before is believed as well: the one before may have been changed on the line,
        and then the cloud would wait for bytes that it is taken to have. One that is only late does no harm:
        nothing is sent again before the cloud is asked.
        """
        self.wait_for_credit = False
        self.acknowledged = min(received, len(self.image.jpeg))
        self.sent = max(self.sent, self.acknowledged)
        self.last = now_s, self.acknowledged
        self.first = self.first or self.last

    def take_transmission(self) -> tuple[int, float]:
        """Return the bytes that arrived since the first credit and the seconds of that, once: (0, 0.0) then.

        The first credit answers the Open, before any byte of the image, or is all if the cloud has it.
        """
        first, last, self.first = self.first, self.last, self.last
        if first is None or last is None:
            return 0, 0.0
        return last[1] - first[1], last[0] - first[0]

    def go_back(self) -> None:
        """Send again what is not acknowledged."""
        self.sent = self.acknowledged
        self.wait_for_credit = False

    def restart(self) -> None:
        """Start from the first byte, for a cloud that may have none."""
        self.acknowledged = self.sent = 0
        self.first = self.last = None

    def chunks(self, answer: int, epoch: int, room_bytes: int) -> Iterator[ImageChunk]:
        """Yield the next chunks, of at most so many bytes in all."""
        end = 0 if self.wait_for_credit else min(len(self.image.jpeg), self.sent + room_bytes)
        if not self.sent and self.first and self.sent < end:
            # Other images were before it in the queue: how fast it travels shows from now on.
            self.first = None
        while self.sent < end:
            data = self.image.jpeg[self.sent : min(self.sent + CHUNK_BYTES, end)]
            yield ImageChunk(answer, epoch, self.sent, data)
            self.sent += len(data)


@dataclass(slots=True)
class Traffic:
    """Bytes of one answer on the link, before encryption; `up_bytes` has those of the image, too."""

    up_bytes: int = 0
    down_bytes: int = 0
    image_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class RequestState:
    """One answer across all epochs. `sequence` only grows: the robot may have acted on it.

    `tree` holds the nodes of the sent drafts that may still be accepted, `unacknowledged` the messages to
    send again, in their order. `patience_ms` is how long the edge waits for a verdict. `is_sent`: its Open
    was sent under the present epoch. `progress_s` is when something new last arrived, `pass_s` how long the
    last pass took. `busy_since_s` is since when clouds have had no room for it, and `retry_s` when to ask
    again. `asked_s` is when it was asked.
    """

    request: AnswerRequest
    packer: codec.TokenPacker
    upload: ImageUpload | None = None
    patience_ms: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    is_sent: bool = False
    progress_s: float = 0.0
    pass_s: float = 0.0
    busy_since_s: float | None = None
    retry_s: float = 0.0
    asked_s: float = 0.0
    sequence: Sequence = field(init=False)
    tree: SpeculationTree = field(init=False)
    unacknowledged: deque[Hint] = field(default_factory=deque)

    def __post_init__(self) -> None:
        request = self.request
        self.sequence = Sequence(epoch=request.epoch)
        self.sequence.commit(Commit(request.answer, request.epoch, 0, request.committed, 0, 0, False))
        self.tree = SpeculationTree(committed=list(request.committed))
        if request.draft:
            self.add(request.draft)

    @property
    def key(self) -> tuple[int, int]:
        """Answer and epoch, which all messages about it carry."""
        return self.request.answer, self.sequence.epoch

    # What the edge sends --------------------------------------------------------------------------

    def add(self, message: Hint) -> None:
        """Store a message until a commit acknowledges it. A correction also commits its token here."""
        if isinstance(message, DraftMessage):
            self.tree.add(message)
        else:
            # One correction or request for samples is open at a time; a new one answers the one before.
            self._forget_corrections()
        if isinstance(message, Correction):
            finished = self.request.params.ends(message.position + 1, message.token)
            made = (message.answer, self.sequence.epoch, message.position, (message.token,), 0, 0, finished)
            self._advance(self.sequence.commit(Commit(*made)))
        self.unacknowledged.append(message)

    def begin_epoch(self) -> None:
        """Start the next epoch: the cloud has lost the session, so the answer must be opened again."""
        self.sequence.epoch += 1
        self._forget_corrections()  # their tokens travel among the committed ones of the next Open
        self.is_sent = False
        if self.upload:
            self.upload.restart()

    def on_busy(self, now_s: float, retry_s: float) -> float:
        """Record that a cloud has no room for it; return for how many seconds none has had any."""
        self.is_sent, self.retry_s = False, retry_s
        self.busy_since_s = now_s if self.busy_since_s is None else self.busy_since_s
        return now_s - self.busy_since_s

    def open_messages(self, now_s: float = 0.0) -> Iterator[AnyMessage]:
        """Yield Open, and the messages that no commit has acknowledged."""
        committed, epoch = self.sequence.tokens, self.sequence.epoch
        messages, draft = deque(self._live_messages()), None
        if messages and isinstance(first := messages[0], DraftMessage):
            messages.popleft()
            draft = replace(first, epoch=epoch)
        left_s = self.asked_s + self.request.deadline_s - now_s
        yield codec.open_message(self.request, self.packer, epoch, committed, self.patience_ms, draft, left_s)
        self.is_sent = True
        yield from map(self.to_wire, messages)

    def to_wire(self, message: Hint) -> AnyMessage:
        """Return the wire form of one message, under the present epoch."""
        if message.epoch != self.sequence.epoch:
            message = replace(message, epoch=self.sequence.epoch)
        return self.packer.client_message_to_wire(message)

    def chunks(self, room_bytes: int) -> Iterator[ImageChunk]:
        """Yield the next chunks of the image, of at most so many bytes."""
        if self.upload:
            yield from self.upload.chunks(*self.key, room_bytes)

    def ping(self, stamp_us: int, recover: bool) -> Ping:
        """Return a Ping; with `recover` it asks the cloud to send missing commits again."""
        return Ping(stamp_us, *self.key, len(self.sequence), recover)

    def messages_to_resend(self) -> Iterator[AnyMessage]:
        """Yield the messages that the cloud may not have; the image's next chunk is the first of these."""
        yield from map(self.to_wire, self._live_messages())
        if self.upload and not self.upload.is_done:
            self.upload.go_back()

    # What the cloud sends -------------------------------------------------------------------------

    def commit(self, commit: Commit) -> Commit | None:
        """Apply a commit that leaves no gap; return its new part, in the epoch of the request."""
        start = len(self.sequence)
        new = self.sequence.commit(commit)
        is_open = commit.residual is not None and commit.start + len(commit.tokens) == len(self.sequence)
        if not new and not is_open:
            return None
        self.pass_s, self.busy_since_s = commit.compute_s, None
        if new:
            # A commit follows every correction that was sent: the cloud makes none before it has them.
            self._forget_corrections()
            self._advance(new)
        residual = commit.residual if is_open else None
        return replace(commit, start=start, tokens=new, epoch=self.request.epoch, residual=residual)

    def _advance(self, tokens: Tokens) -> None:
        """Re-root the tree at the committed tokens; drop the drafts none of whose nodes can be accepted."""
        self.tree.advance(tokens)
        self.unacknowledged = deque(
            message
            for message in self.unacknowledged
            if not isinstance(message, DraftMessage) or self._is_live(message)
        )

    def _is_live(self, draft: DraftMessage) -> bool:
        numbers = range(draft.first_node, draft.first_node + len(draft.tokens))
        return any(self.tree.resolve(number) in self.tree.nodes for number in numbers)

    def _forget_corrections(self) -> None:
        self.unacknowledged = deque(
            message for message in self.unacknowledged if isinstance(message, DraftMessage)
        )

    def _live_messages(self) -> Iterator[Hint]:
        """Yield the messages to send again, drafts re-rooted at the committed tokens."""
        for message in self.unacknowledged:
            yield self._rerooted(message) if isinstance(message, DraftMessage) else message

    def _rerooted(self, draft: DraftMessage) -> DraftMessage:
        """Cut the committed head off a chain: a cloud without the session does not know these nodes."""
        first, size = draft.first_node, len(draft.tokens)
        if draft.parents != chain_parents(first, size, draft.parents[0]):
            return draft
        cut = next((i for i in range(size) if self.tree.resolve(first + i) in self.tree.nodes), size)
        parent = draft.parents[cut] if cut < size else 0
        parent = parent if parent in self.tree.nodes else 0
        return replace(
            draft,
            base=len(self.tree.committed) if not parent else draft.base,
            first_node=first + cut,
            tokens=draft.tokens[cut:],
            parents=chain_parents(first + cut, size - cut, parent),
            weights=draft.weights[cut:],
            q=draft.q[cut:],
        )
