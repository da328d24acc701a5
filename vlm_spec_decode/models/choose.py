"""Choosing on the model's device: `Choices` over a tensor of logits, cheap beside the head's own product.

Knows logits, sampling parameters and legal ids; nothing of contexts or answers. No row of vocabulary size
leaves the device and none is sorted. What is returned is what `decoding.choices.DenseChoices` returns:
every approximation here only decides which few ids are looked at, and those are scored exactly on the host
in float64, with the noise of `decoding.sampling`. So numpy, a CPU and a GPU choose the same ids of the same
logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import IMPOSSIBLE, Choices, Distribution, LegalTokens, Logits, Ranking
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.sampling import (
    MASS_TOLERANCE,
    TINY_TEMPERATURE,
    gumbel_noise_at,
    noise_counter,
    noise_parts,
    require_finite,
)
from vlm_spec_decode.models.device_distribution import DeviceDistribution
from vlm_spec_decode.models.device_noise import device_noise_parts

SMALL_VOCABULARY = 4096
"""Up to here, on a CPU, the plain formulas over whole rows are quicker than a search for what counts."""

FEW = 8
"""A mask or cut that leaves less than a vocabulary's 8th is worth gathering: later steps read only that."""

NOISE_SPAN = 37.43 + 3.63
"""Greatest minus least Gumbel noise of 53 bits: -log(-log u) for u = 1 - 2**-54 and u = 2**-54."""

SLACK = 1.1
"""How far a float32 score may be off. Noise below -2.63 is taken as -2.63, which is off by 1 at most."""
LEAST_NOISE = -2.63

ROUNDING = 1e-4
"""How far a sum of float32 masses may be off."""

NEAR = 8.0
"""Ids within a factor of e**-8 of the likeliest: of a usual row they are few, and hold nearly all of it."""

MOST_NEAR = 96
"""Blocks with such an id from which on a row counts as flat: sorting them would cost more than tests."""

BLOCK = 128
"""Entries of a row that are first looked at by their maximum alone."""

PIECE = 32768
"""Ids whose noise is made at a time on a CPU: three such buffers lie in its second-level cache."""

BINS, BINS_PER_UNIT = 4096, 128
"""Histogram of a flat row: steps of 1/128 in log-probability, down to e**-32 of the likeliest."""

NO_NOISE = -1
"""Instead of a position: rank by probability alone."""

GREEDY = SamplingParams(temperature=1.0)
"""What ids are ranked by at temperature 0: their logits, uncut."""


class _Row(NamedTuple):
    """One row's ids that may still be chosen, ascending, and their logits; `ids` None: all of them."""

    logits: Tensor
    ids: Tensor | None

    def only(self, kept: Tensor) -> _Row:
        """Return the entries `kept` [k], ascending indices."""
        return _Row(self.logits[kept], kept if self.ids is None else self.ids[kept])

    def where(self, kept: Tensor) -> _Row:
        """Return the entries of a mask: gathered if they are few, else the others at -inf."""
        if int(torch.count_nonzero(kept)) * FEW < len(kept):
            return self.only(kept.nonzero()[:, 0])
        return _Row(self.logits.masked_fill(~kept, -torch.inf), self.ids)

    def names(self, entries: Tensor) -> npt.NDArray[np.int64]:
        """Return the ids of entries, on the host."""
        return (entries if self.ids is None else self.ids[entries]).cpu().numpy()


@dataclass(frozen=True)
class DeviceChoices(Choices):
    """`Choices` over logits [n, vocab] where they lie. `allowed` holds a grammar's legal ids by row."""

    scores: Tensor
    allowed: tuple[LegalTokens | None, ...] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.scores)

    def part(self, start: int, end: int) -> DeviceChoices:
        """Return some of the rows."""
        allowed = None if self.allowed is None else self.allowed[start:end]
        return replace(self, scores=self.scores[start:end], allowed=allowed)

    @property
    def logits(self) -> Logits:
        """All rows, copied to the host."""
        rows: Logits = self.scores.float().cpu().numpy().astype(np.float32)
        for row, tokens in zip(rows, self.allowed or (), strict=False):
            if tokens is not None:
                row[~tokens.mask] = -np.inf
        return rows

    def legal(self, allowed: Seq[LegalTokens | None]) -> DeviceChoices:
        """Return the same rows with only some ids allowed; masks come into effect when a row is read."""
        for tokens in allowed:
            if tokens is not None:
                tokens.check(self.scores.shape[1])
        return replace(self, allowed=tuple(allowed))

    @torch.inference_mode()
    def pick(self, rows: Seq[int], positions: Seq[int], params: SamplingParams) -> list[int]:
        """Choose the token after each row."""
        if params.temperature == 0:
            return [_likeliest(self._row(row)) for row in rows]
        asked = zip(rows, positions, strict=True)
        return [_best(self._row(row), at, params, 1).tokens[0] for row, at in asked]

    @torch.inference_mode()
    def ranked(
        self, rows: Seq[int], positions: Seq[int], params: SamplingParams, count: int, *, summed: bool = True
    ) -> list[Ranking]:
        """Return the best ids after each row."""
        if params.rule != "coupled":
            positions = [NO_NOISE] * len(rows)
        asked = zip(rows, positions, strict=True)
        return [_best(self._row(row), at, params, count, summed=summed) for row, at in asked]

    @torch.inference_mode()
    def confidence(self, row: int, token: int) -> tuple[float, bool]:
        """Return how sure a row is of `token`."""
        if self.allowed and (tokens := self.allowed[row]) and not tokens.has(token):
            return 0.0, False
        read = self._row(row)
        best = _finite(_block_maxima(read.logits))
        own = float(self.scores[row, token])
        return math.exp(own - best) / float((read.logits.double() - best).exp().sum()), own == best

    @torch.inference_mode()
    def distribution(self, row: int, params: SamplingParams, unit: int) -> Distribution:
        """Return whole parts of a row."""
        read = self._row(row)
        maxima = _block_maxima(read.logits)
        best = _finite(maxima)
        if params.temperature == 0:
            only = read.only(torch.tensor([_first(read.logits)], device=read.logits.device))
            return DeviceDistribution(torch.tensor([unit], device=read.logits.device), only.ids)
        if 0 < params.top_k < len(read.logits):
            read = _top_k(read, params, maxima)
            maxima = _block_maxima(read.logits)
        if params.top_p < 1:
            mass = _scaled(read.logits, best, params).exp_()
            read = read.where(_Nucleus.of(read.logits, mass, best, params, maxima).mask())
        scores = _scores(read.logits, best, params)
        parts = ((scores - torch.logsumexp(scores, 0)).exp() * unit).floor().to(torch.int64)
        parts[_first(read.logits)] += unit - int(parts.sum())
        kept = parts.nonzero()[:, 0]
        if len(kept) * FEW < self.scores.shape[1]:
            return DeviceDistribution(parts[kept], read.only(kept).ids)
        return DeviceDistribution(parts, read.ids)

    def _row(self, row: int) -> _Row:
        """Return a row's legal ids."""
        logits = self.scores[row].float()
        tokens = self.allowed[row] if self.allowed else None
        if tokens is None:
            return _Row(logits, None)
        if len(tokens.ids) * FEW < len(logits):
            ids = torch.from_numpy(tokens.ids).to(logits.device)
            return _Row(logits[ids], ids)
        return _Row(logits, None).where(torch.from_numpy(tokens.mask).to(logits.device))


def _likeliest(row: _Row) -> int:
    """Return the id with the greatest logit, the lowest of several. Raises NotFinite."""
    entry = _first(row.logits)
    require_finite(float(row.logits[entry]))
    return entry if row.ids is None else int(row.ids[entry])


def _best(row: _Row, position: int, params: SamplingParams, count: int, *, summed: bool = False) -> Ranking:
    """Return the `count` ids with the greatest z / T + g that the cuts leave, g the noise of (position, id).

    At temperature 0, and at position NO_NOISE, g is 0. `summed` also finds the ranking's `log_sum`.
    """
    maxima = _block_maxima(row.logits)
    best = _finite(maxima)
    if params.temperature == 0:
        params, position = GREEDY, NO_NOISE
    if 0 < params.top_k < len(row.logits):
        row = _top_k(row, params, maxima)
        maxima = _block_maxima(row.logits)
    if position != NO_NOISE:
        row, maxima = _able(row, maxima, params, count)
    race = _Race(row, position, best, params, maxima)
    nucleus = _Nucleus.of(row.logits, race.mass, best, params, maxima) if params.top_p < 1 else None
    wanted = count
    while True:
        # What is not among `entries` scores less than `least`, so the others need no second look.
        entries, least = race.front(wanted) if nucleus is None or nucleus.few is None else (nucleus.few, None)
        names = row.names(entries)
        scores = _scores(row.logits[entries], best, params).cpu().numpy()
        if position != NO_NOISE:
            scores = scores + gumbel_noise_at(params.seed, position, names)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > scores[order[0]] - IMPOSSIBLE]
        if nucleus and nucleus.few is None:
            order = nucleus.first(order, entries, count)
            is_sure = len(order) == count and scores[order[-1]] - race.offset >= (least or 0.0)
            if not is_sure and len(entries) < len(row.logits):
                wanted *= 8
                continue
        order, log_sum = order[:count], race.log_sum() if summed else math.nan
        return Ranking(tuple(names[order].tolist()), tuple(scores[order].tolist()), log_sum)


def _able(row: _Row, maxima: Tensor, params: SamplingParams, count: int) -> tuple[_Row, Tensor]:
    """Return the entries that can still be among the best `count`, if they are few, and their maxima."""
    # An id whose z / T is the noise's whole span below the count-th greatest cannot win; top-p counts it.
    least = _nth(row.logits, count, maxima) - (NOISE_SPAN + SLACK) * params.temperature
    if params.top_p < 1 or int(torch.count_nonzero(maxima >= least)) * FEW >= len(maxima):
        return row, maxima
    row = row.only(_at_least(row.logits, least, maxima))
    return row, _block_maxima(row.logits)


@dataclass
class _Race:
    """A row's scores z / T + g in float32, near enough to say which few ids must be looked at exactly.

    Without noise the logits themselves are in order. With it, e**-(z / T + g) = -log(u) / e**(z / T) is
    compared instead: the id whose exponential clock rings first has the greatest score, and one logarithm
    per id is saved.
    """

    row: _Row
    position: int
    best: float
    params: SamplingParams
    maxima: Tensor

    @cached_property
    def mass(self) -> Tensor:
        """e**(z / T), the likeliest id's being 1."""
        return _scaled(self.row.logits, self.best, self.params).exp_()

    @property
    def offset(self) -> float:
        """What is subtracted from z / T in `mass`."""
        return 0.0 if self.params.temperature < TINY_TEMPERATURE else self.best / self.params.temperature

    @cached_property
    def _clocks(self) -> Tensor:
        """Minus -log(u) / mass [n]: the greatest rings first."""
        rings = _exponential(self.params.seed, self.position, self.row.ids, len(self.mass), self.mass.device)
        return rings.div_(self.mass).neg_()

    @cached_property
    def _clock_maxima(self) -> Tensor:
        return _block_maxima(self._clocks)

    def front(self, count: int) -> tuple[Tensor, float]:
        """Return entries that hold the best `count`, and what all others score less than, less `offset`."""
        if self.position == NO_NOISE:
            bound = _nth(self.row.logits, count, self.maxima)
            return _at_least(self.row.logits, bound, self.maxima), self._scaled_of(bound)
        bound = _nth(self._clocks, count, self._clock_maxima)
        entries = _at_least(self._clocks, bound * math.exp(SLACK), self._clock_maxima)
        return entries, -math.log(-bound) - 1 if math.isfinite(bound) else -math.inf

    def log_sum(self) -> float:
        """Return the log of the sum of e**(z / T + g) over the row.

        From float32: a share that a strategy weighs a token by, never one that decides about it.
        """
        shares = self.mass if self.position == NO_NOISE else self._clocks.neg().reciprocal_()
        return math.log(float(shares.double().sum())) + self.offset

    def _scaled_of(self, logit: float) -> float:
        return (logit - self.best) / max(self.params.temperature, 1e-37)


@dataclass
class _Nucleus:
    """The smallest set of entries whose mass reaches top_p, as a test of single ones.

    An entry is of the set if the mass of all likelier ones is less than top_p. Of a usual row the likeliest
    few have that mass, and then `few` [k] is the whole set, ascending. Only a flat row has to be tested.
    `mass` is e**(z / T) in float32; where its rounding could decide, float64 does.
    """

    logits: Tensor
    mass: Tensor
    best: float
    params: SamplingParams
    few: Tensor | None = None

    @staticmethod
    def of(logits: Tensor, mass: Tensor, best: float, params: SamplingParams, maxima: Tensor) -> _Nucleus:
        """Weigh a row whose greatest logit is `best`."""
        found, least = _Nucleus(logits, mass, best, params), best - NEAR * params.temperature
        if int(torch.count_nonzero(maxima >= least)) > MOST_NEAR:
            return found
        near = _at_least(logits, least, maxima)
        order = near[torch.sort(logits[near], descending=True, stable=True).indices]
        sums = found.exact(logits[order]).cumsum(0)
        if float(sums[-1]) >= found.about * (1 + ROUNDING):
            ends = [int(torch.searchsorted(sums, found.about * (1 + off))) for off in (-ROUNDING, ROUNDING)]
            end = ends[0] if ends[0] == ends[1] else int(torch.searchsorted(sums, found.wanted))
            found.few = order[: end + 1].sort().values
        return found

    @cached_property
    def about(self) -> float:
        """The mass that makes the set, up to `ROUNDING`."""
        return self.params.top_p * float(self.mass.sum())

    @cached_property
    def exact_mass(self) -> Tensor:
        """The mass of every entry in float64."""
        return self.exact(self.logits)

    @cached_property
    def wanted(self) -> float:
        """The mass that makes the set."""
        return (self.params.top_p - MASS_TOLERANCE) * float(self.exact_mass.sum())

    def exact(self, logits: Tensor) -> Tensor:
        """Return the mass of some logits in float64."""
        best = torch.tensor([self.best], device=logits.device)
        scores, top = (_scores(z, self.best, self.params) for z in (logits, best))
        return (scores - top).exp()

    def first(self, order: npt.NDArray[np.intp], entries: Tensor, count: int) -> npt.NDArray[np.intp]:
        """Return the first `count` of `order`, indices of `entries`, that are of the set."""
        values = self.logits[entries].cpu().numpy()
        least_in, greatest_out = math.inf, -math.inf
        found = list[int]()
        for index in order.tolist():
            value = float(values[index])
            if value <= greatest_out:
                continue
            if value > least_in or self._has(int(entries[index]), value):
                least_in = min(least_in, value)
                found.append(index)
            else:
                greatest_out = max(greatest_out, math.nextafter(value, -math.inf))
            if len(found) == count:
                break
        return np.array(found, dtype=np.intp)

    def _has(self, entry: int, value: float) -> bool:
        """Tell whether the mass above an entry, and of equal ones with lower ids, is less than wanted."""
        mass = float(self.mass[entry])
        # What float32 takes for equal may be or not: only where that decides, the logits themselves are read.
        if self._above(mass) > self.about * (1 + ROUNDING):
            return False
        if self._above(float(np.nextafter(np.float32(mass), np.float32(-1)))) < self.about * (1 - ROUNDING):
            return True
        likelier, equal = self.logits > value, self.logits[:entry] == value
        above = float(torch.dot(likelier.double(), self.exact_mass))
        return above + int(torch.count_nonzero(equal)) * float(self.exact_mass[entry]) < self.wanted

    def _above(self, mass: float) -> float:
        """Return the mass of all entries that have more than `mass`."""
        return float(torch.threshold(self.mass, mass, 0.0).sum())

    def mask(self) -> Tensor:
        """Return the set as a mask [n].

        A sort of the whole row would do (`decoding.sampling`). Instead the mass goes into bins of log-mass,
        the bin in which it reaches top_p is found, and only that bin's few entries are sorted.
        """
        kept = torch.zeros(len(self.logits), dtype=torch.bool, device=self.logits.device)
        if self.few is not None:
            kept[self.few] = True
            return kept
        bins = (self.exact_mass.log() * -BINS_PER_UNIT).clamp_(max=BINS - 1).to(torch.int64)
        by_bin = torch.bincount(bins, weights=self.exact_mass, minlength=BINS).cumsum(0)
        crossing = min(int(torch.searchsorted(by_bin, self.wanted)), BINS - 1)
        before = float(by_bin[crossing - 1]) if crossing else 0.0
        members = (bins == crossing).nonzero()[:, 0]
        members = members[torch.sort(self.logits[members], descending=True, stable=True).indices]
        sums = before + self.exact_mass[members].cumsum(0)
        kept[members[: int(torch.searchsorted(sums, self.wanted)) + 1]] = True
        return kept | (bins < crossing)


def _finite(maxima: Tensor) -> float:
    """Return the greatest logit. Raises NotFinite."""
    best = float(maxima.max())
    require_finite(best)
    return best


def _scaled(logits: Tensor, best: float, params: SamplingParams) -> Tensor:
    """Return (z - max z) / T in float32: at most 0, and near 0 wherever it matters."""
    return (logits - best).div_(max(params.temperature, 1e-37))


def _scores(logits: Tensor, best: float, params: SamplingParams) -> Tensor:
    """Return z / T in float64, as `decoding.sampling.log_probs` has it before the cuts."""
    scores = logits.double()
    if params.temperature < TINY_TEMPERATURE:
        scores -= best
    return scores / params.temperature


def _block_maxima(scores: Tensor) -> Tensor:
    """Return the greatest score of every `BLOCK` entries, the last of which may be fewer [blocks]."""
    whole = len(scores) // BLOCK * BLOCK
    maxima = scores[:whole].view(-1, BLOCK).amax(1)
    return torch.cat([maxima, scores[whole:].amax(0, keepdim=True)]) if whole < len(scores) else maxima


def _at_least(scores: Tensor, least: float, maxima: Tensor) -> Tensor:
    """Return the entries whose score is at least `least`, ascending: only blocks that have one are read."""
    blocks = (maxima >= least).nonzero()
    entries = (blocks * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten()
    entries = entries[entries < len(scores)]
    return entries[scores[entries] >= least]


def _nth(scores: Tensor, count: int, maxima: Tensor) -> float:
    """Return a bound that at least `count` scores reach, or all of fewer: close below the count-th greatest.

    The count-th greatest of the blocks' maxima is one, for each of those blocks has a score that reaches it.
    """
    if count == 1:
        return float(maxima.max())
    if len(maxima) <= count:
        return float(torch.topk(scores, min(count, len(scores))).values[-1])
    return float(torch.topk(maxima, count).values[-1])


def _first(logits: Tensor) -> int:
    """Return the entry of the greatest logit, the lowest of several."""
    if logits.device.type == "cpu":  # numpy has vector instructions for it, torch has not
        return int(logits.numpy().argmax())
    return int(logits.argmax())


def _top_k(row: _Row, params: SamplingParams, maxima: Tensor) -> _Row:
    """Return what top-k leaves of a row."""
    entries = _at_least(row.logits, _nth(row.logits, params.top_k, maxima), maxima)
    # Of several ids with equal logits the lowest stay: `entries` ascend, and the sort is stable.
    order = torch.sort(row.logits[entries], descending=True, stable=True).indices[: params.top_k]
    return row.only(entries[order].sort().values)


def _exponential(seed: int, position: int, ids: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Return -log(u) = e**-g of `ids`, or of 0 to size - 1, in float32: at most 1e-3 of it too great.

    With u = 1 - v it is -log1p(-v). v is a whole number of 2**-53, so float32 keeps it exact to 24 bits also
    where u rounds to 1; where v rounds to 1 it is too great, and that of `LEAST_NOISE` stands for it.
    """
    key = noise_counter(seed, position)
    if device.type == "cpu":
        v = torch.from_numpy(noise_parts(key, None if ids is None else ids.numpy(), size, PIECE))
    else:
        v = device_noise_parts(key, torch.arange(size, device=device) if ids is None else ids)
    return v.neg_().log1p_().neg_().clamp_(max=math.exp(-LEAST_NOISE))
