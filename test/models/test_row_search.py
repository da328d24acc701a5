"""The search for the best ids looks at few of them, whatever the row, and finds what the formulas find."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from vlm_spec_decode.core.choices import LegalTokens
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.choices import DenseChoices
from vlm_spec_decode.models import nucleus, row_search
from vlm_spec_decode.models.choose import DeviceChoices
from vlm_spec_decode.models.row_blocks import BLOCK, BlockedRows
from vlm_spec_decode.models.row_search import ENTRIES_A_BLOCK, NO_NOISE

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, top_p=0.9, seed=5)
UNCUT = SamplingParams(temperature=1.0, seed=6)
UNEVEN = 50_257
"""No multiple of `BLOCK`: the last block is short."""


def rows_of(size: int, *, sureness: float = 0.0) -> np.ndarray:
    """Six rows, from flat ones to ones that are sure; twelve ids stand out by `sureness`."""
    rng = np.random.default_rng(size)
    logits = rng.normal(size=(6, size)).astype(np.float32) * np.float32(2) ** np.arange(-3, 3)[:, None]
    logits = logits.astype(np.float32)
    logits[:, rng.integers(size, size=12)] += np.linspace(sureness, sureness / 2, 12, dtype=np.float32)
    return logits


@pytest.mark.parametrize("sureness", [0.0, 6.0, 30.0])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED, UNCUT], ids=["greedy", "sampled", "uncut"])
def test_rows_of_all_kinds_are_searched_together(params: SamplingParams, sureness: float) -> None:
    """Flat and sharp, free and masked, at equal positions and at others; a last block that is short."""
    logits = rows_of(UNEVEN, sureness=sureness)
    logits[:, -3:] += 9
    wide = np.random.default_rng(1).random(UNEVEN) < 0.9
    narrow = np.zeros(UNEVEN, dtype=np.bool_)
    narrow[[5, 77, 40_000, UNEVEN - 1]] = True
    masks = [None, LegalTokens.of(wide), None, LegalTokens.of(narrow), None, LegalTokens.of(wide)]
    positions = [3, 3, 3, 4, 3, 9]
    plain = DenseChoices(logits).legal(masks).ranked(range(6), positions, params, 6)
    found = (
        DeviceChoices(torch.from_numpy(logits))
        .legal(masks)
        .ranked(range(6), positions, params, 6, summed=False)
    )
    assert [ranking.tokens for ranking in found] == [ranking.tokens for ranking in plain]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_likeliest_ids_may_all_be_illegal(params: SamplingParams) -> None:
    logits = rows_of(UNEVEN)
    legal = np.ones((6, UNEVEN), dtype=np.bool_)
    for row, scores in zip(legal, logits, strict=True):
        row[np.argsort(-scores)[:300]] = False
    logits[0, ~legal[0]] = np.nan
    masks = [LegalTokens.of(row) for row in legal]
    plain, device = (
        choices.legal(masks) for choices in (DenseChoices(logits), DeviceChoices(torch.from_numpy(logits)))
    )
    assert device.pick(range(6), range(6), params) == plain.pick(range(6), range(6), params)
    found, wanted = (c.ranked(range(6), range(6), params, 6, summed=False) for c in (device, plain))
    assert [ranking.tokens for ranking in found] == [ranking.tokens for ranking in wanted]


@pytest.mark.parametrize("sureness", [0.0, 6.0, 30.0])
def test_few_ids_are_scored_whatever_the_row(sureness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """About the vocabulary's root: of 25 times as many ids, not 25 times as many are looked at."""
    looked: dict[int, int] = {}
    exact, inside = row_search.exact_scores, BlockedRows.block_values
    for size in (6_078, 151_936):
        seen = list[int]()

        def counted(logits: Any, *args: Any, seen: list[int] = seen) -> Any:
            seen.append(logits.size)
            return exact(logits, *args)

        def read(self: BlockedRows, *args: Any, seen: list[int] = seen) -> Any:
            seen.append(inside(self, *args).size // ENTRIES_A_BLOCK)
            return inside(self, *args)

        monkeypatch.setattr(row_search, "exact_scores", counted)
        monkeypatch.setattr(BlockedRows, "block_values", read)
        choices = DeviceChoices(torch.from_numpy(rows_of(size, sureness=sureness)))
        choices.ranked(range(6), [3] * 6, UNCUT, 6, summed=False)
        looked[size] = sum(seen) // 6
    assert looked[151_936] < 8_000
    assert looked[151_936] < 12 * looked[6_078]


def test_threads_do_not_share_the_room_of_their_masses() -> None:
    logits = rows_of(UNEVEN)[:2]
    choices = [DeviceChoices(torch.from_numpy(np.roll(logits, shift, axis=1))) for shift in range(8)]

    def tokens(one: DeviceChoices) -> list[Any]:
        return [one.ranked((0, 1), (at, at), SAMPLED, 6, summed=False)[0].tokens for at in range(10)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokens, choices)) == [tokens(one) for one in choices]


def test_a_row_whose_sum_float32_cannot_tell_is_summed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rounding taken for far greater, more is reckoned in float64, and the same is found."""
    logits = rows_of(UNEVEN)
    usual = DeviceChoices(torch.from_numpy(logits)).ranked(range(6), range(6), SAMPLED, 6, summed=False)
    monkeypatch.setattr(nucleus, "ROUNDING", 0.5)
    assert (
        DeviceChoices(torch.from_numpy(logits)).ranked(range(6), range(6), SAMPLED, 6, summed=False) == usual
    )


@pytest.mark.parametrize("size", [1, 100, BLOCK, 379, 5 * BLOCK, UNEVEN])
@pytest.mark.parametrize("padding", [0, 64])
def test_a_block_that_is_not_read_has_nothing_great(size: int, padding: int) -> None:
    """Also of a head that is padded, whose rows do not follow each other in memory."""
    whole = torch.randn(4, size + padding, generator=torch.Generator().manual_seed(size))
    logits = whole[:, :size].numpy()
    blocks = BlockedRows.of(whole[:, :size])
    for count in {1, min(6, size), size}:
        bounds = blocks.nth(count)
        rows, ids, values = blocks.at_least(bounds)
        assert np.array_equal(values, logits[rows, ids])
        wanted = np.nonzero(logits >= bounds[:, None])
        assert np.array_equal(rows, wanted[0])
        assert np.array_equal(ids, wanted[1])
        assert np.all(np.bincount(rows) >= count)


def test_a_ranking_without_noise_needs_no_position() -> None:
    params = SamplingParams(temperature=0.7, rule="rejection")
    logits = rows_of(UNEVEN)
    plain = DenseChoices(logits).ranked(range(6), range(6), params, 6)
    found = DeviceChoices(torch.from_numpy(logits)).ranked(range(6), [NO_NOISE] * 6, params, 6, summed=False)
    assert [ranking.tokens for ranking in found] == [ranking.tokens for ranking in plain]
