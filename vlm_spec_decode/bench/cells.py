"""One cell of a comparison: what is decoded how, over which link, on which hardware; and its figures.

Profiles and links by name: YAML files of `config`, in a checkout or as installed, or any path.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import vlm_spec_decode
from vlm_spec_decode.bench.pairs import BenchPair
from vlm_spec_decode.bench.run import Outcome, RunSetup, decode
from vlm_spec_decode.bench.settings import CLOCKS
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.types import OBJECTIVES, Observation
from vlm_spec_decode.strategies.registry import strategy

BASELINE = "autoregressive"
MEASURED = "measured"
"""The profile of a cell in wall-clock time, in which durations are measured."""

_DECIDING = ("core", "decoding", "strategies", "edge", "protocol", "transport")
_DECIDING_HERE = ("cells", "pairs", "recorded", "recorder", "run", "synthetic", "wall_clock")
"""Packages, and modules of this one, whose source decides a cell's figures. Results of another version of
these sources are not reused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """`strategy` with a `+` has a copy of the draft in the cloud; `colocated` always has."""

    pair: str
    profile: str
    link: str
    strategy: str
    clock: str = "virtual"
    objective: str = "latency"
    temperature: float = 0.0
    draft_length: int = 4
    with_image: bool = True
    is_repeat: bool = False

    def __post_init__(self) -> None:
        strategy(self.name)
        if self.clock not in CLOCKS or self.objective not in OBJECTIVES:
            raise ConfigError(f"no such clock or objective: {self.clock!r}, {self.objective!r}")

    @property
    def name(self) -> str:
        """The strategy's own name."""
        return self.strategy.rstrip("+")

    @property
    def baseline(self) -> Cell:
        """The same, decoded by the cloud alone."""
        return replace(self, strategy=BASELINE, objective="latency", is_repeat=False)

    def setup(self, seed: int) -> RunSetup:
        """Return what one answer is decoded with."""
        has_colocated_draft = self.strategy.endswith("+") or strategy(self.name).needs_helper
        return RunSetup(
            strategy=self.name,
            hardware=load_hardware(self.profile),
            link=load_link(self.link),
            draft_length=self.draft_length,
            objective=self.objective,
            has_colocated_draft=has_colocated_draft,
            seed=seed,
            is_repeat=self.is_repeat,
        )


def answers_of(cell: Cell, pair: BenchPair) -> list[Outcome]:
    """Decode all questions of a pair in virtual time; each has its own seed for the link and for sampling."""
    found = []
    for seed, question in enumerate(pair.questions):
        params = replace(pair.params, temperature=cell.temperature, seed=seed)
        asked = question if cell.with_image else without_image(question)
        found.append(decode(cell.setup(seed), pair.draft, pair.target, asked, params, pair.codec))
    return found


def without_image(question: Observation) -> Observation:
    """Return the question without its image, for a link that is not charged for it."""
    return replace(question, image=None)


def row_of(cell: Cell, outcomes: Seq[Outcome]) -> dict[str, Any]:
    """Return a cell's entry of the results: every answer; of the first, timeline and each round's why."""
    answers = []
    for outcome in outcomes:
        row = {k: v for k, v in asdict(outcome).items() if k not in {"tokens", "events", "why"}}
        answer_digest = hashlib.sha256(repr(outcome.tokens).encode()).hexdigest()[:16]
        answers.append(row | {"tokens": len(outcome.tokens), "said": answer_digest})
    timeline = [[m.what, round(m.start_s, 4), round(m.end_s, 4), m.size] for m in outcomes[0].events]
    return {
        "cell": asdict(cell),
        "answers": answers,
        "timeline": timeline,
        "why": [*outcomes[0].why] if any(outcomes[0].why) else [],
    }


def summary(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Return a cell's medians, ratios answer by answer. Raises ConfigError if the answers differ."""
    mine, plain = row["answers"], baseline["answers"]
    if row["cell"]["clock"] == "virtual" and [a["said"] for a in mine] != [a["said"] for a in plain]:
        raise ConfigError(f"{row['cell']} says something else than {BASELINE}")
    both = list(zip(plain, mine, strict=True))
    lookups = sum(a["lookups"] for a in mine)
    drafted = sum(a["drafted"] for a in mine)
    found: dict[str, Any] = {
        "speed_up": statistics.median(p["total_s"] / a["total_s"] for p, a in both),
        "speed_up_first_action": _median(
            [p["first_action_s"] / a["first_action_s"] for p, a in both if a["first_action_s"]]
        ),
        "pass_ratio": statistics.median(a["passes"] / p["passes"] for p, a in both),
        "gpu_ratio": statistics.median(a["gpu_s"] / p["gpu_s"] if p["gpu_s"] else 0.0 for p, a in both),
        "accepted": sum(a["accepted"] for a in mine) / drafted if drafted else 0.0,
        "hit_rate": sum(a["hits"] for a in mine) / lookups if lookups else 0.0,
    }
    plain_medians = ("total_s", "first_token_s", "passes", "up_bytes", "down_bytes", "gpu_s", "tokens")
    found |= {name: statistics.median(a[name] for a in mine) for name in plain_medians}
    return found | {"first_action_s": _median([a["first_action_s"] for a in mine if a["first_action_s"]])}


def key_of(cell: Cell, pair_about: str, answers: int, sources: str) -> str:
    """Return what a result is filed under: everything that it depends on."""
    parts: list[Any] = [asdict(cell), pair_about, answers, sources]
    if cell.clock == "virtual":
        parts += [asdict(load_hardware(cell.profile)), asdict(load_link(cell.link))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def sources_digest() -> str:
    """Return a hash of the code that decides what a cell measures."""
    package, digest = Path(vlm_spec_decode.__file__).parent, hashlib.sha256()
    paths = [path for folder in _DECIDING for path in sorted((package / folder).rglob("*.py"))]
    for path in [*paths, *(package / "bench" / f"{name}.py" for name in _DECIDING_HERE)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
