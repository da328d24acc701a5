"""What a model says after each row of a pass, as a port: decoding asks for choices, not for logits.

A row of a real vocabulary is 152,000 numbers. Decoding needs a handful of them: the chosen id, the k best
ids with their scores, how sure an early exit is, a few parts of a distribution. `Choices` answers exactly
these questions where the logits lie, so that no row crosses to the host, and no step costs more than the
head's own product. `decoding.choices.DenseChoices` is the plain form over numpy rows; `models.choose` has
the one on the model's device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import GrammarError
from vlm_spec_decode.core.types import SamplingParams, Support, Tokens

Logits: TypeAlias = npt.NDArray[np.float32]
"""Logits [rows, vocab]."""

IMPOSSIBLE = 1e8
"""An id whose score is so far below the best one's is never ranked: no noise reaches over that."""

Ids: TypeAlias = npt.NDArray[np.int64]


class Ranking(NamedTuple):
    """The best ids after one row, best first, and their scores z / T + g, up to a constant of the row.

    `log_sum` is the log of the sum of e**score over all ids that top-k leaves, top-p or not, so that
    e**(score - log_sum) is an id's share.
    """

    tokens: Tokens
    scores: tuple[float, ...]
    log_sum: float


@dataclass(frozen=True)
class LegalTokens:
    """The ids that a grammar allows in one place: packed bits, [vocab / 8] uint8, low bit first.

    An answer keeps one for every place that a draft of it has visited, so nothing wider is kept here.
    """

    bits: npt.NDArray[np.uint8]
    vocab_size: int

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The same as [vocab] bool."""
        return np.unpackbits(self.bits, count=self.vocab_size, bitorder="little").view(np.bool_)

    @property
    def ids(self) -> Ids:
        """The legal ids, ascending."""
        used = np.flatnonzero(self.bits)
        places, bits = np.nonzero(np.unpackbits(self.bits[used, None], axis=1, bitorder="little"))
        return used[places] * 8 + bits

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(np.bitwise_count(self.bits).sum())

    @staticmethod
    def of(mask: npt.NDArray[np.bool_]) -> LegalTokens:
        """Pack a mask [vocab]."""
        return LegalTokens(np.packbits(mask, bitorder="little"), mask.size)

    def has(self, token: int) -> bool:
        """Tell whether `token` is legal."""
        return 0 <= token < self.vocab_size and bool(self.bits[token >> 3] >> (token & 7) & 1)

    def check(self, vocab_size: int) -> None:
        """Raise GrammarError unless this is a mask of so many ids."""
        if self.vocab_size != vocab_size:
            raise GrammarError(f"a mask of {self.vocab_size} tokens for a model that has {vocab_size}")


class Choices(ABC):
    """The rows of one pass [n]. Every method raises NotFinite if a row that it reads cannot be used."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def part(self, start: int, end: int) -> Choices:
        """Return the rows from `start` to before `end`, without a copy."""

    @abstractmethod
    def legal(self, allowed: Seq[LegalTokens | None]) -> Choices:
        """Return the same rows, each with the probability of ids that are not allowed set to 0.

        None allows everything. Raises GrammarError if a mask is not as wide as the vocabulary.
        """

    @abstractmethod
    def pick(self, rows: Seq[int], positions: Seq[int], params: SamplingParams) -> list[int]:
        """Choose the token after each of `rows`, at `positions` of the answer (`decoding.sampling.pick`)."""

    @abstractmethod
    def ranked(
        self, rows: Seq[int], positions: Seq[int], params: SamplingParams, count: int, *, summed: bool = True
    ) -> list[Ranking]:
        """Return the `count` best ids after each of `rows`, with the noise only under `coupled`.

        Without `summed` their `log_sum` may be NaN: it takes the noise of every id.
        """

    def pick_each(self, positions: Seq[int], params: SamplingParams) -> Callable[[int], int]:
        """Return what tells the token after a row; row i is at `positions[i]` of the answer.

        For a walk down a tree, whose next row depends on what the last one says.
        """
        return lambda row: self.pick((row,), (positions[row],), params)[0]

    def prefetch(self, positions: Seq[int], params: SamplingParams) -> Callable[[], None]:  # noqa: ARG002
        """Begin to choose what `pick_each` will be asked; return what waits until it is known.

        For choices on another device: on the thread that runs the model, so that a pass is over when it is
        said to be, and so that no other thread waits behind the next one. By default there is nothing to do.
        """
        return lambda: None

    @abstractmethod
    def confidence(self, row: int, token: int) -> tuple[float, bool]:
        """Return the probability of `token` at temperature 1, uncut, and whether it is the row's best id."""

    @property
    @abstractmethod
    def logits(self) -> Logits:
        """The logits [n, vocab] in host memory, -inf for ids that are not allowed: for tests and training."""

    @abstractmethod
    def distribution(self, row: int, params: SamplingParams, unit: int) -> Distribution:
        """Return `unit` whole parts shared out by probability; greedy puts all on the best id."""


class Distribution(ABC):
    """Whole parts by id, of one row. Immutable."""

    unit: int
    """What the parts sum to."""

    @property
    @abstractmethod
    def best(self) -> int:
        """The id with the most parts, the lowest of several."""

    @abstractmethod
    def part(self, token: int) -> int:
        """Return the parts of one id."""

    @abstractmethod
    def below(self, token: int) -> int:
        """Return the sum of the parts of all ids below `token`."""

    @abstractmethod
    def at(self, ticket: int) -> int:
        """Return the id that `ticket`, 0 to unit - 1, falls on: the first whose running sum is above it."""

    @abstractmethod
    def support(self) -> Support:
        """Return (id, parts) of all ids whose parts are not 0, ascending: for a q, not for a target."""

    @abstractmethod
    def top(self, count: int) -> list[tuple[int, int]]:
        """Return (id, parts) of the `count` greatest that are not 0, greatest first, low ids first."""
