"""Builds an engine from settings: loads the draft and connects to the cloud, or loads both models.

The only module that combines the parts of the robot's side; `vsd ask`, the ROS node and the benchmark call
it. Models, and torch with them, are imported when one is loaded: an error that needs none, such as a wrong
setting, is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_spec_decode import __version__
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import OBJECTIVES, Language, SamplingParams
from vlm_spec_decode.edge.client_protocol import ProtocolTiming
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.address import check_cloud
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.keys import EdgeKeys, edge_keys

if TYPE_CHECKING:
    from vlm_spec_decode.models.model import VlmModel


@dataclass(slots=True)
class EdgeRuntime:
    """An engine that is up, and what must be closed with it. `target` is its model's name and digest."""

    engine: Engine
    verifier: RemoteVerifier | LocalVerifier
    draft: VlmModel
    target: tuple[str, str]

    @property
    def clouds(self) -> str:
        """The clouds' addresses, from the one that it spoke with last; "" with both models here."""
        return self.verifier.clouds if isinstance(self.verifier, RemoteVerifier) else ""

    def close(self) -> None:
        """End the connection. Idempotent."""
        if isinstance(self.verifier, RemoteVerifier):
            self.verifier.disconnect()
        else:
            self.verifier.close()


def bring_up(settings: EdgeSettings, draft: VlmModel | None = None) -> EdgeRuntime:
    """Load, connect and shake hands. A `draft` loaded before is used as it is.

    Raises ConfigError, ModelError, VocabularyMismatch, CloudUnreachable or CloudRefused.
    """
    keys = check_settings(settings)
    from vlm_spec_decode.models.grammar import constrained
    from vlm_spec_decode.models.loader import assert_same_vocabulary, load_model, shipped

    draft = draft or load_draft(settings)
    config = EngineConfig(
        strategy=settings.strategy,
        params=sampling_of(settings, draft),
        draft_length=settings.draft_length,
        timeout_s=settings.answer_timeout_s,
        objective=settings.objective,
        uplink_bps=settings.link.up_mbps * 1e6 if settings.link else 1e9,
    )
    clock, said_in = WallClock(), language(settings.grammar)
    drafter = constrained(draft, draft.codec, said_in)
    if not settings.cloud:
        target = load_model(settings.target or shipped("target"), threads=settings.threads)
        assert_same_vocabulary(draft.card, target.card)
        local = LocalVerifier(constrained(target, target.codec, said_in), clock, drafter)
        return EdgeRuntime(
            Engine(drafter, draft.codec, local, clock, config), local, draft, _named(target.card)
        )
    link = DealerLink(settings.cloud, keys, clock, settings.link, settings.seed)
    verifier = RemoteVerifier(link, hello_of(draft.card, said_in), clock, settings.timing or ProtocolTiming())
    try:
        welcome = verifier.connect(settings.connect_timeout_s * len(link.addresses), settings.refused_s)
    except BaseException:
        verifier.disconnect()
        raise
    engine = Engine(drafter, draft.codec, verifier, clock, config)
    return EdgeRuntime(engine, verifier, draft, (welcome.model_id, welcome.revision))


def check_settings(settings: EdgeSettings) -> EdgeKeys | None:
    """Check what can be checked without a model; return the keys that are named.

    Raises ConfigError.
    """
    strategy(settings.strategy)
    if settings.objective not in OBJECTIVES:
        raise ConfigError(f"unknown objective {settings.objective!r}; known: {', '.join(OBJECTIVES)}")
    keys = edge_keys(settings.keys) if settings.keys else None
    if settings.cloud:
        check_cloud(settings.cloud, encrypted=keys is not None)
    return keys


def _named(card: ModelCard) -> tuple[str, str]:
    return card.model_id, card.revision


def load_draft(settings: EdgeSettings) -> VlmModel:
    """Load the draft that the settings name, by default the shipped one."""
    from vlm_spec_decode.models.loader import load_model, shipped

    return load_model(settings.draft or shipped("draft"), threads=settings.threads)


def hello_of(card: ModelCard, said_in: Language) -> Hello:
    """Return what this edge's token ids mean, for the handshake."""
    digests = (card.tokenizer_digest, card.prompt_digest, said_in.digest)
    return Hello(f"vlm_spec_decode {__version__}", *digests, card.vocab_size)


def sampling_of(settings: EdgeSettings, draft: VlmModel) -> SamplingParams:
    """Return how tokens are chosen. Raises ConfigError."""
    try:
        return SamplingParams(
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            stop_ids=draft.codec.stop_ids,
            seed=settings.seed,
            rule=settings.rule,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
