"""Many robots with real strategies on one real scheduler: the same tokens under any load, fewer GPU seconds."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.lib.strategy_fleet import Load, StrategyFleet, ask
from vlm_spec_decode.bench.synthetic import PairSpec, SyntheticFamily
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, Tokens

HARDWARE = HardwareProfile("test", draft_ms=20, step_ms=70, verify_ms=80, prefill_ms=120, cloud_draft_ms=8)
LINK = LinkProfile("test", rtt_ms=20, up_mbps=20, down_mbps=20)
TOKENS = 12


@cache
def fleet(name: str, robots: int, deadline_s: float = 1.5) -> StrategyFleet:
    return ask(
        name,
        Load(
            robots=robots,
            hardware=HARDWARE,
            links=(LINK,),
            deadlines_s=(deadline_s,),
            seconds=4.0,
            think_s=1.5,
            max_tokens=TOKENS,
        ),
    )


@cache
def truth(frame_id: str) -> Tokens:
    _, target = SyntheticFamily.pair(PairSpec(acceptance=0.9))
    context, said = target.open(Observation(None, "go", frame_id=frame_id)), Tokens()
    while len(said) < TOKENS:
        said += (int(context.score(said)[0].argmax()),)
    return said


@pytest.mark.parametrize(("name", "robots"), [("hybrid", 1), ("hybrid", 24), ("speculative", 24)])
def test_no_price_changes_what_is_said(name: str, robots: int) -> None:
    ended = [asked for asked in fleet(name, robots).asked if asked.ended_s is not None]
    assert len(ended) >= robots
    for asked in ended:
        assert asked.tokens == truth(asked.frame_id)


def test_every_strategy_is_asked_the_same() -> None:
    due = [[robot.times_s for robot in fleet(name, 24).robots] for name in ("hybrid", "speculative")]
    assert due[0] == due[1]


def test_a_loaded_cloud_tells_its_edges_and_an_idle_one_does_not() -> None:
    """What is verified under load is what is told: with a price, messages name fewer nodes."""
    alone, loaded = fleet("hybrid", 1), fleet("hybrid", 24)
    assert alone.protocol.stats.largest_batch == 1
    drafted = [f.protocol.stats.drafted / f.protocol.stats.finished for f in (alone, loaded)]
    assert drafted[1] < 0.8 * drafted[0]


def test_under_load_hybrid_spends_no_more_of_the_gpu_than_speculative_and_more_come_in_time() -> None:
    per_answer_s, in_time = {}, {}
    for name in ("hybrid", "speculative"):
        run = fleet(name, 24)
        ended = [asked for asked in run.asked if asked.ended_s is not None]
        per_answer_s[name] = run.busy_s / len(ended)
        in_time[name] = sum(asked.is_in_time for asked in ended)
    assert per_answer_s["hybrid"] <= 1.05 * per_answer_s["speculative"]
    assert in_time["hybrid"] >= 0.97 * in_time["speculative"]
