"""Whole parts, residuals and draws that cost as much as q's support: equal to the dense arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.core.choices import LegalTokens
from vlm_spec_decode.decoding.choices import Q_UNIT, DenseDistribution, Remainder

PARTS = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)


@st.composite
def supports(draw: st.DrawFn, size: int) -> tuple[tuple[int, int], ...]:
    """A complete q: distinct ids whose weights sum to 2**16."""
    ids = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4, unique=True))
    cuts = sorted(draw(st.integers(0, Q_UNIT)) for _ in ids[1:])
    weights = np.diff([0, *cuts, Q_UNIT])
    return tuple(zip(ids, weights.tolist(), strict=True))


@given(st.data(), PARTS)
def test_residuals_are_those_of_the_dense_arithmetic(data: st.DataObject, parts: list[int]) -> None:
    weights = np.array(parts, dtype=object)
    mine = Remainder(DenseDistribution(np.array(parts, dtype=np.int64)))
    for _ in range(data.draw(st.integers(0, 3))):
        q = data.draw(supports(len(parts)))
        whole = int(weights.sum())
        weights = weights * Q_UNIT
        for token, weight in q:
            weights[token] = max(0, weights[token] - whole * weight)
        mine = mine.minus(q)
        if not weights.any():
            assert mine.whole == 0
            return
    assert mine.whole == weights.sum()
    assert [mine.weight(token) for token in range(len(parts))] == list(weights)
    assert mine.best == int(np.argmax(weights))
    sums = np.cumsum(weights)
    tickets = {0, mine.whole - 1, *(data.draw(st.integers(0, mine.whole - 1)) for _ in range(5))}
    tickets |= {int(s) for s in sums if s < mine.whole} | {int(s) - 1 for s in sums if s}
    for ticket in tickets:
        assert mine.at(ticket) == int(np.searchsorted(sums, ticket, side="right"))


@given(PARTS, st.data())
def test_mass_outside_some_ids_is_drawn_without_them(parts: list[int], data: st.DataObject) -> None:
    weights = np.array(parts, dtype=np.int64)
    gone = data.draw(st.lists(st.integers(0, len(parts) - 1), unique=True))
    rest = Remainder(DenseDistribution(weights.copy())).without(gone)
    weights[gone] = 0
    assert rest.whole == weights.sum()
    for ticket in range(rest.whole):
        assert rest.at(ticket) == int(np.searchsorted(np.cumsum(weights), ticket, side="right"))


def test_legal_tokens_pack_and_unpack() -> None:
    mask = np.random.default_rng(0).random(379) < 0.3
    legal = LegalTokens.of(mask)
    assert np.array_equal(legal.mask, mask)
    assert legal.ids.tolist() == np.flatnonzero(mask).tolist()
    assert [legal.has(token) for token in range(-1, 381)] == [False, *mask.tolist(), False, False]
