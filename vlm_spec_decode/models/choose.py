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
from vlm_spec_decode.core.types import SamplingParams, Support
from vlm_spec_decode.decoding.choices import DenseChoices
from vlm_spec_decode.decoding.sampling import (
    MASS_TOLERANCE,
    TINY_TEMPERATURE,
    gumbel_noise_at,
    noise_counter,
    noise_parts,
    require_finite,
)

SMALL_VOCABULARY = 4096
"""Up to here, on a CPU, the plain formulas over whole rows are quicker than a search for what counts."""

FEW = 8
"""A mask or cut that leaves less than a vocabulary's 8th is worth gathering: later steps read only that."""

NOISE_SPAN = 37.43 + 3.63
"""Greatest minus least Gumbel noise of 53 bits: -log(-log u) for u = 1 - 2**-54 and u = 2**-54."""

SLACK = 1.1
"""How far a float32 score may be off. Noise below -2.63 is taken as -2.63, which is off by 1 at most."""
LEAST_NOISE = -2.63

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
        asked = zip(rows, positions, strict=True)
        return [_best(self._row(row), at, params, 1).tokens[0] for row, at in asked]

    @torch.inference_mode()
    def ranked(
        self,
        rows: Seq[int],
        positions: Seq[int],
        params: SamplingParams,
        count: int,
        *,
        with_sum: bool = True,
    ) -> list[Ranking]:
        """Return the best ids after each row."""
        if params.rule != "coupled":
            positions = [NO_NOISE] * len(rows)
        asked = zip(rows, positions, strict=True)
        return [_best(self._row(row), at, params, count, with_sum=with_sum) for row, at in asked]

    @torch.inference_mode()
    def confidence(self, row: int, token: int) -> tuple[float, bool]:
        """Return how sure a row is of `token`."""
        if self.allowed and (tokens := self.allowed[row]) and not tokens.has(token):
            return 0.0, False
        read = self._row(row)
        best = _best_score(read.logits)
        own = float(self.scores[row, token])
        return math.exp(own - best) / float((read.logits.double() - best).exp().sum()), own == best

    @torch.inference_mode()
    def distribution(self, row: int, params: SamplingParams, unit: int) -> Distribution:
        """Return whole parts of a row."""
        read = self._row(row)
        best = _best_score(read.logits)
        if params.temperature == 0:
            only = read.only(torch.tensor([_first(read.logits)], device=read.logits.device))
            return DeviceDistribution(torch.tensor([unit], device=read.logits.device), only.ids)
        read = _top_k(read, params)
        if params.top_p < 1:
            read = read.where(_Nucleus.of(read.logits, best, params).mask())
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


def _best(row: _Row, position: int, params: SamplingParams, count: int, *, with_sum: bool = False) -> Ranking:
    """Return the `count` ids with the greatest z / T + g that the cuts leave, g the noise of (position, id).

    At temperature 0, and at position NO_NOISE, g is 0. `with_sum` also finds the ranking's `log_sum`.
    """
    best = _best_score(row.logits)
    if params.temperature == 0:
        params, position = GREEDY, NO_NOISE
        if count == 1:
            first = torch.tensor([_first(row.logits)], device=row.logits.device)
            return Ranking(tuple(row.names(first).tolist()), (best,), math.nan)
    row = _top_k(row, params)
    nucleus = _Nucleus.of(row.logits, best, params) if params.top_p < 1 else None
    if nucleus and nucleus.few is not None and not with_sum:
        row, nucleus = row.only(nucleus.few), None
    scaled = _scaled(row.logits, best, params)
    if position == NO_NOISE:
        rough = scaled
    else:
        # An id whose z / T is the noise's whole span below the count-th greatest cannot win.
        live = scaled >= _nth(scaled, count, _block_maxima(scaled)) - NOISE_SPAN - SLACK
        if nucleus is None and int(torch.count_nonzero(live)) * FEW < len(scaled):
            kept = live.nonzero()[:, 0]
            row, scaled = row.only(kept), scaled[kept]
        rough = scaled + _rough_noise(params.seed, position, row.ids, len(scaled), scaled.device)
    offset = _offset(best, params)
    # From float32: a share that a strategy weighs a token by, never one that decides about it.
    log_sum = float(torch.logsumexp(rough, 0)) + offset if with_sum else math.nan
    maxima, wanted = _block_maxima(rough), count
    while True:
        # Whatever is not among `entries` scores less than bound - 1, so the others need no second look.
        bound = _nth(rough, wanted, maxima)
        entries = _at_least(rough, bound - SLACK, maxima)
        if nucleus and nucleus.few is not None:
            entries = nucleus.few
        names = row.names(entries)
        scores = _scores(row.logits[entries], best, params).cpu().numpy()
        if position != NO_NOISE:
            scores = scores + gumbel_noise_at(params.seed, position, names)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > scores[order[0]] - IMPOSSIBLE]
        if nucleus and nucleus.few is None:
            order = nucleus.first(order, entries, count)
            is_sure = len(order) == count and scores[order[-1]] - offset >= bound - 1
            if not is_sure and len(entries) < len(rough):
                wanted *= 8
                continue
        order = order[:count]
        return Ranking(tuple(names[order].tolist()), tuple(scores[order].tolist()), log_sum)


def choices_of(scores: Tensor) -> Choices:
    """Return the choices of logits [n, vocab], where they lie."""
    if scores.device.type != "cpu":
        from vlm_spec_decode.models.choose_batch import BatchChoices  # which is built upon this module

        return BatchChoices(scores)
    if scores.shape[1] <= SMALL_VOCABULARY:
        return DenseChoices(scores.float().numpy())
    return DeviceChoices(scores)


@dataclass
class _Nucleus:
    """The smallest set of entries whose mass reaches top_p, as a test of single ones.

    An entry is of the set if the mass of all likelier ones is less than top_p. Of a usual row the likeliest
    few have that mass, and then `few` [k] is the whole set, ascending. Only a flat row has to be tested.
    """

    logits: Tensor
    mass: Tensor
    wanted: float
    few: Tensor | None

    @staticmethod
    def of(logits: Tensor, best: float, params: SamplingParams) -> _Nucleus:
        """Weigh a row whose greatest logit is `best`."""
        scores = _scores(logits, best, params)
        mass = (scores - scores.max()).exp()
        wanted = (params.top_p - MASS_TOLERANCE) * float(mass.sum())
        maxima, least = _block_maxima(logits), best - NEAR * params.temperature
        if int(torch.count_nonzero(maxima >= least)) > MOST_NEAR:
            return _Nucleus(logits, mass, wanted, None)
        near, few = _at_least(logits, least, maxima), None
        if float(mass[near].sum()) >= wanted:
            order = near[torch.sort(logits[near], descending=True, stable=True).indices]
            few = order[: int(torch.searchsorted(mass[order].cumsum(0), wanted)) + 1].sort().values
        return _Nucleus(logits, mass, wanted, few)

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
        likelier = (self.logits > value).double()
        equal = int(torch.count_nonzero(self.logits[:entry] == value))
        above = float(torch.dot(likelier, self.mass)) + equal * float(self.mass[entry])
        return above < self.wanted

    def mask(self) -> Tensor:
        """Return the set as a mask [n].

        A sort of the whole row would do (`decoding.sampling`). Instead the mass goes into bins of log-mass,
        the bin in which it reaches top_p is found, and only that bin's few entries are sorted.
        """
        kept = torch.zeros(len(self.logits), dtype=torch.bool, device=self.logits.device)
        if self.few is not None:
            kept[self.few] = True
            return kept
        bins = (self.mass.log() * -BINS_PER_UNIT).clamp_(max=BINS - 1).to(torch.int64)
        by_bin = torch.bincount(bins, weights=self.mass, minlength=BINS).cumsum(0)
        crossing = min(int(torch.searchsorted(by_bin, self.wanted)), BINS - 1)
        before = float(by_bin[crossing - 1]) if crossing else 0.0
        members = (bins == crossing).nonzero()[:, 0]
        members = members[torch.sort(self.logits[members], descending=True, stable=True).indices]
        sums = before + self.mass[members].cumsum(0)
        kept[members[: int(torch.searchsorted(sums, self.wanted)) + 1]] = True
        return kept | (bins < crossing)


def _best_score(logits: Tensor) -> float:
    """Return the greatest logit. Raises NotFinite."""
    best = float(logits.max())
    require_finite(best)
    return best


def _offset(best: float, params: SamplingParams) -> float:
    """Return what `_scaled` has subtracted from z / T."""
    return 0.0 if params.temperature < TINY_TEMPERATURE else best / params.temperature


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


def _top_k(row: _Row, params: SamplingParams) -> _Row:
    """Return what top-k leaves of a row."""
    if not 0 < params.top_k < len(row.logits):
        return row
    maxima = _block_maxima(row.logits)
    entries = _at_least(row.logits, _nth(row.logits, params.top_k, maxima), maxima)
    # Of several ids with equal logits the lowest stay: `entries` ascend, and the sort is stable.
    order = torch.sort(row.logits[entries], descending=True, stable=True).indices[: params.top_k]
    return row.only(entries[order].sort().values)


def _rough_noise(seed: int, position: int, ids: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Return the Gumbel noise of `ids`, or of 0 to size - 1, in float32: never below the exact one by 1e-3.

    With u = 1 - v: g = -log(-log1p(-v)). v is a whole number of 2**-53, so float32 keeps it exact to 24 bits
    also where u rounds to 1; where v rounds to 1 the noise is low, and `LEAST_NOISE` stands for it.
    """
    key = noise_counter(seed, position)
    if device.type == "cpu":
        v = torch.from_numpy(noise_parts(key, None if ids is None else ids.numpy(), size, PIECE))
    else:
        v = device_noise_parts(key, torch.arange(size, device=device) if ids is None else ids)
    return torch.log1p(v.neg_()).neg_().log_().neg_().clamp_(min=LEAST_NOISE)


def device_noise_parts(key: int | Tensor, ids: Tensor) -> Tensor:
    """Return 1 - u of the noise of `ids` [n] in float32: `decoding.sampling.noise_parts` in torch.

    `key` as a signed integer, or a column [rows, 1] of such keys: then [rows, n].
    """
    x = (ids + 1) * signed(0x9E3779B97F4A7C15)
    x = x + (signed(key) if isinstance(key, int) else key)
    # In place: whole rows of a large vocabulary would otherwise take a dozen times their room.
    x.bitwise_xor_(_shifted(x, 30)).mul_(signed(0xBF58476D1CE4E5B9))
    x.bitwise_xor_(_shifted(x, 27)).mul_(signed(0x94D049BB133111EB))
    x.bitwise_xor_(_shifted(x, 31))
    bits = _shifted(x, 11)
    return bits.neg_().add_(2**53).to(torch.float32).sub_(0.5).mul_(2.0**-53)


def signed(value: int) -> int:
    """Return the int64 with the same bits: torch has signed integers, whose products have the same bits."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, which torch does not do for signed numbers."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


@dataclass(frozen=True)
class DeviceDistribution(Distribution):
    """`Distribution` over the parts [n] of the ids `ids` [n], ascending; None: of all ids in order."""

    parts: Tensor
    ids: Tensor | None

    @cached_property
    def _sums(self) -> Tensor:
        return self.parts.cumsum(0)

    @cached_property
    def unit(self) -> int:  # type: ignore[override]
        """What the parts sum to."""
        return int(self._sums[-1])

    @property
    def best(self) -> int:
        """The id with the most parts."""
        return self.top(1)[0][0]

    def part(self, token: int) -> int:
        """Return the parts of one id."""
        entry = self._entry(token)
        found = entry < len(self.parts) and (self.ids is None or int(self.ids[entry]) == token)
        return int(self.parts[entry]) if found else 0

    def below(self, token: int) -> int:
        """Return the parts of all ids below one."""
        entry = self._entry(token)
        return int(self._sums[entry - 1]) if entry else 0

    def at(self, ticket: int) -> int:
        """Return the id that a ticket falls on."""
        entry = int(torch.searchsorted(self._sums, ticket, right=True))
        return entry if self.ids is None else int(self.ids[entry])

    def support(self) -> Support:
        """Return all parts that are not 0."""
        entries = self.parts.nonzero()[:, 0]
        ids = entries if self.ids is None else self.ids[entries]
        return tuple(zip(ids.tolist(), self.parts[entries].tolist(), strict=True))

    @torch.inference_mode()
    def top(self, count: int) -> list[tuple[int, int]]:
        """Return the greatest parts."""
        least = int(torch.topk(self.parts, min(count, len(self.parts))).values[-1])
        entries = (self.parts >= max(1, least)).nonzero()[:, 0]
        parts = self.parts[entries].cpu().numpy()
        names = (entries if self.ids is None else self.ids[entries]).cpu().numpy()
        order = np.argsort(-parts, kind="stable")[:count]
        return [(int(names[i]), int(parts[i])) for i in order]

    def _entry(self, token: int) -> int:
        """Return where `token` stands, or would stand, among the ids."""
        return token if self.ids is None else int(torch.searchsorted(self.ids, token))
