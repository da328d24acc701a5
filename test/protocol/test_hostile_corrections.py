"""The rejection rule over a hostile link: corrections lost, repeated and late change neither law nor end.

Every draw is keyed by what it decides, so the answer over a kind link is *the* answer over any link.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from test.protocol import test_hostile_link as hostile
from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Event,
    Hint,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.tree import chain_parents
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.strategies.rejection import ProposalLog, ResidualCorrector


def params_of(seed: int) -> SamplingParams:
    return SamplingParams(1.0, max_tokens=10, stop_ids=(STOP,), seed=seed, rule="rejection")


def kind_answer(params: SamplingParams) -> Tokens:
    """What the same draws say without any network."""
    verifier = LocalVerifier(TableModel(TARGET), VirtualClock())
    verifier.open(AnswerRequest(1, Observation(None, "go"), params, "speculative"))
    sequence, drafter = Sequence(), TableModel(POOR_DRAFT).open(Observation(None, "go"))
    config = EdgeConfig(answer=1, params=params, draft_length=3)
    list(strategy("speculative").decode(sequence, drafter, verifier, VirtualClock(), config))
    return sequence.tokens


class Inbox:
    """The verifier's port over the pair's edge protocol: what has come, and nothing to wait for."""

    def __init__(self, pair: RejectingPair) -> None:
        self.pair = pair

    def open(self, request: AnswerRequest) -> None: ...

    def submit(self, hint: Hint) -> None:
        self.pair.edge.submit(hint)

    def poll(self) -> Event | None:
        if not self.pair.edge.events:
            return None
        event = self.pair.edge.events.popleft()
        assert isinstance(event, Commit), event
        return event

    def wait(self, timeout_s: float) -> Event:
        raise NotImplementedError

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class RejectingPair(hostile.Pair):
    """The same pair, speculating under the rejection rule with the residual on the edge."""

    def __init__(self, image_bytes: int = 20_000, seed: int = 5) -> None:
        self.seed = seed
        self.proposals = ProposalLog(params_of(seed))
        self.port = ResidualCorrector(Inbox(self), self.proposals, Sequence())
        super().__init__(image_bytes, seed)

    def draft(self) -> None:
        if self.request.params.rule == "coupled":  # the base class has just opened its own request
            image = self.request.observation
            self.params = params_of(self.seed)
            self.request = AnswerRequest(1, image, self.params, "speculative")
            self.edge.open(self.request, 0.0)
            self.port.sequence = self.sequence
        chain: Tokens = ()
        room = min(3, self.params.max_tokens - len(self.sequence))
        while len(chain) < room and (not chain or chain[-1] != STOP):
            prefix = self.sequence.tokens + chain
            chain += (self.proposals.draw(prefix, self.drafter.score(prefix)[0]),)
        parents = chain_parents(self.node, len(chain))
        self.port.submit(DraftMessage(1, 0, len(self.sequence), self.node, chain, parents))
        self.node += len(chain)

    def settle(self) -> None:
        while event := self.port.poll():
            assert isinstance(event, Commit)
            assert self.sequence.commit(event) == event.tokens
            if not self.sequence.finished:
                self.draft()
        self.collect()


class HostileCorrections(hostile.HostileLink):
    """All rules and invariants of the hostile link, with corrections on it."""

    @initialize(seed=st.integers(0, 30), image_bytes=st.sampled_from([0, 512]))
    def begin(self, seed: int, image_bytes: int) -> None:
        self.pair = RejectingPair(image_bytes, seed)
        self.expected = kind_answer(params_of(seed))


HostileCorrections.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHostileCorrections = HostileCorrections.TestCase


def test_corrections_do_travel() -> None:
    """Without them the machine above would prove nothing about them."""
    count = 0
    for seed in range(10):
        pair = RejectingPair(0, seed)
        original = pair.edge.submit
        sent: list[Hint] = []
        pair.edge.submit = lambda hint, s=original, kept=sent: (kept.append(hint), s(hint))[1]  # type: ignore
        hostile.run_kindly(pair, 60)
        assert pair.sequence.tokens == kind_answer(params_of(seed))
        count += sum(not isinstance(hint, DraftMessage) for hint in sent)
    assert count > 3
