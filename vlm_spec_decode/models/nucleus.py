"""Top-p of one row in host memory: the smallest set of ids whose mass reaches it, mostly without a sort."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import Ids
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.sampling import MASS_TOLERANCE, Floats, nucleus
from vlm_spec_decode.models.row_blocks import BLOCK, Row, Values, exact_scores

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
    top_p. Of a usual row the likeliest few are the set, and are found without a mass for every entry. Only
    entries of a flat row are tested. Where float32's rounding could decide, float64 does. A thread uses one
    at a time.
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
        # other one, 128 times that of its greatest entry. If both end the set at one entry, it ends there.
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

    def first(self, order: Seq[int], ids: Ids, values: Values, count: int) -> list[int]:
        """Return the first `count` of `order`, indices of `ids` and their logits, that are of the set."""
        likelihood = list(zip(values.tolist(), (-ids).tolist(), strict=True))
        while taken := order[:count]:
            # If the least likely of them is of the set, all are; if not, then none that is as unlikely.
            least = min(likelihood[i] for i in taken)
            if self._has(-least[1], least[0]):
                return [*taken]
            order = [i for i in order if likelihood[i] > least]
        return []

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
