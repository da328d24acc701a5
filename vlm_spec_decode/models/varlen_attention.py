"""Attention over the rows of many contexts in one pass, each over its own cache.

A pass holds the rows of all its contexts one after the other, without padding: row-wise operations
(projections, norms, feed-forward) run for all rows at once, and that is where a batch saves time. Only
attention runs per context, so prefixes and trees may be of any size and no context sees another.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "vsd_strands"


@dataclass(frozen=True, slots=True)
class VarlenEntry:
    """One context's rows of a pass: `embedded` [n, width], `positions` [1, n] or [3, 1, n] with M-RoPE.

    All positions are below `end`. `mask` is additive [1, 1, n, past + n], None when every row may see every
    column. `cache` holds the past and takes the rows' keys and values.
    """

    embedded: Tensor
    positions: Tensor
    end: int
    mask: Tensor | None
    cache: DynamicCache


def attend_by_strands(stack: Any) -> None:
    """Let a Transformers text model attend by strands; its own `forward` does what it did before."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    stack.config._attn_implementation = NAME


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    strands: Seq[VarlenEntry] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention [1, rows, heads, width] of queries [1, heads, rows, width]."""
    if not strands:
        seen, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return seen, None
    sizes = [len(strand.embedded) for strand in strands]
    queries, keys, values = (torch.split(part, sizes, dim=2) for part in (query, key, value))
    rows = zip(strands, queries, keys, values, strict=True)
    return torch.cat([_attend_one(module, *row, options) for row in rows], dim=1), None


def _attend_one(
    module: Any, strand: VarlenEntry, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
) -> Tensor:
    keys, values = strand.cache.update(key, value, module.layer_idx)
    mask = None if strand.mask is None else strand.mask.to(query.device)
    seen: Tensor = sdpa_attention_forward(module, query, keys, values, mask, is_causal=False, **options)[0]
    return seen
