"""Link profiles and what the shaper makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm_spec_decode.core.config import from_mapping
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import LinkProfile, load_link
from vlm_spec_decode.transport.emulation import OVERHEAD_BYTES, EmulatedDirection, emulated_directions

FOLDER = Path(__file__).parents[2] / "config" / "links"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_profile_loads_and_names_its_source(path: Path) -> None:
    profile = load_link(str(path))
    assert profile.name == path.stem
    assert profile.source


def test_there_are_profiles() -> None:
    assert {"wifi", "lte", "5g", "go2_paper"} <= {path.stem for path in FILES}


def test_unknown_keys_and_impossible_values_are_named() -> None:
    with pytest.raises(ConfigError, match="'speed'"):
        from_mapping(LinkProfile, {"name": "x", "rtt_ms": 1, "speed": 2})
    with pytest.raises(ConfigError, match="out of range"):
        LinkProfile("x", rtt_ms=-1)
    with pytest.raises(ConfigError, match="out of range"):
        LinkProfile("x", rtt_ms=10, gap_s=2.0, gap_every_s=1.0)
    with pytest.raises(ConfigError, match="rtt_ms"):
        from_mapping(LinkProfile, {"name": "x"})


def test_messages_serialise_and_never_overtake() -> None:
    up, down = emulated_directions(LinkProfile("x", rtt_ms=100, up_mbps=1.0, jitter_ms=20, loss=0.2), seed=1)
    size = 1000 - OVERHEAD_BYTES
    arrivals = [up.arrival(size, 0.0) for _ in range(200)]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] >= 200 * 0.008 + 0.05
    assert down.arrival(10**6, 0.0) < 1.0, "no limit on this direction's rate"


def test_a_quiet_link_is_half_the_round_trip_each_way() -> None:
    up, _ = emulated_directions(LinkProfile("x", rtt_ms=100), seed=1)
    assert up.arrival(50, 3.0) == pytest.approx(3.05)


def test_the_same_seed_is_the_same_link() -> None:
    profile = LinkProfile("x", rtt_ms=50, up_mbps=5, jitter_ms=10, loss=0.1)
    first, second = emulated_directions(profile, 7)[0], emulated_directions(profile, 7)[0]
    assert [first.arrival(99, t) for t in range(50)] == [second.arrival(99, t) for t in range(50)]


def test_nothing_passes_in_a_gap() -> None:
    rng = np.random.default_rng(0)
    shaper = EmulatedDirection(
        rate_bps=8e6,
        delay_s=0.01,
        jitter_s=0.0,
        loss=0.0,
        retransmit_s=0.2,
        rng=rng,
        gap_s=0.4,
        gap_every_s=4.0,
        phase_s=1.0,
    )
    assert shaper.arrival(910, 0.5) == pytest.approx(0.5 + 0.001 + 0.01)
    assert shaper.arrival(910, 1.1) == pytest.approx(1.4 + 0.001 + 0.01)
    assert shaper.arrival(910, 1.2) == pytest.approx(1.4 + 0.002 + 0.01)
    assert shaper.arrival(910, 3.0) == pytest.approx(3.0 + 0.001 + 0.01)
    assert shaper.arrival(910, 5.0) == pytest.approx(5.4 + 0.001 + 0.01)


def test_both_directions_are_gone_at_the_same_time() -> None:
    """What takes longer than the way is the gap: the same sendings wait in both directions."""
    up, down = emulated_directions(LinkProfile("x", rtt_ms=10, gap_s=0.4, gap_every_s=4.0), seed=3)
    times = [0.1 * step for step in range(100)]
    waits = [[t for t in times if way.arrival(99, t) > t + 0.006] for way in (up, down)]
    assert waits[0] == waits[1]
    assert 6 <= len(waits[0]) <= 14
