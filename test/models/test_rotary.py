"""Rotary embeddings from the table are those that the model computes, bit by bit."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlm_spec_decode.models.decoder import FIRST_SIZE, RotaryTable


def rotary(rope_type: str = "default") -> LlamaRotaryEmbedding:
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128)
    config.rope_parameters = parameters
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic"])
@pytest.mark.parametrize(
    "positions", [[0], [3, 1, 3], [FIRST_SIZE - 1, 40], [FIRST_SIZE, 2 * FIRST_SIZE + 7]]
)
def test_what_is_looked_up_is_what_the_model_computes(rope_type: str, positions: list[int]) -> None:
    hidden = torch.zeros(1, len(positions), 64)
    rows = torch.tensor([positions])
    table = RotaryTable(rotary(rope_type))
    for end in (max(positions) + 1, 4 * FIRST_SIZE):  # the second call may find a table, or grow it
        found = table(hidden, rows, end)
        for ours, theirs in zip(found, rotary(rope_type)(hidden, rows), strict=True):
            assert torch.equal(ours, theirs)


def test_fixed_kinds_are_computed_once_and_others_every_time() -> None:
    calls = []

    class Counted(LlamaRotaryEmbedding):
        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            calls.append(position_ids.shape[-1])
            seen: tuple[torch.Tensor, torch.Tensor] = super().forward(x, position_ids)
            return seen

    for kind, wanted in (("default", [FIRST_SIZE]), ("dynamic", [1, 1, 1])):
        calls.clear()
        table = RotaryTable(Counted(rotary(kind).config))
        for position in (5, 6, 7):
            table(torch.zeros(1, 1, 64), torch.tensor([[position]]), position + 1)
        assert calls == wanted


def test_positions_in_three_rows_are_left_to_the_model() -> None:
    asked = []

    def compute(hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(tuple(positions.shape))
        return hidden, hidden

    compute.rope_type = "default"  # type: ignore[attr-defined]
    RotaryTable(compute)(torch.zeros(1, 2, 64), torch.zeros(3, 1, 2, dtype=torch.long), 1)
    assert asked == [(3, 1, 2)]
