"""How many bytes a round takes on the way up: our own frames, and all that is on the wire."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace

from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.trace import Tracer
from vlm_spec_decode.core.types import Commit, Event, Hint, Observation, SamplingParams
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.transport.emulation import OVERHEAD_BYTES

VOCABULARY = 32_000
TOKENS = 120
SEEDS = 4


@dataclass(frozen=True, slots=True)
class RoundBytes:
    """Medians and the largest over all rounds of all answers: frames, and the whole on the wire."""

    frames: float
    largest: int
    on_the_wire: float
    rounds: int


@dataclass(slots=True)
class MessageWeights(Tracer):
    """Measures the encoded size of the uplink messages, per round (from a verdict to the next)."""

    packer: codec.TokenPacker
    rounds: list[list[int]] = field(default_factory=lambda: [[]])

    def sent(self, message: Hint) -> None:
        """Weigh a message."""
        self.rounds[-1].append(len(codec.encode(self.packer.client_message_to_wire(message))))

    def received(self, event: Event) -> None:
        """A commit begins the next round."""
        if isinstance(event, Commit):
            self.rounds.append([])


def uplink_per_round(rule: str, residual: str = "sparse", draft_length: int = 4) -> RoundBytes:
    """Return what `speculative` sends up per round of γ drafts under a rule, corrections included.

    Node numbers, positions and answer numbers are those of an answer of 120 tokens, the hundredth.
    """
    temperature = 1.0 if rule == "rejection" else 0.0
    params = SamplingParams(temperature=temperature, rule=rule, residual=residual, max_tokens=TOKENS)
    rounds: list[list[int]] = []
    for seed in range(SEEDS):
        draft, target = pair(PairSpec(acceptance=0.7, vocab_size=VOCABULARY, seed=seed))
        clock = VirtualClock()
        weighed = MessageWeights(codec.TokenPacker(VOCABULARY))
        engine = Engine(
            draft,
            SilentCodec(),
            LocalVerifier(target, clock),
            clock,
            EngineConfig(strategy="speculative", draft_length=draft_length),
            weighed,
        )
        config = replace(engine.config, params=replace(params, seed=seed))
        for _ in engine.answer(Observation(None, "go"), config):
            pass
        rounds += [r for r in weighed.rounds if r]
    totals = [sum(r) for r in rounds]
    wire = [sum(r) + OVERHEAD_BYTES * len(r) for r in rounds]
    return RoundBytes(statistics.median(totals), max(totals), statistics.median(wire), len(rounds))
