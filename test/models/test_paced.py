"""Steps and passes take as long as a hardware profile says, and a machine that cannot keep up says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import pytest

from test.tables import TARGET, TableContext, TableModel
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import OutOfMemory
from vlm_spec_decode.core.ports import ModelCard, Scored, ScoreRequest
from vlm_spec_decode.core.profiles import HardwareProfile
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.models.paced import SLOWER, paced_copy, paced_draft, paced_target, profile_costs

PROFILE = HardwareProfile(
    "bench", draft_ms=50, step_ms=100, verify_ms=200, prefill_ms=400, cloud_draft_ms=20, draft_prefill_ms=70
)
QUESTION = Observation(None, "go")


@dataclass
class WorkingContext(TableContext):
    """A table that works `work_s` of the clock at each pass, in the middle of which it asks its exits."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    work_s: float = 0.0

    def prefill(self) -> None:
        self.clock.sleep(self.work_s)

    def score(self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit=None):
        logits = super().score(prefix, tokens, parents)
        self.clock.sleep(self.work_s / 2)
        if on_exit:
            for layer in (1, 2):
                on_exit(layer, logits)
        self.clock.sleep(self.work_s / 2)
        return logits


@dataclass
class WorkingModel(TableModel):
    """Contexts of this clock; a batch is one pass."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    work_s: float = 0.0
    has_memory: bool = True

    @property
    def card(self) -> ModelCard:
        return ModelCard("table", "1", "tokens", "prompt", 3, num_layers=4, exit_layers=(1, 2))

    def open(self, observation: Observation) -> TableContext:
        return WorkingContext(self.table, clock=self.clock, work_s=self.work_s)

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        if not self.has_memory:
            raise OutOfMemory("none")
        self.clock.sleep(self.work_s)
        found: list[Scored] = []
        for request in requests:
            logits = TableContext(TARGET).score(request.prefix, request.tokens, request.parents)
            if request.on_exit:
                request.on_exit(1, logits)
            found.append(logits)
        return found


def working(work_s: float = 0.0) -> tuple[WorkingModel, VirtualClock]:
    clock = VirtualClock()
    return WorkingModel(TARGET, clock=clock, work_s=work_s), clock


@pytest.mark.parametrize("work_s", [0.0, 0.03])
def test_a_draft_step_takes_the_profiles_time_whatever_it_takes_here(work_s: float) -> None:
    model, clock = working(work_s)
    context = paced_draft(model, PROFILE, clock).open(QUESTION)
    context.prefill()
    plain = context.score((0,))
    assert clock.now() == pytest.approx(PROFILE.draft_s(2, is_first=True)), "the prompt is part of it"
    context.choose((0,), ((1, 0), (0, 0)))
    assert clock.now() == pytest.approx(PROFILE.draft_s(2, is_first=True) + PROFILE.draft_s(2))
    before_s = clock.now()
    context.choose((0,))
    assert clock.now() - before_s == pytest.approx(work_s), "rows in the cache cost nothing more"
    assert np.array_equal(plain, TableContext(TARGET).score((0,)))
    context.forget()
    before_s = clock.now()
    context.choose((0,))
    assert clock.now() - before_s == pytest.approx(PROFILE.draft_s(2, is_first=True))


def test_a_copy_beside_the_target_takes_its_own_time() -> None:
    model, clock = working()
    paced_copy(model, PROFILE, clock).open(QUESTION).choose(())
    assert clock.now() == pytest.approx(0.020)
    assert profile_costs(PROFILE).step_s == pytest.approx(0.020)
    assert (profile_costs(PROFILE).plain_s, profile_costs(PROFILE).verify_s) == (0.1, 0.2)


@pytest.mark.parametrize("work_s", [0.0, 0.09])
def test_a_pass_takes_the_profiles_time(work_s: float) -> None:
    model, clock = working(work_s)
    context = paced_target(model, PROFILE, clock).open(QUESTION)
    times = []
    for call in (
        context.prefill,
        context.prefill,
        lambda: context.choose((), ((), ())),
        lambda: context.choose((0,), ((1,), (0,))),
        lambda: context.score((0,), (1,) * 6, (0, 1, 2, 3, 4, 5)),
        context.forget,
        lambda: context.choose((0, 1)),
    ):
        before_s = clock.now()
        call()
        times.append(clock.now() - before_s)
    assert times == pytest.approx([0.4, 0.0, 0.1, 0.2, 0.2 * 1.02, 0.0, 0.4])


@pytest.mark.parametrize("work_s", [0.0, 0.06])
def test_an_exit_is_heard_at_its_depth_of_the_profiles_pass(work_s: float) -> None:
    model, clock = working(work_s)
    context = paced_target(model, PROFILE, clock).open(QUESTION)
    context.prefill()
    began_s, heard = clock.now(), []
    context.choose((0,), ((1,), (0,)), lambda layer, _: heard.append((layer, clock.now() - began_s)))
    pass_s = PROFILE.pass_s(1, exits=2)
    assert [layer for layer, _ in heard] == [1, 2]
    assert [at_s for _, at_s in heard] == pytest.approx([pass_s / 4, pass_s / 2])
    assert clock.now() - began_s == pytest.approx(pass_s)


def test_answers_share_a_pass() -> None:
    model, clock = working(0.01)
    target = paced_target(model, PROFILE, clock)
    one, other = target.open(QUESTION), target.open(QUESTION)
    scored = target.score_batch([ScoreRequest(one, ()), ScoreRequest(other, ())])
    assert len(scored) == 2
    assert clock.now() == pytest.approx(0.4), "both prompts in one pass"
    heard: list[int] = []
    began_s = clock.now()
    target.score_batch(
        [ScoreRequest(one, (0,), (1,) * 3, (0, 1, 2), lambda layer, _: heard.append(layer)),
         ScoreRequest(other, (0,), (1,) * 3, (0, 1, 2))]
    )  # fmt: skip
    assert heard == [1]
    assert clock.now() - began_s == pytest.approx(PROFILE.pass_s(7, exits=2))


def test_a_pass_without_memory_has_computed_nothing() -> None:
    model, clock = working()
    target = paced_target(model, PROFILE, clock)
    model.has_memory = False
    context = target.open(QUESTION)
    with pytest.raises(OutOfMemory):
        target.score_batch([ScoreRequest(context, ())])
    model.has_memory = True
    target.score_batch([ScoreRequest(context, ())])
    assert clock.now() == pytest.approx(0.4), "the prompt is still to be filled, and is paid once"


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if SLOWER in record.getMessage()]


def test_a_slower_machine_says_so_once_with_the_ratio(caplog: pytest.LogCaptureFixture) -> None:
    model, clock = working(0.3)
    context = paced_target(model, PROFILE, clock).open(QUESTION)
    with caplog.at_level(logging.WARNING):
        for length in range(12):
            context.choose((0,) * length, ((1,), (0,)))
    # The pass that fills the prompt, 0.4 s, is in time; the others of 0.2 s take 0.3 s each.
    assert told(caplog) == [f"{SLOWER} bench: passes take 1.50 times as long"]
    assert clock.now() == pytest.approx(0.4 + 11 * 0.3), "and nothing is slept away"


def test_a_slow_start_alone_is_no_slow_machine(caplog: pytest.LogCaptureFixture) -> None:
    model, clock = working(5.0)
    context = paced_target(model, PROFILE, clock).open(QUESTION)
    with caplog.at_level(logging.WARNING):
        context.prefill()
        context.inner.work_s = 0.1  # type: ignore[attr-defined]
        for length in range(12):
            context.choose((0,) * length, ((1,), (0,)))
        assert told(caplog) == []
        context.inner.work_s = 1.0  # type: ignore[attr-defined]
        context.choose((0,) * 12, ((1,), (0,)))
    assert len(told(caplog)) == 1, "one that becomes slow later is told"


def test_a_machine_that_keeps_the_pace_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, clock = working(0.04)
    context = paced_draft(model, PROFILE, clock).open(QUESTION)
    with caplog.at_level(logging.WARNING):
        for length in range(12):
            context.choose((0,) * length)
    assert told(caplog) == []
