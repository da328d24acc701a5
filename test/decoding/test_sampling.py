from __future__ import annotations

import numpy as np
import pytest

from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.sampling import gumbel_noise, log_probs, pick


def test_greedy_is_argmax_and_ignores_the_seed() -> None:
    logits = np.array([0.1, 2.0, -1.0], dtype=np.float32)
    assert {pick(logits, 3, SamplingParams(seed=s)) for s in range(20)} == {1}


def test_the_law_of_sampled_tokens_is_the_softmax() -> None:
    """Chi-squared over seeds, 3 degrees of freedom: a false alarm in 1 of 100,000 runs, and it is seeded."""
    logits = np.log(np.array([0.5, 0.25, 0.2, 0.05])).astype(np.float32)
    trials = 20_000
    counts = np.bincount(
        [pick(logits, s % 7, SamplingParams(temperature=1.0, seed=s)) for s in range(trials)], minlength=4
    )
    expected = trials * np.array([0.5, 0.25, 0.2, 0.05])
    assert ((counts - expected) ** 2 / expected).sum() < 26


def test_noise_is_a_function_of_seed_position_and_token_alone() -> None:
    assert np.array_equal(gumbel_noise(7, 3, 50), gumbel_noise(7, 3, 80)[:50])
    assert not np.array_equal(gumbel_noise(7, 3, 50), gumbel_noise(7, 4, 50))
    assert not np.array_equal(gumbel_noise(7, 3, 50), gumbel_noise(8, 3, 50))


def test_noise_is_uncorrelated_between_positions() -> None:
    a = np.concatenate([gumbel_noise(s, 0, 200) for s in range(100)])
    b = np.concatenate([gumbel_noise(s, 1, 200) for s in range(100)])
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(a.mean() - 0.5772) < 0.03


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0, top_k=2), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.7), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.5), {0}),
        (SamplingParams(temperature=1.0), {0, 1, 2, 3}),
    ],
)
def test_cuts_keep_the_likeliest(params: SamplingParams, kept: set[int]) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.2, 0.05])).astype(np.float32)
    scores = log_probs(logits, params)
    assert set(np.flatnonzero(np.isfinite(scores))) == kept
    assert np.exp(scores).sum() == pytest.approx(1.0)


def test_parameters_out_of_range_are_refused() -> None:
    for bad in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="out of range"):
            SamplingParams(**bad)
    with pytest.raises(ValueError, match="unknown rule"):
        SamplingParams(rule="hope")
