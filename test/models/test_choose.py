"""Choosing on the device returns what the plain formulas return, at vocabularies of toy and of real size."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from vlm_spec_decode.core.choices import Choices, LegalTokens
from vlm_spec_decode.core.errors import GrammarError, NotFinite
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.choices import DenseChoices
from vlm_spec_decode.decoding.sampling import gumbel_noise, noise_counter, noise_parts
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_virtual import VirtualClock
from vlm_spec_decode.models import choose
from vlm_spec_decode.models.choose import DeviceChoices
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.models.device_noise import device_noise_parts

SIZES = (5, 379, 32_000, 151_936)
TEMPERATURES = (0.0, 1e-120, 1e-6, 0.3, 0.7, 1.0, 5.0, 1e5)
CUTS = ((0, 1.0), (1, 1.0), (40, 1.0), (0, 0.9), (0, 0.01), (0, 0.9999), (200, 0.7))


def rows_of(kind: str, size: int, seed: int) -> np.ndarray:
    """Three rows of logits as models have them, and as nobody wishes them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, size)).astype(np.float32)
    match kind:
        case "flat":
            return logits
        case "sharp":
            logits *= 3
            logits[:, rng.integers(size, size=3)] += 18
        case "tied":
            logits = np.round(logits).astype(np.float32)
        case "cut":
            logits[:, rng.random(size) < 0.6] = -np.inf
            logits[:, 2] = 0.5
        case "large":
            logits *= 1e4
        case "equal":
            logits[:] = 1.25
    return logits


def masks_of(size: int, seed: int) -> list[LegalTokens | None]:
    """A wide mask, a narrow one, none."""
    rng = np.random.default_rng(seed)
    narrow = np.zeros(size, dtype=np.bool_)
    narrow[[2, *rng.integers(size, size=2)]] = True
    wide = rng.random(size) < 0.7
    wide[2] = True
    return [LegalTokens.of(wide), LegalTokens.of(narrow), None]


KINDS = [DeviceChoices, BatchChoices]
"""What a CPU chooses with, and what a GPU chooses with; both run anywhere."""


def both(
    logits: np.ndarray, masks: list[LegalTokens | None] | None, chooser: type[DeviceChoices] = DeviceChoices
) -> tuple[Choices, Choices]:
    plain, device = DenseChoices(logits), chooser(torch.from_numpy(logits))
    return (plain, device) if masks is None else (plain.legal(masks), device.legal(masks))


@pytest.mark.parametrize("masked", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("kind", ["flat", "sharp", "tied", "cut", "large", "equal"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chooser", KINDS)
def test_the_device_chooses_what_the_formulas_choose(
    chooser: type[DeviceChoices], size: int, kind: str, masked: bool
) -> None:
    grid = list(itertools.product(TEMPERATURES, CUTS, ("coupled", "rejection")))
    if size > 1000:  # each setting of the grid at one size or another, each size with some forty
        grid = grid[(size + len(kind)) % 5 :: 5 if chooser is DeviceChoices else 20]
    for seed, (temperature, (top_k, top_p), rule) in enumerate(grid):
        params = SamplingParams(temperature, top_k, top_p, seed=seed, rule=rule)
        logits = rows_of(kind, size, seed)
        plain, device = both(logits, masks_of(size, seed) if masked else None, chooser)
        if rule == "coupled":
            assert device.pick(range(3), (0, 7, 95), params) == plain.pick(range(3), (0, 7, 95), params), (
                params
            )
        for mine, wanted in zip(
            device.ranked(range(3), (0, 7, 95), params, 6),
            plain.ranked(range(3), (0, 7, 95), params, 6),
            strict=True,
        ):
            assert mine.tokens == wanted.tokens, params
            steps, wanted_steps = (np.subtract(r.scores, r.scores[0]) for r in (mine, wanted))
            assert np.allclose(steps, wanted_steps, rtol=1e-9, atol=1e-9)
            share, wanted_share = (np.exp(r.scores[0] - r.log_sum) for r in (mine, wanted))
            assert share == pytest.approx(wanted_share, rel=1e-2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chooser", KINDS)
def test_confidence_is_the_probability_of_the_legal_ids(chooser: type[DeviceChoices], size: int) -> None:
    logits = rows_of("sharp", size, 3)
    for masks in (None, masks_of(size, 3)):
        plain, device = both(logits, masks, chooser)
        for row, token in itertools.product(range(3), (0, size // 2, int(logits[0].argmax()))):
            mine, wanted = device.confidence(row, token), plain.confidence(row, token)
            assert mine[0] == pytest.approx(wanted[0], rel=1e-6)
            assert mine[1] == wanted[1]


@pytest.mark.parametrize("unit", [1 << 16, 1 << 40])
@pytest.mark.parametrize("kind", ["flat", "sharp", "tied", "cut"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chooser", KINDS)
def test_distributions_have_the_same_parts(
    chooser: type[DeviceChoices], size: int, kind: str, unit: int
) -> None:
    cuts = CUTS if size < 1000 or chooser is DeviceChoices else CUTS[::3]
    for masked, temperature, (top_k, top_p) in itertools.product((False, True), (0.0, 0.7), cuts):
        params = SamplingParams(temperature, top_k, top_p, rule="rejection")
        plain, device = both(rows_of(kind, size, 5), masks_of(size, 5) if masked else None, chooser)
        for row in range(3):
            mine, wanted = (choices.distribution(row, params, unit) for choices in (device, plain))
            assert mine.unit == wanted.unit == unit
            assert mine.best == wanted.best
            # exp of two libraries may differ in its last bit, and a floor then by one part.
            top = dict(wanted.top(12))
            assert all(
                abs(mine.part(token) - part) <= 1 or token == wanted.best for token, part in top.items()
            )
            assert abs(mine.part(wanted.best) - wanted.part(wanted.best)) <= size
            assert abs(mine.below(size - 1) - wanted.below(size - 1)) <= size
            assert mine.part(size - 1) == unit - mine.below(size - 1)
            for ticket in (0, unit // 3, unit - 1):
                token = mine.at(ticket)
                assert mine.below(token) <= ticket < mine.below(token) + mine.part(token)


def test_noise_has_the_same_bits_everywhere() -> None:
    """The rough noise of numpy and of torch, and the exact one that they stand for."""
    ids = np.array([0, 1, 378, 31_999, 151_935, 2**31 - 1], dtype=np.int64)
    for seed, position in itertools.product((0, 7, 2**64 - 1, -3), (0, 95, 100_000)):
        key = noise_counter(seed, position)
        parts = noise_parts(key, ids, len(ids), 4)
        assert np.array_equal(parts, device_noise_parts(key, torch.from_numpy(ids)).numpy())
        every = noise_parts(key, None, 151_936, 32_768)
        assert np.array_equal(every, device_noise_parts(key, torch.arange(151_936)).numpy())
        assert np.array_equal(every[ids[:5]], parts[:5])
        exact = gumbel_noise(seed, position, 151_936)
        rough = -np.log(-np.log1p(-every.astype(np.float64)))
        assert np.abs(rough - exact)[exact > -2].max() < 1e-3


@pytest.mark.parametrize("chooser", KINDS)
def test_bad_rows_are_refused(chooser: type[DeviceChoices]) -> None:
    logits = rows_of("flat", 379, 0)
    for bad in (np.nan, np.inf):
        broken = logits.copy()
        broken[1, 5] = bad
        for choices in both(broken, None, chooser):
            for call in (
                lambda c: c.pick((0, 1, 2), (0, 1, 2), SamplingParams()),
                lambda c: c.ranked((0, 1, 2), (0, 1, 2), SamplingParams(temperature=0.7), 3),
                lambda c: c.distribution(1, SamplingParams(rule="rejection"), 1 << 16),
                lambda c: c.confidence(1, 0),
            ):
                with pytest.raises(NotFinite):
                    call(choices)
    for choices in both(logits, None, chooser):
        with pytest.raises(GrammarError, match="a mask of 8 tokens for a model that has 379"):
            choices.legal([None, LegalTokens.of(np.ones(8, dtype=np.bool_)), None])


@pytest.mark.parametrize("chooser", KINDS)
def test_any_rows_in_any_order(chooser: type[DeviceChoices]) -> None:
    plain, device = both(rows_of("flat", 379, 1), masks_of(379, 1), chooser)
    params = SamplingParams(temperature=0.7, seed=3)
    assert device.pick((2, 0), (4, 5), params) == plain.pick((2, 0), (4, 5), params)
    assert np.array_equal(device.logits, plain.logits)
    assert len(device) == len(plain) == 3


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_answer_is_the_same_by_the_formulas_and_on_the_device(
    llava_pair: Any, rule: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole answer by the default strategy, drafts and target from the same network."""
    said = set()
    for limit in (0, 1 << 20):
        monkeypatch.setattr(choose, "SMALL_VOCABULARY", limit)
        params = SamplingParams(temperature, top_p=0.95, max_tokens=24, seed=11, rule=rule)
        clock, model = VirtualClock(), llava_pair.model
        config = EngineConfig(strategy="hybrid", params=params, free_text=True)
        engine = Engine(model, model.codec, LocalVerifier(model, clock, model), clock, config)
        updates = engine.answer(llava_pair.observation)
        said.add(next(update.result.tokens for update in updates if update.result))
    assert len(said) == 1
    assert said.pop()
