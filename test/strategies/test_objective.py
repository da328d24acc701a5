"""What `objective` does to `hybrid` in virtual time: passes against time, and the bars of either end."""

from __future__ import annotations

from functools import cache
from statistics import fmean

import pytest

from vlm_spec_decode.bench.run import Outcome, RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams

GO2 = HardwareProfile("go2", 72, 620, 620, 620, 62)
FAST_TARGET = HardwareProfile("fast target", 72, 60, 60, 60, 6)
FAST_PAIR = HardwareProfile("fast pair", 24, 72, 87, 145, 8.7)
PARAMS = SamplingParams(max_tokens=40)


@cache
def answers(
    strategy: str,
    hardware: HardwareProfile,
    acceptance: float,
    objective: str = "latency",
    rtt_ms: float = 60,
) -> list[Outcome]:
    link = LinkProfile("link", rtt_ms, 100, 100)
    helper = strategy.endswith("+") or strategy == "colocated"
    setup = RunSetup(
        strategy=strategy.rstrip("+"),
        hardware=hardware,
        link=link,
        objective=objective,
        has_colocated_draft=helper,
    )
    pairs = (pair(PairSpec(acceptance=acceptance, seed=seed)) for seed in range(2))
    return [decode(setup, draft, target, Observation(None, "go"), PARAMS) for draft, target in pairs]


def passes(*args: object, **more: object) -> float:
    return fmean(outcome.passes for outcome in answers(*args, **more))  # type: ignore[arg-type]


def total_s(*args: object, **more: object) -> float:
    return fmean(outcome.total_s for outcome in answers(*args, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(("acceptance", "bar"), [(0.95, 0.3), (0.47, 0.5)])
def test_cost_keeps_target_passes_below_their_bar(acceptance: float, bar: float) -> None:
    assert passes("hybrid", GO2, acceptance, "cost") <= bar * 40


def test_cost_buys_passes_with_time_and_balanced_lies_between() -> None:
    found = [answers("hybrid", FAST_PAIR, 0.47, name) for name in ("latency", "balanced", "cost")]
    counts = [fmean(o.passes for o in outcomes) for outcomes in found]
    assert counts[0] > counts[1] > counts[2]
    assert counts[0] > 1.2 * counts[2]
    assert fmean(o.total_s for o in found[0]) < fmean(o.total_s for o in found[2])
    assert [o.tokens for o in found[0]] == [o.tokens for o in found[2]]


@pytest.mark.parametrize("acceptance", [0.47, 0.95])
@pytest.mark.parametrize("rtt_ms", [5.0, 60.0])
def test_where_the_edge_cannot_keep_up_latency_loses_nothing(acceptance: float, rtt_ms: float) -> None:
    plain = total_s("autoregressive", FAST_TARGET, acceptance, rtt_ms=rtt_ms)
    assert total_s("hybrid", FAST_TARGET, acceptance, rtt_ms=rtt_ms) <= plain / 0.97


def test_with_a_copy_of_the_draft_hybrid_keeps_up_with_colocated() -> None:
    for hardware, acceptance in ((FAST_PAIR, 0.47), (FAST_TARGET, 0.47), (GO2, 0.95)):
        colocated = total_s("colocated", hardware, acceptance)
        assert total_s("hybrid+", hardware, acceptance) <= colocated / 0.97


def test_a_round_trip_of_200_ms_costs_little() -> None:
    near, far = (total_s("hybrid", GO2, 0.47, rtt_ms=rtt) for rtt in (5.0, 200.0))
    assert near / far >= 0.88
