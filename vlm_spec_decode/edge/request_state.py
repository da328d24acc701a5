"""The state of one open request at the edge: observation, committed tokens, unacknowledged messages.

Lost draft messages must not stop an answer whose cloud waits for one. So drafts are kept while one of their
nodes may still be accepted, and corrections until a commit shows that they have arrived; both are sent
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, DraftMessage, Hint, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import SpeculationTree, chain_parents
from vlm_spec_decode.edge.image_upload import ImageUpload
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol.messages import AnyMessage, Ping


@dataclass(slots=True)
class UnacknowledgedDrafts:
    """Sent draft messages in their order, and the tree that shows which of them still matter."""

    committed: Tokens = ()
    _tree: SpeculationTree = field(init=False)
    _sent: deque[Hint] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._tree = SpeculationTree(committed=list(self.committed))

    def add(self, hint: Hint) -> None:
        """Keep a hint that is being sent. A correction commits its token."""
        if isinstance(hint, DraftMessage):
            self._tree.add(hint)
        else:
            self.forget_corrections()
            if isinstance(hint, Correction):
                self._advance((hint.token,))
        self._sent.append(hint)

    def advance(self, tokens: Tokens) -> None:
        """A commit has come: forget what it has overtaken. It follows every correction that was sent."""
        if tokens:
            self.forget_corrections()
            self._advance(tokens)

    def forget_corrections(self) -> None:
        """Their tokens are known to the cloud, or travel with the next Open."""
        self._sent = deque(hint for hint in self._sent if isinstance(hint, DraftMessage))

    def hints(self) -> Iterator[Hint]:
        """Return what to send again, drafts re-rooted at what is committed now."""
        for hint in self._sent:
            yield self._rerooted(hint) if isinstance(hint, DraftMessage) else hint

    def _advance(self, tokens: Tokens) -> None:
        self._tree.advance(tokens)
        self._sent = deque(
            hint for hint in self._sent if not isinstance(hint, DraftMessage) or self._is_live(hint)
        )

    def _is_live(self, draft: DraftMessage) -> bool:
        numbers = range(draft.first_node, draft.first_node + len(draft.tokens))
        return any(self._tree.resolve(number) in self._tree.nodes for number in numbers)

    def _rerooted(self, draft: DraftMessage) -> DraftMessage:
        """Cut the committed head off a chain: a cloud that has forgotten cannot place what hangs below it."""
        first, size = draft.first_node, len(draft.tokens)
        if draft.parents != chain_parents(first, size, draft.parents[0]):
            return draft
        cut = next((i for i in range(size) if self._tree.resolve(first + i) in self._tree.nodes), size)
        parent = draft.parents[cut] if cut < size else 0
        parent = parent if parent in self._tree.nodes else 0
        return replace(
            draft,
            base=len(self._tree.committed) if not parent else draft.base,
            first_node=first + cut,
            tokens=draft.tokens[cut:],
            parents=chain_parents(first + cut, size - cut, parent),
            weights=draft.weights[cut:],
            q=draft.q[cut:],
        )


@dataclass(slots=True)
class RequestState:
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
    pending: UnacknowledgedDrafts = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        self.mirror = Sequence(epoch=request.epoch)
        self.mirror.commit(Commit(request.answer, request.epoch, 0, request.committed, 0, 0, False))
        self.pending = UnacknowledgedDrafts(request.committed)
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
        if hints and isinstance(first := hints[0], DraftMessage):
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
        if isinstance(hint, Correction):
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
