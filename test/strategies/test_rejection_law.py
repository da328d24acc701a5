"""Exactness of the rejection rule: over every random path, under every schedule, the target's own law."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from test.strategies.random_paths import Law, law_of
from test.tables import STOP, TABLES, TARGET, Table, TableModel, table_of
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import CloudTimeout
from vlm_spec_decode.core.ports import Verifier
from vlm_spec_decode.core.trace import NO_TRACER, Tracer
from vlm_spec_decode.core.types import (
    AnswerRequest,
    Commit,
    Correction,
    DraftMessage,
    Event,
    Hint,
    MoreSamples,
    Observation,
    SamplingParams,
    SparseTarget,
    Tokens,
)
from vlm_spec_decode.decoding import verify as rejection
from vlm_spec_decode.decoding.choices import weights
from vlm_spec_decode.decoding.policy import ColocatedDraft
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.decoding.session import Session
from vlm_spec_decode.decoding.verify import P_UNIT, cut_bias_bound
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

OBSERVATION = Observation(None, "go")
NAMES = (*STRATEGIES, "hybrid+")
SCHEDULES = tuple(itertools.product((0, 1, 2), repeat=3))
EXACT = ("sparse", "cloud", "full")
ANSWERS = 1000
OFTEN_REJECTED = table_of(((1, 1, 2), (3, 1, 1)))


def params_of(residual: str = "sparse", length: int = 2) -> SamplingParams:
    return SamplingParams(1.0, max_tokens=length, stop_ids=(STOP,), rule="rejection", residual=residual)


def target_law(params: SamplingParams, table: Table = TARGET, prefix: Tokens = ()) -> Law:
    """The target's own law, straight from its table in the rule's units: no session, no strategy."""
    if prefix and params.ends(len(prefix), prefix[-1]):
        return {prefix: Fraction(1)}
    p = weights(TableModel(table).open(OBSERVATION).score(prefix)[0], params, P_UNIT)
    law: Law = {}
    for token, part in enumerate(p.tolist()):
        for tokens, share in target_law(params, table, (*prefix, token)).items() if part else ():
            law[tokens] = law.get(tokens, Fraction(0)) + share * Fraction(part, P_UNIT)
    return law


class Scheduled(Verifier):
    """A verifier whose messages travel when a schedule says so; `wait` presses on until something comes.

    Each poll plays one entry: 0 lets nothing happen, 1 brings one hint up and runs a pass, 2 runs a pass
    and brings one event down, 3 brings one hint up.
    """

    def __init__(self, schedule: Tokens, table: Table = TARGET, helper: Table | None = None) -> None:
        self.schedule = deque(schedule)
        self.table, self.helper = table, helper
        self.up: deque[Hint] = deque()
        self.down: deque[Event] = deque()

    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        policy = strategy(request.strategy).cloud()
        target = TableModel(self.table, num_exits=2).open(OBSERVATION)
        helper = (
            ColocatedDraft(TableModel(self.helper).open(OBSERVATION), VirtualClock()) if self.helper else None
        )
        self.session = Session(request, target, policy, helper)

    def submit(self, hint: Hint) -> None:
        self.up.append(hint)

    def poll(self) -> Event | None:
        step = self.schedule.popleft() if self.schedule else 0
        if step in (1, 3):
            self._bring_up()
        if step in (1, 2):
            self._run_pass()
        return self.down.popleft() if step == 2 and self.down else None

    def wait(self, timeout_s: float) -> Event:
        while not self.down:
            if not self.up and not self._run_pass():
                raise CloudTimeout("nothing can come")
            self._bring_up()
            self._run_pass()
        return self.down.popleft()

    def cancel(self) -> None: ...

    def close(self) -> None: ...

    def _bring_up(self) -> None:
        if self.up and (reply := self.session.receive(self.up.popleft())):
            self.down.append(reply)

    def _run_pass(self) -> bool:
        plan = self.session.plan()
        if plan:
            plan = self.session.prepare(plan)
            logits = self.session.run(plan, self.down.append)
            self.down.append(self.session.complete(plan, logits))
        return plan is not None


def decode(name: str, draft: Table, params: SamplingParams, draft_length: int, schedule: Tokens) -> Tokens:
    helper = draft if name.endswith("+") or name == "colocated" else None
    name = name.rstrip("+")
    verifier = Scheduled(schedule, helper=helper)
    verifier.open(AnswerRequest(1, OBSERVATION, params, name))
    sequence, drafter = Sequence(), TableModel(draft).open(OBSERVATION)
    config = EdgeConfig(answer=1, params=params, draft_length=draft_length)
    said = strategy(name).decode(sequence, drafter, verifier, VirtualClock(), config)
    streamed = tuple(itertools.chain(*said))
    assert streamed == sequence.tokens
    held = verifier.session.sequence.tokens
    assert held == streamed[: len(held)]
    return streamed


@pytest.mark.parametrize("residual", EXACT)
@pytest.mark.parametrize("draft", TABLES)
@pytest.mark.parametrize("name", NAMES)
def test_the_law_of_every_strategy_and_drafter_is_the_targets(
    name: str, draft: str, residual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(residual)
    schedules = SCHEDULES[:: {"pipelined": 4, "hybrid": 8, "hybrid+": 13}.get(name, 100)]
    for schedule, length in itertools.product(schedules, (2,) if "hybrid" in name else (1, 2)):
        law = law_of(monkeypatch, lambda s=schedule, n=length: decode(name, TABLES[draft], params, n, s))
        assert law == target_law(params)


def all_schedules(patch: pytest.MonkeyPatch) -> None:
    """The law of the pipeline under every schedule of its first messages."""
    for schedule in SCHEDULES:
        law = law_of(patch, lambda s=schedule: decode("pipelined", OFTEN_REJECTED, params_of(), 1, s))
        assert law == target_law(params_of())


def test_the_pipelines_law_is_the_same_under_every_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    all_schedules(monkeypatch)


def same_answer_whatever_the_schedule() -> None:
    """A schedule may even look at the values: with the same draws the pipeline says the same tokens."""
    for seed in range(60):
        params = SamplingParams(1.0, max_tokens=6, stop_ids=(STOP,), seed=seed, rule="rejection")
        schedules = itertools.product((0, 1, 2, 3), repeat=4)
        chosen = list(schedules)[seed % 9 :: 9]
        said = {decode("pipelined", OFTEN_REJECTED, params, 2, schedule) for schedule in chosen}
        assert len(said) == 1


def test_the_pipelines_answer_does_not_depend_on_the_schedule() -> None:
    same_answer_whatever_the_schedule()


def few_ids_sent(patch: pytest.MonkeyPatch) -> None:
    """With one id of three sent, most corrections come from tail samples, asked for again when used up."""
    patch.setattr(rejection, "IDS_SENT", {"sparse": 1})
    patch.setattr(rejection, "TAIL_SENT", 1)
    counts: Counter[Tokens] = Counter()
    asked = 0
    for seed in range(ANSWERS):
        params = SamplingParams(1.0, max_tokens=2, stop_ids=(STOP,), seed=seed, rule="rejection")
        verifier = Scheduled(())
        verifier.open(AnswerRequest(1, OBSERVATION, params, "speculative"))
        submit = verifier.submit
        hints: list[Hint] = []
        verifier.submit = lambda hint, s=submit, h=hints: (h.append(hint), s(hint))[1]  # type: ignore
        drafter = TableModel(TABLES["poor"]).open(OBSERVATION)
        said = strategy("speculative").decode(
            Sequence(), drafter, verifier, VirtualClock(), EdgeConfig(answer=1, params=params, draft_length=2)
        )
        counts[tuple(itertools.chain(*said))] += 1
        asked += any(isinstance(hint, MoreSamples) for hint in hints)
    wanted = target_law(params_of())
    chi_squared = sum((counts[t] - ANSWERS * p) ** 2 / (ANSWERS * p) for t, p in wanted.items())
    assert asked > ANSWERS // 100, "the case must arise"
    assert set(counts) <= set(wanted)
    assert chi_squared < 24.3, "0.999 quantile at 6 degrees of freedom is 22.5"


def test_tail_samples_that_run_out_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    few_ids_sent(monkeypatch)


def test_greedy_under_the_rejection_rule_is_greedy() -> None:
    for name, draft in itertools.product(NAMES, TABLES.values()):
        params = SamplingParams(0.0, max_tokens=6, stop_ids=(STOP,), rule="rejection")
        context, said = TableModel(TARGET).open(OBSERVATION), ()
        while not (said and params.ends(len(said), said[-1])):
            said += (int(np.argmax(context.score(said)[0])),)
        assert decode(name, draft, params, 3, ()) == said


def siblings_law(patch: pytest.MonkeyPatch) -> None:
    """Two branches at the root, the second drawn without the first: tried one after the other."""
    q = (128 << 8, 96 << 8, 32 << 8)

    def answer() -> Tokens:
        params = params_of(length=1)
        session = Session(AnswerRequest(1, OBSERVATION, params, "speculative"),
                          TableModel(TARGET).open(OBSERVATION), strategy("speculative").cloud())  # fmt: skip
        chance = session.rejection.chance  # type: ignore[union-attr]
        first = chance.index(np.array(q), "draft", (), 0)
        left = np.array([0 if i == first else w for i, w in enumerate((1, 1, 1))]) * (1 << 15)
        second = chance.index(left, "draft", (), 1)
        supports = []
        for drawn, all_weights in ((first, q), (second, tuple(left.tolist()))):
            rest = tuple((i, w) for i, w in enumerate(all_weights) if i != drawn and w)
            supports.append(((drawn, all_weights[drawn]), *rest))
        session.receive(DraftMessage(1, 0, 0, 1, (first, second), (0, 0), (), tuple(supports)))
        plan = session.plan()
        assert plan
        return session.complete(plan, session.run(plan)).tokens[:1]

    assert law_of(patch, answer) == target_law(params_of(length=1))


def test_siblings_are_taken_from_the_target_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    siblings_law(monkeypatch)


def test_a_plain_top_k_cut_is_biased_within_its_bound_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rejection.IDS_SENT, "top_k", 1)
    params = params_of("top_k", length=1)
    assert not params.lossless
    law = law_of(monkeypatch, lambda: decode("speculative", TABLES["poor"], params, 1, ()))
    wanted = target_law(params)
    off = sum(abs(law.get(t, Fraction(0)) - p) for t, p in wanted.items()) / 2
    p = weights(TableModel(TARGET).open(OBSERVATION).score(())[0], params, P_UNIT)
    outside = Fraction(P_UNIT - int(p.max()), P_UNIT)
    assert 0 < off <= outside
    cut = SparseTarget((0,), (int(p.max()),), P_UNIT - int(p.max()), (), True)
    assert 0 < cut_bias_bound(cut, ((2, 1 << 16),)) <= 1


def test_a_session_takes_a_correction_once_and_only_of_its_epoch() -> None:
    params = params_of(length=6)
    request = AnswerRequest(1, OBSERVATION, params, "speculative", epoch=2)
    for seed in range(50):
        request = replace(request, params=replace(params, seed=seed))
        session = Session(request, TableModel(TARGET).open(OBSERVATION), strategy("speculative").cloud())
        session.receive(DraftMessage(1, 2, 0, 1, (2,), (0,), (), (((2, 60000),),)))
        plan = session.plan()
        assert plan
        commit: Commit = session.complete(plan, session.run(plan))
        if commit.residual is None:
            continue
        assert session.plan() is None
        session.receive(Correction(1, 1, 0, 1))
        assert session.sequence.tokens == ()
        missed = session.replay(0)
        assert missed
        assert missed.residual == commit.residual
        for _ in range(2):
            session.receive(Correction(1, 2, 0, 0))
            assert session.sequence.tokens == (0,)
        return
    pytest.fail("no draft was rejected")


def test_the_strategies_here_are_the_registrys() -> None:
    assert {name.rstrip("+") for name in NAMES} == set(STRATEGIES)
