"""Records one answer from outside: drafting, messages in both directions, and hits.

A hit: after a verdict the next chain is sent with tokens that need no draft step any more. That is the
purpose of a branch cache or a pre-draft; for a strategy whose tree is in the cloud already it has no
meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vlm_spec_decode.core.ports import Clock, ExitHook, Logits, Model, ModelCard, ModelContext, Verifier
from vlm_spec_decode.core.trace import LinkUsage
from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, Event, Hint, Observation, Tokens


class EdgeEvent(NamedTuple):
    """Something that happened on the edge: `what` is draft, send, early or commit; times in seconds.

    `start_s` to `end_s` is the step of a draft, and the pass (without its way down) of a commit. `size` is
    rows, nodes or tokens.
    """

    what: str
    start_s: float
    end_s: float
    size: int


@dataclass(slots=True)
class AnswerRecorder:
    """What is counted, shared by the two decorators below."""

    clock: Clock
    moments: list[EdgeEvent] = field(default_factory=list)
    lookups: int = 0
    hits: int = 0
    draft_s: float = 0.0
    _is_fresh: bool = False
    _drafted: set[int] = field(default_factory=set)
    _position: dict[int, int] = field(default_factory=dict)

    def drafted(self, positions: Iterable[int]) -> None:
        """Note at which positions of the answer tokens were drafted or forced since the last verdict."""
        self._drafted.update(positions)

    def sent(self, draft: DraftMessage) -> None:
        """Look whether some of the first chain after a verdict was there already."""
        self.mark("send", self.clock.now(), len(draft.tokens))
        for number, parent in enumerate(draft.parents, draft.first_node):
            self._position[number] = self._position.get(parent, draft.base - 1) + 1
        if self._is_fresh and draft.tokens:
            numbers = range(draft.first_node, draft.first_node + len(draft.tokens))
            self.lookups += 1
            self.hits += any(self._position[number] not in self._drafted for number in numbers)
            self._is_fresh = False

    def came(self, event: Event) -> None:
        """Note an early verdict or a commit."""
        if not isinstance(event, Commit):
            self.mark("early", self.clock.now(), 1)
            return
        self.mark("commit", self.clock.now() - event.compute_s, len(event.tokens))
        self._is_fresh = not event.finished
        self._drafted.clear()

    def mark(self, what: str, start_s: float, size: int) -> None:
        """Add a moment that ends now."""
        self.moments.append(EdgeEvent(what, start_s, self.clock.now(), size))


@dataclass(slots=True)
class RecordingContext(ModelContext):
    """A drafter whose steps are counted."""

    inner: ModelContext
    tally: AnswerRecorder

    def prefill(self) -> None:
        """Pass on."""
        self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Pass on; a step that takes no time is no step."""
        started_s = self.tally.clock.now()
        logits = self.inner.score(prefix, tokens, parents, on_exit=on_exit)
        seconds = self.tally.clock.now() - started_s
        if seconds:
            self.tally.drafted(range(len(prefix), len(prefix) + 1 + _height(parents)))
            self.tally.draft_s += seconds
            self.tally.mark("draft", started_s, len(logits))
        return logits

    def forced(self, prefix: Tokens) -> Tokens:
        """Pass on."""
        run = self.inner.forced(prefix)
        self.tally.drafted(range(len(prefix), len(prefix) + len(run)))
        return run

    def close(self) -> None:
        """Pass on."""
        self.inner.close()


@dataclass(frozen=True, slots=True)
class RecordingModel(Model):
    """A draft whose steps are counted, whatever they take."""

    inner: Model
    tally: AnswerRecorder

    @property
    def card(self) -> ModelCard:
        """Identity of the inner model."""
        return self.inner.card

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer."""
        return RecordingContext(self.inner.open(observation), self.tally)


@dataclass(slots=True)
class RecordingVerifier:
    """A verifier whose traffic is counted."""

    inner: Verifier
    tally: AnswerRecorder

    def open(self, request: AnswerRequest) -> None:
        """Pass on."""
        self.inner.open(request)

    def submit(self, hint: Hint) -> None:
        """Count and pass on."""
        if isinstance(hint, DraftMessage):
            self.tally.sent(hint)
        self.inner.submit(hint)

    def poll(self) -> Event | None:
        """Pass on, counting what comes."""
        event = self.inner.poll()
        if event is not None:
            self.tally.came(event)
        return event

    def wait(self, timeout_s: float) -> Event:
        """Pass on, counting what comes."""
        event = self.inner.wait(timeout_s)
        self.tally.came(event)
        return event

    def cancel(self) -> None:
        """Pass on."""
        self.inner.cancel()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()

    @property
    def usage(self) -> LinkUsage:
        """Pass on."""
        return self.inner.usage


def _height(parents: Tokens) -> int:
    """Return the length of the longest path of a tree."""
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    return max(depths)
