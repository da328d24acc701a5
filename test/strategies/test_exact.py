"""Exactness of the coupled rule: whatever is drafted, and whenever it arrives, the target's own answer.

For a table target of vocabulary 3, every ranking of the noise at every position is enumerated, so the
equality holds for every random path, not for a sample of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from test.tables import STOP, TABLES, TARGET, Table, TableModel
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding import sampling
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

LENGTH = 4
OBSERVATION = Observation(None, "go")
PARAMS = SamplingParams(temperature=1.0, max_tokens=LENGTH, stop_ids=(STOP,))
RANKINGS = tuple(itertools.permutations((0.0, 0.7, 2.5)))


@pytest.fixture(params=itertools.product(range(len(RANKINGS)), repeat=2), ids=str)
def noise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inject noise: two positions enumerated here, the other two by the test through the seed."""
    head = request.param

    def injected(seed: int, position: int, vocab_size: int) -> np.ndarray:
        ranking = head[position] if position < 2 else (seed // 6 ** (position - 2)) % 6
        return np.array(RANKINGS[ranking][:vocab_size])

    monkeypatch.setattr(sampling, "gumbel_noise", injected)


def own_answer(table: Table, params: SamplingParams) -> Tokens:
    """Say what the target says alone, straight from its table: no session, no strategy."""
    context = TableModel(table).open(OBSERVATION)
    said: Tokens = ()
    while len(said) < params.max_tokens and (not said or said[-1] not in params.stop_ids):
        said += (sampling.pick(context.score(said)[0], len(said), params),)
    return said


def decode(name: str, draft: Table, params: SamplingParams, draft_length: int) -> tuple[Tokens, list[Commit]]:
    commits: list[Commit] = []
    verifier = LocalVerifier(TableModel(TARGET), VirtualClock(), TableModel(draft))
    verifier.open(AnswerRequest(1, OBSERVATION, params, name))
    original = verifier.wait
    verifier.wait = lambda timeout: commits.append(original(timeout)) or commits[-1]  # type: ignore
    sequence = Sequence()
    edge = strategy(name).edge
    drafter = TableModel(draft).open(OBSERVATION)
    config = EdgeConfig(answer=1, params=params, draft_length=draft_length)
    streamed = tuple(itertools.chain(*edge(sequence, drafter, verifier, VirtualClock(), config)))
    assert streamed == sequence.tokens
    return streamed, commits


def seeds() -> Iterator[SamplingParams]:
    for tail in range(36):
        yield SamplingParams(temperature=1.0, max_tokens=LENGTH, stop_ids=(STOP,), seed=tail)


@pytest.mark.usefixtures("noise")
def test_every_strategy_and_drafter_says_what_the_target_says_for_every_noise() -> None:
    for params, name, draft in itertools.product(seeds(), STRATEGIES, TABLES.values()):
        assert decode(name, draft, params, draft_length=3)[0] == own_answer(TARGET, params)


@pytest.mark.parametrize("name", [s.name for s in STRATEGIES.values() if s.drafts])
@pytest.mark.parametrize("draft_length", [1, 2, 3, 5])
def test_drafting_with_the_target_itself_is_never_rejected(name: str, draft_length: int) -> None:
    for seed in range(50):
        params = SamplingParams(temperature=1.0, max_tokens=9, stop_ids=(STOP,), seed=seed)
        tokens, commits = decode(name, TARGET, params, draft_length)
        assert len(commits) <= -(-len(tokens) // (draft_length + 1))


def test_a_poor_draft_costs_passes_and_never_truth() -> None:
    passes = {"itself": 0, "poor": 0}
    for seed, draft in itertools.product(range(60), passes):
        params = SamplingParams(temperature=1.0, max_tokens=12, stop_ids=(STOP,), seed=seed)
        tokens, commits = decode("speculative", TABLES[draft], params, 3)
        assert tokens == own_answer(TARGET, params)
        passes[draft] += len(commits)
    assert passes["poor"] > 1.2 * passes["itself"]


DRAFTS = (
    DraftMessage(1, 0, 0, 1, (0, 1, 1), (0, 1, 0)),
    DraftMessage(1, 0, 0, 4, (0, 2, 1), (3, 3, 2)),
    DraftMessage(1, 0, 1, 7, (1, 0), (0, 7)),
)


@pytest.mark.usefixtures("noise")
def test_any_schedule_of_any_hints_is_exact() -> None:
    """Every order of arrival, loss and repetition of three tree drafts between passes."""
    schedules = list(itertools.product((0, 1, 2, "pass"), repeat=4))
    for params in list(seeds())[::7]:
        expected = own_answer(TARGET, params)
        for schedule in schedules:
            request = AnswerRequest(1, OBSERVATION, params, "speculative")
            session = Session(request, TableModel(TARGET).open(OBSERVATION), _Greedy())
            for event in (*schedule, *(["pass"] * LENGTH)):
                if isinstance(event, int):
                    session.receive(DRAFTS[event])
                elif plan := session.plan():
                    session.complete(plan, session.run(plan))
            assert session.sequence.tokens == expected
            assert session.sequence.finished


class _Greedy(CloudPolicy):
    """Verify all that is there, else step."""

    def next_pass(self, tree):  # type: ignore[no-untyped-def]
        return tree.live()


def test_drafts_of_another_epoch_or_answer_are_not_heard() -> None:
    request = AnswerRequest(1, OBSERVATION, PARAMS, "speculative", epoch=2)
    session = Session(request, TableModel(TARGET).open(OBSERVATION), strategy("speculative").cloud())
    session.receive(DraftMessage(1, 1, 0, 1, (0,), (0,)))
    session.receive(DraftMessage(2, 2, 0, 1, (0,), (0,)))
    assert session.plan() is None
    session.receive(DraftMessage(1, 2, 0, 1, (0,), (0,)))
    assert session.plan() is not None


def test_a_resumed_session_goes_on_from_what_the_edge_already_has() -> None:
    expected = own_answer(TARGET, PARAMS)
    for have in range(len(expected)):
        request = AnswerRequest(1, OBSERVATION, PARAMS, "autoregressive", committed=expected[:have], epoch=3)
        session = Session(request, TableModel(TARGET).open(OBSERVATION), strategy("autoregressive").cloud())
        while plan := session.plan():
            session.complete(plan, session.run(plan))
        assert session.sequence.tokens == expected
