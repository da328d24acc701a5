"""The price of the GPU's time: what it is when idle, how it grows with load, and what passes cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.decoding.price import FREE, PassTimes, Price, others_of, urgency

SECONDS = st.floats(1e-4, 10)


def price(others: float) -> Price:
    return Price(others=others, pass_s=0.1, answer_s=0.01, node_s=0.001)


def test_one_answer_alone_holds_nobody_up() -> None:
    for urge in (1.0, 0.3, 0.1):
        assert others_of([urge]) == [0.0], "and not what rounding leaves"
    assert others_of([]) == []
    assert FREE.is_free
    assert FREE.wait_weight == price(0.0).wait_weight == 1.0
    assert price(0.0).token_s(0.07, 3.0) == 0.07


@given(st.lists(st.floats(0.2, 1), min_size=2, max_size=40))
def test_who_has_less_time_to_spare_pays_less(urgencies: list[float]) -> None:
    others = others_of(urgencies)
    order = sorted(range(len(urgencies)), key=lambda i: urgencies[i])
    assert all(others[a] >= others[b] - 1e-9 for a, b in itertools.pairwise(order))
    assert min(others) >= 0
    more = others_of([*urgencies, 0.5])
    assert all(new > old for new, old in zip(more, others, strict=False)), "another one holds up all"


@given(st.floats(0, 500), st.floats(0.01, 50), st.floats(1, 8))
def test_all_is_monotone_in_load(others: float, more: float, tokens: float) -> None:
    low, high = price(others), price(others + more)
    own_s = 0.1 / tokens  # a pass of 0.1 s brings so many tokens
    assert high.node_floor(own_s, tokens) >= low.node_floor(own_s, tokens) * (1 - 1e-9)
    assert high.token_s(own_s, tokens) > low.token_s(own_s, tokens)
    assert 0 < high.wait_weight < low.wait_weight <= 1


@given(st.floats(1, 8))
def test_under_full_load_a_node_must_bring_what_a_pass_brings_for_the_same_time(tokens: float) -> None:
    """P / s >= E / a, whatever the answer itself takes: the same tokens per GPU second for all robots."""
    loaded = price(1e12)
    for own_s in (0.001, 0.1, 3.0):
        assert loaded.node_floor(own_s, tokens) == pytest.approx(0.001 * tokens / 0.01, rel=1e-6)


@given(SECONDS, SECONDS, SECONDS)
def test_urgency_grows_as_time_runs_out(work_s: float, left_s: float, less_s: float) -> None:
    assert 0 < urgency(work_s, left_s) <= urgency(work_s, left_s - less_s) <= 1.0
    assert urgency(work_s, None) == 1.0, "without a deadline every second counts"


@pytest.mark.parametrize(("answer", "node"), [(0.13, 0.01), (0.0, 0.01), (0.05, 0.0)])
def test_passes_are_learned_as_they_are(answer: float, node: float) -> None:
    times, rng = PassTimes(), np.random.default_rng(3)
    for _ in range(400):
        answers, nodes = int(rng.integers(1, 33)), int(rng.integers(0, 200))
        times.learn(answers, nodes, 0.1 * (1 + answer * (answers - 1) + node * nodes))
    assert times.base_s == pytest.approx(0.1, rel=0.05)
    assert times.answer_s == pytest.approx(0.1 * answer, rel=0.05, abs=2e-4)
    assert times.node_s == pytest.approx(0.1 * node, rel=0.05, abs=2e-5)
    assert times.seconds(9, 20) == pytest.approx(0.1 * (1 + 8 * answer + 20 * node), rel=0.03)


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(0, 500), SECONDS), min_size=1, max_size=60))
def test_no_history_makes_rows_free_of_charge_or_passes_of_no_time(
    passes: list[tuple[int, int, float]],
) -> None:
    times = PassTimes()
    assert times.seconds(5, 5) == 0.0
    for each in passes:
        times.learn(*each)
        assert times.base_s > 0
        assert min(times.answer_s, times.node_s) >= 0


def test_passes_that_are_all_alike_leave_the_usual_figures() -> None:
    times = PassTimes()
    for _ in range(1000):
        times.learn(5, 10, 0.2)
    assert times.seconds(5, 10) == pytest.approx(0.2, rel=0.02)
    assert 0 < times.node_s < 0.01 * 0.2
