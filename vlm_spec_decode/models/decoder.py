"""The language half of a checkpoint: embeddings, decoder layers with exits, final norm, LM head.

Knows nothing of images, prompts, sessions or tokens' meaning. The layers are Transformers' own,
called one after another here rather than through the model's `forward`: that saves its overhead
per pass (about a fifth at these sizes) and lets early exits be read while the pass still climbs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlm_spec_decode.core.ports import Logits


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder stack that can be climbed.

    `stack` is a Transformers text model, untyped here, of the Llama shape (`embed_tokens`, `layers`, `norm`,
    `rotary_emb`), also for Qwen2-VL with its positions in three rows. `exits` maps an exit layer to
    its adapter, a residual linear map in front of the shared final norm and head, or None.
    `vocab_size` is the tokenizer's; rows that only pad the head are cut off.
    """

    stack: Any
    head: nn.Linear
    exits: Mapping[int, nn.Linear | None]
    vocab_size: int

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

    def climb(
        self, embedded: Tensor, positions: Tensor, mask: Tensor | None, cache: DynamicCache
    ) -> Iterator[tuple[int, Tensor]]:
        """Run the layers over `embedded` [n, width], extend `cache`, yield (layer, state [n, width]).

        Yields at each exit layer while the rest is still to come, and at the end the normed final
        state under `depth`. `positions` is [1, n], or [3, 1, n] with M-RoPE; `mask` is additive
        [1, 1, n, past + n], or None when every row may see every column.
        """
        hidden = embedded[None]
        rotary = self.stack.rotary_emb(hidden, positions)
        for layer, block in enumerate(self.stack.layers, start=1):
            hidden = block(
                hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache, use_cache=True
            )
            if layer in self.exits:
                yield layer, hidden[0].to(self.device)
        yield self.depth, self.stack.norm(hidden[0]).to(self.device)

    def logits(self, layer: int, states: Tensor) -> Logits:
        """Return logits [n, vocab] of states [n, width] that `climb` yielded at `layer`."""
        if layer != self.depth:
            adapter = self.exits[layer]
            states = self.stack.norm(states if adapter is None else states + adapter(states)).to(self.device)
        scores: Tensor = self.head(states)[:, : self.vocab_size]
        array: Logits = scores.float().cpu().numpy().astype(np.float32, copy=False)
        return array
