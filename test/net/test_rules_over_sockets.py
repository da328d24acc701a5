"""The `rejection` rule and early verdicts over encrypted sockets; the target is a table."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from test.net.test_sockets import CLOCK, cloud, edge, own_answer
from test.tables import POOR_DRAFT, STOP, TARGET, TableContext, TableModel
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.ports import ExitHook, Verifier
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    DraftMessage,
    EarlyExitVerdict,
    Observation,
    SamplingParams,
    Tokens,
)
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.strategies import speculative
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy
from vlm_spec_decode.transport import keys

pytestmark = pytest.mark.net

OBSERVATION = Observation(None, "go")
IN_TURNS = ("autoregressive", "speculative", "early_exit", "multi_branch", "pipelined")
"""Strategies whose chains do not depend on who was quicker, so that a seed has one answer."""

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    keys.generate(folder)
    return folder


@pytest.fixture(scope="module")
def remote(folder: Path) -> Iterator[RemoteVerifier]:
    with cloud(folder) as server, edge(server.address, folder) as verifier:
        verifier.connect(20)
        yield verifier


def decode(verifier: Verifier, name: str, params: SamplingParams) -> Tokens:
    number = next(NUMBERS)
    verifier.open(AnswerRequest(number, OBSERVATION, params, name))
    drafter, config = (
        TableModel(POOR_DRAFT).open(OBSERVATION),
        EdgeConfig(answer=number, params=params, draft_length=3, timeout_s=30),
    )
    said = strategy(name).decode(Sequence(), drafter, verifier, CLOCK, config)
    streamed = tuple(itertools.chain(*said))
    verifier.close()
    return streamed


@pytest.mark.parametrize("residual", ["sparse", "full", "cloud"])
@pytest.mark.parametrize("name", IN_TURNS)
def test_a_seed_has_the_same_answer_over_sockets_as_in_one_process(
    remote: RemoteVerifier, name: str, residual: str
) -> None:
    answers = set()
    for seed in range(6):
        params = SamplingParams(1.0, 0, 1.0, 10, (STOP,), seed, "rejection", residual)
        local = decode(LocalVerifier(TableModel(TARGET), CLOCK), name, params)
        assert decode(remote, name, params) == local
        answers.add(local)
    assert len(answers) > 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_greedy_rejection_says_what_the_target_says(remote: RemoteVerifier, name: str) -> None:
    params = SamplingParams(0.0, max_tokens=12, rule="rejection")
    assert decode(remote, name, params) == own_answer(params)


@dataclass
class SlowContext(TableContext):
    """Ends a pass with exits only when it is let go."""

    let_go: threading.Event = field(default_factory=threading.Event)

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        logits = super().score(prefix, tokens, parents, on_exit=on_exit)
        if on_exit:
            assert self.let_go.wait(30), "the early verdicts have not been seen"
        return logits


class SlowTarget(TableModel):
    let_go: threading.Event

    def open(self, observation: Observation) -> SlowContext:
        return SlowContext(self.table, self.num_exits, let_go=self.let_go)


def test_early_verdicts_are_on_the_wire_while_the_pass_still_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculative.Cloud, "wants_exits", True)
    target = SlowTarget(TARGET, num_exits=2)
    target.let_go = threading.Event()
    params = SamplingParams(temperature=1.0, max_tokens=8, seed=3)
    with cloud(folder, target) as server, edge(server.address, folder) as verifier:
        try:
            verifier.connect(20)
            verifier.open(AnswerRequest(1, OBSERVATION, params, "speculative"))
            verifier.submit(DraftMessage(1, 0, 0, 1, (0, 1, 0), (0, 1, 2)))
            early = [verifier.wait(20) for _ in range(2)]
            assert verifier.poll() is None, "the pass cannot have ended"
        finally:
            target.let_go.set()
        commit = verifier.wait(20)
    assert [type(e) for e in early] == [EarlyExitVerdict, EarlyExitVerdict]
    assert isinstance(commit, Commit)
    assert commit.tokens == own_answer(params)[: len(commit.tokens)], "exits change nothing"
