"""benchmarks/bodies.py in small: what it measures is there, and its table holds every figure."""

from __future__ import annotations

import random
from dataclasses import asdict
from types import ModuleType

import pytest

from test.benchmark_module import benchmark
from test.physical_body import needs_physical_body


@pytest.fixture(scope="module", name="bodies")
def _bodies() -> ModuleType:
    return benchmark("bodies")


@pytest.mark.sim
def test_every_figure_of_a_body_is_measured_and_in_the_table(bodies: ModuleType) -> None:
    found = bodies.measure(["kinematic"], 1)
    assert all(figure.holds for figure in found), found
    tables = benchmark("bodies_tables")
    assert {figure.name.removeprefix("kinematic_") for figure in found} == set(tables.MEANINGS)
    document = {"figures": [asdict(figure) | {"holds": figure.holds} for figure in found]}
    assert tables.bodies_table(document).count("\n") == 1 + len(tables.MEANINGS)


@needs_physical_body
@pytest.mark.sim
def test_the_physical_body_needs_time_and_room_to_brake(bodies: ModuleType) -> None:
    time_s, way_m, far_m = bodies.braking("physical", 1, 0.5, random.Random(3))
    assert 0.1 < time_s < 1.5
    assert 0.01 < way_m <= far_m < 0.3
