"""The settings of `vsd bench` and `vsd load`. Imports nothing heavy: options are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlm_spec_decode.core.config import check_ranges, described, same_as, setting
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import hardware_names, link_names
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy
from vlm_spec_decode.transport import address as addresses

CLOCKS = ("virtual", "wall")
MAX_ROBOTS = 2000
MAX_SECONDS = 3600.0
MAX_QUESTIONS = 1_000_000


def all_strategies() -> tuple[str, ...]:
    """Return the registered names, and `hybrid+`: `hybrid` with a copy of the draft in the cloud."""
    return (*STRATEGIES, "hybrid+")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What `vsd bench` runs. `answers` are decoded in each cell, of the same questions everywhere."""

    strategies: tuple[str, ...] = setting(
        (), "Default: all; hybrid+: draft in the cloud.", one_of=all_strategies
    )
    profiles: tuple[str, ...] = setting(("go2_a100",), "Of config/profiles.", one_of=hardware_names)
    links: tuple[str, ...] = setting(("go2_paper",), "Of config/links.", one_of=link_names)
    pairs: tuple[str, ...] = setting(
        ("shipped", "early47"), "shipped, earlyNN, oracle, synthetic:A or DRAFT+TARGET."
    )
    clocks: tuple[str, ...] = setting(("virtual",), "Time that is measured.", one_of=CLOCKS)
    answers: int = setting(8, "Answers in each cell.", 1)
    objective: str = same_as(EdgeSettings, "objective")
    temperature: float = same_as(EdgeSettings, "temperature")
    draft_length: int = setting(4, "Tokens drafted per round, by every strategy compared.", 1, 64)
    out: Path = setting(Path("out/bench"), "Folder; resumed.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotBehaviour:
    """How synthetic robots behave.

    A question for which a cloud has no room is refused at once and asked again later, unless the robot
    retries it for `busy_s`.
    """

    strategy: str = setting("speculative", "How edge and cloud decode.", one_of=STRATEGIES)
    acceptance: float = setting(0.8, "Probability that a drafted token is right.", 0, 1)
    draft_length: int = same_as(EdgeSettings, "draft_length")
    back_off_s: float = 0.2
    deadline_s: float = 60.0
    busy_s: float = -1.0

    @property
    def drafts(self) -> bool:
        """Whether the edge's half of the strategy drafts."""
        return strategy(self.strategy).drafts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How much load, and of what kind. `questions` in all, if given, end the run before `seconds` do."""

    cloud: str = field(metadata=described("tcp://127.0.0.1:PORT; loopback only."))
    robots: int = setting(8, "Synthetic robots.", 1, MAX_ROBOTS)
    seconds: float = setting(10.0, "Length of the run in seconds.", 0, MAX_SECONDS)
    keys: Path | None = setting(None, "Folder made by `vsd keys`.")
    questions: int | None = setting(None, "End after so many in all.", 1, MAX_QUESTIONS)
    behaviour: RobotBehaviour = field(default_factory=RobotBehaviour)
    seed: int = setting(0, "Seed of questions and drafts.")
    give_up_s: float = 10.0

    def __post_init__(self) -> None:
        """Check ranges and address. Raises ConfigError."""
        if not addresses.is_loopback(self.cloud):
            raise ConfigError(f"{self.cloud}: load is made on loopback addresses only")
        check_ranges(self)
        check_ranges(self.behaviour)
        if not self.seconds:
            raise ConfigError("0 seconds: more are needed")
