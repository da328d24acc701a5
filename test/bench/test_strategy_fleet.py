"""Many robots with real strategies on one real scheduler: the same tokens under any load."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from benchmarks.lib.strategy_fleet import Load, StrategyFleet, ask
from vlm_spec_decode.bench.synthetic import PairSpec, SyntheticFamily
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.protocol.messages import UNTOLD

HARDWARE = HardwareProfile("test", draft_ms=20, step_ms=70, verify_ms=80, prefill_ms=120, cloud_draft_ms=8)
LINK = LinkProfile("test", rtt_ms=20, up_mbps=20, down_mbps=20)
TOKENS = 12
LOAD = Load(
    robots=1,
    hardware=HARDWARE,
    links=(LINK,),
    deadlines_s=(1.5,),
    seconds=4.0,
    think_s=1.5,
    max_tokens=TOKENS,
    prices=True,
)


@cache
def fleet(name: str, robots: int) -> StrategyFleet:
    return ask(name, replace(LOAD, robots=robots))


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
    assert len(ended) >= min(robots, 12)
    for asked in ended:
        assert asked.tokens == truth(asked.frame_id)


def test_every_strategy_is_asked_the_same() -> None:
    due = [[robot.times_s for robot in fleet(name, 24).robots] for name in ("hybrid", "speculative")]
    assert due[0] == due[1]


@dataclass(slots=True)
class _Told(StrategyFleet):
    """Notes what its commits say of nodes."""

    floors: list[int] = field(default_factory=list)

    def _deliver(self, robot: Any, data: bytes) -> None:
        message = codec.decode(data)
        if isinstance(message, wire.WireCommit):
            self.floors.append(message.floor)
        super(_Told, self)._deliver(robot, data)


@pytest.mark.parametrize("robots", [1, 6])
def test_a_loaded_cloud_tells_its_edges_what_it_verifies_and_an_idle_one_says_nothing(robots: int) -> None:
    run = ask("hybrid", replace(LOAD, robots=robots), _Told)
    assert isinstance(run, _Told)
    assert len(run.floors) >= 2
    assert any(floor != UNTOLD for floor in run.floors) == (robots > 1)
