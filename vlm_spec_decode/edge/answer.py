"""The edge's open answer: what was asked, what is committed, and what may have to be said again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.sequence import Sequence
from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, Draft, Hint
from vlm_spec_decode.edge.pending import Pending
from vlm_spec_decode.edge.upload import ImageUpload
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import AnyMessage, Ping


@dataclass(slots=True)
class OpenAnswer:
    """One answer across all epochs. `mirror` is never taken back: the robot may have acted on it.

    `patience_ms` is how long the edge waits for a verdict. `progress_s` is when something new last came,
    `pass_s` how long the last pass took. `busy_since_s` is since when clouds have had no room for it.
    """

    request: AnswerRequest
    packer: codec.TokenPacker
    upload: ImageUpload | None
    patience_ms: int = 0
    window_bytes: int = 0
    sent: bool = False
    progress_s: float = 0.0
    pass_s: float = 0.0
    busy_since_s: float | None = None
    mirror: Sequence = field(init=False)
    pending: Pending = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        self.mirror = Sequence(epoch=request.epoch)
        self.mirror.commit(Commit(request.answer, request.epoch, 0, request.committed, 0, 0, False))
        self.pending = Pending(request.committed)
        if request.draft:
            self.pending.add(request.draft)

    @property
    def names(self) -> tuple[int, int]:
        """What messages about it carry: answer and epoch."""
        return self.request.answer, self.mirror.epoch

    def begin_epoch(self) -> None:
        """Whoever held it has forgotten it: open it again with what is committed."""
        self.mirror.epoch += 1
        self.pending.forget_corrections()
        self.sent = False
        if self.upload:
            self.upload.restart()

    def opening(self, window_bytes: int) -> Iterator[AnyMessage]:
        """Yield what opens it: the request, the image's first window, and the hints that still matter."""
        self.window_bytes = window_bytes
        committed, epoch = self.mirror.tokens, self.mirror.epoch
        hints, draft = deque(self.pending.hints()), None
        if hints and isinstance(first := hints[0], Draft):
            hints.popleft()
            draft = replace(first, epoch=epoch)
        yield codec.open_message(self.request, self.packer, epoch, committed, self.patience_ms, draft)
        self.sent = True
        yield from self.chunks()
        yield from map(self.hint, hints)

    def chunks(self) -> Iterator[AnyMessage]:
        """Yield the chunks of the image that the window allows now."""
        if self.upload:
            yield from self.upload.chunks(*self.names, self.window_bytes)

    def hints(self) -> Iterator[AnyMessage]:
        """Yield the hints whose outcome is not known."""
        for hint in self.pending.hints():
            yield self.hint(hint)

    def hint(self, hint: Hint) -> AnyMessage:
        """Return the message of one hint."""
        return self.packer.hint_message(replace(hint, epoch=self.mirror.epoch))

    def add(self, hint: Hint) -> None:
        """Keep a hint until a commit overtakes it. A correction is a commit that was made here."""
        if isinstance(hint, Correction) and hint.token >= 0:
            finished = self.request.params.ends(hint.position + 1, hint.token)
            made = (hint.answer, self.mirror.epoch, hint.position, (hint.token,), 0, 0, finished)
            self.mirror.commit(Commit(*made))
        self.pending.add(hint)

    def take(self, commit: Commit) -> Commit | None:
        """Apply a commit that leaves no gap; return what is new in it, in the request's own epoch."""
        start = len(self.mirror)
        new = self.mirror.commit(commit)
        is_open = commit.residual is not None and commit.start + len(commit.tokens) == len(self.mirror)
        if not new and not is_open:
            return None
        self.pass_s, self.busy_since_s = commit.compute_s, None
        self.pending.advance(new)
        residual = commit.residual if is_open else None
        return replace(commit, start=start, tokens=new, epoch=self.request.epoch, residual=residual)

    def ping(self, stamp_us: int, recover: bool) -> Ping:
        """Return a sign of life; `recover` asks for what is missing here."""
        return Ping(stamp_us, *self.names, len(self.mirror), recover)

    def recovery(self) -> Iterator[AnyMessage]:
        """Yield what the cloud may be missing."""
        yield from self.hints()
        if self.upload and not self.upload.is_done:
            self.upload.go_back()
            yield from self.chunks()
