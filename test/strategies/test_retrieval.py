"""Earlier answers as drafts: exact with every memory, and worth their passes where answers repeat."""

from __future__ import annotations

import random

import pytest

from test.edge.test_draft_ahead import an_engine, asked, result_of
from vlm_spec_decode.core.types import Image, Tokens
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.verifier_virtual import VirtualVerifier
from vlm_spec_decode.strategies.registry import STRATEGIES


def remembering(verifier: VirtualVerifier) -> FreeDrafts:
    assert verifier.memory is not None
    return verifier.memory


def hostile(plain: Tokens, seed: int) -> FreeDrafts:
    """Answers that begin as the right one does and go wrong, and the right one a token late."""
    rng, memory = random.Random(seed), FreeDrafts()
    for _ in range(12):
        cut = rng.randrange(len(plain))
        memory.add(asked().instruction, (*plain[:cut], *(rng.randrange(20) for _ in range(12))))
    memory.add(asked().instruction, (plain[0], *plain))
    return memory


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_no_memory_changes_a_token(name: str, temperature: float) -> None:
    """The law, greedy and sampled: committed tokens are the target's own, whatever is remembered."""
    plain = result_of(an_engine(0.6, name, temperature=temperature, seed=4)[0], asked()).tokens
    for seed in range(2):
        engine, verifier = an_engine(0.6, name, temperature=temperature, seed=4)
        verifier._cloud.memory = hostile(plain, seed)
        engine._answer_cache.memory = hostile(plain, seed + 7)
        assert result_of(engine, asked()).tokens == plain


def test_under_rejection_nothing_is_recalled() -> None:
    engine, verifier = an_engine(0.6, "retrieval", rule="rejection", temperature=0.9)
    first = result_of(engine, asked())
    assert remembering(verifier).num_tokens > 0
    again = result_of(engine, asked())
    assert again.target_passes == first.target_passes == len(first.tokens)


def _second_frame(engine: Engine) -> int:
    """Return the passes of an answer to the same question about another frame."""
    return result_of(engine, asked(Image(b"another frame", 4, 4), history=("forward(1)",))).target_passes


def test_the_same_answer_again_takes_a_few_passes_without_any_model() -> None:
    engine, verifier = an_engine(name="retrieval")
    first = result_of(engine, asked())
    assert first.target_passes == len(first.tokens), "there is nothing to recall yet"
    assert _second_frame(engine) <= 0.3 * first.target_passes
    assert verifier.up_bytes < 2000, "the drafts are made in the cloud"


def test_a_draft_model_and_the_memory_together_take_no_more_passes_than_either() -> None:
    passes = {}
    for name in ("hybrid", "retrieval"):
        engine, _ = an_engine(0.5, name)
        result_of(engine, asked())
        passes[name] = _second_frame(engine)
    forgetful, verifier = an_engine(0.5, "hybrid")
    verifier._cloud.memory = None
    first = result_of(forgetful, asked()).target_passes
    assert passes["hybrid"] <= min(passes["retrieval"], first)
