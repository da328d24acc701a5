"""The best ids of one row in host memory, exactly, and without a score for every id.

What is returned is what the plain formulas of `decoding.sampling` say: blocks' maxima, the order of the noise
and float32 masses only decide which few ids are looked at, and those are scored in float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import IMPOSSIBLE, Ids, LegalTokens, Ranking
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.noise_order import PIECE, NoiseOrder, noise_order
from vlm_spec_decode.decoding.sampling import (
    MASS_TOLERANCE,
    TINY_TEMPERATURE,
    Floats,
    gumbel_noise_at,
    noise_counter,
    noise_parts,
    nucleus,
    require_finite,
)
from vlm_spec_decode.models.row_blocks import BLOCK, BlockedRows, Values

FEW_IDS = 4096
"""So many ids that a mask or cut leaves are taken by themselves; of more, the others are put at -inf."""

PROBED = 64
"""Ids with the greatest noise of a position that are scored first."""

DEEPER = 6
"""If the first ids of the order do not settle it, so many times as many are scored."""

ENTRIES_A_BLOCK = 32
"""To look into a block costs as much as to score so many ids of the order."""

PROBED_BLOCKS = 8
"""Blocks whose likeliest ids are scored if the order alone says little: in sharp rows they win."""

ROUNDING = 1e-4
"""How far a sum of float32 masses may be off."""

NEAR = 8.0
"""Ids within a factor of e**-8 of the likeliest: of a usual row they are few, and hold nearly all of it."""

MOST_NEAR = 96
"""Blocks with such an id from which on a row counts as flat: sorting them would cost more than tests."""

BINS, BINS_PER_UNIT = 4096, 128
"""Histogram of a flat row: steps of 1/128 in log-probability, down to e**-32 of the likeliest."""

SMALL_OFFSET = 100.0
"""A z / T up to here is off by less than 1e-5 in float32, so one pass may scale and shift."""

LEAST_NOISE = -2.63
"""Noise below is taken as this: 1 - u rounds to 1 there."""

LOWEST_SCORE = float(np.finfo(np.float64).min)

NO_NOISE = -1
"""Instead of a position: rank by probability alone."""

GREEDY = SamplingParams(temperature=1.0)
"""What ids are ranked by at temperature 0: their logits, uncut."""


def exact_scores(logits: Values, best: float, params: SamplingParams) -> Floats:
    """Return z / T in float64, as `decoding.sampling.log_probs` has it before the cuts."""
    scores = logits.astype(np.float64)
    if params.temperature < TINY_TEMPERATURE:
        with np.errstate(over="ignore"):  # to -inf, which is what such a difference comes to
            return np.asarray((scores - best) / params.temperature)
    scores /= params.temperature
    return scores


@dataclass(frozen=True)
class Row:
    """One row's ids that may still be chosen, ascending, and their logits; `ids` None: all of them.

    A row of all ids is row `number` of `blocks`.
    """

    logits: Values
    ids: Ids | None
    blocks: BlockedRows | None = None
    number: int = 0

    @staticmethod
    def of(blocks: BlockedRows, number: int = 0, legal: LegalTokens | None = None) -> Row:
        """Return the legal part of one of some rows."""
        row = Row(blocks.values[number], None, blocks, number)
        if legal is None:
            return row
        is_few = int(np.bitwise_count(legal.bits).sum()) <= FEW_IDS
        return row.only(legal.ids) if is_few else row.masked(legal.mask)

    def __len__(self) -> int:
        """Return the number of entries, ids at -inf among them."""
        return len(self.logits)

    @cached_property
    def best(self) -> float:
        """The greatest logit. Raises NotFinite."""
        best = float((self.logits if self.ids is not None else self.maxima).max(initial=-math.inf))
        require_finite(best)
        return best

    @property
    def maxima(self) -> Values:
        """The greatest logit of each block of a row of all ids [blocks]."""
        assert self.blocks is not None
        return self.blocks.maxima[self.number]

    @property
    def first(self) -> int:
        """The entry of the greatest logit, the lowest of several."""
        return int(self.logits.argmax())

    def only(self, entries: Ids) -> Row:
        """Return some entries, ascending."""
        return Row(self.logits[entries], entries if self.ids is None else self.ids[entries])

    def masked(self, kept: npt.NDArray[np.bool_]) -> Row:
        """Return the whole row with all others at -inf."""
        logits = np.where(kept, self.logits, np.float32(-np.inf))
        return Row(logits, None, BlockedRows.of(torch.from_numpy(logits)[None]))

    def where(self, kept: npt.NDArray[np.bool_]) -> Row:
        """Return the entries of a mask: by themselves if they are few."""
        is_few = self.ids is not None or np.count_nonzero(kept) <= FEW_IDS
        return self.only(np.flatnonzero(kept)) if is_few else self.masked(kept)

    def top_k(self, count: int) -> Row:
        """Return the `count` likeliest entries, of equal ones the lowest."""
        if not 0 < count < len(self):
            return self
        if self.blocks is None:
            return self.only(np.sort(np.argsort(-self.logits, kind="stable")[:count]))
        ids, values = self.blocks.greatest(self.number, count)
        kept = ids[np.argsort(-values, kind="stable")[:count]]
        if count <= FEW_IDS:
            return self.only(np.sort(kept))
        mask = np.zeros(len(self), dtype=np.bool_)
        mask[kept] = True
        return self.masked(mask)


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
            order = np.argsort(-found.scores, kind="stable")
            order = order[found.scores[order] > found.scores[order[0]] - IMPOSSIBLE]
            if self.cut is not None:
                order = self.cut.first(order, found.ids, found.values, count)
                if len(order) < count and wanted < len(self.row):
                    wanted *= 8
                    found = self._found(wanted)
                    continue
            order = order[:count]
            return Ranking(
                tuple(found.ids[order].tolist()), tuple(found.scores[order].tolist()), self.log_sum
            )

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
    order = noise_order(params.seed, position, blocks.values.shape[1])
    bests = blocks.maxima[numbers].max(axis=1)[:, None]
    tops = exact_scores(blocks.maxima[numbers], bests, params)

    def of_order(end: int) -> Floats:
        logits = blocks.values[numbers[:, None], order.ids[:end]]
        return exact_scores(logits, bests, params) + order.noise[:end]

    probed = min(max(PROBED, 4 * count), len(order.ids))
    least = _nth(of_order(probed), count)
    end, is_open = _reach(order, probed, tops, least)
    for i in np.flatnonzero(is_open.sum(axis=1) > PROBED_BLOCKS + end // ENTRIES_A_BLOCK):
        # Of a sharp row the noise says little: what is likeliest wins.
        ids, values = blocks.greatest(int(numbers[i]), PROBED_BLOCKS)
        kept = np.argsort(-values)[: max(PROBED, 2 * count)]
        scores = exact_scores(values[kept], bests[i], params) + gumbel_noise_at(
            params.seed, position, ids[kept]
        )
        least[i] = max(least[i], _nth(scores[None], count)[0])
    end, is_open = _reach(order, probed, tops, least)
    scores = of_order(end)
    rows, places = np.nonzero(scores >= least[:, None])
    ids, scores = order.ids[places], scores[rows, places]
    which, opened = np.nonzero(is_open)
    if len(which):
        inside = blocks.block_values(numbers[which], opened)
        near = exact_scores(inside, bests[which], params) + order.beyond(end) >= least[which, None]
        found, places = np.nonzero(near)
        which, others = which[found], opened[found] * BLOCK + places
        more = exact_scores(inside[near], bests[which, 0], params) + gumbel_noise_at(
            params.seed, position, others
        )
        kept = more >= least[which]
        rows, ids = np.concatenate([rows, which[kept]]), np.concatenate([ids, others[kept]])
        scores = np.concatenate([scores, more[kept]])
    # By row and id; one that both ways have led to is there once.
    by_id = np.lexsort((ids, rows))
    is_new = np.ones(len(by_id), dtype=np.bool_)
    is_new[1:] = (np.diff(rows[by_id]) != 0) | (np.diff(ids[by_id]) != 0)
    by_id = by_id[is_new]
    rows, ids, scores = rows[by_id], ids[by_id], scores[by_id]
    values = blocks.values[numbers[rows], ids]
    starts = np.searchsorted(rows, np.arange(len(numbers) + 1)).tolist()
    parts = [slice(*ends) for ends in zip(starts, starts[1:], strict=False)]
    return [Leaders(ids[part], values[part], scores[part]) for part in parts]


def _nth(scores: Floats, count: int) -> Floats:
    """Return the `count`-th greatest score of each row; of fewer, the least that has a chance: not -inf."""
    size = scores.shape[1]
    if size < count:
        return np.full(len(scores), LOWEST_SCORE)
    return np.maximum(np.partition(scores, size - count, axis=1)[:, size - count], LOWEST_SCORE)


def _reach(order: NoiseOrder, end: int, tops: Floats, least: Floats) -> tuple[int, npt.NDArray[np.bool_]]:
    """Return how many ids of the order to score, and which blocks of rows may hold others that reach `least`."""
    while True:
        is_open = tops + order.beyond(end) >= least[:, None]
        if end >= len(order.ids) or np.count_nonzero(is_open) * ENTRIES_A_BLOCK <= end * len(least):
            return end, is_open
        end = min(DEEPER * end, len(order.ids))


def masses(logits: Values, best: float, params: SamplingParams, out: Tensor | None = None) -> Tensor:
    """Return e**(z / T) [n] in float32, that of the logit `best` being 1."""
    scale, scores = 1 / max(params.temperature, 1e-37), torch.from_numpy(logits)
    if abs(best) * scale < SMALL_OFFSET:
        return torch.add(torch.tensor(-best * scale), scores, alpha=scale, out=out).exp_()
    return torch.sub(scores, best, out=out).mul_(scale).exp_()


class _Room(threading.local):
    """A buffer of one thread: to take fresh memory for a row costs as much as to fill it."""

    def __init__(self) -> None:
        self._room = np.empty(0, dtype=np.float32)

    def __call__(self, size: int) -> Tensor:
        """Return the buffer [size], which belongs to the caller until the next call."""
        if len(self._room) < size:
            self._room = np.empty(size, dtype=np.float32)
        return torch.from_numpy(self._room[:size])


_room = _Room()


@dataclass
class Nucleus:
    """The smallest set of entries whose mass reaches top_p; an entry's mass is e**(z / T).

    An entry is of the set if the mass of all likelier ones, and of equal ones with lower ids, is less than
    top_p. One of a thread is asked at a time. Of a usual row the likeliest few are the set, and are found without a mass for every entry. Only
    entries of a flat row are tested. Where float32's rounding could decide, float64 does.
    """

    row: Row
    best: float
    params: SamplingParams
    _least: float = -math.inf

    def members(self) -> Ids | None:
        """Return the set, ascending; None if it is not to be had without a sort of most of the row."""
        blocks = self.row.blocks
        if blocks is None:
            scores = exact_scores(self.row.logits, self.best, self.params)
            return np.sort(nucleus(scores, self.params.top_p))
        is_near = self.row.maxima >= self.best - NEAR * self.params.temperature
        if np.count_nonzero(is_near) > MOST_NEAR:
            return None
        near = np.flatnonzero(is_near)
        values = blocks.block_values(np.full_like(near, self.row.number), near)
        which, places = np.nonzero(values >= self.best - NEAR * self.params.temperature)
        logits = values[which, places]
        order = np.argsort(-logits, kind="stable")
        sums = np.cumsum(self._exact(logits[order]))
        # All of the mass is at least that of what is near, and at most that of the near blocks and, of each
        # other one, 128 times that of its greatest entry. If both end the set at one entry, so does the truth.
        tops = np.concatenate([values.ravel(), self.row.maxima[~is_near]])
        weights = np.exp((tops.astype(np.float64) - self.best) / max(self.params.temperature, 1e-37))
        most = float(weights[: values.size].sum() + BLOCK * weights[values.size :].sum())
        end = self._end(sums, float(sums[-1]), most)
        if end is None:
            end = self._end(sums, self._about, self._about)
        if end is None:
            end = int(np.searchsorted(sums, self._wanted)) if sums[-1] >= self._wanted else None
        if "_masses" in self.__dict__:
            del self._masses  # their room is for the next row
        if end is None:
            return None
        kept = order[: end + 1]
        return np.sort(near[which[kept]] * BLOCK + places[kept])

    def _end(self, sums: Floats, least: float, most: float) -> int | None:
        """Return where running sums reach top_p of a mass between two; None if that may be at two entries."""
        low = self.params.top_p * least * (1 - ROUNDING)
        ends = np.searchsorted(sums, (low, self.params.top_p * most * (1 + ROUNDING)))
        return int(ends[0]) if ends[0] == ends[1] < len(sums) else None

    def first(
        self, order: npt.NDArray[np.intp], ids: Ids, values: Values, count: int
    ) -> npt.NDArray[np.intp]:
        """Return the first `count` of `order`, indices of `ids` and their logits, that are of the set."""
        while len(taken := order[:count]):
            # If the least likely of them is of the set, all are; if not, then none that is as unlikely.
            last = taken[np.lexsort((-ids[taken], values[taken]))[0]]
            if self._has(int(ids[last]), float(values[last])):
                break
            is_likelier = (values > values[last]) | ((values == values[last]) & (ids < ids[last]))
            order = order[is_likelier[order]]
        return taken

    def _has(self, entry: int, value: float) -> bool:
        """Tell whether the mass above an entry, and of equal ones with lower ids, is less than wanted."""
        about = self.params.top_p * self._about
        mass, reaching = self._reaching(entry, value)
        # What float32 takes for equal may be or not: only where that decides, the logits themselves are read.
        if reaching < about * (1 - ROUNDING):
            return True
        if reaching - np.count_nonzero(self._masses.numpy() == mass) * mass > about * (1 + ROUNDING):
            return False
        above = float(self._exact_masses[self.row.logits > value].sum())
        equal = int(np.count_nonzero(self.row.logits[:entry] == value))
        return above + equal * float(self._exact_masses[entry]) < self._wanted

    def _reaching(self, entry: int, value: float) -> tuple[float, float]:
        """Return the mass of an entry, and that of all entries that have as much.

        Those that have less are dropped, for who asks goes on with a likelier entry. In place: of a real
        vocabulary, a second buffer would drive the row out of the processor's cache.
        """
        if value < self._least and "_masses" in self.__dict__:
            del self._masses
        self._least = value
        mass = self._masses.numpy()[entry]
        least = float(np.nextafter(mass, np.float32(-1)))
        return float(mass), float(torch.threshold_(self._masses, least, 0.0).sum())

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the set as a mask [n].

        A sort of the whole row would do (`decoding.sampling`). Instead the mass goes into bins of log-mass,
        the bin in which it reaches top_p is found, and only that bin's few entries are sorted.
        """
        kept = np.zeros(len(self.row), dtype=np.bool_)
        if (members := self.members()) is not None:
            kept[members] = True
            return kept
        depth = (self._top - exact_scores(self.row.logits, self.best, self.params)) * BINS_PER_UNIT
        bins = np.minimum(depth, BINS - 1).astype(np.int64)
        by_bin = np.bincount(bins, weights=self._exact_masses, minlength=BINS).cumsum()
        crossing = min(int(np.searchsorted(by_bin, self._wanted)), BINS - 1)
        before = float(by_bin[crossing - 1]) if crossing else 0.0
        members = np.flatnonzero(bins == crossing)
        members = members[np.argsort(-self.row.logits[members], kind="stable")]
        sums = before + self._exact_masses[members].cumsum()
        kept[members[: int(np.searchsorted(sums, self._wanted)) + 1]] = True
        return kept | (bins < crossing)

    @cached_property
    def _masses(self) -> Tensor:
        """The mass of every entry that is at least `_least`; belongs to the thread's next nucleus, too."""
        return masses(self.row.logits, self.best, self.params, _room(len(self.row)))

    @cached_property
    def _about(self) -> float:
        """The mass of all entries up to `ROUNDING`. Asked for before any are dropped."""
        return float(self._masses.sum())

    @cached_property
    def _exact_masses(self) -> Floats:
        return self._exact(self.row.logits)

    @cached_property
    def _wanted(self) -> float:
        """The mass that makes the set."""
        return (self.params.top_p - MASS_TOLERANCE) * float(self._exact_masses.sum())

    @cached_property
    def _top(self) -> float:
        return float(exact_scores(np.array([self.best], dtype=np.float32), self.best, self.params)[0])

    def _exact(self, logits: Values) -> Floats:
        return np.asarray(np.exp(exact_scores(logits, self.best, self.params) - self._top))


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
