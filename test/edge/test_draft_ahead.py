"""What is drafted or said about an earlier frame goes up with the question, and changes no token."""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np
import pytest

from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import NotFinite
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.edge.answer_cache import PRIORS, AnswerCache
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.paced import paced_draft
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

GO2 = HardwareProfile("go2", 72, 620, 620, 620, 62)
LINK = LinkProfile("link", 120, 20, 20)
PARAMS = SamplingParams(max_tokens=40)
ON_THE_WAY, SETTLED = (Image(frame, 4, 4) for frame in (b"on the way", b"settled"))


def asked(image: Image = SETTLED, history: tuple[str, ...] = ("turn(20)",)) -> Observation:
    return Observation(image, "go to the chair", history)


def an_engine(
    acceptance: float = 0.9, name: str = "hybrid", **more: object
) -> tuple[Engine, VirtualVerifier]:
    """An engine over a pair whose models look at no picture: a draft ahead is right as often as any."""
    draft, target = pair(PairSpec(acceptance=acceptance))
    clock = VirtualClock()
    verifier = VirtualVerifier(target, GO2, LINK, clock, draft)
    config = EngineConfig(strategy=name, params=SamplingParams(max_tokens=40, **more), free_text=True)  # type: ignore[arg-type]
    return Engine(paced_draft(draft, GO2, clock), SilentCodec(), verifier, clock, config), verifier


def result_of(engine: Engine, observation: Observation) -> GenerationResult:
    *_, last = engine.answer(observation)
    assert last.result is not None
    return last.result


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("acceptance", "steps"), [(0.2, 99), (0.9, 3)])
def test_no_draft_ahead_changes_a_token(name: str, acceptance: float, steps: int) -> None:
    """The law: committed tokens are the target's own, whatever was drafted before, and however far."""
    plain = result_of(an_engine(acceptance, name)[0], asked())
    engine, _ = an_engine(acceptance, name)
    with closing(engine.draft_ahead(asked(ON_THE_WAY))) as drafts:  # type: ignore[type-var]
        for _, _ in zip(range(steps), drafts, strict=False):
            pass
    assert result_of(engine, asked()).tokens == plain.tokens


def test_a_draft_ahead_costs_no_pass_and_saves_some() -> None:
    plain = result_of(an_engine()[0], asked())
    engine, verifier = an_engine()
    *_, drafted = engine.draft_ahead(asked(ON_THE_WAY))
    assert len(drafted) == PARAMS.max_tokens
    assert (verifier.gpu_s, verifier.up_bytes) == (0.0, 0), "the cloud has heard nothing"
    ahead = result_of(engine, asked())
    assert ahead.target_passes < plain.target_passes
    assert ahead.total_s < plain.total_s - 0.5 * GO2.verify_ms / 1000


def test_what_was_committed_of_a_broken_off_answer_goes_up_too() -> None:
    plain = result_of(an_engine(0.3)[0], asked())
    engine, _ = an_engine(0.3)
    said: Tokens = ()
    with closing(engine.answer(asked(ON_THE_WAY))) as updates:  # type: ignore[type-var]
        while len(said) < 12:
            said += next(updates).tokens
    again = result_of(engine, asked())
    assert again.tokens == plain.tokens
    assert again.target_passes <= plain.target_passes - 3


def test_it_is_not_drafted_where_it_could_not_be_used() -> None:
    for engine, _ in (
        an_engine(name="autoregressive"),
        an_engine(name="speculative"),
        an_engine(rule="rejection"),
    ):
        config = engine.config
        uses = strategy(config.strategy).recalls and config.params.rule == "coupled"
        assert bool(list(engine.draft_ahead(asked()))) is uses


def test_a_draft_that_is_not_finite_is_left_off(caplog: pytest.LogCaptureFixture) -> None:
    engine, _ = an_engine()
    plain = result_of(an_engine()[0], asked())

    class Broken:
        def open(self, observation: Observation) -> Broken:
            return self

        def forced(self, prefix: Tokens) -> Tokens:
            return ()

        def choose(self, *_: object, **__: object) -> np.ndarray:
            raise NotFinite("logits")

        def close(self) -> None: ...

    whole, engine._drafter = engine._drafter, Broken()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        assert list(engine.draft_ahead(asked(ON_THE_WAY))) == []
    assert "nothing is drafted ahead" in caplog.text
    engine._drafter = whole
    assert result_of(engine, asked()).tokens == plain.tokens


def test_what_is_said_early_holds_for_its_own_question_only() -> None:
    cache = AnswerCache()
    cache.add_early(asked(ON_THE_WAY), tuple(range(20)))
    draft = cache.draft(asked(), 7)
    assert draft is not None
    assert (draft.answer, draft.tokens) == (7, tuple(range(20)))
    assert cache.draft(asked(history=("turn(30)",)), 7) is None
    assert cache.draft(Observation(SETTLED, "sit", ("turn(20)",)), 7) is None


def test_the_likelier_of_an_early_draft_and_the_last_answer_goes_up() -> None:
    cache = AnswerCache()
    cache.add(asked(ON_THE_WAY, ()), tuple(range(100, 130)))
    cache.add_early(asked(ON_THE_WAY), (1, 2))
    draft = cache.draft(asked(), 1)
    assert draft is not None
    assert draft.tokens[0] == 100, "two early tokens are less than what the last answer promises"
    cache.add_early(asked(ON_THE_WAY), (1, 2, 3, 4, 5, 6, 7, 8, 9))
    draft = cache.draft(asked(), 1)
    assert draft is not None
    assert draft.tokens[0] == 1


def test_a_newer_draft_keeps_the_rest_of_an_older_one_that_it_agrees_with() -> None:
    cache = AnswerCache()
    cache.add_early(asked(ON_THE_WAY), (1, 2, 3, 4, 5))
    cache.add_early(asked(), (1, 2))
    assert cache.early_tokens(asked()) == (1, 2, 3, 4, 5)
    cache.add_early(asked(), (1, 9))
    assert cache.early_tokens(asked()) == (1, 9)
    cache.add_early(asked(), ())
    assert cache.early_tokens(asked()) == (1, 9)


def test_how_often_early_drafts_were_wrong_is_learned_by_itself() -> None:
    cache = AnswerCache()
    for turn in range(60):
        question = asked(history=(f"turn({turn})",))
        cache.add_early(question, (1000 + turn, 2, 3, 4, 5, 6, 7, 8, 9))
        cache.add(question, (turn, 2, 3))
    assert cache.early_tokens(asked(history=("turn(59)",))) == (), "it was used"
    rates = [rate.value for rate in cache.departure_rates]
    assert rates[3] > 0.4 > PRIORS[3]
    assert rates[:2] == list(PRIORS[:2])
