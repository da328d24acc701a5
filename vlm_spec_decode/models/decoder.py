"""The language half of a checkpoint: embeddings, decoder layers with exits, final norm, LM head.

Knows nothing of images, prompts, sessions or tokens' meaning. The layers are Transformers' own,
called one after another here rather than through the model's `forward`: that saves its overhead
per pass (about a fifth at these sizes) and lets early exits be read while the pass still climbs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm_spec_decode.core.ports import Logits
from vlm_spec_decode.decoding.early_exit import ExitCalibration
from vlm_spec_decode.models.rotary import RotaryTable
from vlm_spec_decode.models.varlen_attention import VarlenEntry, attend_by_strands


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder stack that can be run layer by layer.

    `stack` is a Transformers text model, untyped here, of the Llama shape (`embed_tokens`, `layers`, `norm`,
    `rotary_emb`), also for Qwen2-VL with its positions in three rows. `exits` maps an exit layer to
    its adapter, a residual linear map in front of the shared final norm and head, or None.
    `vocab_size` is the tokenizer's; rows that only pad the head are cut off. `calibration` is how
    reliable the exits are.
    """

    stack: Any
    head: nn.Linear
    exits: Mapping[int, nn.Linear | None]
    vocab_size: int
    calibration: ExitCalibration = field(default_factory=ExitCalibration)
    rotary: RotaryTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotary", RotaryTable(self.stack.rotary_emb))
        attend_by_strands(self.stack)

    @property
    def depth(self) -> int:
        """Number of layers, and the key of the final state in `climb`."""
        return len(self.stack.layers)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return self.head.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings [n, width] of token ids [n]."""
        embedded: Tensor = self.stack.embed_tokens(ids)
        return embedded

    def climb(self, strands: Seq[VarlenEntry]) -> Iterator[tuple[int, list[Tensor]]]:
        """Run the layers over all strands in one pass, extend their caches, yield (layer, states).

        States are one tensor [n, width] per strand. Yields at each exit layer while the rest is still to
        come, and at the end the normed final states under `depth`.
        """
        sizes = [len(strand.embedded) for strand in strands]
        hidden = torch.cat([strand.embedded for strand in strands])[None]
        positions = torch.cat([strand.positions for strand in strands], dim=-1).to(hidden.device)
        rotary = self.rotary(hidden, positions, max(strand.end for strand in strands))
        for layer, block in enumerate(self.stack.layers, start=1):
            hidden = block(hidden, position_embeddings=rotary, strands=strands)
            if layer in self.exits:
                yield layer, list(hidden[0].to(self.device).split(sizes))
        yield self.depth, list(self.stack.norm(hidden[0]).to(self.device).split(sizes))

    def logits(self, layer: int, states: Tensor) -> Logits:
        """Return logits [n, vocab] of states [n, width] that `climb` yielded at `layer`."""
        if layer != self.depth:
            adapter = self.exits[layer]
            states = self.stack.norm(states if adapter is None else states + adapter(states)).to(self.device)
        scores: Tensor = self.head(states)[:, : self.vocab_size]
        array: Logits = scores.float().cpu().numpy().astype(np.float32, copy=False)
        return array
