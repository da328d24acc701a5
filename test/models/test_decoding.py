"""Both strategies on real networks: the same tokens, and no token computed twice on either side."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from test.models import checkpoints
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.types import AnswerRequest, Observation, SamplingParams
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.edge.verifier_local import LocalVerifier
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.vocabulary import assert_same_vocabulary
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.registry import strategy


@dataclass
class Watched:
    """A model that remembers the contexts it has opened."""

    model: VlmModel
    context: VlmContext | None = None

    @property
    def card(self):
        return self.model.card

    def open(self, observation: Observation) -> VlmContext:
        self.context = self.model.open(observation)
        return self.context


@pytest.fixture(scope="module")
def target_and_draft(tmp_path_factory):
    """A LLaVA, and the same with noise on its weights: a draft that is right some of the time."""
    folder = tmp_path_factory.mktemp("pair")
    checkpoints.llava(folder / "target")
    weights = load_file(checkpoints.llava(folder / "draft") / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    noisy = {name: w + 0.05 * torch.randn(w.shape, generator=noise) for name, w in weights.items()}
    save_file(noisy, folder / "draft/model.safetensors", metadata={"format": "pt"})
    target, draft = load_model(folder / "target"), load_model(folder / "draft")
    assert_same_vocabulary(draft.card, target.card)
    return target, draft


def answer(name, target, draft, params):
    """Return tokens, and both contexts' stats."""
    watched = Watched(target)
    verifier, drafter = LocalVerifier(watched, WallClock()), draft.open(checkpoints.observation())
    verifier.open(AnswerRequest(1, checkpoints.observation(), params, name))
    sequence = Sequence()
    for _ in strategy(name).edge(
        sequence, drafter, verifier, WallClock(), EdgeConfig(answer=1, params=params)
    ):
        pass
    verifier.close()
    return sequence.tokens, watched.context.stats, drafter.stats


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_speculation_says_what_plain_decoding_says_in_fewer_passes(target_and_draft, temperature, seed):
    target, draft = target_and_draft
    params = SamplingParams(temperature, max_tokens=40, seed=seed)
    plain, steps, _ = answer("autoregressive", target, draft, params)
    tokens, verified, drafted = answer("speculative", target, draft, params)
    assert tokens == plain
    assert (steps.passes, steps.tokens) == (40, 39)
    assert verified.passes < steps.passes
    # The draft runs once per drafted token; the target computes each of those and, from the second pass
    # on, the token that it added itself: nothing more.
    assert verified.tokens == drafted.passes + verified.passes - 1
    # The draft computes what it has said and what the target has said instead, each once.
    assert drafted.tokens < drafted.passes + verified.passes


def test_draft_that_is_the_target_is_never_rejected(target_and_draft):
    target, _ = target_and_draft
    tokens, verified, _ = answer("speculative", target, target, SamplingParams(1.0, max_tokens=40, seed=5))
    assert len(tokens) == 40
    assert verified.passes == 8
    assert verified.tokens == 39
