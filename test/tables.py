"""Models small enough to reason about: next-token tables in exact fractions, vocabulary 3 (or a few)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.ports import ExitHook, Model, ModelCard, ModelContext
from vlm_spec_decode.core.types import Observation, Tokens

Table = Callable[[Tokens], tuple[Fraction, ...]]

STOP = 2
LOG_ZERO = -1e9


def table_of(weights: tuple[tuple[int, ...], ...]) -> Table:
    """Distribution after a prefix: row chosen by the last token (first row at the start)."""

    def probabilities(prefix: Tokens) -> tuple[Fraction, ...]:
        row = weights[(prefix[-1] + 1) % len(weights) if prefix else 0]
        return tuple(Fraction(w, sum(row)) for w in row)

    return probabilities


TARGET = table_of(((3, 2, 1), (1, 4, 1), (2, 5, 1), (1, 1, 1)))
POOR_DRAFT = table_of(((1, 1, 4), (5, 1, 1), (1, 1, 6), (1, 2, 1)))
CERTAIN_DRAFT = table_of(((1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
TABLES = {"itself": TARGET, "poor": POOR_DRAFT, "certain": CERTAIN_DRAFT}


@dataclass
class TableContext(ModelContext):
    """A ModelContext over a table; counts what it is asked."""

    table: Table
    num_exits: int = 0
    calls: int = 0
    closed: bool = False
    prefilled: int = 0

    def prefill(self) -> None:
        self.prefilled += 1

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        assert not self.closed
        self.calls += 1
        paths = [tuple(prefix)]
        for token, parent in zip(tokens, parents, strict=True):
            paths.append((*paths[parent], token))
        rows = [[float(np.log(float(p))) if p else LOG_ZERO for p in self.table(path)] for path in paths]
        logits = np.array(rows, dtype=np.float32)
        for layer in range(self.num_exits):
            if on_exit:
                on_exit(layer, logits[:, ::-1].copy())
        return logits

    def forced(self, prefix: Tokens) -> Tokens:
        return ()

    def close(self) -> None:
        self.closed = True


@dataclass
class TableModel(Model):
    """A Model over a table."""

    table: Table
    vocab_size: int = 3
    num_exits: int = 0
    contexts: list[TableContext] = field(default_factory=list)

    @property
    def card(self) -> ModelCard:
        return ModelCard("table", "1", "tokens", "prompt", self.vocab_size, 1)

    def open(self, observation: Observation) -> TableContext:
        self.contexts.append(TableContext(self.table, self.num_exits))
        return self.contexts[-1]


class LetterCodec:
    """Tokens as letters."""

    def encode(self, text: str) -> Tokens:
        return tuple("abc".index(letter) for letter in text)

    def decode(self, tokens: Tokens) -> str:
        return "".join("abc"[t] for t in tokens)
