"""The simulated limits: with a pair of known acceptance, in virtual time, hybrid is where it should be."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import yaml

from vlm_spec_decode.bench.run import Outcome, RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.config import from_mapping
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams
from vlm_spec_decode.strategies import speculative

CONFIG = Path(__file__).parents[2] / "config/profiles"
GO2 = from_mapping(HardwareProfile, yaml.safe_load((CONFIG / "go2_a100.yaml").read_text()))
PARAMS = SamplingParams(max_tokens=40)
SEEDS = range(4)


def answers(
    strategy: str, acceptance: float, rtt_ms: float = 120, has_colocated_draft: bool = False, **profile: float
) -> list[Outcome]:
    hardware = HardwareProfile(**{**{f: getattr(GO2, f) for f in GO2.__slots__}, **profile})
    setup = RunSetup(
        strategy=strategy,
        hardware=hardware,
        link=LinkProfile("link", rtt_ms, 20, 20),
        has_colocated_draft=has_colocated_draft,
    )
    pairs = (pair(PairSpec(acceptance=acceptance, seed=seed)) for seed in SEEDS)
    return [decode(setup, draft, target, Observation(None, "go"), PARAMS) for draft, target in pairs]


def total_s(*args: object, **more: object) -> float:
    return median(o.total_s for o in answers(*args, **more))  # type: ignore[arg-type]


@pytest.mark.slow
def test_at_the_papers_acceptance_hybrid_is_well_ahead() -> None:
    plain, hybrid = total_s("autoregressive", 0.47), total_s("hybrid", 0.47)
    others = {name: total_s(name, 0.47) for name in ("speculative", "early_exit")}
    others["colocated"] = total_s("colocated", 0.47, has_colocated_draft=True)
    assert plain / hybrid >= 1.9
    assert min(others.values()) / hybrid >= 1.3


def test_without_a_fast_enough_draft_nothing_is_lost_to_plain_decoding() -> None:
    slow = {"draft_ms": 500.0, "step_ms": 60.0, "verify_ms": 60.0, "prefill_ms": 60.0}
    assert total_s("autoregressive", 0.47, **slow) / total_s("hybrid", 0.47, **slow) >= 0.97


def test_exits_are_charged_to_the_pass_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers("speculative", 0.7, exit_fraction=0.05)
    monkeypatch.setattr(speculative.Cloud, "wants_exits", True)
    told = answers("speculative", 0.7, exit_fraction=0.05)
    assert [o.tokens for o in told] == [o.tokens for o in plain]
    for with_exits, without in zip(told, plain, strict=True):
        assert with_exits.early == 3 * with_exits.passes
        prompt_s = GO2.prefill_ms / 1000  # read while the first draft is on its way, without exits
        assert with_exits.gpu_s - prompt_s == pytest.approx((without.gpu_s - prompt_s) * (1 + 3 * 0.05))


def test_an_edge_that_is_too_far_is_told_no_early_verdicts() -> None:
    fast = {"draft_ms": 3.0, "step_ms": 6.0, "verify_ms": 8.0, "prefill_ms": 20.0}
    for far in answers("hybrid", 0.7, rtt_ms=100, **fast):
        assert far.early <= 3, "only in the first pass, when nothing is known"
    for near in answers("hybrid", 0.7, rtt_ms=100):
        assert near.early > 2 * near.passes


def test_virtual_time_is_deterministic_and_tokens_are_the_targets_own() -> None:
    first, second = answers("hybrid", 0.7), answers("hybrid", 0.7)
    assert first == second
    plain = answers("autoregressive", 0.7)
    assert [o.tokens for o in first] == [o.tokens for o in plain]
    for outcome in plain:
        steps_s = (GO2.prefill_ms + (len(outcome.tokens) - 1) * GO2.step_ms) / 1000
        assert outcome.total_s == pytest.approx(steps_s + 0.12, abs=0.001)
        assert outcome.gpu_s == pytest.approx(steps_s)


def test_every_round_says_why() -> None:
    hybrid, far = (
        answers("hybrid", 0.7)[0],
        answers("hybrid", 0.47, draft_ms=500.0, verify_ms=60.0, step_ms=60.0)[0],
    )
    assert len(hybrid.why) == hybrid.passes
    assert "rows of chance" in hybrid.why[0]
    assert any("a step takes 72.0 ms" in why for why in hybrid.why)
    assert any(why.startswith("listens: a draft step takes 500") for why in far.why)
    assert any("branches" in why for why in answers("multi_branch", 0.7)[0].why)
    assert not any(answers("speculative", 0.7)[0].why), "what decides nothing explains nothing"
