"""Distributions in whole units, dense on the end that computes them and sparse where they travel.

Both ends of the rejection rule reckon in integers: the target's p in units of 2**-40, the draft's q in
units of 2**-16. What is sampled from is exactly what is compared and what is sent, so no rounding stands
between the rule and its proof. Flooring p moves less than vocabulary x 2**-40 of mass to its best token
(3e-8 at 32,000), far below the float32 of the logits; under this rule that *is* the target.
"""

from __future__ import annotations

import numpy as np

from vlm_spec_decode.core.types import SamplingParams, SparseTarget, Support, Tokens
from vlm_spec_decode.decoding.counter_rng import CounterRng, Weights
from vlm_spec_decode.decoding.sampling import Row, log_probs, require_finite

P_UNIT = 1 << 40
Q_UNIT = 1 << 16
Q_GRAIN = 1 << 8
"""Weights of a q that travels whole are multiples of this: one byte each."""


def certain(token: int) -> Support:
    """Return the q of a token that is proposed without a throw of the dice."""
    return ((token, Q_UNIT),)


def is_complete(support: Support) -> bool:
    """Tell whether this is all of q, so that whoever has it can draw from the residual."""
    return sum(weight for _, weight in support) == Q_UNIT


def weights(logits: Row, params: SamplingParams, unit: int) -> Weights:
    """Return `unit` whole parts [vocab] shared out by probability; greedy puts all on the best token.

    Raises NotFinite.
    """
    best = int(np.argmax(logits))
    require_finite(float(logits[best]))
    parts = np.zeros(logits.size, dtype=np.int64)
    if params.temperature > 0:
        parts = np.floor(np.exp(log_probs(logits, params)) * unit).astype(np.int64)
    parts[best] += unit - int(parts.sum())
    return parts


def truncated(parts: Weights, most: int) -> Weights:
    """Return q cut to its `most` likeliest ids, in coarse parts: small enough to travel whole."""
    kept = np.argsort(-parts, kind="stable")[:most]
    coarse = np.zeros_like(parts)
    coarse[kept] = parts[kept] * (Q_UNIT // Q_GRAIN) // int(parts[kept].sum()) * Q_GRAIN
    coarse[kept[0]] += Q_UNIT - int(coarse.sum())
    return coarse


def sparse_target(
    p: Weights, most: int, samples: int, chance: CounterRng, prefix: Tokens, *, is_cut: bool = False
) -> SparseTarget:
    """Return p with its `most` likeliest ids and, if it has mass outside them, `samples` tail samples.

    Sample i is named by (prefix, i): asking for more of them repeats the first ones.
    """
    kept = np.sort(np.argsort(-p, kind="stable")[:most])
    kept = kept[p[kept] > 0]
    rest = p.copy()
    rest[kept] = 0
    outside = int(rest.sum())
    drawn = [chance.index(rest, "tail", prefix, i) for i in range(0 if is_cut or not outside else samples)]
    tail = tuple((y, int(p[y])) for y in drawn)
    return SparseTarget(tuple(map(int, kept)), tuple(map(int, p[kept])), outside, tail, is_cut)


def draw_correction(target: SparseTarget, q: Support, chance: CounterRng, prefix: Tokens) -> int | None:
    """Draw from norm(max(0, p - q)) on the edge, or return None if the tail samples have run out.

    Rejection sampling with the proposal max(0, p - q) on the sent ids and p outside: a place is drawn; if
    it is "outside", the next tail sample y is kept with probability max(0, p(y) - q(y)) / p(y), else the
    place is drawn anew. The law is exact for every K; only a plain top-K cut (`is_cut`) is not.
    """
    scaled = {token: weight * (P_UNIT // Q_UNIT) for token, weight in q}
    pairs = zip(target.ids, target.parts, strict=True)
    inside = [max(0, part - scaled.get(token, 0)) for token, part in pairs]
    if target.is_cut:
        return _draw_cut(target, inside, chance, prefix)
    places = np.array([*inside, target.outside], dtype=np.int64)
    for attempt in range(len(target.tail) + 1):
        place = chance.index(places, "place", prefix, attempt)
        if place < len(target.ids):
            return target.ids[place]
        if attempt == len(target.tail):
            return None
        token, part = target.tail[attempt]
        if chance.happens(part - scaled.get(token, 0), part, "keep", prefix, attempt):
            return token
    return None


def _draw_cut(target: SparseTarget, inside: list[int], chance: CounterRng, prefix: Tokens) -> int:
    """PicoSpec's residual of a top-K cut; where the cut has left nothing of it, p itself decides."""
    places = np.array(inside if any(inside) else target.parts, dtype=np.int64)
    return target.ids[chance.index(places, "place", prefix)]


def cut_bias_bound(target: SparseTarget, q: Support) -> float:
    """Return how far (total variation) the law of a correction drawn from a top-K cut can be off.

    With m mass outside the K ids and r of the residual inside, at most m / (r + m) of the residual is
    lost. Weighted with the chance of a rejection, a position's law is off by at most m.
    """
    scaled = {token: weight * (P_UNIT // Q_UNIT) for token, weight in q}
    pairs = zip(target.ids, target.parts, strict=True)
    inside = sum(max(0, part - scaled.get(token, 0)) for token, part in pairs)
    return target.outside / (inside + target.outside) if target.outside else 0.0
