"""AutoDraft's method: the tree follows the hardware, the objective and the draft, and it drafts ahead."""

from __future__ import annotations

from statistics import fmean

from vlm_spec_decode.bench.run import Outcome, RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams
from vlm_spec_decode.strategies.autodraft import RoundCost

GO2 = HardwareProfile("go2", 72, 620, 620, 620, 62)
EXPENSIVE_NODES = HardwareProfile("nodes cost", 72, 620, 620, 620, 62, node_fraction=0.2, free_nodes=1)
FAST_TARGET = HardwareProfile("fast target", 72, 60, 60, 60, 6)


def answers(hardware: HardwareProfile, acceptance: float, objective: str = "latency") -> list[Outcome]:
    setup = RunSetup(
        strategy="autodraft", hardware=hardware, link=LinkProfile("link", 60, 100, 100), objective=objective
    )
    params = SamplingParams(max_tokens=40)
    pairs = (pair(PairSpec(acceptance=acceptance, seed=seed)) for seed in range(2))
    return [decode(setup, draft, target, Observation(None, "go"), params) for draft, target in pairs]


def sent(outcomes: list[Outcome]) -> float:
    return fmean(outcome.drafted / outcome.passes for outcome in outcomes)


def test_fewer_nodes_are_sent_where_they_cost_more() -> None:
    assert sent(answers(EXPENSIVE_NODES, 0.6)) < 0.7 * sent(answers(GO2, 0.6))


def test_a_fast_target_gets_shallow_trees() -> None:
    slow, fast = answers(GO2, 0.9), answers(FAST_TARGET, 0.9)
    assert fmean(o.passes for o in fast) > fmean(o.passes for o in slow)


def test_cost_saves_the_targets_time_and_spends_that_of_the_edge() -> None:
    quick, cheap = answers(GO2, 0.8), answers(GO2, 0.8, "cost")
    assert fmean(o.gpu_s for o in cheap) < 0.95 * fmean(o.gpu_s for o in quick)
    assert fmean(o.total_s for o in cheap) > fmean(o.total_s for o in quick)


def test_a_good_draft_is_ready_when_the_verdict_comes() -> None:
    hits, lookups = (sum(getattr(o, name) for o in answers(GO2, 0.95)) for name in ("hits", "lookups"))
    assert hits > 0.2 * lookups


def test_the_objective_is_seconds_per_token_until_cost_counts() -> None:
    cost = RoundCost()
    cost.step.learn(1, 0.1)
    cost.verify.learn(1, 1.0)
    assert cost.objective(0.1, 1, 2.0) < cost.objective(0.5, 1, 2.0)
    cost.cost_weight = 1.0
    assert cost.objective(0.1, 1, 2.0) == cost.objective(0.5, 1, 2.0), "the draft's seconds cost nothing"
