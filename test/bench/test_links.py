"""Profiles and links: all load, and each names its source."""

from __future__ import annotations

import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import config_folder, load_hardware, load_link

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


def test_there_are_profiles_of_todays_hardware_beside_the_papers() -> None:
    today = [load_hardware(name) for name in PROFILES if name.startswith("orin_nano")]
    assert len(today) >= 4
    assert all(profile.source.startswith("2026: ") and "assumed" in profile.source for profile in today)
    assert all(profile.draft_ms < 20 for profile in today), "a 2B draft of 60 tokens/s"


def test_the_grid_is_whole() -> None:
    wanted = {f"rtt{r}_up{u}" for r in (5, 20, 50, 100, 200) for u in ("0.05", "1", "20", "100")}
    assert wanted <= set(LINKS)


def test_unknown_names_and_broken_files_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="known: "):
        load_link("no_such_link")
    (tmp_path / "broken.yaml").write_text("- 1")
    with pytest.raises(ConfigError):
        load_hardware(str(tmp_path / "broken.yaml"))
