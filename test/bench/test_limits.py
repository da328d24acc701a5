"""The simulated limits: with a pair of known acceptance, in virtual time, hybrid is where it should be."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import yaml

from vlm_spec_decode.bench.run import Outcome, Setup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, from_mapping
from vlm_spec_decode.core.types import Observation, SamplingParams

CONFIG = Path(__file__).parents[2] / "config/profiles"
GO2 = from_mapping(HardwareProfile, yaml.safe_load((CONFIG / "go2_a100.yaml").read_text()))
PARAMS = SamplingParams(max_tokens=40)
SEEDS = range(4)


def answers(
    strategy: str, acceptance: float, rtt_ms: float = 120, has_helper: bool = False, **profile: float
) -> list[Outcome]:
    hardware = HardwareProfile(**{**{f: getattr(GO2, f) for f in GO2.__slots__}, **profile})
    setup = Setup(strategy, hardware, LinkProfile("link", rtt_ms, 20, 20), has_helper=has_helper)
    pairs = (pair(PairSpec(acceptance, seed=seed)) for seed in SEEDS)
    return [decode(setup, draft, target, Observation(None, "go"), PARAMS) for draft, target in pairs]


def total_s(*args: object, **more: object) -> float:
    return median(o.total_s for o in answers(*args, **more))  # type: ignore[arg-type]


@pytest.mark.slow
def test_at_the_papers_acceptance_hybrid_is_well_ahead() -> None:
    plain, hybrid = total_s("autoregressive", 0.47), total_s("hybrid", 0.47)
    others = {name: total_s(name, 0.47) for name in ("speculative", "early_exit")}
    others["colocated"] = total_s("colocated", 0.47, has_helper=True)
    assert plain / hybrid >= 1.9
    assert min(others.values()) / hybrid >= 1.3


def test_without_a_fast_enough_draft_nothing_is_lost_to_plain_decoding() -> None:
    slow = {"draft_ms": 500.0, "step_ms": 60.0, "verify_ms": 60.0, "prefill_ms": 60.0}
    assert total_s("autoregressive", 0.47, **slow) / total_s("hybrid", 0.47, **slow) >= 0.97


def test_virtual_time_is_deterministic_and_tokens_are_the_targets_own() -> None:
    first, second = answers("hybrid", 0.7), answers("hybrid", 0.7)
    assert first == second
    plain = answers("autoregressive", 0.7)
    assert [o.tokens for o in first] == [o.tokens for o in plain]
    for outcome in plain:
        steps_s = (GO2.prefill_ms + (len(outcome.tokens) - 1) * GO2.step_ms) / 1000
        assert outcome.total_s == pytest.approx(steps_s + 0.12, abs=0.001)
        assert outcome.gpu_s == pytest.approx(steps_s)
