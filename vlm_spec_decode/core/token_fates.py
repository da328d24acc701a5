"""What became of each token of an answer, while it is decoded: drafted, accepted, corrected.

For people who watch. The tracer is called on the thread that decodes, so it does little and never waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.core.trace import AnswerTrace, Tracer
from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, Event, Hint, Tokens

Fate: TypeAlias = Literal["drafted", "accepted", "corrected", "committed"]
"""`drafted`: said by the draft, not judged yet. `accepted`: drafted, and right. `corrected`: the target's own
token, where the draft said another or nothing. `committed`: final; who said it first is not known."""

DRAFT_EVERY_S = 0.04
"""Least time between two reports of drafts; commits are always reported."""

KEPT_ANSWERS = 8


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """The text of one token, or of several of the same fate."""

    text: str
    fate: Fate


@dataclass(slots=True)
class _Watched:
    trace: AnswerTrace
    tokens: Tokens = ()
    pieces: list[TokenPiece] = field(default_factory=list)
    text: str = ""


class TokenFates(Tracer):
    """Calls `on_change` with the number of an answer and all of its tokens, at every commit and draft.

    `decode` turns token ids into text, `now` reads a clock in seconds. Several answers may be open at once.
    """

    def __init__(
        self,
        decode: Callable[[Tokens], str],
        now: Callable[[], float],
        on_change: Callable[[int, tuple[TokenPiece, ...]], None],
    ) -> None:
        self._decode, self._now, self._on_change = decode, now, on_change
        self._answers: OrderedDict[int, _Watched] = OrderedDict()
        self._told_s = float("-inf")

    def opened(self, request: AnswerRequest) -> None:
        """Begin to watch an answer."""
        watched = self._answers[request.answer] = _Watched(AnswerTrace(self._now), request.committed)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        watched.trace.opened(request)
        self._extend(watched, 0)
        self._tell(request.answer, watched)

    def sent(self, message: Hint) -> None:
        """Show a draft; a correction is a token of the answer."""
        watched = self._answers.get(message.answer)
        if watched is None:
            return
        watched.trace.sent(message)
        if isinstance(message, Correction):
            watched.tokens += (message.token,)
            self._extend(watched, len(watched.tokens) - 1)
        elif self._now() - self._told_s < DRAFT_EVERY_S:
            return
        self._tell(message.answer, watched)

    def received(self, event: Event) -> None:
        """Show what a commit has accepted and corrected."""
        watched = self._answers.get(event.answer)
        if watched is None or not isinstance(event, Commit):
            return
        watched.trace.received(event)
        begin = len(watched.tokens)
        # A commit may come again after a loss: only what is beyond the known tokens is new.
        watched.tokens += event.tokens[max(0, begin - event.start) :]
        self._extend(watched, begin)
        self._tell(event.answer, watched)

    def _extend(self, watched: _Watched, begin: int) -> None:
        """Add the pieces of the tokens from `begin` on, each with the text that it adds to the answer."""
        for position in range(begin, len(watched.tokens)):
            text = self._decode(watched.tokens[: position + 1])
            # A token may end within a letter of several bytes; its text then comes with the next one.
            if not text.startswith(watched.text) or text.endswith("\ufffd"):
                continue
            fate: Fate = "accepted" if position in watched.trace.accepted_positions else "corrected"
            if len(text) > len(watched.text):
                watched.pieces.append(TokenPiece(text[len(watched.text) :], fate))
            watched.text = text

    def _tell(self, answer: int, watched: _Watched) -> None:
        self._told_s = self._now()
        ahead = watched.trace.drafted_ahead()
        drafted: list[TokenPiece] = []
        known = watched.text
        for length in range(1, len(ahead) + 1):
            text = self._decode(watched.tokens + ahead[:length])
            if text.startswith(known) and not text.endswith("\ufffd") and len(text) > len(known):
                drafted.append(TokenPiece(text[len(known) :], "drafted"))
                known = text
        self._on_change(answer, (*watched.pieces, *drafted))
