"""Pairs of missions over DDS: what the benchmark makes of their rows."""

from __future__ import annotations

from types import ModuleType

import pytest

from test.benchmark_module import benchmark

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def missions() -> ModuleType:
    return benchmark("robot_missions")


def row(total_s: float, waited_s: float, **other: object) -> dict[str, object]:
    usual = {"status": "done", "reached": True, "kind": "go to", "slower_than_profile": 0, "load": 1.5}
    return {"total_s": total_s, "waited_s": waited_s} | usual | other


def test_the_ratio_is_that_of_the_sums(missions: ModuleType) -> None:
    present = [row(30.0, 20.0), row(10.0, 5.0, kind="face", reached=False)]
    default = [row(20.0, 8.0, slower_than_profile=2), row(10.0, 2.0, status="refused", reached=False)]
    (figure,) = missions.figures(present, default)
    assert (figure.name, figure.value, figure.bar, figure.holds) == ("missions_time_ratio", 0.75, 0.8, True)
    assert "30 s of 40 s" in figure.note
    assert "waiting 0.40" in figure.note
    assert "done 2 and 1" in figure.note
    assert "1 and 1 of 1 reached" in figure.note
    assert "1 of 4 slower" in figure.note
    (worse,) = missions.figures(default, present)
    assert not worse.holds
