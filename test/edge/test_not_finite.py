"""Logits that are NaN or infinite: a target's end the answer by name, a draft's cost it nothing but time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from test.tables import POOR_DRAFT, STOP, TARGET, LetterCodec, TableContext, TableModel
from test.toy_grammar import ToyGrammar
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import Cancelled, NotFinite
from vlm_spec_decode.core.ports import ExitHook
from vlm_spec_decode.core.types import RESIDUALS, RULES, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import weights
from vlm_spec_decode.decoding.grammar_mask import MaskedModel
from vlm_spec_decode.decoding.sampling import log_probs, pick, softmax_at
from vlm_spec_decode.decoding.tree import positions_of
from vlm_spec_decode.decoding.verify import P_UNIT
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.strategies.registry import STRATEGIES

ASKED = Observation(None, "abc")
HARMS = {
    "nan": ("hold NaN", (0.0, np.nan, 0.0)),
    "all nan": ("hold NaN", (np.nan, np.nan, np.nan)),
    "nan and inf": ("hold NaN", (np.inf, np.nan, -np.inf)),
    "+inf": ("are \\+infinite", (0.0, np.inf, 0.0)),
    "all -inf": ("are all -infinite", (-np.inf, -np.inf, -np.inf)),
}
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "warm": {"temperature": 1.0},
    "cut": {"temperature": 0.7, "top_k": 2, "top_p": 0.9},
    "nearly greedy": {"temperature": 1e-300},
}


@dataclass
class HarmedContext(TableContext):
    """Rows of prefixes from a length on are harmed, of exits or of the model itself."""

    harm: tuple[float, ...] = ()
    from_length: int = 0
    exits_only: bool = False

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        depths = positions_of(parents, len(prefix))
        harmed = np.array(depths) >= self.from_length

        def harmed_exit(exit_layer: int, logits: Logits) -> None:
            logits[harmed] = self.harm
            if on_exit:
                on_exit(exit_layer, logits)

        logits = super().score(prefix, tokens, parents, on_exit=harmed_exit if self.exits_only else on_exit)
        if not self.exits_only:
            logits[harmed] = self.harm
        return logits


@dataclass
class HarmedModel(TableModel):
    harm: tuple[float, ...] = field(default=HARMS["all nan"][1])
    from_length: int = 0
    exits_only: bool = False

    def open(self, observation: Observation) -> TableContext:
        context = HarmedContext(self.table, self.num_exits)
        context.harm, context.from_length, context.exits_only = self.harm, self.from_length, self.exits_only
        self.contexts.append(context)
        return context


def own_answer(params: SamplingParams) -> Tokens:
    said: Tokens = ()
    context = TableModel(TARGET).open(ASKED)
    while not said or not params.ends(len(said), said[-1]):
        said += (pick(context.score(said)[0], len(said), params),)
    return said


def answer(
    params: SamplingParams,
    strategy: str,
    target: TableModel | None = None,
    draft: TableModel | None = None,
    colocated_draft: TableModel | None = None,
) -> Tokens:
    clock = VirtualClock()
    verifier = LocalVerifier(target or TableModel(TARGET), clock, colocated_draft or TableModel(POOR_DRAFT))
    engine = Engine(
        draft or TableModel(POOR_DRAFT),
        LetterCodec(),
        verifier,
        clock,
        EngineConfig(strategy=strategy, params=params),
    )
    updates = list(engine.answer(ASKED))
    assert updates[-1].result is not None
    said = tuple(itertools.chain(*(update.tokens for update in updates)))
    assert said == updates[-1].result.tokens
    return said


def params_of(sampling: str, rule: str = "coupled", seed: int = 5) -> SamplingParams:
    return SamplingParams(max_tokens=24, stop_ids=(STOP,), seed=seed, rule=rule, **SAMPLINGS[sampling])  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_nothing_is_chosen_from_what_is_no_number(harm: str, sampling: str) -> None:
    said, row = HARMS[harm]
    logits, params = np.array(row, dtype=np.float32), params_of(sampling)
    for choose in (
        lambda: pick(logits, 0, params),
        lambda: log_probs(logits, params),
        lambda: weights(logits, params, P_UNIT),
        lambda: softmax_at(logits, 0),
    ):
        with pytest.raises(NotFinite, match=said):
            choose()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_single_tokens_at_minus_infinity_are_only_never_chosen(sampling: str) -> None:
    logits, params = np.array([-np.inf, 1.0, -np.inf], dtype=np.float32), params_of(sampling)
    assert pick(logits, 0, params) == 1
    assert weights(logits, params, P_UNIT).tolist() == [0, P_UNIT, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-101, 1e-99])
def test_the_smallest_temperatures_choose_the_best_token(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    assert pick(np.array([3e38, 1.0, 3.1e38], dtype=np.float32), 0, params) == 2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("rule", "sampling"), list(itertools.product(RULES, SAMPLINGS)))
def test_a_target_without_numbers_ends_the_answer_by_name(strategy: str, rule: str, sampling: str) -> None:
    for from_length, (said, row) in zip((0, 3, 0, 2, 1), HARMS.values(), strict=True):
        params = SamplingParams(max_tokens=24, rule=rule, seed=1, **SAMPLINGS[sampling])  # type: ignore[arg-type]
        target = HarmedModel(TARGET, harm=row, from_length=from_length)
        with pytest.raises(NotFinite, match=f"the target model's logits {said}"):
            answer(params, strategy, target=target)
        assert all(context.closed for context in target.contexts)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("part", ["draft", "colocated_draft"])
@pytest.mark.parametrize("harm", HARMS)
def test_an_answer_goes_on_without_a_draft_that_gives_no_numbers(
    strategy: str, part: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    for from_length, sampling in zip((0, 2, 4, 0), SAMPLINGS, strict=True):
        params = params_of(sampling)
        drafter = HarmedModel(POOR_DRAFT, harm=HARMS[harm][1], from_length=from_length)
        assert answer(params, strategy, **{part: drafter}) == own_answer(params)  # type: ignore[arg-type]
        assert len(caplog.messages) <= 1
        caplog.clear()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_other_rule_goes_on_without_drafts_as_well(strategy: str) -> None:
    for sampling, residual, part in itertools.product(SAMPLINGS, RESIDUALS, ("draft", "colocated_draft")):
        params = replace(params_of(sampling, "rejection", seed=3), residual=residual)
        alone = answer(params, "autoregressive")
        drafter = HarmedModel(POOR_DRAFT, from_length=0)
        said = answer(params, strategy, **{part: drafter})  # type: ignore[arg-type]
        drafts = STRATEGIES[strategy].drafts
        if (part == "draft" and drafts) or (part == "colocated_draft" and not drafts):
            assert said == alone
        late = answer(params, strategy, **{part: HarmedModel(POOR_DRAFT, from_length=3)})  # type: ignore[arg-type]
        assert params.ends(len(late), late[-1])


def test_a_draft_without_numbers_is_named_once_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    answer(
        params_of("warm"), "hybrid", draft=HarmedModel(POOR_DRAFT), colocated_draft=HarmedModel(POOR_DRAFT)
    )
    assert [message for message in caplog.messages if "the draft model's logits hold NaN" in message]
    assert len(caplog.messages) <= 2


@pytest.mark.parametrize("strategy", ["early_exit", "hybrid"])
@pytest.mark.parametrize("harm", HARMS)
def test_an_exit_without_numbers_says_nothing(
    strategy: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    for rule, sampling in itertools.product(RULES, SAMPLINGS):
        params = params_of(sampling, rule)
        target = HarmedModel(TARGET, num_exits=2, harm=HARMS[harm][1], exits_only=True)
        said = answer(params, strategy, target=target)
        assert params.ends(len(said), said[-1])
        if rule == "coupled":
            assert said == own_answer(params)
    if strategy == "early_exit":
        assert "without hints of the exit 0" in caplog.text


@pytest.mark.parametrize("harm", [np.nan, np.inf])
def test_only_what_a_grammar_allows_counts(harm: float) -> None:
    """After (0, 1) the toy grammar allows 0 and 2: harm to 1 alone changes nothing, harm to 0 ends it."""
    params = SamplingParams(max_tokens=6)
    for row, is_sound in (((0.0, harm, 1.0), True), ((harm, 0.0, 1.0), False)):
        target = HarmedModel(TARGET, harm=row, from_length=2)
        context = MaskedModel(target, ToyGrammar()).open(ASKED)
        masked = context.score((0, 1))[0]
        if is_sound:
            assert pick(masked, 2, params) == 2
        else:
            with pytest.raises(NotFinite):
                pick(masked, 2, params)


def test_a_cancel_while_the_answer_is_opened_again_is_not_lost() -> None:
    clock, params = VirtualClock(), params_of("warm")
    target = TableModel(TARGET)
    verifier = LocalVerifier(target, clock)
    engine = Engine(
        HarmedModel(POOR_DRAFT),
        LetterCodec(),
        verifier,
        clock,
        EngineConfig(strategy="speculative", params=params),
    )
    close = verifier.close

    def close_and_cancel() -> None:
        close()
        engine.cancel()

    verifier.close = close_and_cancel  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        list(engine.answer(ASKED))
