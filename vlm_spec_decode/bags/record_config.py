"""Settings and result of `vsd record`. Imports neither ROS nor readers of bags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

OURS = (
    *("*/vlm/*", "*/e_stop/*", "*/camera/*", "*/odom", "*/tf", "*/tf_static", "*/diagnostics"),
    "*/cmd_vel*",
)
"""What is recorded unless `--topic` says otherwise: patterns of whole names, in any namespace."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """Where to, what, and for how long (0: until interrupted)."""

    out: Path
    domain: int = 0
    topics: tuple[str, ...] = OURS
    storage: str = "mcap"
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """Messages per topic that are in the bag, and those that are known to have been missed."""

    counts: dict[str, int]
    missed: dict[str, int] = field(default_factory=dict)
