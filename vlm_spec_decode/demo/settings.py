"""The settings of `vsd demo`. Imports nothing heavy: the command's options are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.core.config import same_as, setting
from vlm_spec_decode.core.profiles import BODIES, hardware_names, link_names
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.strategies.registry import STRATEGIES


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """All settings of `vsd demo`."""

    instruction: str | None = setting(None, "What to do; default: walk to what stands ahead.")
    scene_seed: int | None = setting(None, "Seed of a random room; default: one that training has not seen.")
    scene: Path | None = setting(None, "YAML file of a room.")
    body: str = setting(BODIES[0], "How the robot moves.", one_of=BODIES)
    strategy: str = same_as(EdgeSettings, "strategy")
    rule: str = same_as(EdgeSettings, "rule")
    objective: str = same_as(EdgeSettings, "objective")
    link: str = setting(
        "", "Link profile to emulate between robot and cloud: a name or a YAML file.", one_of=link_names
    )
    profile: str = setting(
        "",
        "Hardware profile that edge and cloud keep to in wall-clock time: a name or a YAML file.",
        one_of=hardware_names,
    )
    compare: tuple[str, ...] = setting(
        (),
        "Strategy that carries out the same mission again, to be shown beside it; may be repeated.",
        one_of=STRATEGIES,
    )
    seed: int = setting(0, "Seed of sampling and of the robot's noise.")
    out: Path = setting(Path("out/demo"), "Folder of pictures and bag.")
    timeout_s: float = setting(120.0, "Time that the mission may take; five times as long with a profile.")
