"""Links and hardware as numbers, and the one way to build a settings dataclass from a mapping."""

from __future__ import annotations

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
    into delay). Rates in Mbit/s; infinity for no limit.
    """

    name: str
    rtt_ms: float
    up_mbps: float = float("inf")
    down_mbps: float = float("inf")
    jitter_ms: float = 0.0
    loss: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if self.rtt_ms < 0 or min(self.up_mbps, self.down_mbps) <= 0 or not 0 <= self.loss < 1:
            raise ConfigError(f"link profile out of range: {self}")


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """Durations that a virtual clock charges, in milliseconds, each per forward pass.

    `draft_ms` drafts one token, `step_ms` is one target step, `verify_ms` one verification pass,
    `prefill_ms` a prompt; `node_fraction` is what each further node of a pass adds, as a part of it.
    """

    name: str
    draft_ms: float
    step_ms: float
    verify_ms: float
    prefill_ms: float
    node_fraction: float = 0.01
    batch_fraction: float = 0.03
    source: str = ""


def from_mapping(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Build a settings dataclass from a mapping. Raises ConfigError for unknown or missing keys."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where or kind.__name__}: unknown key {', '.join(map(repr, unknown))}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or kind.__name__}: {error}") from error
