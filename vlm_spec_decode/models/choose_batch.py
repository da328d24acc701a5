"""Choosing on a GPU: all rows of a question in one go, and one transfer back, however many rows there are.

`models.choose` looks at a row, decides on the host what to look at next, and looks again: right for a CPU,
where looking is free, and wrong for a GPU, where every look waits for all work before it. Here the device
finds, without a look at the host, a few dozen candidates of every row and a bound on all other ids. One
packed transfer brings them over, and the host scores them exactly in float64, with the noise of
`decoding.sampling`. A row whose bound does not settle the order is asked again, all such rows together. What
is still open then (ties over more ids than there are candidates) goes row by row. Knows what `models.choose`
knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import IMPOSSIBLE, Distribution, Ids, Ranking
from vlm_spec_decode.core.errors import NotFinite
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.choices import DenseDistribution
from vlm_spec_decode.decoding.sampling import (
    MASS_TOLERANCE,
    TINY_TEMPERATURE,
    gumbel_noise_at,
    noise_counter,
    require_finite,
)
from vlm_spec_decode.models.choose import DeviceChoices
from vlm_spec_decode.models.device_noise import device_noise_parts, signed
from vlm_spec_decode.models.hardware import memory_named, queue_to_host, to_device, to_host
from vlm_spec_decode.models.row_blocks import BLOCK, whole_blocks
from vlm_spec_decode.models.row_search import GREEDY, LEAST_NOISE, NO_NOISE

SPARE = 24
"""Candidates beyond the asked ones, so that equal logits and the noise's rounding rarely reach past them."""

NUCLEUS = 256
"""Likeliest ids of a row among which top-p is looked for first: it holds the nucleus of all but flat rows."""

ROUGH = 2e-3
"""How far float32 noise may lie below the exact one, doubled; below `LEAST_NOISE` it only lies above."""

RELATIVE = 1e-6
"""Rounding of a float32 score relative to its size: two operations at 2**-24 each, with room."""

UNSURE_MASS = 1e-5
"""A mass this close to top_p is reckoned again in float64: it was summed from float32's exponentials."""

CHOOSING_ADVICE = "a smaller --batch or --kv-mib: choosing needs a few times the room of its logits"

LEVELS = ((21, 11), (10, 11), (0, 10))
"""Shift and bits of the three steps in which a 32-bit key is found."""

Floats: TypeAlias = npt.NDArray[np.float64]


class _Candidates(NamedTuple):
    """What the device says of one row: some ids and their logits [c], and how much all others have at most.

    `best` is the row's greatest logit and `mass` the sum of e**((z - best) / T) over all ids. `log_sum` is
    the log of the same with noise, less best / T; NaN if nobody asked. `least` is the least candidate's.
    """

    ids: Ids
    logits: Floats
    best: float
    mass: float
    log_sum: float
    least: float


Chosen: TypeAlias = "list[int | NotFinite]"
"""The token after each row, or why the row has none: only a row that somebody asks for has to be usable."""

Result = TypeVar("Result")
Steps: TypeAlias = Generator[Tensor, Floats, Result]
"""Work in steps: each queues what the device is to do, yields a result, and goes on with it on the host."""


@dataclass(frozen=True)
class BatchChoices(DeviceChoices):
    """`DeviceChoices` that asks the device about all rows at once."""

    @cached_property
    def _ahead(self) -> dict[tuple[tuple[int, ...], SamplingParams], Chosen]:
        """What has been chosen for all rows, by positions and parameters."""
        return {}

    def pick(self, rows: Seq[int], positions: Seq[int], params: SamplingParams) -> list[int]:
        """Choose the token after each row."""
        return [_sound(token) for token in _done(self._pick(rows, positions, params))]

    def pick_each(self, positions: Seq[int], params: SamplingParams) -> Callable[[int], int]:
        """Return what tells the token after a row: all are chosen at the first question, or were ahead."""

        def pick(row: int) -> int:
            key = tuple(positions), params
            if key not in self._ahead:
                self.prefetch(positions, params)()
            return _sound(self._ahead[key][row])

        return pick

    def prefetch(self, positions: Seq[int], params: SamplingParams) -> Callable[[], None]:
        """Begin to choose the tokens after all rows; return what waits until they are there.

        Raises OutOfMemory, and so does what it returns.
        """
        steps = self._pick(range(len(self)), positions, params)
        with torch.inference_mode(), memory_named(CHOOSING_ADVICE):
            queued = queue_to_host(next(steps))

        def finish() -> None:
            with memory_named(CHOOSING_ADVICE):
                self._ahead[tuple(positions), params] = _done(steps, queued())

        return finish

    def ranked(
        self, rows: Seq[int], positions: Seq[int], params: SamplingParams, count: int, *, summed: bool = True
    ) -> list[Ranking]:
        """Return the best ids after each row."""
        return [_sound(found) for found in _done(self._ranked(rows, positions, params, count, summed))]

    def _pick(self, rows: Seq[int], positions: Seq[int], params: SamplingParams) -> Steps[Chosen]:
        if params.temperature > 0:
            rankings = yield from self._ranked(rows, positions, params, 1, False)
            return [found if isinstance(found, NotFinite) else found.tokens[0] for found in rankings]
        best, ids = self._rows(rows).max(dim=1)
        packed = yield torch.stack((best.double(), ids.double()), dim=1)
        return [_unusable(value) or int(token) for value, token in packed.tolist()]

    def _ranked(
        self, rows: Seq[int], positions: Seq[int], params: SamplingParams, count: int, summed: bool
    ) -> Steps[list[Ranking | NotFinite]]:
        plain = params
        if params.temperature == 0:
            params, positions = GREEDY, [NO_NOISE] * len(rows)
        elif params.rule != "coupled":
            positions = [NO_NOISE] * len(rows)
        asked = [_Asked(position, params, count, summed) for position in positions]
        rankings = yield from _rank(self._rows(rows), asked)
        return [
            # A whole row by itself, for what the candidates have left open.
            super(BatchChoices, self).ranked((row,), (at,), plain, count, summed=summed)[0]
            if found is None
            else found
            for row, at, found in zip(rows, positions, rankings, strict=True)
        ]

    @torch.inference_mode()
    def confidence(self, row: int, token: int) -> tuple[float, bool]:
        """Return how sure a row is of `token`."""
        if self.allowed and (tokens := self.allowed[row]) and not tokens.has(token):
            return 0.0, False
        logits = self._rows((row,))[0]
        best = logits.max().double()
        total = (logits.double() - best).exp().sum()
        greatest, mass, own = to_host(torch.stack((best, total, logits[token].double()))).tolist()
        require_finite(greatest)
        return math.exp(own - greatest) / mass, own == greatest

    @torch.inference_mode()
    def distribution(self, row: int, params: SamplingParams, unit: int) -> Distribution:
        """Return whole parts of a row, on the host: what asks for parts asks often."""
        if 0 < params.top_k < self.scores.shape[1] and params.temperature > 0:
            return super().distribution(row, params, unit)
        logits = self._rows((row,))
        best = logits.amax(1)
        parts = _parts(logits, best, params, unit)
        packed = to_host(torch.cat((parts[0], best.view(torch.int32).long())))
        require_finite(float(packed[-1:].astype(np.int32).view(np.float32)[0]))
        return DenseDistribution(packed[:-1])

    def _rows(self, rows: Seq[int]) -> Tensor:
        """Return rows [n, vocab] in float32, -inf for ids that are not allowed."""
        device = self.scores.device
        is_all = len(rows) == len(self) and all(row == i for i, row in enumerate(rows))
        logits = self.scores if is_all else self.scores[to_device(np.array(rows, dtype=np.int64), device)]
        logits = logits.float()
        allowed = [self.allowed[row] for row in rows] if self.allowed else []
        if not any(allowed):
            return logits
        width = -(-logits.shape[1] // 8)
        bits = np.full((len(rows), width), 255, dtype=np.uint8)
        for line, tokens in zip(bits, allowed, strict=True):
            if tokens is not None:
                line[:] = tokens.bits
        shifts = torch.arange(8, dtype=torch.uint8, device=device)
        legal = (to_device(bits, device)[:, :, None] >> shifts & 1).bool()
        return logits.masked_fill(~legal.view(len(rows), -1)[:, : logits.shape[1]], -torch.inf)


@torch.inference_mode()
def _done(steps: Steps[Result], first: Floats | None = None) -> Result:
    """Carry out steps that have not begun, or go on with what the step under way has yielded."""
    try:
        values = to_host(next(steps)) if first is None else first
        while True:
            values = to_host(steps.send(values))
    except StopIteration as end:
        result: Result = end.value
        return result


def _sound(found: Result | NotFinite) -> Result:
    """Return what was found. Raises NotFinite if it is that."""
    if isinstance(found, NotFinite):
        raise found
    return found


def _unusable(best: float) -> NotFinite | None:
    """Return why a row with this greatest logit cannot be used, None if it can."""
    try:
        require_finite(best)
    except NotFinite as error:
        return error
    return None


class _Asked(NamedTuple):
    """What is asked of one row; all but `position` are the same for all rows of a call."""

    position: int
    params: SamplingParams
    wanted: int
    summed: bool

    @property
    def has_noise(self) -> bool:
        """Whether the score has noise."""
        return self.position != NO_NOISE

    def scores(self, ids: Ids, logits: Floats, best: float, *, has_noise: bool) -> Floats:
        """Return z / T, or z / T + g, as `decoding.sampling` reckons it."""
        scores = logits - best if self.params.temperature < TINY_TEMPERATURE else logits
        scores = scores / self.params.temperature
        return scores + gumbel_noise_at(self.params.seed, self.position, ids) if has_noise else scores

    def offset(self, best: float) -> float:
        """Return what the device has subtracted from z / T."""
        return 0.0 if self.params.temperature < TINY_TEMPERATURE else best / self.params.temperature

    def ranking(self, ids: Ids, logits: Floats, best: float, log_sum: float) -> Ranking:
        """Return the best of some ids."""
        ascending = np.argsort(ids)
        ids, logits = ids[ascending], logits[ascending]
        scores = self.scores(ids, logits, best, has_noise=self.has_noise)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > scores[order[0]] - IMPOSSIBLE][: self.wanted]
        return Ranking(tuple(ids[order].tolist()), tuple(scores[order].tolist()), log_sum)


Found: TypeAlias = "list[Ranking | NotFinite | None]"
"""Each row's ranking, or why it has none; None where candidates and bound do not settle it."""


def _rank(logits: Tensor, asked: list[_Asked]) -> Steps[Found]:
    """Rank rows [n, vocab].

    One step; one more if top-p leaves more ids of some row than there are candidates.
    """
    if not asked:
        return []
    first, size = asked[0], logits.shape[1]
    has_top_k = 0 < first.params.top_k < size
    if first.has_noise and not has_top_k and first.params.top_p == 1:
        return (yield from _rank_by_noise(logits, logits, asked))
    few = min(first.params.top_k, NUCLEUS) if has_top_k else 0 if first.params.top_p < 1 else first.wanted
    packed = yield _by_logit(logits, asked, few + SPARE if few else NUCLEUS, has_top_k)
    rankings = [
        _settled(one, row, size, has_top_k) for one, row in zip(asked, _unpacked(packed), strict=True)
    ]
    left = [i for i, ranking in enumerate(rankings) if ranking is None]
    if left and first.params.top_p < 1 and not has_top_k:
        again = logits if len(left) == len(asked) else logits[to_device(np.array(left), logits.device)]
        kept = again.masked_fill(~nucleus_mask(again, first.params), -torch.inf)
        found = yield from _rank_by_noise(kept, again, [asked[i] for i in left])
        for i, ranking in zip(left, found, strict=True):
            rankings[i] = ranking
    return rankings


def _by_logit(logits: Tensor, asked: list[_Asked], few: int, has_top_k: bool) -> Tensor:
    """Return the `few` likeliest ids of each row, packed."""
    first = asked[0]
    best = logits.amax(1, keepdim=True)
    scaled = _scaled(logits, best, first.params)
    mass = scaled.exp().sum(1, dtype=torch.float64)
    if first.summed and not has_top_k:
        log_sum = torch.logsumexp(scaled + _noise(asked, logits), 1) if first.has_noise else mass.log()
    else:
        log_sum = torch.full_like(mass, torch.nan)
    values, ids = _greatest(logits, few)
    return _packed(ids, values, best[:, 0], mass, log_sum, values[:, -1])


def _settled(one: _Asked, row: _Candidates, size: int, has_top_k: bool) -> Ranking | NotFinite | None:
    """Return the ranking of a row whose cuts leave only candidates, None if they may leave more."""
    if (error := _unusable(row.best)) or (one.params.top_k > NUCLEUS and has_top_k):
        return error
    # Likeliest first, of equal logits the lowest ids: the order in which top-k and top-p cut. An id that is
    # no candidate may come before one whose logit is the least, so only those above it are settled.
    likeliest = np.lexsort((row.ids, -row.logits))
    ids, logits = row.ids[likeliest], row.logits[likeliest]
    settled = size if len(ids) == size else int(np.count_nonzero(logits > row.least))
    log_sum = row.log_sum + one.offset(row.best)
    kept = one.params.top_k if has_top_k else one.wanted
    if one.params.top_p < 1:
        whole = one.params.top_k if has_top_k else len(ids)
        scores = one.scores(ids[:whole], logits[:whole], row.best, has_noise=False)
        sums = np.cumsum(np.exp(scores - scores[0]))
        mass = float(sums[-1]) if has_top_k else row.mass
        wanted = (one.params.top_p - MASS_TOLERANCE) * mass
        if not has_top_k and np.abs(sums - wanted).min() < UNSURE_MASS * mass:
            return None
        kept = int(np.searchsorted(sums, wanted)) + 1
    # Where the least candidate is at -inf, all other ids are as well, and have no chance.
    if (one.params.top_k if has_top_k else kept) > settled and not math.isinf(row.least):
        return None
    if has_top_k and one.summed:
        of_k = slice(one.params.top_k)
        scores = one.scores(ids[of_k], logits[of_k], row.best, has_noise=one.has_noise)
        log_sum = float(scores.max() + np.log(np.exp(scores - scores.max()).sum()))
    return one.ranking(ids[:kept], logits[:kept], row.best, log_sum)


def _rank_by_noise(kept: Tensor, every: Tensor, asked: list[_Asked]) -> Steps[Found]:
    """Rank rows by z / T + g, of ids whose logit in `kept` is not -inf; `every` has those before top-p."""
    first, size = asked[0], kept.shape[1]
    best = kept.amax(1, keepdim=True)
    noise = _noise(asked, kept) if first.has_noise else torch.zeros((), device=kept.device)
    rough = _scaled(kept, best, first.params).add_(noise)
    log_sum = torch.full_like(best[:, 0], torch.nan)
    if first.summed:
        log_sum = torch.logsumexp(_scaled(every, best, first.params).add_(noise), 1)
    values, ids = _greatest(rough, first.wanted + SPARE)
    packed = yield _packed(ids, kept.gather(1, ids), best[:, 0], log_sum, log_sum, values[:, -1])
    rankings: Found = []
    for one, row in zip(asked, _unpacked(packed), strict=True):
        if error := _unusable(row.best):
            rankings.append(error)
            continue
        offset = one.offset(row.best)
        ranking = one.ranking(row.ids, row.logits, row.best, row.log_sum + offset)
        # The device gives every other id at most `least`, and the exact formula hardly more.
        bound = (
            row.least + ROUGH + RELATIVE * abs(row.least) + offset if math.isfinite(row.least) else -math.inf
        )
        is_full = len(ranking.tokens) == one.wanted and ranking.scores[-1] > bound
        is_sure = is_full or len(row.ids) == size or bound <= ranking.scores[0] - IMPOSSIBLE
        rankings.append(ranking if is_sure else None)
    return rankings


def _scaled(logits: Tensor, best: Tensor, params: SamplingParams) -> Tensor:
    """Return (z - max z) / T [n, vocab] in float32: at most 0."""
    return (logits - best).div_(max(params.temperature, 1e-37))


def _noise(asked: list[_Asked], like: Tensor) -> Tensor:
    """Return the rough noise [n, vocab] of every id (see `models.choose`)."""
    keys = np.array([signed(noise_counter(one.params.seed, one.position)) for one in asked], dtype=np.int64)
    v = device_noise_parts(
        to_device(keys, like.device)[:, None], torch.arange(like.shape[1], device=like.device)
    )
    return v.neg_().log1p_().neg_().log_().neg_().clamp_(min=LEAST_NOISE)


def _greatest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` greatest of each row [n, vocab] and where they stand, greatest first.

    Only blocks whose maximum is among the `count` greatest maxima are sorted: each of those holds an entry
    that is at least as great as any entry of the other blocks.
    """
    rows, size = scores.shape
    blocks = size // BLOCK
    if blocks <= 2 * count:
        found = torch.topk(scores, min(count, size), dim=1)
        return found.values, found.indices
    chosen = torch.topk(whole_blocks(scores).amax(2), count, dim=1, sorted=False).indices
    places = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    # What does not fill a block takes part entry by entry.
    rest = torch.arange(blocks * BLOCK, size, device=scores.device).expand(rows, -1)
    places = torch.cat((places, rest), dim=1)
    found = torch.topk(scores.gather(1, places), count, dim=1)
    return found.values, places.gather(1, found.indices)


def _packed(
    ids: Tensor, logits: Tensor, best: Tensor, mass: Tensor, log_sum: Tensor, least: Tensor
) -> Tensor:
    """Return all of it as one tensor, for one transfer: float64 holds ids and float32 exactly."""
    numbers = torch.stack([part.double() for part in (best, mass, log_sum, least)], dim=1)
    return torch.cat((ids.double(), logits.double(), numbers), dim=1)


def _unpacked(packed: Floats) -> list[_Candidates]:
    few = (packed.shape[1] - 4) // 2
    return [
        _Candidates(row[:few].astype(np.int64), row[few : 2 * few], *row[2 * few :].tolist())
        for row in packed
    ]


def nucleus_mask(logits: Tensor, params: SamplingParams) -> Tensor:
    """Return which ids are of each row's nucleus [n, vocab]: the smallest set whose mass reaches top_p.

    Without sorting: the logit in whose group of equal ones the mass reaches top_p is found bit by bit, from
    the top, by three histograms of mass over 11 bits each. Of that group the lowest ids belong to the set.
    Sums are in float64, as in `decoding.sampling`.
    """
    scores = logits.double()
    best = scores.amax(1, keepdim=True)
    mass = ((scores - best) / params.temperature).exp()
    wanted = ((params.top_p - MASS_TOLERANCE) * mass.sum(1, keepdim=True)).clamp_(min=1e-300)
    # Integers in the order of the numbers: negative ones have their other bits turned over. + 0 makes -0 a 0.
    bits = (logits + 0.0).view(torch.int32)
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + 2**31
    alive = torch.ones_like(key, dtype=torch.bool)
    above = torch.zeros_like(wanted)
    found = torch.zeros_like(wanted, dtype=torch.int64)
    for shift, width in LEVELS:
        bins = (key >> shift) & ((1 << width) - 1)
        by_bin = torch.zeros(len(logits), 1 << width, dtype=torch.float64, device=logits.device)
        by_bin.scatter_add_(1, bins, mass * alive)
        sums = by_bin.flip(1).cumsum(1).add_(above)
        # The first bin, from the greatest logits down, in which the mass reaches `wanted`.
        crossing = (sums < wanted).sum(1, keepdim=True).clamp_(max=(1 << width) - 1)
        above = torch.cat((above, sums), dim=1).gather(1, crossing)
        chosen = (1 << width) - 1 - crossing
        alive &= bins == chosen
        found = (found << width) | chosen
    each = (mass * alive).amax(1, keepdim=True)
    number = ((wanted - above) / each).ceil_().clamp_(min=1)
    return (key > found) | (alive & (alive.cumsum(1) <= number))


def _parts(logits: Tensor, best: Tensor, params: SamplingParams, unit: int) -> Tensor:
    """Return `unit` whole parts [1, vocab] of a row shared out by probability, rest to the best id."""
    first = logits.argmax(1, keepdim=True)
    parts = torch.zeros_like(logits, dtype=torch.int64)
    if params.temperature > 0:
        scores = logits.double()
        if params.temperature < TINY_TEMPERATURE:
            scores = scores - best[:, None]
        scores = scores / params.temperature
        if params.top_p < 1:
            scores = scores.masked_fill(~nucleus_mask(logits, params), -torch.inf)
        parts = ((scores - torch.logsumexp(scores, 1, keepdim=True)).exp() * unit).floor().to(torch.int64)
    return parts.scatter_add(1, first, unit - parts.sum(1, keepdim=True))
