"""A cloud whose engine takes chains alone, knows one rule, and may be away: like vLLM, without vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from test.net.test_service import PARAMS, PATIENT_S
from test.net.test_sockets import cloud, decode, edge, own_answer
from test.tables import TARGET, TableContext, TableModel
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.errors import CloudRefused, EngineStopped
from vlm_spec_decode.core.ports import ModelCard, Scored, ScoreRequest
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.strategies.registry import STRATEGIES
from vlm_spec_decode.transport import keys

pytestmark = pytest.mark.net


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    keys.generate(tmp_path)
    return tmp_path


class Chains(TableContext):
    """What an engine of chains is: it takes no tree."""

    verifies_trees = False

    def score(self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), **settings: Any) -> Logits:
        assert parents == tuple(range(len(tokens)))
        return super().score(prefix, tokens, parents, **settings)


class ChainModel(TableModel):
    def open(self, observation: Observation) -> TableContext:
        self.contexts.append(Chains(self.table))
        return self.contexts[-1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_engine_of_chains_gets_chains_and_says_the_same(key_folder: Path, name: str) -> None:
    with cloud(key_folder, ChainModel(TARGET)) as server, edge(server.address, key_folder) as verifier:
        verifier.connect(timeout_s=PATIENT_S)
        assert decode(verifier, name, PARAMS, 1) == own_answer(PARAMS)


def test_an_engine_without_a_rule_refuses_it_by_name(key_folder: Path) -> None:
    class Coupled(TableModel):
        @property
        def card(self) -> ModelCard:
            return replace(super().card, rules=("coupled",))

    params = SamplingParams(temperature=1.0, max_tokens=12, seed=3, rule="rejection")
    with cloud(key_folder, Coupled(TARGET)) as server, edge(server.address, key_folder) as verifier:
        verifier.connect(timeout_s=PATIENT_S)
        with pytest.raises(CloudRefused, match=r"unknown_rule: .*'rejection', only coupled"):
            decode(verifier, "speculative", params, 1)
        assert decode(verifier, "speculative", PARAMS, 2) == own_answer(PARAMS)


def test_answers_go_on_after_the_engine_was_away(key_folder: Path) -> None:
    """In the middle of an answer, and before the next one can begin, from the committed tokens."""

    class Away(TableModel):
        steps, left = 0, 5

        def score_batch(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
            self.steps += 1
            if self.steps > 6 and self.left:
                self.left -= 1
                raise EngineStopped("vLLM's process has ended")
            return super().score_batch(requests)

    target = Away(TARGET)
    with cloud(key_folder, target) as server, edge(server.address, key_folder) as verifier:
        verifier.connect(timeout_s=PATIENT_S)
        assert decode(verifier, "autoregressive", PARAMS, 1) == own_answer(PARAMS)
        assert target.left == 0
        assert server.protocol.stats.refused["engine"] == 5
        assert len(target.contexts) == 6, "the answer was opened again each time"
