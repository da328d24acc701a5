"""A grammar for the tables' vocabulary that is small enough to check by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from test.tables import STOP
from vlm_spec_decode.core.errors import GrammarError
from vlm_spec_decode.core.ports import GrammarState, Mask
from vlm_spec_decode.core.types import Tokens

LEGAL: dict[Tokens, frozenset[int]] = {
    (): frozenset({0, 1}),
    (0,): frozenset({0, 1, 2}),
    (1,): frozenset({0}),
    (0, 0): frozenset({1}),
    (1, 0): frozenset({0, 1, 2}),
    (0, 1): frozenset({0, 2}),
}
"""Legal tokens after the last two: free, one of two, or forced."""


def legal(prefix: Tokens) -> frozenset[int]:
    """Return the legal tokens; none after the end."""
    return frozenset() if STOP in prefix else LEGAL[prefix[-2:]]


def is_forced(prefix: Tokens) -> bool:
    return len(legal(prefix)) == 1


@dataclass(frozen=True)
class ToyState(GrammarState):
    grammar: ToyGrammar
    prefix: Tokens = ()

    def mask(self) -> Mask | None:
        self.grammar.masks[self.prefix] += 1
        if STOP in self.prefix:
            return None
        mask = np.zeros(self.grammar.vocab_size, dtype=np.bool_)
        mask[list(legal(self.prefix) - self.grammar.broken.get(self.prefix, frozenset()))] = True
        return mask

    def after(self, token: int) -> ToyState:
        if token not in legal(self.prefix):
            raise GrammarError("not legal")
        self.grammar.steps[(*self.prefix, token)] += 1
        return ToyState(self.grammar, (*self.prefix, token))


@dataclass
class ToyGrammar:
    """Counts what it is asked; `broken` takes tokens out of a mask."""

    vocab_size: int = 3
    broken: dict[Tokens, frozenset[int]] = field(default_factory=dict)
    masks: Counter[Tokens] = field(default_factory=Counter)
    steps: Counter[Tokens] = field(default_factory=Counter)
    digest: str = "toy"

    def start(self) -> ToyState:
        return ToyState(self)
