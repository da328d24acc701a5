"""Pairs of real size whose agreement and cost are known: real layers, real vocabulary, no training.

python benchmarks/lib/real_pair.py ADDRESS KEYS    serve the target

What a layer adds to its input is multiplied by zero, so that the token after t depends on t alone, by a head
with random weights: a run of tokens without repetition. All of the arithmetic is done all the same. A draft
with the same head and embedding agrees always, one whose head is shifted by a row never. What a step costs is
set by the width of the feed-forward layers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.ports import Model, ModelCard
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.families.base import EmbeddedPrompt
from vlm_spec_decode.models.families.language import Language
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

VOCABULARY, WIDTH, PROMPT = 151_936, 256, 64

SURENESS = 2.0
"""Scale of the head: a token's choice has most of the probability, as in answers of trained models."""


@dataclass(frozen=True)
class SizedModel(Model):
    """A language model of a known cost; the instruction's last word is a number that chooses the answer."""

    decoder: Decoder
    name: str

    @property
    def card(self) -> ModelCard:
        """Identity."""
        return ModelCard(self.name, "1", "sized", "none", VOCABULARY, self.decoder.depth)

    @property
    def step_bytes(self) -> int:
        """Bytes of the layers and the head."""
        return self.decoder.step_bytes

    def open(self, observation: Observation) -> VlmContext:
        """Start one answer."""
        start = 997 * int(observation.instruction.split()[-1])
        ids = (torch.arange(PROMPT) + start) % VOCABULARY
        positions = torch.arange(PROMPT)[None]
        return VlmContext(self.decoder, lambda: EmbeddedPrompt(self.decoder.embed(ids), positions, ids))


@cache
def shared_weights() -> tuple[Tensor, Tensor]:
    """Return embedding and head [vocab, width], which all models of this process share."""
    generator = torch.Generator().manual_seed(0)
    embedding, head = (torch.randn(VOCABULARY, WIDTH, generator=generator) for _ in range(2))
    return embedding, head.mul_(SURENESS)


def sized_model(name: str, steps: float, *, agrees: bool = True) -> SizedModel:
    """Return a model a step of which reads `steps` times as much as the head alone, at least 1.1 times."""
    embedding, head = shared_weights()
    layers = max(1, min(4, round(steps - 1)))
    # A layer reads 3 · width · intermediate for its feed-forward part and little else.
    intermediate = int((steps - 1) * VOCABULARY / (3 * layers))
    config = Qwen2Config(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(1)
    network = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    for layer in cast(Any, network.model.layers):
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    network.model.embed_tokens = cast(Any, torch.nn.Embedding).from_pretrained(embedding)
    output = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, device="meta")
    output.weight = torch.nn.Parameter(head if agrees else head.roll(1, 0), requires_grad=False)
    family = Language.of_config(config)
    return SizedModel(Decoder(network.model, output, {}, VOCABULARY, family), name)


TARGET_STEPS, DRAFT_STEPS, SLOW_STEPS = 6.0, 1.2, 9.0
"""Reads of a step over the head's own: the draft's is a fifth of the target's, the slow one's 1.5 times."""


def target() -> SizedModel:
    """Return the target of all pairs."""
    return sized_model("target", TARGET_STEPS)


def draft(kind: str) -> SizedModel:
    """Return a draft that `agrees`, that is `wrong`, or that is wrong and `slow`."""
    steps = SLOW_STEPS if kind == "slow" else DRAFT_STEPS
    return sized_model("draft", steps, agrees=kind == "agrees")


def serve(address: str, folder: Path) -> None:
    """Serve the target until the process is ended."""
    torch.set_num_threads(1)
    model = target()
    link = RouterLink(address, keys.cloud_keys(folder))
    server = CloudServer(link, ServerProtocol(model.card, language(False).digest), model, WallClock())
    sys.stdout.write(server.address + "\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
