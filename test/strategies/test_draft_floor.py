"""Guesses of little worth are neither drafted nor sent: exact, as fast, and fewer; and what it learns."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from test.edge.test_draft_ahead import GO2, LINK, asked
from vlm_spec_decode.bench.run import SilentCodec
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.models.paced import paced_draft
from vlm_spec_decode.strategies.estimators import (
    FIRST,
    MOST_CONTEXTS,
    MOST_FACTOR,
    OTHER,
    RECALLED,
    TokenKinds,
)

FLOOR, SIZE, REAL_SIZE = 0.03, 2_000, 151_936


def answers(floor: float, vocab_size: int = SIZE, **more: object) -> list[GenerationResult]:
    """Answers of one engine to one question about several worlds, with nothing remembered."""
    found, record = [], None
    for seed in range(3):
        draft, target = pair(PairSpec(acceptance=0.75, vocab_size=vocab_size, seed=seed))
        clock = VirtualClock()
        verifier = VirtualVerifier(target, GO2, LINK, clock, memory=None)
        params = SamplingParams(max_tokens=24, **more)  # type: ignore[arg-type]
        config = EngineConfig(params=params, free_text=True, draft_floor=floor)
        engine = Engine(paced_draft(draft, GO2, clock), SilentCodec(), verifier, clock, config)
        record = engine._record = record or engine._record
        *_, last = engine.answer(asked())
        assert last.result is not None
        found.append(last.result)
    return found


def seconds(found: list[GenerationResult]) -> float:
    return sum(answer.total_s for answer in found)


def sent(found: list[GenerationResult]) -> int:
    return sum(each.drafted for answer in found for each in answer.rounds)


@pytest.fixture(scope="module")
def all_sent() -> list[GenerationResult]:
    return answers(0.0)


def test_fewer_nodes_go_up_for_the_same_tokens_in_the_same_time(all_sent: list[GenerationResult]) -> None:
    fewer = answers(FLOOR)
    assert [a.tokens for a in fewer] == [a.tokens for a in all_sent]
    assert sent(fewer) <= 0.6 * sent(all_sent)
    assert seconds(all_sent) / seconds(fewer) >= 0.97


def test_a_mutant_that_leaves_out_everything_is_exact_and_slow(
    all_sent: list[GenerationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenKinds, "factor", lambda *_: 0.0)
    nothing = answers(FLOOR)
    assert [a.tokens for a in nothing] == [a.tokens for a in all_sent]
    assert sent(nothing) < 0.1 * sent(all_sent)
    assert seconds(all_sent) / seconds(nothing) < 0.8, "the test above would notice"


@pytest.mark.parametrize("factor", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_whatever_is_learned_changes_no_token(
    factor: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [a.tokens for a in answers(0.0, 32, temperature=temperature)]
    monkeypatch.setattr(TokenKinds, "factor", lambda *_: factor)
    assert [a.tokens for a in answers(0.2, 32, temperature=temperature)] == plain


def test_under_rejection_it_has_no_say() -> None:
    """What is sent there must not depend on what was drawn."""
    plain, floored = (answers(floor, 32, rule="rejection", temperature=0.9) for floor in (0.0, 0.5))
    assert [a.rounds for a in floored] == [a.rounds for a in plain]


def test_it_does_the_same_again() -> None:
    first, again = (answers(FLOOR, 32) for _ in range(2))
    assert [a.rounds for a in first] == [a.rounds for a in again]


# What is learned ------------------------------------------------------------------------------------------


def test_guesses_that_the_image_decides_lose_and_others_do_not() -> None:
    kinds, rng = TokenKinds(), random.Random(1)
    number, word = 151_900, 7
    for _ in range(100):
        kinds.learn(number, FIRST, 0.9, float(rng.random() < 0.1))
        kinds.learn(word, FIRST, 0.9, float(rng.random() < 0.9))
    assert kinds.factor(number, FIRST) < 0.3
    assert kinds.factor(word, FIRST) == pytest.approx(1.0, abs=0.15)
    assert kinds.factor(number, OTHER) == kinds.factor(number, RECALLED) == kinds.factor(3, FIRST) == 1.0
    for _ in range(100):
        kinds.learn(number, FIRST, 0.9, 1.0)
    assert kinds.factor(number, FIRST) > 1, "what has changed is learned anew"


def test_what_it_counts_is_bounded_in_number_and_in_value() -> None:
    kinds, rng = TokenKinds(), random.Random(2)
    for _ in range(3 * MOST_CONTEXTS):
        kinds.learn(rng.randrange(REAL_SIZE), rng.randrange(3), rng.random(), float(rng.random() < 0.5))
    kinds.learn(5, FIRST, 0.5, 1.0)
    assert kinds.num_contexts == MOST_CONTEXTS
    factors = [kinds.factor(token, FIRST) for token in range(REAL_SIZE)]
    assert all(math.isfinite(factor) and 0 < factor <= MOST_FACTOR for factor in factors)
    assert kinds.factor(5, FIRST) > 1, "the newest is kept"


def test_a_setting_of_the_engine_says_how_likely() -> None:
    from vlm_spec_decode.edge.factory import engine_config
    from vlm_spec_decode.edge.settings import EdgeSettings

    assert EngineConfig().draft_floor == EdgeSettings().draft_floor == 0.0
    assert engine_config(replace(EdgeSettings(), draft_floor=FLOOR), (2,)).draft_floor == FLOOR
