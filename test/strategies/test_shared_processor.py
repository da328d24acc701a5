"""Drafting on the target's own processor is charged for its time: in virtual time, so exactly.

Draft and target advance one clock. A draft that cannot help costs next to nothing, one that can keeps its
speed, and the answer is the same; without the charge the first does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import (
    NO_NODES,
    ExitHook,
    Model,
    ModelCard,
    ModelContext,
    OnExit,
    Rows,
    Scores,
    Tree,
)
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.types import RULES, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import as_logits
from vlm_spec_decode.decoding.tree import positions_of
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import make_hello
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.decoder import choices_of
from vlm_spec_decode.models.paced import ChargedContext, paced_draft
from vlm_spec_decode.strategies import estimators
from vlm_spec_decode.strategies.estimators import Calibration, DraftRecord, best_token_s

VOCABULARY, TOKENS, PROMPT_S, ROW = 64, 40, 10.0, 0.1
"""A pass of the target takes 1 s, a tenth of it more for each further row, its prompt ten times as long."""

FIFTH, SAME, SLOWER = 0.2, 1.0, 3.0
"""A draft step over a pass."""


@dataclass
class Chain(ModelContext):
    """Says a token that depends on answer and position; a draft says it as often as it is `right`."""

    right: float
    answer: int
    rows: int = 0

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        depths = positions_of(parents, len(prefix))
        self.rows += len(depths)
        logits = np.zeros((len(depths), VOCABULARY), dtype=np.float32)
        for row, depth in enumerate(depths):
            dice = np.random.default_rng((depth, self.answer))
            token, is_right = int(dice.integers(1, VOCABULARY - 1)), dice.random() < self.right
            logits[row, token if is_right else token + 1] = 6.0
        return logits


@dataclass
class TimedModel(Model):
    """Steps of `step_s` seconds on the clock of all; `weighed`: it is known how many bytes a step reads."""

    clock: VirtualClock
    step_s: float
    right: float = 1.0
    weighed: bool = True
    answers: int = 0
    steps: list[int] = field(default_factory=list)

    @property
    def card(self) -> ModelCard:
        return ModelCard("timed", "1", "t", "p", VOCABULARY, 1)

    @property
    def step_bytes(self) -> int:
        return int(1000 * self.step_s) if self.weighed else 0

    def open(self, observation: Observation) -> ModelContext:
        self.answers += 1

        def duration_s(rows: int, is_first: bool) -> float:
            self.steps.append(rows)
            factor = (PROMPT_S if is_first else 0.0) + 1 + ROW * max(0, rows - 1)
            return self.step_s * factor if rows else 0.0

        return ChargedContext(Chain(self.right, self.answers), self.clock, duration_s)


@dataclass
class Outcome:
    """Seconds of each answer, all tokens, and the draft's steps."""

    seconds: list[float]
    said: list[Tokens]
    steps: list[int]

    @property
    def total_s(self) -> float:
        return sum(self.seconds)


def decode(
    strategy: str,
    right: float,
    step_s: float,
    *,
    weighed: bool = True,
    answers: int = 6,
    rule: str = "coupled",
) -> Outcome:
    clock = VirtualClock()
    target, draft, copy = (
        TimedModel(clock, seconds, share, weighed)
        for seconds, share in ((1.0, 1.0), (step_s, right), (step_s, right))
    )
    verifier = LocalVerifier(target, clock, copy if strategy == "colocated" else None)
    params = SamplingParams(max_tokens=TOKENS, rule=rule)
    config = EngineConfig(strategy=strategy, params=params, draft_length=6, free_text=True)
    engine = Engine(draft, SilentCodec(), verifier, clock, config)
    outcome = Outcome([], [], draft.steps)
    for number in range(answers):
        began_s = clock.now()
        result = [update.result for update in engine.answer(Observation(None, f"go {number}"))][-1]
        assert result
        outcome.seconds.append(clock.now() - began_s)
        outcome.said.append(result.tokens)
    return outcome


def over_plain(right: float, step_s: float, *, weighed: bool = True) -> tuple[float, float]:
    """The time of `hybrid` over that of `autoregressive`: of the first answer, and of six."""
    plain, mine = (decode(name, right, step_s, weighed=weighed) for name in ("autoregressive", "hybrid"))
    assert plain.said == mine.said
    return mine.seconds[0] / plain.seconds[0], mine.total_s / plain.total_s


@pytest.mark.parametrize("step_s", [FIFTH, SAME, SLOWER])
@pytest.mark.parametrize("right", [0.0, 0.1])
def test_a_draft_that_cannot_help_costs_next_to_nothing(right: float, step_s: float) -> None:
    first, six = over_plain(right, step_s)
    assert first <= 1.15
    assert six <= 1.05


@pytest.mark.parametrize("step_s", [FIFTH, SAME, SLOWER])
def test_without_knowing_the_models_sizes_it_takes_one_answer_to_find_out(step_s: float) -> None:
    _, six = over_plain(0.0, step_s, weighed=False)
    assert six <= 1.15
    steps = decode("hybrid", 0.0, step_s, weighed=False).steps
    assert len(steps) <= 24


def test_a_draft_that_helps_keeps_its_speed() -> None:
    mine = decode("hybrid", 1.0, FIFTH)
    others = [decode(name, 1.0, FIFTH) for name in ("speculative", "pipelined", "colocated", "multi_branch")]
    assert mine.total_s * 0.97 <= min(other.total_s for other in others)
    assert {tuple(other.said) for other in others} == {tuple(mine.said)}


def test_a_draft_that_helps_a_little_is_used_a_little() -> None:
    for right in (0.3, 0.5, 0.7):
        plain, mine = (decode(name, right, FIFTH) for name in ("autoregressive", "hybrid"))
        colocated = decode("colocated", right, FIFTH)
        assert mine.total_s <= 1.05 * min(plain.total_s, colocated.total_s)


@pytest.mark.parametrize("rule", RULES)
def test_the_answer_is_the_same_whatever_is_drafted(rule: str) -> None:
    said = {tuple(decode("hybrid", right, FIFTH, answers=2, rule=rule).said) for right in (0.0, 0.5, 1.0)}
    assert len(said) == 1


def test_control_without_the_charge_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that denies sharing the processor: the bars above would not hold."""
    monkeypatch.setattr(LocalVerifier, "shares_processor", False)
    first, six = over_plain(0.0, FIFTH)
    assert min(first, six) > 1.15
    assert over_plain(0.0, SLOWER)[1] > 1.5


def test_mutants_of_the_charge_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as mutant:  # probes without bound
        mutant.setattr(estimators, "PROBE_SHARE", 1.0)
        assert over_plain(0.0, SAME, weighed=False)[1] > 1.15
    with monkeypatch.context() as mutant:  # nothing is learned of a draft that is wrong
        mutant.setattr(Calibration, "learn", lambda *_: None)
        assert over_plain(0.0, FIFTH)[1] > 1.15
    with monkeypatch.context() as mutant:  # nothing is kept from answer to answer
        mutant.setattr(Engine, "_record", property(lambda _: DraftRecord(), lambda *_: None), raising=False)
        assert over_plain(0.0, FIFTH)[1] > 1.05


def test_probes_find_out_that_a_draft_has_become_right(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    target, draft = TimedModel(clock, 1.0), TimedModel(clock, FIFTH, 0.0)
    config = EngineConfig(strategy="hybrid", params=SamplingParams(max_tokens=200), free_text=True)
    engine = Engine(draft, SilentCodec(), LocalVerifier(target, clock), clock, config)
    seconds = []
    for number in range(60):
        draft.right = float(number >= 3)
        began_s = clock.now()
        list(engine.answer(Observation(None, f"go {number}")))
        seconds.append(clock.now() - began_s)
    assert seconds[2] > 200
    assert min(seconds[3:]) < 0.6 * seconds[2]


def test_calibration_mends_drafts_that_are_sure_and_wrong_and_unsure_and_right() -> None:
    wrong, right, fair = Calibration(), Calibration(), Calibration()
    for number in range(40):
        wrong.learn(False, 0.99)
        right.learn(True, 0.5)
        fair.learn(number % 5 != 0, 0.8)
    assert np.exp(wrong.log_probs((5.0, 0.0))).sum() < 0.05
    assert np.exp(right.log_probs((0.0, 0.0))[0]) > 0.9
    first, second = np.exp(fair.log_probs((np.log(4.0), 0.0)))
    assert 0.6 < first < 0.95
    assert first + second == pytest.approx(1.0)


def test_best_token_time_is_that_of_the_best_number_of_steps() -> None:
    assert best_token_s(1.0, 0.5, 0.0, 8) == 1.0
    assert best_token_s(1.0, 0.2, 1.0, 4) == pytest.approx(1.8 / 5)


@dataclass
class WideContext(ModelContext):
    """151,936 ids of which one has a logit; counts its rows."""

    shift: int
    asked: list[int]

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Scores:
        depths = positions_of(tree[1], len(prefix))
        wanted = depths if rows is None else [depths[row] for row in rows]
        self.asked.append(len(wanted))
        logits = torch.zeros(len(wanted), 151_936)
        for row, depth in enumerate(wanted):
            logits[row, 3001 * (depth + 1) + self.shift] = 20.0
        return choices_of(logits)

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        return as_logits(self, prefix, (tokens, parents), on_exit)


@dataclass
class WideModel(Model):
    """Takes `step_s` for a pass of any rows."""

    clock: VirtualClock
    step_s: float
    shift: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def card(self) -> ModelCard:
        return ModelCard("wide", "1", "t", "p", 151_936, 1)

    @property
    def step_bytes(self) -> int:
        return int(1000 * self.step_s)

    def open(self, observation: Observation) -> ModelContext:
        return ChargedContext(WideContext(self.shift, self.asked), self.clock, lambda *_: self.step_s)


@pytest.mark.parametrize(("shift", "step_s", "most"), [(1, 0.2, 20), (1, 1.0, 0), (0, 0.2, 44)])
def test_draft_steps_are_few_at_a_real_vocabulary(shift: int, step_s: float, most: int) -> None:
    clock = VirtualClock()
    target, draft = WideModel(clock, 1.0), WideModel(clock, step_s, shift)
    config = EngineConfig(strategy="hybrid", params=SamplingParams(max_tokens=TOKENS), free_text=True)
    engine = Engine(draft, SilentCodec(), LocalVerifier(target, clock), clock, config)
    result = [update.result for update in engine.answer(Observation(None, "go"))][-1]
    assert result
    assert result.tokens == tuple(3001 * (depth + 1) for depth in range(TOKENS))
    assert len(draft.asked) <= most
    assert sum(draft.asked) <= 2 * most
    if not shift:
        assert len(target.asked) <= 8


@pytest.mark.parametrize(
    ("address", "cores", "shared"),
    [
        ("tcp://127.0.0.1:5599", {0}, True),
        ("tcp://[::1]:5599", {3}, True),
        ("tcp://127.0.0.1:5599", {0, 1}, False),
        ("tcp://192.0.2.7:5599", {0}, False),
    ],
)
def test_a_cloud_on_a_machine_of_one_core_shares_it(
    address: str, cores: set[int], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cores)
    link: Any = SimpleNamespace(address=address, addresses=(address,))
    hello = make_hello(TimedModel(VirtualClock(), 1.0).card, language(False))
    assert RemoteVerifier(link, hello, VirtualClock()).shares_processor is shared


@pytest.mark.parametrize("rule", RULES)
def test_behind_a_link_that_shares_the_processor_the_answer_is_the_same(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = set()
    for shared in (False, True):
        monkeypatch.setattr(VirtualVerifier, "shares_processor", shared)
        clock, hardware = VirtualClock(), load_hardware("cpu")
        target, draft = TimedModel(VirtualClock(), 1.0), TimedModel(VirtualClock(), FIFTH, 0.5)
        verifier = VirtualVerifier(target, hardware, load_link("rtt5_up100"), clock)
        config = EngineConfig(
            strategy="hybrid", params=SamplingParams(max_tokens=TOKENS, rule=rule), free_text=True
        )
        engine = Engine(paced_draft(draft, hardware, clock), SilentCodec(), verifier, clock, config)
        result = [update.result for update in engine.answer(Observation(None, "go"))][-1]
        assert result
        said.add(result.tokens)
    assert len(said) == 1
