"""From streamed text to actions, strictly: only an exact call becomes an action.

An answer is description words mixed with calls (`a red box left of the chair . turn ( -10 ) forward(1.6)`).
A word is a maximal run of characters without white space, parentheses and `.,;:!?`; a word followed by an
opening parenthesis (white space between them is free) is a call, and every call must be one of the
language. So a word such as "stop" in a description is never an action, and "don't stop (yet)" is an error
rather than a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import takewhile

from vlm_spec_decode.actions.types import ACTION_NAMES, Action, Ask, Done, arity, make_action, parse_number
from vlm_spec_decode.core.errors import ActionParseError

MAX_TEXT_CHARS = 8192
"""Longest answer that is read; beyond it the text is refused rather than searched for actions."""

MAX_ARGUMENT_CHARS = 64
"""Longest text between the parentheses of one call."""

_SEPARATORS = frozenset(".,;:!?")


@dataclass(slots=True)
class ActionParser:
    """Feed text as it arrives; each call becomes an action at its closing parenthesis.

    How the text is cut into pieces does not matter. After an error every further `feed` raises the same
    error; `actions` keeps what was complete before it.
    """

    actions: tuple[Action, ...] = ()
    _word: str = ""
    _word_ended: bool = False
    _call: str | None = None
    _arguments: list[str] = field(default_factory=list)
    _length: int = 0
    _error: ActionParseError | None = None

    @property
    def is_done(self) -> bool:
        """Whether `done()` or `ask()` was read."""
        return bool(self.actions) and isinstance(self.actions[-1], Done)

    @property
    def _ending(self) -> str:
        return ACTION_NAMES[type(self.actions[-1])]

    def feed(self, text: str) -> tuple[Action, ...]:
        """Return the actions that `text` completes. Raises ActionParseError, naming what is wrong."""
        if self._error is not None:
            raise self._error
        before = len(self.actions)
        try:
            for char in text:
                self._step(char)
        except ActionParseError as error:
            self._error = error
            raise
        return self.actions[before:]

    def finish(self) -> tuple[Action, ...]:
        """Return all actions of the ended answer. Raises ActionParseError on a call left open."""
        if self._error is not None:
            raise self._error
        if self._call is not None:
            self._error = ActionParseError(f"{self._call}({''.join(self._arguments)} is not closed")
            raise self._error
        return self.actions

    def _step(self, char: str) -> None:
        self._length += 1
        if self._length > MAX_TEXT_CHARS:
            raise ActionParseError(f"answer longer than {MAX_TEXT_CHARS} characters")
        if self._call is None:
            self._outside(char)
        else:
            self._inside(char)

    def _outside(self, char: str) -> None:
        if char == "(":
            self._open_call()
        elif char == ")":
            raise ActionParseError("closing parenthesis without a call")
        elif char in _SEPARATORS:
            self._word, self._word_ended = "", False
        elif char.isspace():
            self._word_ended = bool(self._word)
        elif self._word_ended:
            self._word, self._word_ended = char, False
        else:
            self._word += char

    def _open_call(self) -> None:
        if not self._word:
            raise ActionParseError("parenthesis without an action's name before it")
        arity(self._word)
        if self.is_done:
            raise ActionParseError(f"{self._word} after {self._ending}(): nothing may follow")
        self._call, self._word, self._word_ended = self._word, "", False

    def _inside(self, char: str) -> None:
        if char == ")":
            self._close_call()
            return
        if char == "(" or len(self._arguments) >= MAX_ARGUMENT_CHARS:
            raise ActionParseError(f"{self._call}(: arguments run on without a closing parenthesis")
        self._arguments.append(char)

    def _close_call(self) -> None:
        name, text = self._call or "", "".join(self._arguments).strip()
        self._call, self._arguments = None, []
        numbers = tuple(parse_number(part.strip()) for part in text.split(",")) if text else ()
        self.actions = (*self.actions, make_action(name, numbers))


class NoActions(ActionParser):
    """Reads free text, in which nothing is an action and nothing an error."""

    def feed(self, text: str) -> tuple[Action, ...]:  # noqa: ARG002
        """Return ()."""
        return ()


def actions_until_error(text: str) -> tuple[tuple[Action, ...], str]:
    """Return the actions of an answer that need not be of the language, and what ended them too early."""
    parser = ActionParser()
    try:
        parser.feed(text)
        parser.finish()
    except ActionParseError as error:
        return parser.actions, str(error)
    return parser.actions, ""


def parse_answer(text: str) -> tuple[Action, ...]:
    """Return all actions of a complete answer. Raises ActionParseError."""
    parser = ActionParser()
    parser.feed(text)
    return parser.finish()


def question_of(text: str) -> str:
    """Return what an answer asks the operator: its last sentence before `ask()`, "" if it asks nothing.

    Raises ActionParseError.
    """
    if not any(isinstance(action, Ask) for action in parse_answer(text)):
        return ""
    words = text.rpartition("ask")[0]
    sentences = re.findall(r"[^.!?]*[.!?]?", words.strip())
    return " ".join(next((s for s in reversed(sentences) if s.strip(" .!?\n")), "").split())


OFFER_WORDS = 6
"""How many words one offer of a question may have."""

DETERMINERS = frozenset({"the", "a", "an", "one", "this", "that", "my", "your"})
BARE_OFFERS = frozenset({"left", "right", "yes", "no", "near", "far", "first", "second"})
"""Offers that need no determiner to be known for one."""


def choices_of(question: str) -> tuple[str, ...]:
    """Return what a question offers, in its own words: "the red" and "the blue chair" of the one below.

    "do you mean the red or the blue chair ?": the offers are what "or" and commas divide. The first one
    begins where its words are the most like the beginning of the last one, behind "do you mean". () where
    nothing is offered, or where that cannot be told.
    """
    parts: list[list[str]] = [[]]
    for word in re.findall(r"[^\s,?.!]+|,", question.lower()):
        if word in (",", "or"):
            parts.append([])
        else:
            parts[-1].append(word)
    *before, last = [part for part in parts if part] or [[]]
    if " or " not in question.lower() or not last:
        return ()
    offers = [last]
    for part in reversed(before):
        begin = _offer_begins(part, last)
        if begin is not None:
            offers.insert(0, part[begin:])
        if begin != 0:  # what is before that, "do you mean", offers nothing
            break
    found = tuple(dict.fromkeys(" ".join(offer) for offer in offers))
    is_told = len(found) > 1 and all(len(offer) <= OFFER_WORDS for offer in offers)
    return found if is_told else ()


def _offer_begins(part: list[str], last: list[str]) -> int | None:
    """Return where in `part` an offer like `last` begins; None if it has none."""
    if last[0] not in DETERMINERS:
        is_bare = len(last) == 1 and {last[0], part[-1]} <= BARE_OFFERS
        return len(part) - 1 if is_bare else None
    alike = [
        (sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(part[at:], last, strict=False))), at)
        for at, word in enumerate(part)
        if word == last[0]
    ]
    return max(alike)[1] if alike else None


def parse_action(text: str) -> Action:
    """Return the one action that `text` is, with nothing around it. Raises ActionParseError."""
    name, opened, _ = text.strip().partition("(")
    actions = parse_answer(text)
    if not opened or len(actions) != 1 or not text.strip().endswith(")"):
        raise ActionParseError(f"{text[:60]!r} is not one action")
    arity(name.strip())
    return actions[0]
