"""The `rejection` rule on the shipped models: what is said has the target's law, by a chi-squared test."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import Model, ModelCard, ModelContext
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.sampling import log_probs
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.shared_draft import NoDrafter
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import strategy

pytestmark = pytest.mark.slow

ANSWERS = 300
OBSERVATION = Observation(None, "walk to the red ball and wave")


@dataclass
class Kept:
    """A context that outlives its answers, so that a prompt is computed once and not for every answer."""

    inner: ModelContext

    def close(self) -> None: ...

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


class Reopened:
    """A model that always opens the same context."""

    def __init__(self, model: Model) -> None:
        self.card: ModelCard = model.card
        self.context = Kept(model.open(OBSERVATION))

    def open(self, observation: Observation) -> Kept:
        return self.context


@pytest.fixture(scope="module")
def pair() -> tuple[Reopened, Reopened]:
    return Reopened(load_model(shipped("draft"))), Reopened(load_model(shipped("target")))


def params(seed: int = 0) -> SamplingParams:
    # So hot that the law has several likely outcomes however sure of itself the shipped target is.
    return SamplingParams(6.0, top_k=3, max_tokens=2, seed=seed, rule="rejection")


def say(name: str, seed: int, pair: tuple[Reopened, Reopened]) -> Tokens:
    draft, target = pair
    verifier = LocalVerifier(target, VirtualClock(), draft)  # type: ignore[arg-type]
    verifier.open(AnswerRequest(1, OBSERVATION, params(seed), name))
    chosen, sequence = strategy(name), Sequence()
    drafter = draft.open(OBSERVATION) if chosen.drafts else NoDrafter()
    config = EdgeConfig(answer=1, params=params(seed), draft_length=2)
    updates = chosen.decode(sequence, drafter, verifier, VirtualClock(), config)  # type: ignore[arg-type]
    return tuple(itertools.chain(*updates))


def law(target: Reopened) -> dict[Tokens, float]:
    """The target's law of two tokens, straight from its logits: no session, no strategy."""
    context = target.open(OBSERVATION).inner
    first = np.exp(log_probs(context.score(())[0], params()))
    likely = [int(t) for t in np.argsort(-first)[:12]]
    then = {t: np.exp(log_probs(context.score((t,))[0], params())) for t in likely}
    return {(t, int(u)): float(first[t] * then[t][u]) for t in likely for u in np.argsort(-then[t])[:12]}


@pytest.mark.parametrize("name", ["speculative", "hybrid", "colocated"])
def test_what_is_said_has_the_targets_law(name: str, pair: tuple[Reopened, Reopened]) -> None:
    counts = Counter(say(name, seed, pair) for seed in range(ANSWERS))
    expected = {tokens: ANSWERS * p for tokens, p in law(pair[1]).items() if ANSWERS * p >= 5}
    assert len(expected) >= 3, "a law with something to test"
    rest = ANSWERS - sum(expected.values())
    said_rest = ANSWERS - sum(counts[tokens] for tokens in expected)
    cells = [(counts[tokens], wanted) for tokens, wanted in expected.items()] + [(said_rest, rest)]
    chi_squared = sum((said - wanted) ** 2 / wanted for said, wanted in cells if wanted >= 5)
    freedom = len(expected)
    # Wilson and Hilferty's approximation of the 0.999 quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert chi_squared < limit
