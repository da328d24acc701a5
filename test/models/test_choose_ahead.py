"""The cloud chooses on the thread that has the device: a verdict asks nothing of it afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from test.models.test_choose_batch import Waits, transfers
from vlm_spec_decode.cloud.requests import ServerJob, ServerRequest
from vlm_spec_decode.cloud.server import BatchRunner
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import OutOfMemory
from vlm_spec_decode.core.types import AnswerRequest, SamplingParams
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.models import choose_batch, decoder
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.strategies.registry import strategy

SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=4, max_tokens=12)
EVERY = (SAMPLED, SamplingParams(max_tokens=12), replace(SAMPLED, top_p=1.0, seed=9))


def sessions_of(pair: Any, params: tuple[SamplingParams, ...]) -> list[Session]:
    requests = [AnswerRequest(i, pair.observation, own, "autoregressive") for i, own in enumerate(params, 1)]
    return [Session(r, pair.model.open(r.observation), strategy(r.strategy).cloud()) for r in requests]


def jobs_of(sessions: list[Session]) -> tuple[ServerJob, ...]:
    return tuple(
        ServerJob("pass", ServerRequest(peer=b"x", message=cast(Any, None), session=session), session.plan())
        for session in sessions
        if not session.sequence.finished
    )


def answers(pair: Any, params: tuple[SamplingParams, ...]) -> list[tuple[int, ...]]:
    """Run all answers through the cloud's runner, to their end."""
    runner = BatchRunner(pair.model, None, WallClock(), lambda *_: None)
    sessions = sessions_of(pair, params)
    while jobs := jobs_of(sessions):
        for job, result in zip(jobs, runner.run(jobs).results, strict=True):
            assert result.failure is None
            session = cast(Session, job.request.session)
            session.complete(cast(Any, result.plan), cast(Any, result.scores))
    return [session.sequence.tokens for session in sessions]


def test_a_verdict_needs_nothing_of_the_device(llava_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = answers(llava_pair, EVERY)
    monkeypatch.setattr(decoder, "choices_of", BatchChoices)
    assert answers(llava_pair, EVERY) == wanted
    runner = BatchRunner(llava_pair.model, None, WallClock(), lambda *_: None)
    sessions = sessions_of(llava_pair, EVERY)
    jobs = jobs_of(sessions)
    results = runner.run(jobs).results
    with transfers(monkeypatch) as sizes, Waits() as waits:
        for session, result in zip(sessions, results, strict=True):
            assert session.complete(cast(Any, result.plan), cast(Any, result.scores)).tokens
    assert (sizes, waits.count) == ([], 0)


def test_all_questions_are_queued_before_one_is_waited_for(
    llava_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = list[str]()

    def queue(values: torch.Tensor) -> Any:
        log.append("queued")
        return lambda: log.append("waited") or values.numpy()

    monkeypatch.setattr(decoder, "choices_of", BatchChoices)
    monkeypatch.setattr(choose_batch, "queue_to_host", queue)
    runner = BatchRunner(llava_pair.model, None, WallClock(), lambda *_: None)
    runner.run(jobs_of(sessions_of(llava_pair, EVERY)))
    assert log == ["queued"] * 3 + ["waited"] * 3


def test_memory_that_choosing_lacks_fails_one_answer(
    llava_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three answers finds no room to choose; the others have their verdicts."""
    monkeypatch.setattr(decoder, "choices_of", BatchChoices)
    prefetch, calls = BatchChoices.prefetch, list[int]()

    def full(self: BatchChoices, *args: Any) -> Any:
        calls.append(len(self))
        if len(calls) == 2:
            raise OutOfMemory("out of memory: try a smaller --batch")
        return prefetch(self, *args)

    monkeypatch.setattr(BatchChoices, "prefetch", full)
    runner = BatchRunner(llava_pair.model, None, WallClock(), lambda *_: None)
    sessions = sessions_of(llava_pair, EVERY)
    first, second, third = runner.run(jobs_of(sessions)).results
    assert isinstance(second.failure, OutOfMemory)
    for session, result in ((sessions[0], first), (sessions[2], third)):
        assert session.complete(cast(Any, result.plan), cast(Any, result.scores)).tokens
    # The answer that failed has lost nothing either: its pass can be asked for again.
    (again,) = runner.run(jobs_of([sessions[1]])).results
    assert sessions[1].complete(cast(Any, again.plan), cast(Any, again.scores)).tokens
