"""Links and hardware as numbers, and the one way to build a settings dataclass from a mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from vlm_spec_decode.core.errors import ConfigError

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """A network link as one direction at a time sees it.

    `rtt_ms` is split evenly; `jitter_ms` is the standard deviation added per message and direction;
    `loss` is the probability that a message needs one retransmission (a reliable transport turns loss
    into delay). Rates in Mbit/s; infinity for no limit. Every `gap_every_s` nothing passes for `gap_s` in
    either direction, as when a robot walks from one access point to the next.
    """

    name: str
    rtt_ms: float
    up_mbps: float = float("inf")
    down_mbps: float = float("inf")
    jitter_ms: float = 0.0
    loss: float = 0.0
    source: str = ""
    gap_s: float = 0.0
    gap_every_s: float = 1.0

    def __post_init__(self) -> None:
        is_sane = self.rtt_ms >= 0 and min(self.up_mbps, self.down_mbps) > 0 and 0 <= self.loss < 1
        if not is_sane or not 0 <= self.gap_s < self.gap_every_s:
            raise ConfigError(f"link profile out of range: {self}")


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """Durations that a virtual clock charges, in milliseconds, each per forward pass.

    `draft_ms` drafts one token on the edge, `step_ms` is one target step, `verify_ms` one verification
    pass, `prefill_ms` the first pass, prompt included. Each node of a pass past `free_nodes` adds
    `node_fraction` of it, each further row of a draft batch `batch_fraction` of a draft step.
    Each early exit that a pass is asked for adds `exit_fraction` of it. `cloud_draft_ms` drafts one token
    with a copy of the draft beside the target, on the target's GPU.
    """

    name: str
    draft_ms: float
    step_ms: float
    verify_ms: float
    prefill_ms: float
    cloud_draft_ms: float
    node_fraction: float = 0.01
    free_nodes: int = 4
    batch_fraction: float = 0.03
    draft_prefill_ms: float = 0.0
    exit_fraction: float = 0.01
    source: str = ""

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


def from_mapping(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Build a settings dataclass from a mapping. Raises ConfigError for unknown or missing keys."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise ConfigError(f"{where or kind.__name__}: unknown key {', '.join(map(repr, unknown))}")
    for f in fields(kind):  # type: ignore[arg-type]
        value = values.get(f.name, 0.0)
        # Whole numbers will do; a number in quotes, a yes or no, a list and NaN will not.
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        if f.type == "float" and not is_number:
            raise ConfigError(f"{where or kind.__name__}: {f.name}: a number is wanted, not {value!r}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or kind.__name__}: {error}") from error
