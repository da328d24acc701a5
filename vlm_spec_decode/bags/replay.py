"""Bags in, rows out: every question decoded in virtual time by every chosen strategy, link and profile.

Also reads the settings and models that determined a recording's tokens (`edge.factory.run_manifest`,
published on `vlm/run` and repeated in metadata.yaml) and combines them with the options of the replay.

Uses neither ROS nor this machine's clock: the same bag, models and settings give the same rows, on one core
or many. Decoding is the engine's own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.bags.events import Events, Topics
from vlm_spec_decode.bags.questions import AskPlan, Question, questions
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.score import agrees, declines, goes_the_same_way, motion_error
from vlm_spec_decode.bags.source import BagSource, bag_name
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.errors import ActionError, ConfigError, ImageError, VsdError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import GenerationResult, LinkUsage, token_fates
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.edge.engine import EngineConfig
from vlm_spec_decode.edge.factory import ModelPair, load_pair, virtual_engine
from vlm_spec_decode.edge.settings import EdgeSettings

TOPIC, STRING = "vlm/run", "std_msgs/msg/String"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Settings of the run and digests of its models; all empty where the bag has none."""

    settings: Mapping[str, Any]
    target: str = ""
    draft: str = ""


@dataclass(frozen=True, slots=True)
class ReplayChoice:
    """Options of a replay; None takes the recorded value, else the one in `FALLBACK`."""

    rule: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    draft_length: int | None = None


FALLBACK: Mapping[str, Any] = {
    name: settings_of(EdgeSettings)[name].default
    for name in ("rule", "temperature", "seed", "max_tokens", "draft_length", "grammar")
}


def recorded(source: BagSource) -> Recorded:
    """Return the run that the bag names, as of its first answer."""
    topics = [t for t, k in source.topics.items() if k == STRING and t.endswith(TOPIC)]
    for record in source.records(topics):
        message = source.message(record)
        if message is not None:
            return _read(str(message.data))
    return Recorded({})


def _read(text: str) -> Recorded:
    try:
        manifest = json.loads(text)
        settings = {key: manifest["settings"][key] for key in FALLBACK if key in manifest["settings"]}
        models = [str(manifest[role]["revision"]) for role in ("target", "draft")]
    except (ValueError, KeyError, TypeError):
        return Recorded({})
    return Recorded(settings, *models)


def resolve_settings(chosen: ReplayChoice, found: Recorded) -> dict[str, Any]:
    """Return the effective settings: the chosen ones, else the recorded ones, else the defaults."""
    by_hand = {key: getattr(chosen, key) for key in FALLBACK if getattr(chosen, key, None) is not None}
    return {**FALLBACK, **found.settings, **by_hand}


def sampling(settings: Mapping[str, Any], stop_ids: tuple[int, ...]) -> SamplingParams:
    """Return the sampling parameters. Raises ValueError for invalid settings."""
    names = ("rule", "temperature", "seed", "max_tokens")
    return SamplingParams(stop_ids=stop_ids, **{name: settings[name] for name in names})


PATIENCE_S = 600.0
"""Time limit in virtual seconds, so large that a slow cell is measured, not aborted."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of strategy, link and hardware profile."""

    strategy: str
    link: LinkProfile
    profile: HardwareProfile

    @property
    def name(self) -> str:
        """Return the cell's name in rows and tables."""
        return f"{self.strategy} / {self.link.name} / {self.profile.name}"


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """The bags of a replay and its settings."""

    bags: tuple[Path, ...]
    cells: tuple[Cell, ...]
    topics: Topics = field(default_factory=Topics)
    plan: AskPlan = field(default_factory=AskPlan)
    target: str = ""
    draft: str = ""
    chosen: ReplayChoice = field(default_factory=ReplayChoice)
    threads: int = 1

    @property
    def digest(self) -> str:
        """Return a short hash of everything that decides the rows, except the bags' contents."""
        plain = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(plain.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class QuestionShare:
    """Every `count`-th question, from the `index`-th (from 0) on."""

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Whether the question of this number belongs to the share."""
        return number % self.count == self.index


@dataclass(slots=True)
class Replayer:
    """The models, loaded once, and the decoding of one question in one cell.

    `settings` are those of the bag that is being replayed.
    """

    config: ReplayConfig
    settings: Mapping[str, Any] = field(
        default_factory=lambda: resolve_settings(ReplayChoice(), Recorded({}))
    )
    _pairs: dict[bool, ModelPair] = field(default_factory=dict)

    def rows(
        self, bag: Path, faults: Counter[str], known: Collection[int] = (), share: QuestionShare | None = None
    ) -> Iterator[tuple[Question, list[dict[str, Any]]]]:
        """Yield each question of a bag with a row per cell, except those whose numbers are in `known`.

        `faults` counts what could not be read.
        """
        source = open_bag(bag)
        try:
            self._resolve_settings(source, faults)
            topics = self.config.topics.choose(source.topics)
            events = Events(source, topics, faults)
            for question in questions(events, self.config.plan, self._pair.target.card.image_limits):
                if question.number in known or (share and not share.has(question.number)):
                    continue
                yield question, [self.row(bag, question, cell) for cell in self.config.cells]
        finally:
            source.close()

    def duration_s(self, bag: Path) -> float:
        """Return the length of a bag; 0 if only a full read could tell."""
        source = open_bag(bag)
        source.close()
        return source.duration_s

    def _resolve_settings(self, source: BagSource, faults: Counter[str]) -> None:
        """Use the bag's recorded settings; count models that differ from the recorded ones as faults."""
        found = recorded(source)
        self.settings = resolve_settings(self.config.chosen, found)
        pair = self._pair
        for role, then, now in (
            ("target", found.target, pair.target.card.revision),
            ("draft", found.draft, pair.draft.card.revision),
        ):
            if then and then != now:
                faults[f"recorded with another {role} ({then}; now {now})"] += 1

    @property
    def _pair(self) -> ModelPair:
        grammar = bool(self.settings["grammar"])
        if grammar not in self._pairs:
            config = self.config
            self._pairs[grammar] = load_pair(config.target, config.draft, config.threads, grammar)
        return self._pairs[grammar]

    def row(self, bag: Path, question: Question, cell: Cell) -> dict[str, Any]:
        """Decode one question in one cell and score it. A failure gives a row with its error."""
        row = {
            "bag": bag_name(bag),
            "question": question.number,
            "at_s": round(question.at_s, 3),
            "cell": cell.name,
            "instruction": question.observation.instruction,
            "history": list(question.observation.history),
            "label": None if question.actions is None else list(question.actions),
            "executed": None if question.executed is None else asdict(question.executed),
            "start": question.start,
            "error": "",
            **self._provenance(),
        }
        try:
            result, gpu_s, usage = self._decode(question, cell)
        except (ActionError, ImageError) as error:
            return row | _failed_row(f"{type(error).__name__}: {error}", question)
        return row | {
            "text": result.text,
            "token_ids": list(result.tokens),
            "fates": token_origins(result),
            "same_actions": None if question.actions is None else agrees(result.text, question.actions),
            "same_way": None
            if question.executed is None
            else goes_the_same_way(result.text, question.executed),
            "declines": declines(result.text, question.observation.history),
            **motion_error(result.text, question.executed, self.config.plan.horizon_s, SafetyLimits()),
            "same_tokens": result.tokens == question.token_ids if question.token_ids else None,
            "drafted": result.drafted,
            "accepted": result.accepted,
            "target_passes": result.target_passes,
            "early_verdicts": result.early_verdicts,
            "first_token_s": result.time_to_first_token_s,
            "first_action_s": result.time_to_first_action_s,
            "total_s": result.total_s,
            "gpu_s": gpu_s,
            "uplink_bytes": usage.uplink_bytes,
            "downlink_bytes": usage.downlink_bytes,
            "image_bytes": usage.image_bytes,
        }

    def _provenance(self) -> dict[str, Any]:
        """Return the models and settings that decide the tokens, as fields of every row."""
        cards = {"target": self._pair.target.card, "draft": self._pair.draft.card}
        models = {role: f"{card.model_id} {card.revision}" for role, card in cards.items()}
        return models | {key: self.settings[key] for key in ("rule", "temperature", "seed")}

    def _decode(self, question: Question, cell: Cell) -> tuple[GenerationResult, float, LinkUsage]:
        settings, pair = self.settings, self._pair
        try:
            params = sampling(settings, pair.stop_ids)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        length = int(settings["draft_length"])
        uplink_bps = min(1e9, cell.link.up_mbps * 1e6)
        how = EngineConfig(
            strategy=cell.strategy,
            params=params,
            draft_length=length,
            timeout_s=PATIENCE_S,
            uplink_bps=uplink_bps,
        )
        engine, verifier = virtual_engine(pair, cell.link, cell.profile, how, params.seed)
        *_, last = engine.answer(question.observation)
        if last.result is None:
            raise VsdError("the answer ended without a result")
        return last.result, verifier.gpu_s, verifier.usage


def token_origins(result: GenerationResult) -> str:
    """Return a letter per token: `a` a draft that the target confirmed, `t` the target's own."""
    return "".join(fate[0] for fate in token_fates(result))


def _failed_row(error: str, question: Question) -> dict[str, Any]:
    empty = dict.fromkeys(("same_tokens", "declines", "off_m", "off_deg", "first_token_s", "first_action_s"))
    counts = ("drafted", "accepted", "target_passes", "early_verdicts", "total_s", "gpu_s")
    zero = dict.fromkeys((*counts, "uplink_bytes", "downlink_bytes", "image_bytes"), 0)
    return {
        **empty,
        **zero,
        "error": error,
        "text": "",
        "token_ids": [],
        "fates": "",
        "same_actions": None if question.actions is None else False,
        "same_way": None if question.executed is None else False,
    }
