"""Links that go away for a moment, as Wi-Fi does when a robot walks from one access point to the next.

Profiles and links by name: YAML files of the `config` folder, in a checkout or as installed, or any path.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, from_mapping
from vlm_spec_decode.edge.virtual import VirtualVerifier
from vlm_spec_decode.transport.shaper import Shaper

Settings = TypeVar("Settings", HardwareProfile, LinkProfile)


@dataclass(frozen=True, slots=True)
class HandoverLink(LinkProfile):
    """A link on which nothing passes for `gap_s` every `gap_every_s`, in both directions."""

    gap_s: float = 0.0
    gap_every_s: float = 1.0

    def __post_init__(self) -> None:
        LinkProfile.__post_init__(self)
        if not 0 <= self.gap_s < self.gap_every_s:
            raise ConfigError(f"link profile out of range: {self}")


@dataclass(slots=True)
class GapShaper(Shaper):
    """A direction with gaps; what is sent in one waits for its end. The first begins after `phase_s`."""

    gap_s: float = 0.0
    gap_every_s: float = 1.0
    phase_s: float = 0.0

    def arrival(self, num_bytes: int, now_s: float) -> float:
        """Return the time at which a message of `num_bytes` sent at `now_s` arrives."""
        start_s = max(now_s, self._free_s)
        into_s = (start_s - self.phase_s) % self.gap_every_s
        if start_s >= self.phase_s and into_s < self.gap_s:
            start_s += self.gap_s - into_s
        return Shaper.arrival(self, num_bytes, start_s)


class LinkedVerifier(VirtualVerifier):
    """The virtual verifier on any link, one with gaps included."""

    __slots__ = ()

    def __post_init__(self) -> None:
        VirtualVerifier.__post_init__(self)
        link = self.link
        if isinstance(link, HandoverLink):
            phase_s = float(np.random.default_rng([self.seed, 2]).uniform(0, link.gap_every_s))
            gaps = partial(_with_gaps, gap_s=link.gap_s, gap_every_s=link.gap_every_s, phase_s=phase_s)
            self._up, self._down = gaps(self._up), gaps(self._down)


def _with_gaps(shaper: Shaper, gap_s: float, gap_every_s: float, phase_s: float) -> GapShaper:
    parts = (shaper.rate_bps, shaper.delay_s, shaper.jitter_s, shaper.loss, shaper.retransmit_s, shaper.rng)
    return GapShaper(*parts, gap_s=gap_s, gap_every_s=gap_every_s, phase_s=phase_s)


def config_folder(name: str) -> Path:
    """Return `config/NAME` of the checkout or of the installation."""
    package = Path(__file__).parents[1]
    places = (package.parent / "config", Path(sys.prefix) / "share" / package.name / "config")
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise ConfigError(f"no folder config/{name} beside the package nor in {places[1].parent}")


def load_hardware(name: str) -> HardwareProfile:
    """Return a hardware profile by name or path. Raises ConfigError."""
    return _load(HardwareProfile, "profiles", name)


def load_link(name: str) -> LinkProfile:
    """Return a link profile by name or path. Raises ConfigError."""
    return _load(LinkProfile, "links", name)


def _load(kind: type[Settings], folder: str, name: str) -> Settings:
    path = Path(name)
    if path.suffix != ".yaml":
        found = sorted(config_folder(folder).rglob(f"{name}.yaml"))
        if not found:
            known = sorted(p.stem for p in config_folder(folder).rglob("*.yaml"))
            raise ConfigError(f"no {folder[:-1]} {name!r}; known: {', '.join(known)}")
        path = found[0]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a mapping")
    has_gaps = kind is LinkProfile and "gap_s" in values
    chosen: type[Settings] = HandoverLink if has_gaps else kind  # type: ignore[assignment]
    return from_mapping(chosen, values, str(path))
