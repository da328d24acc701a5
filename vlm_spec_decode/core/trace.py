"""Tracing of one answer: the tracer that gets its events, and its rounds, bytes and result.

All times are seconds on the edge's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, DraftMessage, Event, Hint, Tokens


class Tracer:
    """Receives the events of one answer at the edge, on the thread that decodes; the default does nothing.

    A tracer is an argument of verifiers and strategies, which call these methods.
    """

    def opened(self, request: AnswerRequest) -> None:
        """An answer was opened at the verifier."""

    def sent(self, message: Hint) -> None:
        """A draft or a correction was handed to the verifier."""

    def waiting(self) -> None:
        """The edge begins to wait for the verifier; `received` ends it."""

    def received(self, event: Event) -> None:
        """A commit or an early-exit verdict was received."""

    def drafting(self) -> None:
        """A step of the draft model begins; `drafted` ends it."""

    def drafted(self, start: int, parents: Tokens) -> None:
        """A draft step has scored position `start` of the answer, and a tree below it (see `score`)."""

    def forced(self, start: int, length: int) -> None:
        """The grammar has named `length` tokens from position `start` on, at no draft step."""

    def decided(self, why: str) -> None:
        """A strategy's controller has decided something, for this reason."""


NO_TRACER = Tracer()
"""Measures nothing."""


class TracerGroup(Tracer):
    """Passes all events to several tracers."""

    def __init__(self, *tracers: Tracer) -> None:
        self._tracers = tracers

    def opened(self, request: AnswerRequest) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.opened(request)

    def sent(self, message: Hint) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.sent(message)

    def waiting(self) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.waiting()

    def received(self, event: Event) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.received(event)

    def drafting(self) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.drafting()

    def drafted(self, start: int, parents: Tokens) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.drafted(start, parents)

    def forced(self, start: int, length: int) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.forced(start, length)

    def decided(self, why: str) -> None:
        """Pass on to all tracers."""
        for tracer in self._tracers:
            tracer.decided(why)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrace:
    """One commit as the edge saw it; all times in seconds on the edge's clock.

    `why` says what the strategy's controller last decided before it, and from which estimates.
    """

    start: int
    drafted: int
    accepted: int
    committed: int
    draft_s: float
    wait_s: float
    verify_s: float
    at_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class LinkUsage:
    """Bytes that one answer put on the link, image counted apart from the rest of the uplink."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    image_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """One finished answer, with its rounds, times and bytes."""

    tokens: Tokens
    text: str
    strategy: str
    rule: str
    rounds: tuple[RoundTrace, ...]
    early_verdicts: int
    time_to_first_token_s: float
    time_to_first_action_s: float | None
    total_s: float
    usage: LinkUsage = field(default_factory=LinkUsage)
    lossless: bool = True
    ends: tuple[int, ...] = ()
    """For each token, how many characters of `text` lead up to its end; empty where that was not measured."""

    @property
    def drafted(self) -> int:
        """Draft tokens sent."""
        return sum(r.drafted for r in self.rounds)

    @property
    def accepted(self) -> int:
        """Draft tokens that the target confirmed."""
        return sum(r.accepted for r in self.rounds)

    @property
    def target_passes(self) -> int:
        """Forward passes of the target, one per commit."""
        return len(self.rounds)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


TokenFate: TypeAlias = Literal["accepted", "target", "unverified"]
"""Where a token came from: a draft that the target confirmed, the target itself, or the draft alone."""


def token_fates(result: GenerationResult, *, verified: bool = True) -> tuple[TokenFate, ...]:
    """Return where each token of an answer came from; not `verified`: all are the draft's alone.

    In every round the accepted tokens come first, and the target's own follow.
    """
    fates: list[TokenFate] = ["target" if verified else "unverified"] * len(result.tokens)
    for trace in result.rounds if verified else ():
        last = min(len(fates), trace.start + trace.accepted)
        fates[trace.start : last] = ["accepted"] * max(0, last - trace.start)
    return tuple(fates)


class AnswerTrace(Tracer):
    """Counts drafts, commits and waits, from the answer's opening on. `now` reads the edge's clock.

    A drafted token counts as accepted if it was sent before the commit with that token, and all its
    ancestors were right too.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.rounds: list[RoundTrace] = []
        self.early_verdicts = 0
        self.accepted_positions: set[int] = set()
        """Positions of the answer at which a drafted token was right."""
        self._opened_s = now()
        self._now = now
        self._draft_s = self._wait_s = self._began_s = 0.0
        self._waiting_s: float | None = None
        self._why = ""
        self._drafted = self._length = 0
        self._sent: dict[int, tuple[int, int, int]] = {}  # node to (parent, token, position)
        self._true: dict[int, int] = {}  # committed node to position

    @property
    def elapsed_s(self) -> float:
        """Time since the answer was opened."""
        return self._now() - self._opened_s

    def drafted_ahead(self) -> Tokens:
        """Return the tokens that are sent and not judged yet: of a tree the first path, which is the best."""
        path: list[int] = []
        last, position = 0, self._length
        for number, (parent, token, at) in sorted(self._sent.items()):
            if at == position and (parent == last if path else not parent or parent in self._true):
                path.append(token)
                last, position = number, position + 1
        return tuple(path)

    def opened(self, request: AnswerRequest) -> None:
        """Count the draft in the request; an answer that is opened again has new nodes."""
        self._sent.clear()
        self._true.clear()
        self._length = len(request.committed)
        if request.draft:
            self.sent(request.draft)

    def sent(self, message: Hint) -> None:
        """Count a draft's nodes; a correction is a token of the answer that was drawn here."""
        if isinstance(message, Correction):
            self._advance((message.token,))
        elif isinstance(message, DraftMessage):
            self._drafted += len(message.tokens)
            self._add(message)

    def waiting(self) -> None:
        """Note when the wait began."""
        self._waiting_s = self._now()

    def received(self, event: Event) -> None:
        """Count a verdict; a commit ends a round."""
        if self._waiting_s is not None:
            self._wait_s += self._now() - self._waiting_s
            self._waiting_s = None
        if not isinstance(event, Commit):
            self.early_verdicts += 1
            return
        accepted = self._advance(event.tokens)
        trace = RoundTrace(
            start=event.start,
            drafted=self._drafted,
            accepted=accepted,
            committed=len(event.tokens),
            draft_s=self._draft_s,
            wait_s=self._wait_s,
            verify_s=event.compute_s,
            at_s=self.elapsed_s,
            why=self._why,
        )
        self.rounds.append(trace)
        self._drafted, self._wait_s, self._draft_s, self._why = 0, 0.0, 0.0, ""

    def drafting(self) -> None:
        """Note when the step began."""
        self._began_s = self._now()

    def drafted(self, start: int, parents: Tokens) -> None:  # noqa: ARG002
        """Charge the step's time to the round."""
        self._draft_s += self._now() - self._began_s

    def decided(self, why: str) -> None:
        """Keep the controller's last reason for the round's trace."""
        self._why = why

    def _add(self, draft: DraftMessage) -> None:
        """Record the position of each node; at a committed position a node cannot be accepted any more."""
        for number, (token, parent) in enumerate(
            zip(draft.tokens, draft.parents, strict=True), draft.first_node
        ):
            if parent in self._sent:
                position = self._sent[parent][2] + 1
            else:
                position = self._true[parent] + 1 if parent in self._true else draft.base
            if position >= self._length and (not parent or parent in self._sent or parent in self._true):
                self._sent[number] = (parent, token, position)

    def _advance(self, tokens: Tokens) -> int:
        """Take committed tokens; return at how many of their positions a sent node was right."""
        end, accepted = self._length + len(tokens), set[int]()
        # Parents have lower numbers than their children, so each is judged after what it hangs below.
        for number, (parent, token, position) in sorted(self._sent.items()):
            if position >= end:
                continue
            del self._sent[number]
            if token == tokens[position - self._length] and (not parent or parent in self._true):
                self._true[number] = position
                accepted.add(position)  # the same token drafted twice is one
        self.accepted_positions |= accepted
        self._length = end
        return len(accepted)
