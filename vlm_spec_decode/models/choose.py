"""Choosing on a CPU: `Choices` over a tensor of logits, cheap beside the head's own product.

Knows logits, sampling parameters and legal ids; nothing of contexts or answers. No row is copied or sorted.
What is returned is what `decoding.choices.DenseChoices` returns: every approximation only decides which few
ids are looked at, and those are scored exactly in float64, with the noise of `decoding.sampling`. So numpy, a
CPU and a GPU (`models.choose_batch`) choose the same ids of the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import Choices, Distribution, LegalTokens, Logits, Ranking
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.choices import DenseDistribution
from vlm_spec_decode.decoding.sampling import TINY_TEMPERATURE, require_finite
from vlm_spec_decode.models.nucleus import Nucleus
from vlm_spec_decode.models.row_blocks import BlockedRows, Row, exact_scores
from vlm_spec_decode.models.row_search import GREEDY, NO_NOISE, likeliest, rank

SMALL_VOCABULARY = 4096
"""Up to here, on a CPU, the plain formulas over whole rows are quicker than a search for what counts."""


@dataclass(frozen=True)
class DeviceChoices(Choices):
    """`Choices` over logits [n, vocab] where they lie. `allowed` holds a grammar's legal ids by row.

    Rows of another device are brought to the host one by one.
    """

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
            return [self._likeliest(row) for row in rows]
        return [ranking.tokens[0] for ranking in self.ranked(rows, positions, params, 1, summed=False)]

    @torch.inference_mode()
    def ranked(
        self, rows: Seq[int], positions: Seq[int], params: SamplingParams, count: int, *, summed: bool = True
    ) -> list[Ranking]:
        """Return the best ids after each row."""
        if params.temperature == 0:
            params = GREEDY
            positions = [NO_NOISE] * len(rows)
        elif params.rule != "coupled":
            positions = [NO_NOISE] * len(rows)
        blocks, allowed = BlockedRows.of(self._some(rows)), [self._legal(row) for row in rows]
        found: list[Ranking | None] = [None] * len(rows)
        is_cut = 0 < params.top_k < self.scores.shape[1] or params.top_p < 1
        if NO_NOISE in positions and not (is_cut or summed or params.temperature < TINY_TEMPERATURE):
            found = likeliest(blocks, allowed, params, count)
        left = [i for i, known in enumerate(found) if known is None]
        read = [Row.of(blocks, i, allowed[i]) for i in left]
        more = iter(rank(read, [positions[i] for i in left], params, count, summed=summed))
        return [known or next(more) for known in found]

    @torch.inference_mode()
    def confidence(self, row: int, token: int) -> tuple[float, bool]:
        """Return how sure a row is of `token`."""
        if (tokens := self._legal(row)) and not tokens.has(token):
            return 0.0, False
        read = self._row(row)
        own = float(self.scores[row, token])
        total = float((torch.from_numpy(read.logits).double() - read.best).exp_().sum())
        return math.exp(own - read.best) / total, own == read.best

    @torch.inference_mode()
    def distribution(self, row: int, params: SamplingParams, unit: int) -> Distribution:
        """Return whole parts of a row."""
        read = self._row(row)
        best = read.best
        if params.temperature == 0:
            only = read.only(np.array([read.first]))
            return DenseDistribution(np.array([unit]), only.ids)
        read = read.top_k(params.top_k)
        if params.top_p < 1:
            read = read.where(Nucleus(read, best, params).mask())
        scores = exact_scores(read.logits, best, params)
        top = float(scores.max())
        log_sum = top + math.log(float(np.exp(scores - top).sum()))
        parts = np.floor(np.exp(scores - log_sum) * unit).astype(np.int64)
        # Flooring leaves some parts over; all go to the best token, so the sum is `unit` exactly.
        parts[read.first] += unit - int(parts.sum())
        kept = np.flatnonzero(parts)
        return DenseDistribution(parts[kept], read.only(kept).ids)

    def _likeliest(self, row: int) -> int:
        """Return the legal id with the greatest logit, the lowest of several. Raises NotFinite."""
        logits = self.scores[row].float().cpu().numpy()
        best = int(logits.argmax())
        if (tokens := self._legal(row)) and not tokens.has(best):
            read = self._row(row)
            require_finite(read.best)
            return read.first if read.ids is None else int(read.ids[read.first])
        require_finite(float(logits[best]))
        return best

    def _row(self, row: int) -> Row:
        """Return a row's legal ids."""
        return Row.of(BlockedRows.of(self.scores[row : row + 1]), 0, self._legal(row))

    def _legal(self, row: int) -> LegalTokens | None:
        return self.allowed[row] if self.allowed else None

    def _some(self, rows: Seq[int]) -> Tensor:
        """Return rows, without a copy if they follow each other."""
        if not rows:
            return self.scores[:0]
        start, end = rows[0], rows[0] + len(rows)
        return self.scores[start:end] if [*rows] == [*range(start, end)] else self.scores[list(rows)]
