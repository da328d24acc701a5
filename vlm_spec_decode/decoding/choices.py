"""Choosing from rows in host memory by the plain formulas, and exact residuals of any distribution.

For table models and other small vocabularies, and the reference that `models.choose` is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from vlm_spec_decode.core.choices import IMPOSSIBLE, Choices, Distribution, Ids, LegalTokens, Logits, Ranking
from vlm_spec_decode.core.ports import ModelContext, OnExit, Tree
from vlm_spec_decode.core.types import SamplingParams, Support, Tokens
from vlm_spec_decode.decoding.sampling import (
    Row,
    log_probs,
    pick,
    ranking_scores,
    require_finite,
    softmax_at,
)

Q_UNIT = 1 << 16
"""A draft's q is counted in units of 2**-16."""


@dataclass(frozen=True)
class Remainder:
    """A distribution after some ids were given other weights: `base` times `scale`, and `changed` by id.

    The residual norm(max(0, p - q)) is that: every id outside q's support keeps its p. So it is exact in
    whole numbers of any size, and costs as much as q's support, whatever the vocabulary.
    """

    base: Distribution
    scale: int = 1
    changed: Mapping[int, int] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """What the weights sum to."""
        moved = sum(weight - self.scale * self.base.part(token) for token, weight in self.changed.items())
        return self.scale * self.base.unit + moved

    def weight(self, token: int) -> int:
        """Return the weight of one id."""
        return self.changed.get(token, self.scale * self.base.part(token))

    def minus(self, q: Support) -> Remainder:
        """Return max(0, this - q), where both are taken as shares of 1; `q` sums to 2**16.

        In whole numbers: weight * 2**16 - whole * q, over the common whole `whole * 2**16`.
        """
        whole = self.whole
        changed = {token: weight * Q_UNIT for token, weight in self.changed.items()}
        for token, weight in q:
            before = changed.get(token, self.scale * self.base.part(token) * Q_UNIT)
            changed[token] = max(0, before - whole * weight)
        return Remainder(self.base, self.scale * Q_UNIT, changed)

    def without(self, tokens: Seq[int]) -> Remainder:
        """Return this with no weight on `tokens`."""
        return Remainder(self.base, self.scale, {**self.changed, **dict.fromkeys(tokens, 0)})

    def at(self, ticket: int) -> int:
        """Return the id that `ticket`, 0 to whole - 1, falls on, ids in ascending order."""
        # Between two changed ids the running sum is the base's, scaled and shifted: go from one to the next.
        shift = 0
        for token in sorted(self.changed):
            before = self.scale * self.base.below(token) + shift
            if ticket < before:
                break
            if ticket < before + self.changed[token]:
                return token
            shift += self.changed[token] - self.scale * self.base.part(token)
        return self.base.at((ticket - shift) // self.scale)

    @property
    def best(self) -> int:
        """The id with the greatest weight, the lowest of several."""
        others = self.base.top(len(self.changed) + 1)
        known = {token: self.scale * part for token, part in others} | dict(self.changed)
        return min(known, key=lambda token: (-known[token], token))


@dataclass(frozen=True)
class DenseChoices(Choices):
    """`Choices` over logits [n, vocab] in host memory."""

    rows: Logits

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def logits(self) -> Logits:
        """The rows themselves."""
        return self.rows

    def part(self, start: int, end: int) -> DenseChoices:
        """Return some of the rows."""
        return DenseChoices(self.rows[start:end])

    def legal(self, allowed: Seq[LegalTokens | None]) -> DenseChoices:
        """Return the rows with -inf where an id is not allowed."""
        masked: Logits = self.rows.copy()
        for row, tokens in zip(masked, allowed, strict=True):
            if tokens is not None:
                tokens.check(row.size)
                row[~tokens.mask] = -np.inf
        return DenseChoices(masked)

    def pick(self, rows: Seq[int], positions: Seq[int], params: SamplingParams) -> list[int]:
        """Choose the token after each row."""
        return [pick(self.rows[row], at, params) for row, at in zip(rows, positions, strict=True)]

    def ranked(
        self,
        rows: Seq[int],
        positions: Seq[int],
        params: SamplingParams,
        count: int,
        *,
        summed: bool = True,  # noqa: ARG002
    ) -> list[Ranking]:
        """Return the best ids after each row."""
        asked = zip(rows, positions, strict=True)
        return [_ranking(self.rows[row], at, params, count) for row, at in asked]

    def confidence(self, row: int, token: int) -> tuple[float, bool]:
        """Return how sure a row is of `token`."""
        scores = self.rows[row]
        return softmax_at(scores, token), bool(scores[token] == scores.max())

    def distribution(self, row: int, params: SamplingParams, unit: int) -> DenseDistribution:
        """Return whole parts of a row."""
        return DenseDistribution(weights(self.rows[row], params, unit))


def _ranking(logits: Row, position: int, params: SamplingParams, count: int) -> Ranking:
    every = ranking_scores(logits, position, replace(params, top_p=1.0))
    scores = ranking_scores(logits, position, params)
    best = np.argsort(-scores, kind="stable")[:count]
    best = best[scores[best] > scores[best[0]] - IMPOSSIBLE]
    top = float(every[best[0]])
    log_sum = top + float(np.log(np.exp(every - top).sum()))
    return Ranking(tuple(best.tolist()), tuple(every[best].tolist()), log_sum)


@dataclass(frozen=True)
class DenseDistribution(Distribution):
    """`Distribution` over parts [n] of `ids` [n], ascending, in host memory; None: of all ids in order."""

    parts: Ids
    ids: Ids | None = None

    @cached_property
    def _sums(self) -> Ids:
        return self.parts.cumsum()

    @cached_property
    def unit(self) -> int:  # type: ignore[override]
        """What the parts sum to."""
        return int(self._sums[-1])

    @property
    def best(self) -> int:
        """The id with the most parts."""
        return self._id(int(self.parts.argmax()))

    def part(self, token: int) -> int:
        """Return the parts of one id."""
        entry = self._entry(token)
        found = entry < len(self.parts) and self._id(entry) == token
        return int(self.parts[entry]) if found else 0

    def below(self, token: int) -> int:
        """Return the parts of all ids below one."""
        entry = self._entry(token)
        return int(self._sums[entry - 1]) if entry else 0

    def at(self, ticket: int) -> int:
        """Return the id that a ticket falls on."""
        return self._id(int(np.searchsorted(self._sums, ticket, side="right")))

    def support(self) -> Support:
        """Return all parts that are not 0."""
        entries = np.flatnonzero(self.parts)
        ids = entries if self.ids is None else self.ids[entries]
        return tuple(zip(ids.tolist(), self.parts[entries].tolist(), strict=True))

    def top(self, count: int) -> list[tuple[int, int]]:
        """Return the greatest parts."""
        place = max(0, len(self.parts) - count)
        entries = np.flatnonzero(self.parts >= max(1, np.partition(self.parts, place)[place]))
        kept = entries[np.argsort(-self.parts[entries], kind="stable")[:count]]
        return [(self._id(entry), int(self.parts[entry])) for entry in kept.tolist()]

    def _id(self, entry: int) -> int:
        return entry if self.ids is None else int(self.ids[entry])

    def _entry(self, token: int) -> int:
        """Return where `token` stands, or would stand, among the ids."""
        return token if self.ids is None else int(np.searchsorted(self.ids, token))


@dataclass(frozen=True)
class SparseDistribution(Distribution):
    """`Distribution` over the few ids of a support, ascending."""

    entries: Support

    @property
    def unit(self) -> int:  # type: ignore[override]
        """What the parts sum to."""
        return sum(part for _, part in self.entries)

    @property
    def best(self) -> int:
        """The id with the most parts."""
        return self.top(1)[0][0]

    def part(self, token: int) -> int:
        """Return the parts of one id."""
        return dict(self.entries).get(token, 0)

    def below(self, token: int) -> int:
        """Return the parts of all ids below one."""
        return sum(part for other, part in self.entries if other < token)

    def at(self, ticket: int) -> int:
        """Return the id that a ticket falls on."""
        for token, part in self.entries:
            if ticket < part:
                return token
            ticket -= part
        raise ValueError("a ticket beyond the last part")

    def support(self) -> Support:
        """Return all of it."""
        return self.entries

    def top(self, count: int) -> list[tuple[int, int]]:
        """Return the greatest parts."""
        return sorted(self.entries, key=lambda entry: (-entry[1], entry[0]))[:count]


def weights(logits: Row, params: SamplingParams, unit: int) -> Ids:
    """Return `unit` whole parts [vocab] shared out by probability; greedy puts all on the best token.

    Raises NotFinite.
    """
    best = int(np.argmax(logits))
    require_finite(float(logits[best]))
    parts = np.zeros(logits.size, dtype=np.int64)
    if params.temperature > 0:
        parts = np.floor(np.exp(log_probs(logits, params)) * unit).astype(np.int64)
    # Flooring leaves some parts over; all go to the best token, so the sum is `unit` exactly.
    parts[best] += unit - int(parts.sum())
    return parts


def as_choices(scored: Choices | Logits) -> Choices:
    """Return what a model has said as `Choices`: its own, or the plain ones over logits [n, vocab].

    Logits of one row may be [vocab].
    """
    return DenseChoices(np.atleast_2d(scored)) if isinstance(scored, np.ndarray) else scored


def as_logits(context: ModelContext, prefix: Tokens, tree: Tree, on_exit: OnExit) -> Logits:
    """Return what a context chooses from, as logits [1 + n, vocab] on the host; its exits likewise."""
    hook = None if on_exit is None else lambda layer, scores: on_exit(layer, as_choices(scores).logits)
    return as_choices(context.choose(prefix, tree, hook)).logits
