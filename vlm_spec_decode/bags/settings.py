"""The settings of `vsd replay` and `vsd record`. Imports neither ROS nor readers of bags nor models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vlm_spec_decode.core.config import ASSETS, described, same_as, setting, settings_of
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.profiles import hardware_names, link_names
from vlm_spec_decode.core.types import RULES
from vlm_spec_decode.edge.settings import EdgeSettings

STRATEGY = settings_of(EdgeSettings)["strategy"]

SAMPLE = ASSETS / "sample_bag"
"""The bag that ships with the package."""

DEFAULT_TOPICS = (
    *("*/vlm/*", "*/e_stop/*", "*/camera/*", "*/odom", "*/tf", "*/tf_static", "*/diagnostics"),
    "*/cmd_vel*",
)
"""Topics recorded by default: patterns of whole names, in any namespace."""

STORAGES = ("mcap", "sqlite3")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """All settings of `vsd replay`. None for `rule`, `temperature` and `seed` means the recorded value."""

    instruction: str = setting("", "Ask this about every frame, whatever was said in the bag.")
    instructions: Path | None = setting(None, "CSV (time_s,instruction[,actions]) or YAML list of the same.")
    image_topic: str = setting("", "Default: the first camera topic found by type.")
    instruction_topic: str = setting("", "Default: one whose name ends in vlm/instruction.")
    motion_topic: str = setting("", "Default: the first Odometry, TwistStamped or Twist.")
    every_s: float = setting(1.0, "Seconds between frames.", 0)
    horizon_s: float = setting(2.0, "Seconds of motion to compare with.")
    limit: int = setting(0, "Questions per bag; 0: all.", 0)
    strategies: tuple[str, ...] = setting(
        (STRATEGY.default,), "How edge and cloud decode; may be repeated.", one_of=STRATEGY.one_of
    )
    links: tuple[str, ...] = setting(
        ("wifi",), "Link profile, a name or a YAML file; may be repeated.", one_of=link_names
    )
    profiles: tuple[str, ...] = setting(
        ("go2_a100",), "Hardware profile, a name or a YAML file; may be repeated.", one_of=hardware_names
    )
    rule: str | None = setting(None, "Default: as recorded, or coupled.", one_of=RULES)
    target: str = same_as(EdgeSettings, "target")
    draft: str = same_as(EdgeSettings, "draft")
    temperature: float | None = setting(None, "Default: as recorded, or 0, which is greedy.", 0)
    seed: int | None = setting(None, "Default: as recorded, or 0.")
    deadline_s: float = setting(3.0, "Seconds after which an answer is late.")
    price_per_gpu_s: float = setting(0.001, "Price of a GPU-second.")
    jobs: int = setting(0, "Processes; 0: one for each core.", 0)
    ray_address: str = setting("", "Work on this Ray cluster: HOST:PORT, or auto for one here.")
    out: Path = setting(Path("out/replay"), "Folder of results.")
    compare: Path | None = setting(None, "Results of an earlier replay to compare this one with.")


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """Settings of `vsd record`: folder, topics and duration."""

    out: Path = field(metadata=described("Folder of the new bag."))
    domain: int = setting(0, "ROS domain; default: ROS_DOMAIN_ID, else 0.", 0, MAX_DOMAIN)
    topics: tuple[str, ...] = setting(DEFAULT_TOPICS, "Name or pattern such as '*/image*'; may be repeated.")
    storage: str = setting("mcap", "Format of the bag.", one_of=STORAGES)
    duration_s: float = setting(0.0, "Seconds; 0: until Ctrl-C.", 0)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Messages per topic in the bag, and those known to be missing."""

    counts: dict[str, int]
    missed: dict[str, int] = field(default_factory=dict)
