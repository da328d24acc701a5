"""A tracer that records one answer: drafting, messages in both directions, and hits.

A hit: the next chain after a verdict has tokens that need no further draft step. That is the purpose of a
branch cache or a pre-draft. For a strategy whose tree is in the cloud already hits have no meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.trace import Tracer
from vlm_spec_decode.core.types import Commit, DraftMessage, Event, Hint, Tokens
from vlm_spec_decode.decoding.tree import positions_of


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
class AnswerRecorder(Tracer):
    """Counts and lists the events of all answers of an engine."""

    clock: Clock
    events: list[EdgeEvent] = field(default_factory=list)
    lookups: int = 0
    hits: int = 0
    draft_s: float = 0.0
    _awaits_chain: bool = False
    _began_s: float = 0.0
    _drafted: set[int] = field(default_factory=set)
    _position: dict[int, int] = field(default_factory=dict)

    def sent(self, message: Hint) -> None:
        """Record a draft; count a hit if the first chain after a verdict was partly drafted before."""
        if not isinstance(message, DraftMessage):
            return
        self._add_event("send", self.clock.now(), len(message.tokens))
        for number, parent in enumerate(message.parents, message.first_node):
            self._position[number] = self._position.get(parent, message.base - 1) + 1
        if self._awaits_chain and message.tokens:
            numbers = range(message.first_node, message.first_node + len(message.tokens))
            self.lookups += 1
            self.hits += any(self._position[number] not in self._drafted for number in numbers)
            self._awaits_chain = False

    def received(self, event: Event) -> None:
        """Record an early-exit verdict or a commit."""
        if not isinstance(event, Commit):
            self._add_event("early", self.clock.now(), 1)
            return
        self._add_event("commit", self.clock.now() - event.compute_s, len(event.tokens))
        self._awaits_chain = not event.finished
        self._drafted.clear()

    def drafting(self) -> None:
        """Record when a draft step begins."""
        self._began_s = self.clock.now()

    def drafted(self, start: int, parents: Tokens) -> None:
        """Record a draft step and its positions; a step of no duration is ignored."""
        seconds = self.clock.now() - self._began_s
        if seconds:
            self._drafted.update(range(start, start + 1 + _height(parents)))
            self.draft_s += seconds
            self._add_event("draft", self._began_s, 1 + len(parents))

    def forced(self, start: int, length: int) -> None:
        """Record the positions of forced tokens since the last verdict."""
        self._drafted.update(range(start, start + length))

    def _add_event(self, what: str, start_s: float, size: int) -> None:
        """Add an event that ends now."""
        self.events.append(EdgeEvent(what, start_s, self.clock.now(), size))


def _height(parents: Tokens) -> int:
    """Return the length of the longest path of a tree."""
    return max(positions_of(parents, 0))
