"""Measures one answer at the edge: its rounds, and how long drafting and waiting took."""

from __future__ import annotations

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.trace import RoundTrace, Tracer
from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, DraftMessage, Event, Hint, Tokens


class AnswerTrace(Tracer):
    """Counts drafts, commits and waits, from the answer's opening on. Times are seconds of `clock`.

    A drafted token counts as accepted if it was sent before the commit that says it had come, and all tokens
    above it were right too.
    """

    def __init__(self, clock: Clock) -> None:
        self.rounds: list[RoundTrace] = []
        self.early_verdicts = 0
        self._opened_s = clock.now()
        self._clock = clock
        self._draft_s = self._wait_s = self._began_s = 0.0
        self._waiting_s: float | None = None
        self._why = ""
        self._drafted = self._length = 0
        self._sent: dict[int, tuple[int, int, int]] = {}  # node to (parent, token, position)
        self._true: dict[int, int] = {}  # committed node to position

    @property
    def elapsed_s(self) -> float:
        """Time since the answer was opened."""
        return self._clock.now() - self._opened_s

    def opened(self, request: AnswerRequest) -> None:
        """Count the draft that goes with the question; nodes of an answer that is opened anew are new."""
        self._sent.clear()
        self._true.clear()
        self._length = len(request.committed)
        if request.draft:
            self.sent(request.draft)

    def sent(self, hint: Hint) -> None:
        """Count a draft's nodes; a correction is a token of the answer that was drawn here."""
        if isinstance(hint, Correction):
            self._advance((hint.token,))
        elif isinstance(hint, DraftMessage):
            self._drafted += len(hint.tokens)
            self._add(hint)

    def waiting(self) -> None:
        """Note when the wait began."""
        self._waiting_s = self._clock.now()

    def received(self, event: Event) -> None:
        """Count a verdict; a commit ends a round."""
        if self._waiting_s is not None:
            self._wait_s += self._clock.now() - self._waiting_s
            self._waiting_s = None
        if not isinstance(event, Commit):
            self.early_verdicts += 1
            return
        accepted = self._advance(event.tokens)
        trace = RoundTrace(
            event.start,
            self._drafted,
            accepted,
            len(event.tokens),
            self._draft_s,
            self._wait_s,
            event.compute_s,
            self.elapsed_s,
            self._why,
        )
        self.rounds.append(trace)
        self._drafted, self._wait_s, self._draft_s, self._why = 0, 0.0, 0.0, ""

    def drafting(self) -> None:
        """Note when the step began."""
        self._began_s = self._clock.now()

    def drafted(self, start: int, parents: Tokens) -> None:  # noqa: ARG002
        """Charge the step's time to the round."""
        self._draft_s += self._clock.now() - self._began_s

    def decided(self, why: str) -> None:
        """Keep the controller's last reason for the round's trace."""
        self._why = why

    def _add(self, draft: DraftMessage) -> None:
        """Note the position of each node; one whose place is taken already cannot be accepted any more."""
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
        self._length = end
        return len(accepted)
