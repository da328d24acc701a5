"""Builds engines from settings: with the target in a cloud, with both models here, or in virtual time.

The only module that combines the parts of the robot's side; `vsd ask`, the ROS node, the benchmark and
replays call it. Models, and torch with them, are imported when one is loaded: an error that needs no model,
such as a wrong setting, is reported at once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_spec_decode import __version__
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.config import digest, settings_of
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.load_progress import importing
from vlm_spec_decode.core.ports import Model, ModelCard, Target, TextCodec, Verifier
from vlm_spec_decode.core.processes import ProcessClock
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import OBJECTIVES, Language, SamplingParams, Tokens
from vlm_spec_decode.edge.draft_budget import budget_of
from vlm_spec_decode.edge.engine import WITHOUT_DRAFTS, Engine, EngineConfig
from vlm_spec_decode.edge.nearest import nearest_first
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.paced import paced_draft, paced_target, pass_seconds
from vlm_spec_decode.models.spec import check_place
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.address import check_cloud
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.keys import EdgeKeys, edge_keys

if TYPE_CHECKING:
    from vlm_spec_decode.models.engines.base import LoadedModel


@dataclass(slots=True)
class EdgeRuntime:
    """A running engine, and what must be closed with it. `target` is its model's name and revision."""

    engine: Engine
    verifier: Verifier
    draft: LoadedModel
    target: tuple[str, str]

    @property
    def clouds(self) -> str:
        """The clouds' addresses, starting with the one in use; "" with both models in this process."""
        return self.verifier.clouds

    def close(self) -> None:
        """End the connection. Idempotent."""
        self.verifier.disconnect()


def bring_up(settings: EdgeSettings, draft_model: DraftModel | None = None) -> EdgeRuntime:
    """Load the models, and connect to the cloud if one is named. A `draft_model` is loaded only once.

    Raises ConfigError, ModelError, VocabularyMismatch, CloudUnreachable or CloudRefused.
    """
    keys = check_settings(settings)
    with importing():
        from vlm_spec_decode.models.grammar import constrained
        from vlm_spec_decode.models.loader import import_engines, load_draft_and_target, load_model
        from vlm_spec_decode.models.vocabulary import assert_same_vocabulary

        target_source, draft_source = _sources(settings.target, settings.draft)
        import_engines(draft_source, *([] if settings.cloud else [target_source]))

    target: LoadedModel | None = None
    draft = draft_model.load() if draft_model else None
    if draft is None and not settings.cloud and _is_target_alone(settings):
        # Its tokenizer is all that a strategy without drafts wants of a draft.
        draft = target = load_model(target_source, threads=settings.threads, role="target")
    elif draft is None and not settings.cloud:
        draft, target = load_draft_and_target(draft_source, target_source, threads=settings.threads)
    draft = draft or load_draft(settings)
    config = engine_config(settings, draft.codec.stop_ids)
    clock, answer_language, hardware = WallClock(), language(settings.grammar), settings.hardware
    drafter = constrained(draft, draft.codec, answer_language, chats=True)
    budget = budget_of(settings.draft_budget, clock, settings.threads)
    if hardware:
        drafter = paced_draft(drafter, hardware, clock)
    if not settings.cloud:
        target = target or load_model(target_source, threads=settings.threads, role="target")
        assert_same_vocabulary(draft.card, target.card)
        verified = constrained(target, target.codec, answer_language, chats=True)
        local = LocalVerifier(
            paced_target(verified, hardware, clock) if hardware else verified, clock, drafter
        )
        engine = Engine(drafter, draft.codec, local, clock, config, budget=budget)
        return EdgeRuntime(engine, local, draft, _identity(target.card))
    is_nearest = settings.cloud_choice == "nearest"
    clouds = nearest_first(settings.cloud) if is_nearest else settings.cloud
    link = DealerLink(clouds, keys, clock, settings.link, settings.seed)
    hello, timing = make_hello(draft.card, answer_language), settings.timing or ProtocolTiming()
    verifier = RemoteVerifier(link, hello, clock, timing, is_nearest=is_nearest)
    try:
        welcome = verifier.connect(settings.connect_timeout_s * len(link.addresses), settings.refused_s)
    except BaseException:
        verifier.disconnect()
        raise
    step_s = draft_model.step_s if draft_model else draft_step_s(settings, draft)
    engine = Engine(drafter, draft.codec, verifier, clock, config, draft_step_s=step_s, budget=budget)
    return EdgeRuntime(engine, verifier, draft, (welcome.model_id, welcome.revision))


def check_settings(settings: EdgeSettings) -> EdgeKeys | None:
    """Check the settings as far as that needs no model; return the keys that they name.

    Raises ConfigError, ModelNotFound among them, or ModelError for an unknown option of a model.
    """
    strategy(settings.strategy)
    budget_of(settings.draft_budget, WallClock())
    for source in ("" if settings.cloud else settings.target, settings.draft):
        if source:
            check_place(source)
    settings_of(EdgeSettings)["cloud_choice"].refuse(settings.cloud_choice)
    if settings.objective not in OBJECTIVES:
        raise ConfigError(f"unknown objective {settings.objective!r}; known: {', '.join(OBJECTIVES)}")
    keys = edge_keys(settings.keys) if settings.keys else None
    if settings.cloud:
        check_cloud(settings.cloud, encrypted=keys is not None)
    return keys


def _is_target_alone(settings: EdgeSettings) -> bool:
    """Tell whether nobody drafts and no draft is named."""
    chosen = strategy(settings.strategy)
    return not (settings.draft or chosen.drafts or chosen.needs_helper)


def _identity(card: ModelCard) -> tuple[str, str]:
    return card.model_id, card.revision


def load_draft(settings: EdgeSettings) -> LoadedModel:
    """Load the draft that the settings name, by default the shipped one."""
    with importing():
        from vlm_spec_decode.models.loader import import_engines, load_model, shipped

        source = settings.draft or shipped("draft")
        import_engines(source)
    return load_model(source, threads=settings.threads, role="draft")


def draft_step_s(settings: EdgeSettings, draft: LoadedModel) -> float:
    """Return what a step of the draft takes (seconds), by running it; 0 if nothing is drafted for a cloud."""
    if not settings.cloud or not strategy(settings.strategy).drafts:
        return 0.0
    step_s = pass_seconds(draft, WallClock(), 0)[0]
    return max(step_s, settings.hardware.draft_s(1)) if settings.hardware else step_s


def make_hello(card: ModelCard, answer_language: Language) -> Hello:
    """Return the Hello of this edge: digests of tokenizer, prompt and grammar, and the vocabulary size."""
    digests = (card.tokenizer_digest, card.prompt_digest, answer_language.digest)
    return Hello(f"vlm_spec_decode {__version__}", *digests, card.vocab_size)


def engine_config(settings: EdgeSettings, stop_ids: Tokens) -> EngineConfig:
    """Return the engine's part of the settings. Raises ConfigError."""
    return EngineConfig(
        strategy=settings.strategy,
        params=make_sampling_params(settings, stop_ids),
        draft_length=settings.draft_length,
        draft_floor=settings.draft_floor,
        timeout_s=settings.answer_timeout_s,
        objective=settings.objective,
        deadline_s=settings.deadline_s,
        uplink_bps=settings.link.up_mbps * 1e6 if settings.link else 1e9,
        image_budget_s=settings.image_budget_s,
    )


def make_sampling_params(settings: EdgeSettings, stop_ids: Tokens) -> SamplingParams:
    """Return the sampling parameters of the settings. Raises ConfigError."""
    try:
        return SamplingParams(
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            stop_ids=stop_ids,
            seed=settings.seed,
            rule=settings.rule,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Both models, constrained to the action language, and the codec of their tokenizer."""

    target: Target
    draft: Model
    codec: TextCodec
    stop_ids: Tokens


def load_pair(
    target: str = "", draft: str = "", threads: int = 1, grammar: bool = True, form: Language | None = None
) -> ModelPair:
    """Load both, by default the shipped ones. Raises ModelError or VocabularyMismatch.

    `form` is what answers are held to; None: the action language, or nothing without `grammar`.
    """
    with importing():
        from vlm_spec_decode.models.grammar import constrained
        from vlm_spec_decode.models.loader import import_engines, load_draft_and_target

        target_source, draft_source = _sources(target, draft)
        import_engines(draft_source, target_source)
    draft_model, target_model = load_draft_and_target(draft_source, target_source, threads=threads)
    answer_language = form or language(grammar)
    return ModelPair(
        constrained(target_model, target_model.codec, answer_language),
        constrained(draft_model, draft_model.codec, answer_language),
        target_model.codec,
        target_model.codec.stop_ids,
    )


def checkpoint_folders(target: str = "", draft: str = "") -> tuple[Path, ...]:
    """Return the folders of the pair's checkpoints, if they are on this machine. Raises ModelError."""
    from vlm_spec_decode.models.engines.base import LoadOptions
    from vlm_spec_decode.models.spec import parse_spec

    return tuple(Path(parse_spec(spec, LoadOptions()).source) for spec in _sources(target, draft))


def _sources(target: str, draft: str) -> tuple[str | Path, str | Path]:
    from vlm_spec_decode.models.loader import shipped

    return target or shipped("target"), draft or shipped("draft")


def check_strategy(name: str) -> None:
    """Raise ConfigError if there is no strategy of this name."""
    strategy(name)


def virtual_engine(
    pair: ModelPair, link: LinkProfile, hardware: HardwareProfile, config: EngineConfig, seed: int = 0
) -> tuple[Engine, VirtualVerifier]:
    """Return an engine in virtual time: edge, cloud and network take as long as the profiles say.

    Several answers at once, driven by one thread: `edge.open_answers`.
    """
    clock = ProcessClock()
    verifier = VirtualVerifier(pair.target, hardware, link, clock, pair.draft, seed)
    draft, step_s = paced_draft(pair.draft, hardware, clock), hardware.draft_s(1)
    engine = Engine(
        draft, pair.codec, verifier, clock, config, draft_step_s=step_s, processes=verifier.processes
    )
    return engine, verifier


SCHEMA = "vsd.run/1"
"""Schema of the run manifest, which holds all that decides the tokens of a run, to repeat it from its bag.

Under the `coupled` rule an answer's tokens follow from the two models, the decisive settings, and what was
asked; neither strategy nor link nor timing changes them.
"""

DECISIVE = ("strategy", "rule", "objective", "temperature", "seed", "max_tokens", "draft_length", "grammar")


def run_manifest(settings: EdgeSettings, runtime: EdgeRuntime) -> dict[str, Any]:
    """Return settings with their digest, and names and digests of both models."""
    decisive = {name: getattr(settings, name) for name in DECISIVE}
    target_id, target_revision = runtime.target
    draft = runtime.draft.card
    return {
        "schema": SCHEMA,
        "version": __version__,
        "settings": decisive,
        "config_digest": digest(decisive),
        "target": {"model_id": target_id, "revision": target_revision},
        "draft": {"model_id": draft.model_id, "revision": draft.revision},
    }


class DraftModel:
    """The draft model of some settings, loaded at its first use and kept when the cloud is lost.

    `step_s` is what a step of it takes, measured when it is loaded: later answers may be using it, and one
    thread at a time may run a model.

    It can also answer alone, for a robot that has lost its cloud. Such answers are not verified: the caller
    must mark every plan made from them as unverified, and reduced limits then apply.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._model: LoadedModel | None = None
        self._loading = threading.Lock()
        self.step_s = 0.0

    def load(self) -> LoadedModel:
        """Return the model. Raises ModelError if it cannot be loaded."""
        with self._loading:
            if self._model is None:
                model = load_draft(self._settings)
                self.step_s = draft_step_s(self._settings, model)
                self._model = model
            return self._model

    def standalone_engine(self) -> Engine:
        """Return an engine in which the draft is its own target. Raises ModelError."""
        from vlm_spec_decode.models.grammar import constrained

        draft, settings, clock = self.load(), self._settings, WallClock()
        alone = constrained(draft, draft.codec, language(settings.grammar), chats=True)
        if settings.hardware:
            alone = paced_draft(alone, settings.hardware, clock)
        config = EngineConfig(
            strategy=WITHOUT_DRAFTS,
            params=make_sampling_params(settings, draft.codec.stop_ids),
            timeout_s=settings.answer_timeout_s,
        )
        return Engine(None, draft.codec, LocalVerifier(alone, clock), clock, config)
