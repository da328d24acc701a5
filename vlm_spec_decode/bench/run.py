"""One answer in virtual time: what a strategy, a profile, a link and a pair of models come to."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import Model
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.sequence import Sequence
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.virtual import VirtualModel, VirtualVerifier
from vlm_spec_decode.edge.watch import NoDrafter, WatchedDrafter, WatchedVerifier
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import strategy


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything but the models and the question: what one cell of the comparison is made of."""

    strategy: str
    hardware: HardwareProfile
    link: LinkProfile
    draft_length: int = 4
    objective: str = "latency"
    has_helper: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer's figures; seconds of virtual time, bytes on the wire."""

    tokens: Tokens
    total_s: float
    first_token_s: float
    passes: int
    drafted: int
    accepted: int
    gpu_s: float
    up_bytes: int
    down_bytes: int
    image_bytes: int
    explanation: tuple[str, ...] = field(default=())


def decode(
    setup: Setup, draft: Model, target: Model, observation: Observation, params: SamplingParams
) -> Outcome:
    """Decode one answer and return its figures."""
    clock = VirtualClock()
    helper = draft if setup.has_helper else None
    verifier = VirtualVerifier(target, setup.hardware, setup.link, clock, helper, setup.seed)
    watch = WatchedVerifier(verifier, clock)
    chosen = strategy(setup.strategy)
    watch.open(AnswerRequest(1, observation, params, setup.strategy, objective=setup.objective))
    inner = VirtualModel(draft, setup.hardware, clock).open(observation) if chosen.drafts else NoDrafter()
    drafter = WatchedDrafter(inner, watch)
    sequence, first_token_s = Sequence(), 0.0
    uplink_bps = min(1e9, setup.link.up_mbps * 1e6)
    config = EdgeConfig(1, params, setup.draft_length, timeout_s=600.0, uplink_bps=uplink_bps)
    try:
        for _ in chosen.decode(sequence, drafter, watch, clock, config):
            first_token_s = first_token_s or watch.elapsed_s
        usage = verifier.usage
    finally:
        verifier.close()
        drafter.close()
    return Outcome(
        sequence.tokens,
        watch.elapsed_s,
        first_token_s,
        len(watch.rounds),
        sum(r.drafted for r in watch.rounds),
        sum(r.accepted for r in watch.rounds),
        verifier.gpu_s,
        usage.uplink_bytes,
        usage.downlink_bytes,
        usage.image_bytes,
    )
