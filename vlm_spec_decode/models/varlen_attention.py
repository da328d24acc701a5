"""Attention of a pass over the ragged rows of many answers, each over its own past.

Two forms with the same results up to rounding. On a CPU, answer by answer: each one's keys lie together, and
its own numbers of rows and columns waste nothing. On a GPU, in groups of answers of like length, padded to
one shape: writing the new columns, reading the old ones and attending are one operation each, however many
answers there are. In both, the queries that share a head of keys are laid behind each other, so that grouped
heads (GQA, 2305.13245) copy no keys. Knows caches and masks; no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vlm_spec_decode.models.families.base import AnswerCache, EmbeddedPrompt
from vlm_spec_decode.models.hardware import to_device
from vlm_spec_decode.models.kv_pool import ALIGNMENT, KvPool, numbers

ATTENTION = "vsd_varlen"
"""Under this name Transformers knows our attention over ragged rows."""

PACKED_ROWS = 128
"""Up to so many rows the mask is repeated for queries that share keys; beyond, keys are cheaper to repeat."""


@dataclass(frozen=True, slots=True)
class VarlenEntry:
    """One context's rows of a pass: `embedded` [n, width], `positions` [1, n] or [3, 1, n] with M-RoPE.

    `ids` [n] are the rows' tokens, the image's placeholder in its rows. All positions are below `end`.
    `masks` are by type of layer: additive [1, 1, n, past + n], None when every row may see every column.
    `cache` holds the past and takes the rows' keys and values. `prompt` is set in the pass that computes the
    context's prompt, whose rows are then the first ones.
    """

    embedded: Tensor
    positions: Tensor
    ids: Tensor
    end: int
    masks: Mapping[str, Tensor | None]
    cache: AnswerCache
    prompt: EmbeddedPrompt | None = None


def use_varlen_attention(stack: Any) -> None:
    """Let a Transformers text model attend entry by entry; its own `forward` does what it did before."""
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    stack.config._attn_implementation = ATTENTION


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    entries: Seq[VarlenEntry] = (),
    layer_type: str = "",
    batch: PooledBatch | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention [1, rows, heads, width] of queries [1, heads, rows, width]."""
    if batch is not None:
        return batch.attend(module.layer_idx, layer_type, query, key, value, scaling), None
    if not entries:
        # The model was called as a whole, by training or as a reference: Transformers' own way.
        seen, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return seen, None
    sizes = [len(entry.embedded) for entry in entries]
    queries, keys, values = (torch.split(part, sizes, dim=2) for part in (query, key, value))
    parts = []
    for entry, own, new_keys, new_values in zip(entries, queries, keys, values, strict=True):
        # The keys are stored already rotated, each by its own position, so that gathering columns leaves
        # them valid.
        past = entry.cache.update(new_keys, new_values, module.layer_idx)
        # With layers spread over devices, the mask follows the layer.
        mask = entry.masks[layer_type]
        mask = None if mask is None else mask.to(query.device)
        parts.append(attention(own, *past, mask, scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Return softmax(q k^T · scaling + mask) v [b, heads, rows, width] of queries of the same shape.

    `keys` and `values` are [b, fewer heads, columns, width], `mask` [b, 1, rows, columns]. `scaling` None is
    1 / sqrt(width).
    """
    batch, heads, rows, _ = query.shape
    shared = heads // keys.shape[1]
    if shared > 1 and rows > PACKED_ROWS:
        keys, values = (part.repeat_interleave(shared, dim=1) for part in (keys, values))
        shared = 1
    # Heads that share keys are neighbours: h = kv · shared + i. Their rows become rows of one head.
    packed = query.reshape(batch, keys.shape[1], shared * rows, -1)
    if mask is not None and shared > 1:
        mask = mask[:, :, None].expand(-1, -1, shared, -1, -1).reshape(batch, 1, shared * rows, -1)
    seen = scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling)
    return seen.reshape(batch, heads, rows, -1)


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """Answers of like length in one shape: b of them, r rows each, c columns each.

    `columns` [b · c] are what they see, `rows` [b · r] their rows of the pass, `masks` [b, 1, r, c] by type.
    """

    answers: int
    columns: Tensor
    rows: Tensor
    masks: Mapping[str, Tensor]

    def by_answer(self, part: Tensor) -> Tensor:
        """Return [b, heads, n, width] of what is [heads, b · n, width]."""
        return part.view(len(part), self.answers, -1, part.shape[-1]).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class PooledBatch:
    """A pass over answers whose columns lie in one pool.

    `written` [rows] are the columns that the rows are written to. `back` [rows] tells for each row of the
    pass where it stands in the groups' rows behind each other.
    """

    pool: KvPool
    sources: Mapping[int, int]
    written: Tensor
    back: Tensor
    groups: tuple[BatchGroup, ...]

    @staticmethod
    def of(pool: KvPool, entries: Seq[VarlenEntry], fewest: tuple[int, int] = (1, 1)) -> PooledBatch:
        """Take columns for every entry's rows, and lay out the pass.

        The pass and every answer of a group have at least so many rows and columns, for passes that must have
        one of few shapes. Raises torch.OutOfMemoryError; what was taken until then lies in the caches, which
        are to be cut.
        """
        device = entries[0].embedded.device
        sizes = [len(entry.embedded) for entry in entries]
        taken = [entry.cache.take(size) for entry, size in zip(entries, sizes, strict=True)]
        starts = list(accumulate(sizes, initial=0))
        total = max(starts[-1], fewest[0])
        back = np.zeros(total, dtype=np.int64)
        groups, laid = [], 0
        for members in _groups(entries):
            height = max(fewest[0], *(sizes[i] for i in members))
            width = max(fewest[1], *(len(entries[i].cache.columns) for i in members))
            width = -(-width // ALIGNMENT) * ALIGNMENT
            chosen = np.zeros((len(members), height), dtype=np.int64)
            for line, i in enumerate(members):
                own = np.arange(sizes[i])
                chosen[line, : sizes[i]] = starts[i] + own
                back[starts[i] : starts[i + 1]] = laid + line * height + own
            laid += chosen.size
            columns = np.concatenate([numbers(entries[i].cache.columns, width) for i in members])
            masks = _padded_masks([entries[i] for i in members], height, width)
            groups.append(
                BatchGroup(
                    len(members), to_device(columns, device), to_device(chosen.reshape(-1), device), masks
                )
            )
        written = numbers([column for columns in taken for column in columns], total)
        return PooledBatch(
            pool,
            entries[0].cache.sources,
            to_device(written, device),
            to_device(back, device),
            tuple(groups),
        )

    @property
    def shared_masks(self) -> tuple[int, ...]:
        """For each type of layers the number of the first one with the same mask."""
        masks = list(map(id, self.groups[0].masks.values()))
        return tuple(map(masks.index, masks))

    def copy_(self, other: PooledBatch) -> None:
        """Take over the numbers of a pass with the same shapes, in the tensors of this one."""
        self.written.copy_(other.written)
        self.back.copy_(other.back)
        for mine, group in zip(self.groups, other.groups, strict=True):
            mine.columns.copy_(group.columns)
            mine.rows.copy_(group.rows)
            for kind, mask in mine.masks.items():
                mask.copy_(group.masks[kind])

    def attend(
        self,
        layer: int,
        layer_type: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
    ) -> Tensor:
        """Write the rows' keys and values of a layer; return attention [1, rows, heads, width]."""
        source = self.sources.get(layer, layer)
        if source == layer:
            self.pool.write(layer, key[0], value[0], self.written)
        parts = []
        for group in self.groups:
            keys, values = map(group.by_answer, self.pool.read(source, group.columns))
            own = group.by_answer(query[0].index_select(1, group.rows))
            seen = attention(own, keys, values, group.masks[layer_type], scaling)
            parts.append(seen.transpose(1, 2).flatten(0, 1))
        every = parts[0] if len(parts) == 1 else torch.cat(parts)
        return every.index_select(0, self.back)[None]


def _groups(entries: Seq[VarlenEntry]) -> list[list[int]]:
    """Return the entries by group: at most half of a group's columns are padding, and no prompt is padded."""
    order = sorted(range(len(entries)), key=lambda i: -len(entries[i].cache.columns))
    groups = list[list[int]]()
    longest = 0
    for i in order:
        columns, rows = len(entries[i].cache.columns), len(entries[i].embedded)
        if rows > PACKED_ROWS or not longest or 2 * columns < longest:
            groups.append([i])
            longest = 0 if rows > PACKED_ROWS else columns
        else:
            groups[-1].append(i)
    return groups


def _padded_masks(entries: Seq[VarlenEntry], rows: int, columns: int) -> dict[str, Tensor]:
    """Return the masks [b, 1, rows, columns] by type: padding sees its first column and is seen by none."""
    found, known = dict[str, Tensor](), dict[tuple[int, ...], Tensor]()
    for kind in entries[0].masks:
        own = [entry.masks[kind] for entry in entries]
        key = tuple(map(id, own))
        if key not in known:
            like = entries[0].embedded
            least = torch.finfo(like.dtype).min
            mask = like.new_full((len(entries), 1, rows, columns), least)
            # A row that sees nothing would divide by zero.
            mask[..., 0] = 0
            for line, (entry, part) in enumerate(zip(entries, own, strict=True)):
                shape = slice(len(entry.embedded)), slice(len(entry.cache.columns))
                mask[line, 0][shape] = 0 if part is None else part[0, 0]
            known[key] = mask
        found[kind] = known[key]
    return found
