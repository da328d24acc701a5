"""One answer in virtual time: the result of a strategy, a profile, a link and a pair of models.

Decoding is the engine's own, on the virtual verifier; this module connects the parts and reads the figures.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from vlm_spec_decode.bench.recorder import AnswerRecorder, EdgeEvent
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.ports import Model, TextCodec
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import GenerationResult, LinkUsage
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.paced import paced_draft

TIMEOUT_S = 3600.0
"""Of virtual time: no cell of a comparison comes near it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """Everything but the models and the question: what one cell of the comparison is made of.

    `is_repeat` asks the question twice of one engine and measures the second answer.
    """

    strategy: str
    hardware: HardwareProfile
    link: LinkProfile
    draft_length: int = 4
    objective: str = "latency"
    has_colocated_draft: bool = False
    seed: int = 0
    is_repeat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One answer's figures; seconds of virtual time, bytes on the wire, the uplink's without the image."""

    tokens: Tokens
    total_s: float
    first_token_s: float
    first_action_s: float | None
    passes: int
    drafted: int
    accepted: int
    early: int
    lookups: int
    hits: int
    draft_s: float
    gpu_s: float
    up_bytes: int
    down_bytes: int
    image_bytes: int
    events: tuple[EdgeEvent, ...] = field(default=(), repr=False)
    why: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, result: GenerationResult, usage: LinkUsage, *, draft_s: float, gpu_s: float) -> Outcome:
        """Return the figures that every answer has; those that only a recorder in virtual time has are 0."""
        return cls(
            tokens=result.tokens,
            total_s=result.total_s,
            first_token_s=result.time_to_first_token_s,
            first_action_s=result.time_to_first_action_s,
            passes=result.target_passes,
            drafted=result.drafted,
            accepted=result.accepted,
            early=result.early_verdicts,
            lookups=0,
            hits=0,
            draft_s=draft_s,
            gpu_s=gpu_s,
            up_bytes=usage.uplink_bytes,
            down_bytes=usage.downlink_bytes,
            image_bytes=usage.image_bytes,
        )


class SilentCodec:
    """The codec of a pair whose tokens mean nothing."""

    def encode(self, text: str) -> Tokens:  # noqa: ARG002
        """Return ()."""
        return ()

    def decode(self, tokens: Seq[int]) -> str:  # noqa: ARG002
        """Return no text."""
        return ""


def decode(
    setup: RunSetup,
    draft: Model,
    target: Model,
    observation: Observation,
    params: SamplingParams,
    codec: TextCodec | None = None,
) -> Outcome:
    """Decode one answer and return its figures. Without a codec there are no actions to time."""
    clock = VirtualClock()
    recorder = AnswerRecorder(clock)
    colocated_draft = draft if setup.has_colocated_draft else None
    verifier = VirtualVerifier(target, setup.hardware, setup.link, clock, colocated_draft, setup.seed)
    edge = paced_draft(draft, setup.hardware, clock)
    config = EngineConfig(
        strategy=setup.strategy,
        params=params,
        draft_length=setup.draft_length,
        timeout_s=TIMEOUT_S,
        objective=setup.objective,
        uplink_bps=min(1e9, setup.link.up_mbps * 1e6),
    )
    # An edge times a draft step before its first answer.
    step_s = setup.hardware.draft_s(1)
    engine = Engine(edge, codec or SilentCodec(), verifier, clock, config, recorder, step_s)
    started_s = gpu_s = 0.0
    if setup.is_repeat:
        _answer(engine, observation)
        started_s, gpu_s = clock.now(), verifier.gpu_s
        recorder.events.clear()
        recorder.lookups = recorder.hits = 0
        recorder.draft_s = 0.0
    result = _answer(engine, observation)
    events = (m._replace(start_s=m.start_s - started_s, end_s=m.end_s - started_s) for m in recorder.events)
    found = Outcome.of(result, verifier.usage, draft_s=recorder.draft_s, gpu_s=verifier.gpu_s - gpu_s)
    why = tuple(r.why for r in result.rounds)
    return replace(found, lookups=recorder.lookups, hits=recorder.hits, events=tuple(events), why=why)


def _answer(engine: Engine, observation: Observation) -> GenerationResult:
    for update in engine.answer(observation):
        if update.result:
            return update.result
    raise VsdError("the engine ended without a result")
