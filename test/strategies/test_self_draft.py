"""Who drafts: the cloud's copy where it makes tokens cheaper, the edge where its lead does, else nobody."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pytest

from vlm_spec_decode.bench.run import Outcome, RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams
from vlm_spec_decode.decoding.policy import DraftCosts
from vlm_spec_decode.strategies import estimators
from vlm_spec_decode.strategies.estimators import Calibration, RunningMean
from vlm_spec_decode.strategies.hybrid.cloud_policy import Cloud
from vlm_spec_decode.strategies.hybrid.self_draft import TokenCost

FAST_TARGET = HardwareProfile("fast target", 17, 7, 7, 21, 1.7)
DRAFT_TOO_SLOW = HardwareProfile("the copy is as slow as the target", 17, 7, 9, 21, 6)
SLOW_TARGET = HardwareProfile("slow target", 72, 620, 620, 620, 62)


def answers(strategy: str, hardware: HardwareProfile, acceptance: float) -> list[Outcome]:
    setup = RunSetup(
        strategy=strategy.rstrip("+"),
        hardware=hardware,
        link=LinkProfile("link", 20, 100, 100),
        has_colocated_draft=strategy.endswith("+"),
    )
    params = SamplingParams(max_tokens=40)
    pairs = (pair(PairSpec(acceptance=acceptance, seed=seed)) for seed in range(2))
    return [decode(setup, draft, target, Observation(None, "go"), params) for draft, target in pairs]


def total_s(strategy: str, hardware: HardwareProfile, acceptance: float) -> float:
    return fmean(outcome.total_s for outcome in answers(strategy, hardware, acceptance))


def test_the_copy_drafts_where_the_edge_cannot_keep_up() -> None:
    plain = total_s("autoregressive", FAST_TARGET, 0.9)
    assert total_s("hybrid+", FAST_TARGET, 0.9) < 0.7 * plain
    assert total_s("hybrid", FAST_TARGET, 0.9) > 0.95 * plain


def test_nobody_drafts_where_the_targets_own_step_is_cheaper() -> None:
    plain = total_s("autoregressive", DRAFT_TOO_SLOW, 0.3)
    assert total_s("hybrid+", DRAFT_TOO_SLOW, 0.3) <= plain / 0.97
    assert fmean(o.passes for o in answers("hybrid+", DRAFT_TOO_SLOW, 0.3)) > 30


def test_an_edge_that_leads_is_not_overtaken_by_the_copy() -> None:
    alone, both = (total_s(name, SLOW_TARGET, 0.47) for name in ("hybrid", "hybrid+"))
    assert both <= 1.1 * alone
    used = answers("hybrid+", SLOW_TARGET, 0.47)
    verified_s = [o.passes * 0.62 for o in used]
    assert fmean(o.gpu_s - v for o, v in zip(used, verified_s, strict=True)) < 0.25 * fmean(verified_s)


FAST_EDGE = HardwareProfile("slow target, fast edge", 17, 620, 620, 1860, 17)


def test_before_a_fast_edge_was_heard_the_copy_leaves_the_drafting_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone, both = (total_s(name, FAST_EDGE, 0.9) for name in ("hybrid", "hybrid+"))
    assert both <= alone / 0.97
    with monkeypatch.context() as mutant:  # the edge does not say how fast it drafts
        mutant.setattr(Cloud, "begin", _without_the_edges_word(Cloud.begin))
        assert total_s("hybrid+", FAST_EDGE, 0.9) > 1.1 * alone


def _without_the_edges_word(begin: Callable[..., None]) -> Callable[..., None]:
    return lambda cloud, request, has_helper: begin(cloud, replace(request, draft_step_s=0.0), has_helper)


def test_a_slow_edge_does_not_hold_up_the_end_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that comes during a draft step is read after it."""
    slow_edge = replace(FAST_TARGET, draft_ms=72)
    usual = total_s("hybrid+", slow_edge, 0.7)
    assert usual <= 1.02 * total_s("hybrid+", FAST_TARGET, 0.7)
    monkeypatch.setattr(estimators, "PROBE_SHARE", 1.0)  # probes without bound
    assert total_s("hybrid+", slow_edge, 0.7) > 1.05 * usual


def test_a_token_of_the_copy_is_reckoned_from_what_steps_take() -> None:
    cost = TokenCost(agreement=RunningMean(0.5))
    cost.expect(DraftCosts(0.01, 0.1, 0.1))
    best = min((0.1 + n * 0.01) / sum(0.5**k for k in range(n + 1)) for n in range(1, 17))
    assert cost.alone_s() == pytest.approx(best)
    assert cost.is_drafting_worth_it()
    cost.plain_s = RunningMean(0.9 * best)
    assert not cost.is_drafting_worth_it()


def test_the_edge_is_better_where_its_steps_fill_half_a_pass() -> None:
    cost = TokenCost()
    cost.expect(DraftCosts(0.062, 0.62, 0.62))
    cost.edge_step_s = 0.07
    assert cost.is_edge_better
    assert cost.lead == cost.edge_gain() > 1
    cost.edge_step_s = 0.6
    assert cost.edge_gain() == 0
    assert not cost.is_edge_better


def test_choices_that_are_not_kept_have_their_share() -> None:
    scores = (math.log(0.4), math.log(0.2))
    assert Calibration().said(scores, 0.0) == pytest.approx([0.4, 0.2])
    assert sum(Calibration().said(scores)) == pytest.approx(1.0)
