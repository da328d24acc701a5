"""The queue behind docs/capacity.md: what must hold of it, and that the page is what was simulated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lib.capacity import AnswerShape, Demand, most_robots, serve
from benchmarks.lib.fleet import BatchCost
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile

ROOT = Path(__file__).parents[2]
HARDWARE = HardwareProfile("test", draft_ms=20, step_ms=90, verify_ms=100, prefill_ms=150, cloud_draft_ms=9)
LINK = LinkProfile("test", rtt_ms=20)
WAITS = AnswerShape("speculative", 5, 4, 4)
GOES_ON = AnswerShape("hybrid", 4, 4)


@pytest.mark.parametrize("shape", [WAITS, GOES_ON])
def test_one_robot_alone_takes_what_can_be_reckoned(shape: AnswerShape) -> None:
    expected_s = {WAITS: 0.02 + 0.15 + 4 * (0.1 + 0.02 + 0.08), GOES_ON: 0.02 + 0.15 + 3 * 0.1}[shape]
    served = serve(shape, HARDWARE, LINK, Demand(robots=1, think_s=5.0, answers=200))
    assert shape.alone_s(HARDWARE, LINK) == pytest.approx(expected_s)
    assert served.p50_s == pytest.approx(expected_s)
    assert served.p99_s == pytest.approx(expected_s)
    assert served.answers_per_s == pytest.approx(1 / (expected_s + 5), rel=0.15)
    assert served.mean_batch == 1


def test_a_full_gpu_gives_what_the_curve_allows() -> None:
    served = serve(GOES_ON, HARDWARE, LINK, Demand(robots=500, think_s=0.1, answers=4000, fills=32))
    passes_s = (0.15 + 3 * 0.1) * BatchCost(HARDWARE).factor_of(32)
    assert served.busy == pytest.approx(1, abs=0.02)
    assert served.mean_batch == pytest.approx(32, rel=0.03)
    assert served.answers_per_s < 32 / passes_s * 1.2


def test_more_robots_wait_longer_and_the_most_is_the_most() -> None:
    waits_s = [
        serve(GOES_ON, HARDWARE, LINK, Demand(robots=n, think_s=5.0, answers=1500)).p99_s
        for n in (1, 8, 32, 128)
    ]
    assert waits_s == sorted(waits_s)
    robots, served = most_robots(GOES_ON, HARDWARE, LINK, 5.0, 2.0)
    limit_s = 2 * GOES_ON.alone_s(HARDWARE, LINK)
    assert robots > 1
    assert served.p99_s <= limit_s
    assert serve(GOES_ON, HARDWARE, LINK, Demand(robots=robots * 2, think_s=5.0)).p99_s > limit_s


def test_the_page_is_what_was_simulated() -> None:
    done = subprocess.run([sys.executable, "benchmarks/capacity.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python benchmarks/capacity.py"
