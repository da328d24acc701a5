"""Bytes, overhead, assisted generation and the reckoned baselines: that what is measured is what is said."""

from __future__ import annotations

import pytest

from benchmarks.lib.frames import uplink_per_round
from benchmarks.lib.hf_baseline import compare_with_assisted
from benchmarks.lib.overhead import TOKENS, overhead
from benchmarks.lib.papers import GO2, REPORTED, reckoned
from vlm_spec_decode.core.profiles import LinkProfile, load_hardware, load_link
from vlm_spec_decode.transport.emulation import OVERHEAD_BYTES


def test_a_round_of_four_ids_is_small_and_q_costs_what_it_weighs() -> None:
    ids, q, short = (uplink_per_round(*how) for how in (("coupled",), ("rejection",), ("rejection", "cloud")))
    assert 4 * 2 < ids.frames <= ids.largest <= 24
    assert ids.on_the_wire == ids.frames + OVERHEAD_BYTES
    assert ids.frames + 4 * 2 <= q.frames <= q.largest <= 60
    assert short.frames > ids.frames
    assert ids.rounds > 100


@pytest.mark.net
@pytest.mark.timeout(300)
def test_overhead_is_measured_on_every_round_but_those_that_warm_up() -> None:
    found = overhead()
    assert len(found.rounds_s) > TOKENS / 2
    assert found.rounds_s == sorted(found.rounds_s)
    assert 0 < found.rounds_s[0] <= found.p50_ms / 1000
    assert 0 < found.edge_cpu_s < 0.1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_assisted_generation_says_what_colocated_says() -> None:
    found = compare_with_assisted(1)
    assert found.same_tokens
    assert found.tokens > 5
    assert found.ratio == pytest.approx(found.ours / found.assisted)


def test_reckoned_baselines_follow_their_sums() -> None:
    hardware, link = load_hardware(GO2.profile), LinkProfile("free", 0)
    step_s, round_s = 0.620, 0.288 + 0.620
    tokens = sum(GO2.acceptance**k for k in range(5))
    assert reckoned("split", hardware, link, GO2) == 1
    assert reckoned("vanilla", hardware, link, GO2) == pytest.approx(tokens * step_s / round_s)
    assert reckoned("dssd", hardware, link, GO2) == reckoned("vanilla", hardware, link, GO2)
    slow = LinkProfile("slow", 0, 1.0, 1.0)
    ways = [reckoned(system, hardware, slow, GO2) for system in ("vanilla", "dssd", "split")]
    assert ways == sorted(ways)
    with pytest.raises(ValueError, match="no baseline"):
        reckoned("magic", hardware, link, GO2)


def test_every_reported_figure_has_a_setting_that_exists() -> None:
    for row in REPORTED:
        assert load_hardware(row.at.profile)
        assert load_link(row.at.link)
        assert row.value > 0
