"""From logits to a token: temperature, top-k, top-p, and the shared Gumbel noise of the coupled rule.

Both ends run exactly this on the same seed, so a draft that agrees with the target on the best
perturbed score is accepted by comparing ids (design section 2). Noise is keyed by (seed, position,
token id) through an integer counter hash, so it does not depend on who asks, in which order, or how
often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import NotFinite
from vlm_spec_decode.core.types import SamplingParams

Row: TypeAlias = npt.NDArray[np.float32]
Floats: TypeAlias = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit integers that spreads every bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


@lru_cache(maxsize=1024)
def noise_counter(seed: int, position: int) -> int:
    """Return where the counter of one position's noise begins: a 64-bit key of (seed, position)."""
    steps = np.array([position + 1], dtype=np.uint64) * _GOLDEN
    return int(_mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + steps)[0])


def gumbel_noise_at(seed: int, position: int, ids: npt.NDArray[np.int64]) -> Floats:
    """Return standard Gumbel noise [n] of the token ids `ids` [n] at one position of one answer."""
    steps = (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    bits = _mix(steps + np.uint64(noise_counter(seed, position))) >> np.uint64(11)
    # 53 bits in the middle of their cells: u is in (0, 1), never 0 or 1, so both logarithms are finite.
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    # g = -log(-log u) has the standard Gumbel law.
    return np.asarray(-np.log(-np.log(uniform)), dtype=np.float64)


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Floats:
    """Return standard Gumbel noise [vocab] for one position of one answer."""
    return gumbel_noise_at(seed, position, np.arange(vocab_size, dtype=np.int64))


@lru_cache(maxsize=2)
def _counter_steps(size: int) -> npt.NDArray[np.uint64]:
    """Return where the counter of each id lies behind a position's first [size]."""
    return np.asarray(np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN)


def noise_parts(
    key: int, ids: npt.NDArray[np.int64] | None, size: int, piece: int
) -> npt.NDArray[np.float32]:
    """Return 1 - u in float32, u the uniform numbers behind the noise of `ids` [n], or of 0 to size - 1.

    `key` is `noise_counter`'s. For sums and candidates only: `piece` ids at a time, in buffers that stay in
    the processor's cache.
    """
    parts = np.empty(size, dtype=np.float32)
    for start, x, spare in noise_pieces(key, ids, size, piece):
        np.right_shift(x, np.uint64(31), out=spare)
        np.bitwise_xor(x, spare, out=spare)
        np.right_shift(spare, np.uint64(11), out=spare)
        np.subtract(np.uint64(2**53), spare, out=spare)
        parts[start : start + len(x)] = spare.view(np.int64)
    parts -= np.float32(0.5)
    parts *= np.float32(2.0**-53)
    return parts


def noise_pieces(
    key: int, ids: npt.NDArray[np.int64] | None, size: int, piece: int
) -> Iterator[tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]:
    """Yield (start, x, spare): the bits of `ids`, or of 0 to size - 1, before `_mix`'s last step.

    That step is x ^ (x >> 31), which leaves the highest 31 bits as they are. At most `piece` ids at a time;
    `x` and `spare`, which is room for as many, are used again for the next ones.
    """
    room, spare = np.empty((2, min(piece, size)), dtype=np.uint64)
    for start in range(0, size, piece):
        end = min(size, start + piece)
        x, other = room[: end - start], spare[: end - start]
        if ids is None:
            # The same steps in each piece, behind where the piece's counter begins: they stay in the cache.
            np.add(_counter_steps(piece)[: len(x)], np.uint64((key + start * int(_GOLDEN)) % 2**64), out=x)
        else:
            np.add((ids[start:end].astype(np.uint64) + np.uint64(1)) * _GOLDEN, np.uint64(key), out=x)
        for by, factor in ((30, _MIX1), (27, _MIX2)):
            np.right_shift(x, np.uint64(by), out=other)
            x ^= other
            x *= factor
        yield start, x, other


TINY_TEMPERATURE = 1e-100
"""Below it, dividing by the temperature leaves the range of numbers unless the best score is 0."""


def require_finite(best: float) -> None:
    """Refuse logits by their greatest value. Raises NotFinite.

    NaN anywhere makes the greatest value NaN, so one look at it is enough. Single tokens at -inf are cut.
    """
    if not math.isfinite(best):
        raise NotFinite("hold NaN" if math.isnan(best) else f"are {'all -' if best < 0 else '+'}infinite")


def log_probs(logits: Row, params: SamplingParams) -> Floats:
    """Return log-probabilities [vocab] after temperature, top-k and top-p; -inf where cut.

    At temperature 0 nothing is cut or scaled: only the argmax matters. Raises NotFinite.
    """
    scores = logits.astype(np.float64)
    best = float(scores.max())
    require_finite(best)
    if params.temperature > 0:
        with np.errstate(over="ignore"):  # to -inf, which is what such a difference comes to
            scores = (scores - best if params.temperature < TINY_TEMPERATURE else scores) / params.temperature
        if 0 < params.top_k < scores.size:
            kept = np.argsort(-scores, kind="stable")[: params.top_k]
            scores = _only(scores, kept)
        if params.top_p < 1:
            scores = _only(scores, nucleus(scores, params.top_p))
    return scores - _logsumexp(scores)


def pick(logits: Row, position: int, params: SamplingParams) -> int:
    """Choose the token at `position` of the answer: argmax, of perturbed scores if sampling.

    Raises NotFinite.
    """
    if params.temperature == 0:
        best = int(np.argmax(logits))
        require_finite(float(logits[best]))
        return best
    scores = log_probs(logits, params)
    # Gumbel-max: argmax_i (log p_i + g_i) is a draw from p. Both ends add the same g, so equal p choose equal
    # ids.
    return int(np.argmax(scores + gumbel_noise(params.seed, position, scores.size)))


def perturbed_scores(logits: Row, position: int, params: SamplingParams) -> Floats:
    """Return the scores [vocab] whose argmax `pick` takes; for ranking second and later choices.

    Raises NotFinite.
    """
    if params.temperature == 0:
        require_finite(float(logits.max()))
        return logits.astype(np.float64)
    scores = log_probs(logits, params)
    return scores + gumbel_noise(params.seed, position, scores.size)


def ranking_scores(logits: Row, position: int, params: SamplingParams) -> Floats:
    """Return scores [vocab] that rank what the target may say: with the noise only where it is shared."""
    coupled = params.rule == "coupled"
    return perturbed_scores(logits, position, params) if coupled else log_probs(logits, params)


def _logsumexp(scores: Floats) -> float:
    top = float(scores.max())
    return top + float(np.log(np.exp(scores - top).sum()))


def _only(scores: Floats, kept: npt.NDArray[np.intp]) -> Floats:
    cut = np.full_like(scores, -np.inf)
    cut[kept] = scores[kept]
    return cut


MASS_TOLERANCE = 1e-9
"""A mass this close below top_p reaches it: ten equal ids and top_p 0.9 leave nine, however sums round."""


def nucleus(scores: Floats, top_p: float) -> npt.NDArray[np.intp]:
    """Return the indices of the smallest set whose mass reaches `top_p`, likeliest first; at least one.

    `scores` [n] are log-probabilities up to a constant.
    """
    order = np.argsort(-scores, kind="stable")
    mass = np.cumsum(np.exp(scores[order] - _logsumexp(scores)))
    # The token that crosses `top_p` belongs to the nucleus, or one with p > top_p would leave it empty.
    return order[: int(np.searchsorted(mass, top_p - MASS_TOLERANCE)) + 1]


def softmax_at(row: Row, token: int) -> float:
    """Return the probability of `token` under the logits `row` [vocab], at temperature 1 and uncut.

    Raises NotFinite.
    """
    best = float(row.max())
    require_finite(best)
    shifted = row.astype(np.float64) - best
    return float(np.exp(shifted[token]) / np.exp(shifted).sum())
