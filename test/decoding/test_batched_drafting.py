"""The copy of the draft drafts for several answers of a pass in shared steps: less time, the same tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest

from test.net.test_sockets import own_answer
from test.tables import POOR_DRAFT, STOP, TARGET, TableModel
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import OutOfMemory
from vlm_spec_decode.core.ports import Model, ModelContext, Scored, ScoreRequest, WrappedModel
from vlm_spec_decode.core.profiles import HardwareProfile
from vlm_spec_decode.core.types import AnswerRequest, Commit, Observation, SamplingParams
from vlm_spec_decode.decoding.batched_drafting import prepare_together
from vlm_spec_decode.decoding.policy import ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.models.paced import paced_copy, paced_draft, profile_costs
from vlm_spec_decode.strategies.hybrid.cloud_policy import Cloud
from vlm_spec_decode.strategies.registry import strategy

HARDWARE = HardwareProfile("slow", draft_ms=20, step_ms=100, verify_ms=100, prefill_ms=150, cloud_draft_ms=10)
OBSERVATION = Observation(None, "go")
SEEDS = (1, 7, 17, 40)


def params(seed: int, rule: str = "coupled") -> SamplingParams:
    return SamplingParams(temperature=1.0, max_tokens=24, stop_ids=(STOP,), seed=seed, rule=rule)


def sessions(copy: Model, clock: VirtualClock, name: str = "hybrid", rule: str = "coupled") -> list[Session]:
    return [
        Session(
            AnswerRequest(number, OBSERVATION, params(seed, rule), name),
            TableModel(TARGET).open(OBSERVATION),
            strategy(name).cloud(),
            ColocatedDraft(copy.open(OBSERVATION), clock, profile_costs(HARDWARE)),
        )
        for number, seed in enumerate(SEEDS, 1)
    ]


def plans_of(answers: Seq[Session]) -> list[tuple[Session, PassPlan]]:
    planned = [(answer, answer.plan()) for answer in answers]
    return [(answer, plan) for answer, plan in planned if plan]


def run(
    copy: Model, clock: VirtualClock, answers: Seq[Session], is_shared: bool
) -> tuple[list[Commit], float]:
    """Run all answers to their ends in shared passes; return the commits and the time that was drafted."""
    commits, drafted_s = list[Commit](), clock.now()
    while planned := plans_of([answer for answer in answers if not answer.sequence.finished]):
        if is_shared:
            prepared = prepare_together(planned, copy)
        else:
            prepared = [answer.prepare(plan) for answer, plan in planned]
        for (answer, _), plan in zip(planned, prepared, strict=True):
            assert isinstance(plan, PassPlan)
            commits.append(answer.complete(plan, answer.run(plan), 0.1))
    return commits, clock.now() - drafted_s


@pytest.mark.parametrize("name", ["hybrid", "colocated"])
def test_each_answer_is_the_one_drafted_for_alone(name: str) -> None:
    for is_shared in (False, True):
        clock = VirtualClock()
        copy = paced_copy(TableModel(POOR_DRAFT), HARDWARE, clock)
        answers = sessions(copy, clock, name)
        run(copy, clock, answers, is_shared)
        assert [answer.sequence.tokens for answer in answers] == [own_answer(params(seed)) for seed in SEEDS]


def test_shared_steps_take_far_less_time() -> None:
    took_s = {}
    for is_shared in (False, True):
        clock = VirtualClock()
        copy = paced_copy(TableModel(POOR_DRAFT), HARDWARE, clock)
        commits, drafted_s = run(copy, clock, sessions(copy, clock), is_shared)
        took_s[is_shared] = drafted_s / len(commits)
    assert 0 < took_s[True] < 0.6 * took_s[False]


def test_every_answer_learns_how_long_the_pass_was_held_up() -> None:
    """Else the drafting of the others would look like a dearer pass, and pay for more drafting."""
    clock = VirtualClock()
    copy = paced_copy(TableModel(POOR_DRAFT), HARDWARE, clock)
    answers = sessions(copy, clock)
    run(copy, clock, answers, is_shared=False)
    planned = plans_of(answers := sessions(copy, clock))
    began_s = clock.now()
    prepare_together(planned, copy)
    drafted_s = clock.now() - began_s
    assert drafted_s > 0
    for answer in answers:
        assert isinstance(answer.policy, Cloud)
        assert answer.policy.own.drafted_s == pytest.approx(drafted_s)


class Failing(WrappedModel):
    """A draft that fails where a step is shared."""

    def open(self, observation: Observation) -> ModelContext:
        return self.inner.open(observation)

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        raise OutOfMemory("no room for a shared step")


def test_a_shared_step_that_fails_leaves_the_plans_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    copy = Failing(TableModel(POOR_DRAFT))
    planned = plans_of(sessions(copy, clock))
    assert prepare_together(planned, copy) == [plan for _, plan in planned]
    assert "no room for a shared step" in caplog.text


class Harmed(WrappedModel):
    """A draft whose logits cannot be used."""

    def open(self, observation: Observation) -> ModelContext:
        return self.inner.open(observation)

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        return [np.full((len(request.rows or ()), 3), np.nan, np.float32) for request in requests]


def test_a_copy_whose_logits_cannot_be_used_is_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    clock, copy = VirtualClock(), Harmed(TableModel(POOR_DRAFT))
    planned = plans_of(sessions(copy, clock))
    assert prepare_together(planned, copy) == [plan for _, plan in planned]
    assert caplog.text.count("goes on without hints of the draft beside the target") == len(planned)
    assert all(answer.draft_steps(plan, 4) is None for answer, plan in planned)


def test_a_shared_step_of_a_paced_draft_takes_the_time_of_all_its_rows() -> None:
    clock = VirtualClock()
    draft = paced_draft(TableModel(POOR_DRAFT), HARDWARE, clock)
    contexts = [draft.open(OBSERVATION) for _ in range(3)]
    scored = draft.score_batch([ScoreRequest(context, (), rows=(0,)) for context in contexts])
    assert clock.now() == pytest.approx(HARDWARE.draft_s(3, is_first=True))
    assert [len(rows) for rows in scored] == [1, 1, 1]  # type: ignore[arg-type]
    before_s = clock.now()
    requests = [ScoreRequest(context, (), (1, 2), (0, 1), rows=(2,)) for context in contexts[:2]]
    draft.score_batch(requests)
    assert clock.now() - before_s == pytest.approx(HARDWARE.draft_s(4))
    for request, rows in zip(requests, draft.score_batch(requests), strict=True):
        alone = TableModel(POOR_DRAFT).open(OBSERVATION).score((), (1, 2), (0, 1))
        assert np.array_equal(np.asarray(rows), alone[[2]]), request


def test_a_pass_that_answers_share_costs_the_sum_of_their_nodes() -> None:
    assert HARDWARE.shared_pass_s(5, 1, 1, 2) == HARDWARE.pass_s(5, True, 2)
    assert HARDWARE.shared_pass_s(20, 3) == HARDWARE.pass_s(22)
    more = HARDWARE.shared_pass_s(0, 3, fills=3) - HARDWARE.shared_pass_s(0, 3, fills=1)
    assert more == pytest.approx(2 * 0.05), "a further prompt adds its arithmetic, 150 - 100 ms"
