"""Qwen3.5 and Qwen3.6: three of four layers are gated delta nets, which have a recurrent state.

Transformers refuses to speculate with them, because a state cannot be cropped. Here such a layer takes a
pass's rows as they come: of a prompt it computes the state by Transformers' own functions, and of nodes what
`models.delta_net` needs to know of each. Picture and positions are those of Qwen2-VL.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus
from transformers.activations import ACT2FN
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    causal_conv1d_fn,
    l2norm,
    torch_chunk_gated_delta_rule,
)

from vlm_spec_decode.models.delta_net import DeltaPast, Gates, TreeRows
from vlm_spec_decode.models.families.base import FULL, LINEAR, AnswerCache, Family
from vlm_spec_decode.models.families.language import Language
from vlm_spec_decode.models.families.qwen_vl import QwenVL
from vlm_spec_decode.models.kv_slots import SlotTable


class RecurrentCache(AnswerCache):
    """Keys and values of the layers that attend, and a `DeltaPast` for each of the others.

    A pass must have been announced by `begin_pass`. `kernel` is the width of the layers' convolutions. Dead
    nodes are dropped at once: each holds 0.7 to 3.4 MiB of a real model, and without them an answer goes on
    bit by bit as if its rejected drafts had never been there.
    """

    max_dead: ClassVar[int] = 0

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self._kernel = kernel
        self._prompt_len = 0
        self.pasts: dict[int, DeltaPast] = {}
        self._rows: TreeRows | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return super().nbytes + sum(past.nbytes for past in self.pasts.values())

    def begin_pass(self, slots: SlotTable, first: int, prompt_len: int, device: torch.device) -> None:
        """Note how the slots of the coming pass hang together."""
        self._prompt_len = prompt_len
        self._rows = TreeRows.of(slots, first, 0 if first else prompt_len, self._kernel, device)

    def rows(self, device: torch.device) -> TreeRows:
        """Return the rows of the pass that is under way, on the device of a layer."""
        assert self._rows is not None
        return self._rows if self._rows.sees.device == device else self._rows.to(device)

    def gather(self, columns: Tensor) -> None:
        """Keep these columns, indices in host memory, in this order, in every layer."""
        super().gather(columns)
        # The prompt's columns are always among them; a node is a column behind them.
        for past in self.pasts.values():
            past.gather(columns[self._prompt_len :] - self._prompt_len)

    def cut(self, columns: int) -> None:
        """Keep the first `columns` of every layer."""
        super().cut(columns)
        for past in self.pasts.values():
            past.cut(columns - self._prompt_len)


@dataclass(frozen=True, slots=True)
class TreeDeltaNet:
    """The forward pass of one of Transformers' gated delta nets, `net`, over the ragged rows of many answers.

    Projections, convolution weights and norm are those of `net`. Called without entries, as by training, it
    does `plain`, which is what `net` did before.
    """

    net: Any
    plain: Callable[..., Tensor]

    def __call__(self, hidden_states: Tensor, *args: Any, entries: Seq[Any] = (), **options: Any) -> Tensor:
        """Return the layer's output [1, rows, width] for `hidden_states` of the same shape."""
        net = self.net
        if not entries:
            return self.plain(hidden_states, *args, **options)
        rows = hidden_states[0]
        mixed, strength = net.in_proj_qkv(rows), net.in_proj_b(rows).sigmoid()
        decay = -net.A_log.float().exp() * softplus(net.in_proj_a(rows).float() + net.dt_bias)
        sizes = [len(entry.embedded) for entry in entries]
        parts = zip(*(part.split(sizes) for part in (mixed, decay, strength)), strict=True)
        read = torch.cat([self._read(entry.cache, *part) for entry, part in zip(entries, parts, strict=True)])
        gate = net.in_proj_z(rows).reshape(-1, net.head_v_dim)
        out: Tensor = net.out_proj(net.norm(read.reshape(-1, net.head_v_dim), gate).reshape(len(rows), -1))
        return out[None]

    def _read(self, cache: RecurrentCache, mixed: Tensor, decay: Tensor, strength: Tensor) -> Tensor:
        """Add an entry's rows to its past; return what the rows read from their states [n, heads, dv]."""
        rows = cache.rows(mixed.device)
        layer, start = self.net.layer_idx, rows.prompt
        found = []
        if start:
            read, cache.pasts[layer] = self._prompt(mixed[:start], decay[:start], strength[:start])
            found.append(read)
        if len(rows.sees):
            past = cache.pasts[layer]
            found.append(self._nodes(past, rows, mixed[start:], decay[start:], strength[start:]))
        return torch.cat(found)

    def _prompt(self, mixed: Tensor, decay: Tensor, strength: Tensor) -> tuple[Tensor, DeltaPast]:
        """Read a prompt: exactly what `net` does with it; return also the past that begins behind it."""
        net, lead = self.net, self.net.conv_kernel_size - 1
        weight, activation = net.conv1d.weight.squeeze(1), net.activation
        convolved = causal_conv1d_fn(mixed.T[None], weight, activation=activation)[0].T
        query, key, value = self._heads(convolved)
        read, state = torch_chunk_gated_delta_rule(
            query[None],
            key[None],
            value[None],
            g=decay[None],
            beta=strength[None],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        # Before a prompt of fewer rows than the convolution is wide stand zeros, as in `net`.
        tail = pad(mixed, (0, 0, lead, 0))[-lead:].clone()
        return read[0], DeltaPast(state[0], tail, net.num_k_heads)

    def _nodes(
        self, past: DeltaPast, rows: TreeRows, mixed: Tensor, decay: Tensor, strength: Tensor
    ) -> Tensor:
        """Read the nodes of a tree, each below the path that leads to it."""
        convolved = past.convolve(mixed, rows, self.net.conv1d.weight.squeeze(1))
        convolved = ACT2FN[self.net.activation](convolved)
        query, key, value = (part.transpose(0, 1).float() for part in self._heads(convolved))
        query, key = l2norm(query) * self.net.head_k_dim**-0.5, l2norm(key)
        read = past.extend(query, key, value, Gates(decay.T, strength.T.float()), rows)
        return read.transpose(0, 1).to(mixed.dtype)

    def _heads(self, convolved: Tensor) -> tuple[Tensor, ...]:
        """Return query, key [n, key heads, dk] and value [n, heads, dv] of convolved rows [n, channels]."""
        net = self.net
        query, key, value = torch.split(convolved, [net.key_dim, net.key_dim, net.value_dim], dim=-1)
        return (
            query.reshape(len(query), net.num_k_heads, net.head_k_dim),
            key.reshape(len(key), net.num_k_heads, net.head_k_dim),
            value.reshape(len(value), net.num_v_heads, net.head_v_dim),
        )


class _Recurrent(Family):
    """What the VLM and its language-only checkpoints share."""

    layer_kinds: ClassVar[frozenset[str]] = frozenset({FULL, LINEAR})

    def prepare(self, stack: Any) -> None:
        """Let the recurrent layers take the entries of a pass."""
        for block in stack.layers:
            if hasattr(block, "linear_attn"):
                block.linear_attn.forward = TreeDeltaNet(block.linear_attn, block.linear_attn.forward)

    def cache(self) -> AnswerCache:
        """Return the empty cache of one answer."""
        return RecurrentCache(self.config.get_text_config().linear_conv_kernel_dim)


class Qwen35(_Recurrent, QwenVL):
    """Qwen3.5 with its vision tower, dense or a mixture of experts."""


class Qwen35Language(_Recurrent, Language):
    """Its language model alone."""
