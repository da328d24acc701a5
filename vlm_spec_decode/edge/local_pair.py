"""Target and draft in one process, and an engine over them in virtual time, as replays ask it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import Model, Target, TextCodec
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.simulated_latency import VirtualModel
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import assert_same_vocabulary, load_model, shipped
from vlm_spec_decode.models.spec import LoadOptions, parse_spec
from vlm_spec_decode.strategies.registry import strategy


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Both models, held to the action language, and the codec of their tokenizer."""

    target: Target
    draft: Model
    codec: TextCodec
    stop_ids: Tokens


def load_pair(target: str = "", draft: str = "", threads: int = 1, grammar: bool = True) -> ModelPair:
    """Load both, by default the shipped ones. Raises ModelError or VocabularyMismatch."""
    verifies, drafts = (load_model(spec, threads=threads) for spec in _sources(target, draft))
    assert_same_vocabulary(drafts.card, verifies.card)
    said_in = language(grammar)
    return ModelPair(
        constrained(verifies, verifies.codec, said_in),
        constrained(drafts, drafts.codec, said_in),
        verifies.codec,
        verifies.codec.stop_ids,
    )


def folders(target: str = "", draft: str = "") -> tuple[Path, ...]:
    """Return where the pair's files lie, if they lie on this machine. Raises ModelError."""
    return tuple(Path(parse_spec(spec, LoadOptions()).source) for spec in _sources(target, draft))


def _sources(target: str, draft: str) -> tuple[str | Path, str | Path]:
    return target or shipped("target"), draft or shipped("draft")


def check_strategy(name: str) -> None:
    """Raise ConfigError if there is no strategy of this name."""
    strategy(name)


def virtual_engine(
    pair: ModelPair, link: LinkProfile, hardware: HardwareProfile, config: EngineConfig, seed: int = 0
) -> tuple[Engine, VirtualVerifier]:
    """Return an engine whose edge, cloud and network take the profiles' time, on a clock of its own."""
    clock = VirtualClock()
    verifier = VirtualVerifier(pair.target, hardware, link, clock, pair.draft, seed)
    engine = Engine(VirtualModel(pair.draft, hardware, clock), pair.codec, verifier, clock, config)
    return engine, verifier
