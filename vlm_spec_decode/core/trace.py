"""How one answer came about: who is told of its steps, and its rounds, bytes and result.

All times are seconds on the edge's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.types import AnswerRequest, Event, Hint, Tokens


class Tracer:
    """Is told of the steps of one answer at the edge, on the thread that decodes; by default does nothing.

    Measuring is an argument: verifiers and strategies call these methods, and nothing is wrapped.
    """

    def opened(self, request: AnswerRequest) -> None:
        """An answer was opened at the verifier."""

    def sent(self, hint: Hint) -> None:
        """A draft or a correction was handed to the verifier."""

    def waiting(self) -> None:
        """The edge begins to wait for the verifier; `received` ends it."""

    def received(self, event: Event) -> None:
        """A commit or an early-exit verdict has come."""

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
    """Tells several tracers."""

    def __init__(self, *tracers: Tracer) -> None:
        self._tracers = tracers

    def opened(self, request: AnswerRequest) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.opened(request)

    def sent(self, hint: Hint) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.sent(hint)

    def waiting(self) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.waiting()

    def received(self, event: Event) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.received(event)

    def drafting(self) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.drafting()

    def drafted(self, start: int, parents: Tokens) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.drafted(start, parents)

    def forced(self, start: int, length: int) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.forced(start, length)

    def decided(self, why: str) -> None:
        """Tell all."""
        for tracer in self._tracers:
            tracer.decided(why)


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One finished answer and how it came about."""

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
