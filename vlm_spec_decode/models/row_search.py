"""The best ids of rows in host memory, exactly, and without a score for every id.

What is returned is what the plain formulas of `decoding.sampling` say: blocks' maxima, the order of the noise
and float32 masses only decide which few ids are looked at, and those are scored in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vlm_spec_decode.core.choices import IMPOSSIBLE, Ids, LegalTokens, Ranking
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.noise_order import PIECE, NoiseOrder, noise_order
from vlm_spec_decode.decoding.sampling import (
    TINY_TEMPERATURE,
    Floats,
    gumbel_noise_at,
    noise_counter,
    noise_parts,
)
from vlm_spec_decode.models.nucleus import Nucleus, masses
from vlm_spec_decode.models.row_blocks import BLOCK, BlockedRows, Row, Values, exact_scores

PROBED = 64
"""Ids with the greatest noise of a position that are scored first; in sharp rows also as many likely ones."""

DEEPER = 3
"""If the first ids of the order do not settle it, so many times as many are scored."""

ENTRIES_A_BLOCK = 16
"""To look into a block costs as much as to score so many ids of the order."""

LEAST_NOISE = -2.63
"""Noise below is taken as this: 1 - u rounds to 1 there."""

SLACK = 1e-6
"""How far a bound of logits in float32 may be off, relative to the size of what it is made of."""

LOWEST_SCORE = float(np.finfo(np.float64).min)

NO_NOISE = -1
"""Instead of a position: rank by probability alone."""

GREEDY = SamplingParams(temperature=1.0)
"""What ids are ranked by at temperature 0: their logits, uncut."""


class Leaders(NamedTuple):
    """Ids [m] of a row with their logits and scores: all whose score reaches a bound, perhaps others.

    Ascending.
    """

    ids: Ids
    values: Values
    scores: Floats


def rank(
    rows: Seq[Row], positions: Seq[int], params: SamplingParams, count: int, *, summed: bool
) -> list[Ranking]:
    """Return of each row the `count` ids with the greatest z / T + g that the cuts leave.

    g is the noise of (position, id), and 0 at temperature 0 and at position NO_NOISE. `summed` also finds the
    rankings' `log_sum`. Raises NotFinite.
    """
    if params.temperature == 0:
        params, positions = GREEDY, [NO_NOISE] * len(rows)
    contests = [Contest.of(row, at, params, summed) for row, at in zip(rows, positions, strict=True)]
    # Rows at one position have the same noise: one look at its order is for all of them.
    alike = dict[tuple[int, int], list[Contest]]()
    for contest in contests:
        if contest.has_noise and contest.row.ids is None:
            alike.setdefault((id(contest.row.blocks), contest.position), []).append(contest)
    for group in alike.values():
        blocks, numbers = group[0].row.blocks, np.array([contest.row.number for contest in group])
        assert blocks is not None
        wanted = group[0].wanted(count)
        for contest, found in zip(
            group, by_noise(blocks, numbers, group[0].position, params, wanted), strict=True
        ):
            contest.leaders = found
    return [contest.ranking(count) for contest in contests]


@dataclass
class Contest:
    """A row's scores z / T + g; `best` is the greatest logit before the cuts.

    `cut` tells which ids top-p leaves, if these are too many to be in `row` alone.
    """

    row: Row
    best: float
    position: int
    params: SamplingParams
    cut: Nucleus | None = None
    log_sum: float = math.nan
    leaders: Leaders | None = None

    @staticmethod
    def of(row: Row, position: int, params: SamplingParams, summed: bool) -> Contest:
        """Cut a row. Raises NotFinite."""
        contest = Contest(row.top_k(params.top_k), row.best, position, params)
        if summed:
            contest.log_sum = contest._log_sum()
        if params.top_p < 1:
            cut = Nucleus(contest.row, row.best, params)
            members = cut.members()
            if members is None:
                contest.cut = cut
            else:
                contest.row = contest.row.only(members)
        return contest

    @property
    def has_noise(self) -> bool:
        """Whether the score has noise."""
        return self.position != NO_NOISE

    def wanted(self, count: int) -> int:
        """Return how many leaders to look for: top-p cuts some of them."""
        return count if self.cut is None else 2 * count

    def ranking(self, count: int) -> Ranking:
        """Return the best ids."""
        wanted = self.wanted(count)
        found = self.leaders or self._found(wanted)
        while True:
            best = np.argsort(-found.scores, kind="stable")
            order = best[found.scores[best] > found.scores[best[0]] - IMPOSSIBLE].tolist()
            if self.cut is not None:
                order = self.cut.first(order, found.ids, found.values, count)
            if len(order) >= count or self.cut is None or wanted >= len(self.row):
                break
            wanted *= 8
            found = self._found(wanted)
        order = order[:count]
        return Ranking(tuple(found.ids[order].tolist()), tuple(found.scores[order].tolist()), self.log_sum)

    def _found(self, count: int) -> Leaders:
        """Return ids that hold the best `count`, and all that score as much as the last of these."""
        row, params = self.row, self.params
        if row.blocks is None:
            assert row.ids is not None
            scores = exact_scores(row.logits, self.best, params)
            if self.has_noise:
                scores += gumbel_noise_at(params.seed, self.position, row.ids)
            return Leaders(row.ids, row.logits, scores)
        if self.has_noise:
            return by_noise(row.blocks, np.array([row.number]), self.position, params, count)[0]
        ids, values = row.blocks.greatest(row.number, count)
        return Leaders(ids, values, exact_scores(values, self.best, params))

    def _log_sum(self) -> float:
        """Return the log of the sum of e**(z / T + g) over the row.

        A share that a strategy weighs a token by, never one that decides about it: from float32.
        """
        offset = 0.0 if self.params.temperature < TINY_TEMPERATURE else self.best / self.params.temperature
        shares = masses(self.row.logits, self.best, self.params)
        if self.has_noise:
            # e**g = 1 / -log u, and with u = 1 - v that is -log1p(-v). v is a whole number of 2**-53, so
            # float32 keeps it exact to 24 bits also where u rounds to 1; where v rounds to 1 it is too great.
            key = noise_counter(self.params.seed, self.position)
            parts = torch.from_numpy(noise_parts(key, self.row.ids, len(self.row), PIECE))
            shares.div_(parts.neg_().log1p_().neg_().clamp_(max=math.exp(-LEAST_NOISE)))
        return math.log(float(shares.double().sum())) + offset


def by_noise(
    blocks: BlockedRows, numbers: Ids, position: int, params: SamplingParams, count: int
) -> list[Leaders]:
    """Return the leaders of some rows at one position, in which every id may win.

    Let `least` be a score that `count` ids of a row reach. An id that reaches it as well either is one of the
    first `end` of the noise's order, or has z / T + t >= least, t being the most noise beyond `end`; and then
    its block's maximum has. (As in Fagin's threshold algorithm.) Ids of the second kind have a probability of
    about e**-t / count at least, so they are at most e**t times a few, whatever the row, and the order holds
    vocab · e**-t: with t near log(vocab) / 2 both are about the vocabulary's root. Divisions and sums round
    monotonically, so an id whose block is below the bound is below it.
    """
    field = _Field(blocks, numbers, position, params)
    probed = min(max(PROBED, 4 * count), len(field.order.ids))
    least = _nth(field.of_order(probed), count)
    end, is_open = field.reach(probed, least)
    for i in np.flatnonzero(is_open.sum(axis=1) * ENTRIES_A_BLOCK > end):
        # Of a sharp row the noise says little: what is likeliest wins.
        least[i] = max(least[i], _nth(field.of_likeliest(int(i), probed)[None], count)[0])
    end, is_open = field.reach(probed, least)
    scores = field.of_order(end)
    rows, places = np.nonzero(scores >= least[:, None])
    more = field.of_blocks(is_open, field.order.beyond(end), least)
    rows = np.concatenate([rows, more[0]])
    ids = np.concatenate([field.order.ids[places], more[1]])
    scores = np.concatenate([scores[scores >= least[:, None]], more[2]])
    # By row and id; one that both ways have led to is there once.
    by_id = np.lexsort((ids, rows))
    is_new = np.ones(len(by_id), dtype=np.bool_)
    is_new[1:] = (np.diff(rows[by_id]) != 0) | (np.diff(ids[by_id]) != 0)
    by_id = by_id[is_new]
    rows, ids, scores = rows[by_id], ids[by_id], scores[by_id]
    values = blocks.values[numbers[rows], ids]
    starts = np.searchsorted(rows, np.arange(len(numbers) + 1)).tolist()
    parts = [slice(*ends) for ends in pairwise(starts)]
    return [Leaders(ids[part], values[part], scores[part]) for part in parts]


@dataclass(frozen=True)
class _Field:
    """Rows `numbers` [n] of `blocks`, all at one position, and its noise."""

    blocks: BlockedRows
    numbers: Ids
    position: int
    params: SamplingParams

    @cached_property
    def order(self) -> NoiseOrder:
        """The ids with the greatest noise."""
        return noise_order(self.params.seed, self.position, self.blocks.values.shape[1])

    @cached_property
    def _bests(self) -> Values:
        """The greatest logit of each row [n, 1]."""
        return np.asarray(self.blocks.maxima[self.numbers].max(axis=1, keepdims=True))

    @cached_property
    def _tops(self) -> Floats:
        """The greatest z / T of each block [n, blocks]."""
        return exact_scores(self.blocks.maxima[self.numbers], self._bests, self.params)

    def of_order(self, end: int) -> Floats:
        """Return the scores of the first ids of the order [n, end]."""
        logits = self.blocks.values[self.numbers[:, None], self.order.ids[:end]]
        return exact_scores(logits, self._bests, self.params) + self.order.noise[:end]

    def of_likeliest(self, i: int, count: int) -> Floats:
        """Return the scores of one row's `count` likeliest ids, and perhaps of others."""
        ids, values = self.blocks.greatest(int(self.numbers[i]), count)
        return exact_scores(values, self._bests[i], self.params) + self._noise(ids)

    def reach(self, end: int, least: Floats) -> tuple[int, npt.NDArray[np.bool_]]:
        """Return how many ids of the order to score, and which blocks may hold others [n, blocks]."""
        while True:
            is_open = self._tops + self.order.beyond(end) >= least[:, None]
            is_settled = np.count_nonzero(is_open) * ENTRIES_A_BLOCK <= end * len(least)
            if end >= len(self.order.ids) or is_settled:
                return end, is_open
            end = min(DEEPER * end, len(self.order.ids))

    def of_blocks(
        self, is_open: npt.NDArray[np.bool_], most: float, least: Floats
    ) -> tuple[Ids, Ids, Floats]:
        """Return (row, id, score) [m] of what reaches `least` in open blocks, if noise is `most` at most."""
        rows, blocks = np.nonzero(is_open)
        if not len(rows):
            return rows, rows, np.empty(0)
        inside = self.blocks.block_values(self.numbers[rows], blocks)
        is_near = inside >= self._near(most, least)[rows]
        found, places = np.nonzero(is_near)
        rows, ids = rows[found], blocks[found] * BLOCK + places
        scores = exact_scores(inside[is_near], self._bests[rows, 0], self.params) + self._noise(ids)
        kept = scores >= least[rows]
        return rows[kept], ids[kept], scores[kept]

    def _near(self, most: float, least: Floats) -> Values:
        """Return the logits [n, 1], or a little less, that reach `least` with the noise `most`."""
        temperature = self.params.temperature
        with np.errstate(over="ignore"):  # to -inf: all logits do
            logits = (least[:, None] - most) * temperature
            if temperature < TINY_TEMPERATURE:
                logits += self._bests
            size = (np.abs(least[:, None]) + abs(most)) * temperature + np.abs(self._bests)
            return np.asarray((logits - SLACK * size).astype(np.float32))

    def _noise(self, ids: Ids) -> Floats:
        return gumbel_noise_at(self.params.seed, self.position, ids)


def _nth(scores: Floats, count: int) -> Floats:
    """Return the `count`-th greatest score of each row; of fewer, the least that has a chance: not -inf."""
    size = scores.shape[1]
    if size < count:
        return np.full(len(scores), LOWEST_SCORE)
    return np.maximum(np.partition(scores, size - count, axis=1)[:, size - count], LOWEST_SCORE)


def likeliest(
    blocks: BlockedRows, allowed: Seq[LegalTokens | None], params: SamplingParams, count: int
) -> list[Ranking | None]:
    """Return the ids with the greatest z / T of each row, uncut, all rows at once; None where one needs more.

    Without their `log_sum`.
    """
    # Where a tenth of the ids is not legal, twice as many nearly always hold enough that are.
    rows, ids, values = blocks.at_least(blocks.nth(2 * count if any(allowed) else count))
    if any(allowed):
        is_legal = legal_at(allowed, rows, ids)
        rows, ids, values = rows[is_legal], ids[is_legal], values[is_legal]
    scores = values.astype(np.float64) / params.temperature
    # By row; in it the greatest first, of equal ones the lowest id, which comes first as it is.
    order = np.lexsort((-scores, rows))
    ids, scores = ids[order], scores[order]
    starts = np.searchsorted(rows, np.arange(len(blocks.values) + 1)).tolist()
    is_usable = np.isfinite(blocks.maxima.max(axis=1)).tolist()
    found = list[Ranking | None]()
    for row, start in enumerate(starts[:-1]):
        few = slice(start, min(start + count, starts[row + 1]))
        names, sums = ids[few].tolist(), scores[few].tolist()
        is_found = is_usable[row] and len(names) == count and sums[-1] > sums[0] - IMPOSSIBLE
        found.append(Ranking(tuple(names), tuple(sums), math.nan) if is_found else None)
    return found


def legal_at(allowed: Seq[LegalTokens | None], rows: Ids, ids: Ids) -> npt.NDArray[np.bool_]:
    """Return whether ids [m] of rows [m] are legal, from the packed bits."""
    found = np.ones(len(ids), dtype=np.bool_)
    for row, tokens in enumerate(allowed):
        if tokens is not None:
            few = slice(*np.searchsorted(rows, (row, row + 1)))
            found[few] = tokens.bits[ids[few] >> 3] >> (ids[few] & 7) & 1
    return found
