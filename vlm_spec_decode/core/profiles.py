"""Links and hardware as numbers. Those of config/links and config/profiles are known by name."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vlm_spec_decode.core.config import described, from_mapping, read_mapping, setting
from vlm_spec_decode.core.errors import ConfigError

BODIES = ("kinematic", "physical")
"""How a simulated robot moves: exactly and fast, or by torques and gravity."""

Profile = TypeVar("Profile", "LinkProfile", "HardwareProfile")


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """A network link as one direction at a time sees it.

    A reliable transport turns `loss` into delay. During a gap nothing passes in either direction, as when a
    robot walks from one access point to the next.
    """

    name: str = field(metadata=described("Name of the profile."))
    rtt_ms: float = field(metadata=described("Round trip, half of it in each direction."))
    up_mbps: float = setting(float("inf"), "Rate towards the cloud; inf: no limit.")
    down_mbps: float = setting(float("inf"), "Rate towards the robot; inf: no limit.")
    jitter_ms: float = setting(0.0, "Standard deviation of the delay of a message in one direction.")
    loss: float = setting(0.0, "Probability that a message needs one retransmission.")
    source: str = setting("", "Where the numbers are from.")
    gap_s: float = setting(0.0, "How long nothing passes during a gap.")
    gap_every_s: float = setting(1.0, "From the beginning of a gap to that of the next.")

    def __post_init__(self) -> None:
        is_sane = self.rtt_ms >= 0 and min(self.up_mbps, self.down_mbps) > 0 and 0 <= self.loss < 1
        if not is_sane or not 0 <= self.gap_s < self.gap_every_s:
            raise ConfigError(f"link profile out of range: {self}")


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """Durations that a virtual clock charges, each per forward pass."""

    name: str = field(metadata=described("Name of the profile."))
    draft_ms: float = field(metadata=described("One drafted token on the edge."))
    step_ms: float = field(metadata=described("One step of the target."))
    verify_ms: float = field(metadata=described("One verification pass."))
    prefill_ms: float = field(metadata=described("The first pass, prompt included."))
    cloud_draft_ms: float = field(
        metadata=described("One token drafted by a copy of the draft beside the target, on its GPU.")
    )
    node_fraction: float = setting(0.01, "What each node past `free_nodes` adds to a pass, as a share of it.")
    free_nodes: int = setting(4, "Nodes of a pass that cost nothing more.")
    batch_fraction: float = setting(0.03, "What each further row of a draft batch adds to a draft step.")
    draft_prefill_ms: float = setting(0.0, "The draft's first pass on the edge, beside its steps.")
    exit_fraction: float = setting(0.01, "What each early exit that a pass is asked for adds to it.")
    source: str = setting("", "Where the numbers are from.")

    def __post_init__(self) -> None:
        times = (self.draft_ms, self.step_ms, self.verify_ms, self.prefill_ms, self.cloud_draft_ms)
        more = (self.node_fraction, self.batch_fraction, self.draft_prefill_ms, self.exit_fraction)
        if min(times) <= 0 or min(more) < 0:
            raise ConfigError(f"hardware profile out of range: {self}")

    def draft_s(self, rows: int, is_first: bool = False) -> float:
        """Return the time of a draft step on the edge over `rows` new rows; `is_first` fills the prompt."""
        step_ms = self.draft_ms * (1 + self.batch_fraction * (rows - 1)) if rows else 0.0
        return (step_ms + (self.draft_prefill_ms if is_first else 0.0)) / 1000

    def cloud_draft_s(self, rows: int) -> float:
        """Return the time of a draft step beside the target over `rows` new rows."""
        return self.cloud_draft_ms * (1 + self.batch_fraction * (rows - 1)) / 1000 if rows else 0.0

    def pass_s(self, nodes: int, is_first: bool = False, exits: int = 0) -> float:
        """Return the time of a target pass over `nodes` drafted nodes with `exits` early verdicts on the way;
        `is_first` fills the prompt."""
        base_ms = self.prefill_ms if is_first else self.verify_ms if nodes else self.step_ms
        extra = self.node_fraction * max(0, nodes - self.free_nodes) + self.exit_fraction * exits
        return base_ms * (1 + extra) / 1000

    def shared_pass_s(self, nodes: int, answers: int, fills: int = 0, exits: int = 0) -> float:
        """Return the time of a pass that several answers share, over `nodes` drafted nodes in all.

        The weights are read once for all rows, so it is one pass over the sum of the nodes, and one row more
        for each further answer. Only arithmetic is added by prompts: each of `fills` adds what the first pass
        takes beyond a later one.
        """
        alone_s = self.pass_s(nodes + answers - 1, fills > 0, exits)
        prompt_s = max(0.0, self.prefill_ms - self.verify_ms) / 1000
        return alone_s + max(0, fills - 1) * prompt_s


def link_names() -> tuple[str, ...]:
    """Return the names of the link profiles of config/links."""
    return _names("links")


def hardware_names() -> tuple[str, ...]:
    """Return the names of the hardware profiles of config/profiles."""
    return _names("profiles")


def load_link(name: str) -> LinkProfile:
    """Return a link profile by name or by the path of its YAML file. Raises ConfigError."""
    return _load(LinkProfile, "links", name)


def load_hardware(name: str) -> HardwareProfile:
    """Return a hardware profile by name or by the path of its YAML file. Raises ConfigError."""
    return _load(HardwareProfile, "profiles", name)


def config_folder(name: str) -> Path:
    """Return `config/NAME` of the checkout or of the installation. Raises ConfigError if it is not there."""
    package = Path(__file__).parents[1]
    folders = (package.parent / "config", Path(sys.prefix) / "share" / package.name / "config")
    for folder in folders:
        if (folder / name).is_dir():
            return folder / name
    raise ConfigError(f"no folder config/{name} beside the package nor in {folders[1].parent}")


def _names(folder: str) -> tuple[str, ...]:
    """Return the names for people; those of subfolders are for benchmarks. Without a folder: none."""
    try:
        return tuple(sorted(path.stem for path in config_folder(folder).glob("*.yaml")))
    except ConfigError:
        return ()


def _load(kind: type[Profile], folder: str, name: str) -> Profile:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        found = sorted(config_folder(folder).rglob(f"{name}.yaml"))
        if not found:
            raise ConfigError(f"no {folder[:-1]} {name!r}; known: {', '.join(_names(folder))}")
        path = found[0]
    # A file without a name is called by its file name.
    return from_mapping(kind, {"name": path.stem, **read_mapping(path)}, str(path))
