"""Profiles and links: all load, each names its source, and a handover stops what is sent into it."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_spec_decode.bench.links import GapShaper, HandoverLink, config_folder, load_hardware, load_link
from vlm_spec_decode.core.errors import ConfigError

LINKS = sorted(p.stem for p in config_folder("links").rglob("*.yaml"))
PROFILES = sorted(p.stem for p in config_folder("profiles").rglob("*.yaml"))


@pytest.mark.parametrize("name", LINKS)
def test_every_link_loads_and_names_its_source(name: str) -> None:
    link = load_link(name)
    assert link.name == name
    assert len(link.source) > 20


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads_and_names_its_source(name: str) -> None:
    profile = load_hardware(name)
    assert profile.name == name
    assert len(profile.source) > 20


def test_the_grid_is_whole() -> None:
    wanted = {f"rtt{r}_up{u}" for r in (5, 20, 50, 100, 200) for u in ("0.05", "1", "20", "100")}
    assert wanted <= set(LINKS)


def test_nothing_passes_in_a_gap() -> None:
    rng = np.random.default_rng(0)
    shaper = GapShaper(8e6, 0.01, 0.0, 0.0, 0.2, rng, gap_s=0.4, gap_every_s=4.0, phase_s=1.0)
    assert shaper.arrival(910, 0.5) == pytest.approx(0.5 + 0.001 + 0.01)
    assert shaper.arrival(910, 1.1) == pytest.approx(1.4 + 0.001 + 0.01)
    assert shaper.arrival(910, 1.2) == pytest.approx(1.4 + 0.002 + 0.01)
    assert shaper.arrival(910, 3.0) == pytest.approx(3.0 + 0.001 + 0.01)
    assert shaper.arrival(910, 5.0) == pytest.approx(5.4 + 0.001 + 0.01)


def test_a_gap_longer_than_its_period_and_unknown_names_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError):
        HandoverLink("x", 10, gap_s=2.0, gap_every_s=1.0)
    with pytest.raises(ConfigError, match="known: "):
        load_link("no_such_link")
    (tmp_path / "broken.yaml").write_text("- 1")
    with pytest.raises(ConfigError):
        load_hardware(str(tmp_path / "broken.yaml"))
