"""The branch cache: where its branches go, and that verdicts are found in it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vlm_spec_decode.bench.run import Outcome, RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams
from vlm_spec_decode.strategies.estimators import StepCost, VerdictTime
from vlm_spec_decode.strategies.multi_branch import allocation, branch_budget

AGX_ORIN = HardwareProfile("AGX Orin, 32B", 24.25, 72, 87, 145, 8.7)
WIRED = LinkProfile("15 ms", 15, 100, 100)


def answers(name: str, acceptance: float, temperature: float = 0.0) -> list[Outcome]:
    params = SamplingParams(temperature, max_tokens=40)
    pairs = (pair(PairSpec(acceptance=acceptance, seed=seed)) for seed in range(3))
    return [
        decode(RunSetup(strategy=name, hardware=AGX_ORIN, link=WIRED), d, t, Observation(None, "go"), params)
        for d, t in pairs
    ]


def test_branches_fall_geometrically_and_go_where_something_may_be_said() -> None:
    chances = [0.3 * 0.7**k for k in range(5)]
    counts = allocation(60, chances, [90] * 5)
    assert sum(counts) == 60
    ratios = [after / before for before, after in pairwise(counts)]
    assert all(0.7**0.5 - 0.1 < ratio < 0.7**0.5 + 0.1 for ratio in ratios)
    assert allocation(60, chances, [90, 0, 2, 90, 90])[1:3] == [0, 2]
    assert sum(allocation(60, [1e-6], [90])) == 0, "what cannot pay has no branch"


def test_the_budget_is_what_the_window_holds() -> None:
    step = StepCost(slope=0.03, free=1)
    step.learn(1, 0.024)
    budgets = [branch_budget(window_s, 4, step) for window_s in (0.03, 0.06, 0.08, 0.1)]
    assert budgets[0] == 1
    assert budgets == sorted(budgets)
    rows = budgets[-1]
    assert 2 * 0.024 + (rows - 1) * 0.03 * 0.024 <= 0.1 + 0.001


def test_the_window_forgets_the_first_pass_which_read_the_prompt() -> None:
    window = VerdictTime()
    assert window.seconds == 0
    window.learn(0.16, 0.145)
    assert window.seconds == pytest.approx(0.16)
    for _ in range(5):
        window.learn(0.102, 0.087)
    assert window.seconds == pytest.approx(0.102)


def test_the_verdict_is_in_the_cache_and_a_hit_saves_time() -> None:
    """AceSpec's setting: its window holds four draft steps, so few branches are more than a token deep."""
    cached, plain = answers("multi_branch", 0.69), answers("speculative", 0.69)
    assert sum(o.hits for o in cached) >= 0.95 * sum(o.lookups for o in cached) > 10
    assert sum(o.hits for o in plain) == 0, "who drafts nothing ahead hits nothing"
    assert sum(o.total_s for o in cached) < sum(o.total_s for o in plain)
    assert [o.tokens for o in cached] == [o.tokens for o in plain]
