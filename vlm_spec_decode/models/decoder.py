"""The language half of a checkpoint: embeddings, decoder layers with exits, final norm, LM head.

The layers are Transformers' own, called one after another here rather than through the model's `forward`:
that saves its overhead per pass (about a fifth at these sizes) and lets early exits be read while the pass is
still under way. A pass holds the rows of all its contexts one after the other, without padding: row-wise
operations (projections, norms, feed-forward) run for all rows at once, and that is where a batch saves time.
Only attention is the contexts' own (`models.varlen_attention`), so prefixes and trees may be of any size.
Knows nothing of images, sessions or tokens' meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from vlm_spec_decode.core.choices import Choices
from vlm_spec_decode.decoding.choices import DenseChoices
from vlm_spec_decode.decoding.early_exit import ExitCalibration
from vlm_spec_decode.models.choose import SMALL_VOCABULARY, DeviceChoices
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.models.families.base import AnswerCache, Family, PlacedPrompt
from vlm_spec_decode.models.kv_pool import KvPool
from vlm_spec_decode.models.kv_slots import AttentionSpan
from vlm_spec_decode.models.pass_graphs import PassGraphs
from vlm_spec_decode.models.varlen_attention import PooledBatch, VarlenEntry, use_varlen_attention

Cosines: TypeAlias = tuple[Tensor, Tensor]
Compute: TypeAlias = Callable[[Tensor, Tensor], Cosines]

FIXED_TYPES = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
"""Kinds whose angles depend on the position alone; others look at how long the sequence is."""

FIRST_SIZE = 512

STACK_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


class RotaryTable:
    """Cosines and sines of every position so far, from `compute` (a model's `rotary_emb`), grown by doubling.

    What is looked up is what `compute` says, bit by bit: of any positions it treats each by itself.
    `rope_type` is the kind of angles, by default what `compute` says of itself.
    """

    def __init__(self, compute: Compute, rope_type: str = "") -> None:
        self._compute = compute
        self._is_fixed = (rope_type or getattr(compute, "rope_type", "")) in FIXED_TYPES
        self._table: Cosines | None = None

    def __call__(self, hidden: Tensor, positions: Tensor, end: int) -> Cosines:
        """Return both of [1, n, width] for `positions` [1, n], all below `end`, in the format of `hidden`."""
        if not self._is_fixed or positions.dim() > 2:  # M-RoPE mixes three rows of positions
            return self._compute(hidden, positions)
        cosines, sines = self._grown(hidden, end)
        return embedding(positions, cosines), embedding(positions, sines)

    def _grown(self, hidden: Tensor, end: int) -> Cosines:
        if self._table is None or len(self._table[0]) < end:
            size = max(FIRST_SIZE, 1 << (end - 1).bit_length())
            cosines, sines = self._compute(hidden, torch.arange(size, device=hidden.device)[None])
            self._table = cosines[0], sines[0]
        return self._table


def rotary_tables(rotary: Any, layer_types: Seq[str]) -> dict[str, RotaryTable]:
    """Return the table of each type of layers, from a stack's `rotary_emb`.

    Where angles differ between types, Transformers keeps them in one module that takes the type; else all
    types share one table.
    """
    kinds = getattr(rotary, "rope_type", "")
    if isinstance(kinds, Mapping):
        return {name: RotaryTable(partial(rotary, layer_type=name), kind) for name, kind in kinds.items()}
    return dict.fromkeys(layer_types, RotaryTable(rotary))


def choices_of(scores: Tensor) -> Choices:
    """Return the choices of logits [n, vocab], where they lie."""
    if scores.device.type != "cpu":
        return BatchChoices(scores)
    if scores.shape[1] <= SMALL_VOCABULARY:
        return DenseChoices(scores.float().numpy())
    return DeviceChoices(scores)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder stack that can be run layer by layer.

    `stack` is a Transformers text model, untyped here, of the Llama shape (`embed_tokens`, `layers`, `norm`,
    `rotary_emb`). `exits` maps an exit layer to its adapter, a residual linear map in front of the shared
    final norm and head, or None. `vocab_size` is the tokenizer's; rows that only pad the head are cut off.
    `family` builds caches and may change what a layer gets and hands to the next. `rotary` and `attention`
    are by type of layer: the angles, and what rows see. `calibration` is how reliable the exits are. Where it
    `is_pooled`, by default on a GPU, all answers keep their keys and values in `pool` and attend together,
    and `graphs` has recordings of small passes. Raises ModelError for a stack of another shape.
    """

    stack: Any
    head: nn.Linear
    exits: Mapping[int, nn.Linear | None]
    vocab_size: int
    family: Family
    calibration: ExitCalibration = field(default_factory=ExitCalibration)
    is_pooled: bool | None = None
    pool: KvPool | None = field(init=False)
    graphs: PassGraphs | None = field(init=False)
    rotary: Mapping[str, RotaryTable] = field(init=False)
    attention: Mapping[str, AttentionSpan] = field(init=False)

    def __post_init__(self) -> None:
        for part in STACK_PARTS:
            if not hasattr(self.stack, part):
                raise self.family.refusal(f"its decoder has no {part}, as the decoder loop needs it")
        rotary = rotary_tables(self.stack.rotary_emb, self.family.layer_types)
        object.__setattr__(self, "rotary", rotary)
        object.__setattr__(self, "attention", self.family.attention())
        is_pooled = self._is_on_one_gpu() if self.is_pooled is None else self.is_pooled
        object.__setattr__(self, "pool", KvPool() if is_pooled else None)
        object.__setattr__(self, "graphs", PassGraphs() if is_pooled and self.device.type == "cuda" else None)
        use_varlen_attention(self.stack)
        self.family.prepare(self.stack)

    @property
    def depth(self) -> int:
        """Number of layers, and the key of the final state in `run_layers`."""
        return len(self.stack.layers)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return self.head.weight.dtype

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a pass of one row reads: layers and head, one row of the embedding."""
        parts = (*self.stack.layers.parameters(), *self.head.parameters())
        return sum(weights.numel() * weights.element_size() for weights in parts)

    def _is_on_one_gpu(self) -> bool:
        devices = {weights.device for weights in self.stack.parameters()}
        return len(devices) == 1 and next(iter(devices)).type == "cuda"

    def cache(self) -> AnswerCache:
        """Return the empty cache of one answer."""
        cache = self.family.cache()
        if self.pool is not None:
            cache.join(self.pool)
        return cache

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings [n, width] of token ids [n]."""
        return self.family.embed(self.stack, ids)

    def run_layers(self, entries: Seq[VarlenEntry]) -> Iterator[tuple[int, list[Tensor]]]:
        """Run the layers over all entries in one pass, extend their caches, yield (layer, states).

        States are one tensor [n, width] per entry. Yields at each exit layer while the rest is still to
        come, and at the end the normed final states under `depth`.
        """
        sizes = [len(entry.embedded) for entry in entries]
        starts = accumulate(sizes, initial=0)
        prompts = [PlacedPrompt(at, e.prompt) for at, e in zip(starts, entries, strict=False) if e.prompt]
        hidden = torch.cat([entry.embedded for entry in entries])[None]
        positions = torch.cat([entry.positions for entry in entries], dim=-1).to(hidden.device)
        # Layers of one type turn queries and keys by the same angles, so that they are looked up once a pass.
        end = max(entry.end for entry in entries)
        angles = {table: table(hidden, positions, end) for table in set(self.rotary.values())}
        if self.graphs is not None and self.graphs.fits(self.family, entries):
            yield from (
                (layer, [states]) for layer, states in self.graphs.run(self, entries[0], hidden, angles)
            )
            return
        context = self.family.pass_context(self.stack, hidden, [entry.ids for entry in entries])
        batch = None if self.pool is None else PooledBatch.of(self.pool, entries)
        for layer in range(1, self.depth + 1):
            more = self.family.layer_arguments(layer, context)
            hidden = self.run_layer(layer, hidden, angles, prompts, entries=entries, batch=batch, **more)
            if layer in self.exits:
                yield layer, list(torch.split(hidden[0].to(self.device), sizes))
        yield self.depth, list(torch.split(self.stack.norm(hidden[0]).to(self.device), sizes))

    def run_layer(
        self,
        layer: int,
        hidden: Tensor,
        angles: Mapping[RotaryTable, Cosines],
        prompts: Seq[PlacedPrompt] = (),
        **options: Any,
    ) -> Tensor:
        """Run layer `layer` (from 1) over rows [1, n, width]; `options` are what attention and layer get."""
        kind = self.family.layer_types[layer - 1]
        block = self.stack.layers[layer - 1]
        hidden = block(hidden, position_embeddings=angles[self.rotary[kind]], layer_type=kind, **options)
        return self.family.layer_hook(layer, hidden, prompts)

    def choices(self, layer: int, states: Tensor) -> Choices:
        """Return what states [n, width] that `run_layers` yielded at `layer` say next, on this device."""
        if layer != self.depth:
            # An exit borrows what follows the last layer: head(norm(h + A h)). Norm and head are shared as
            # in LayerSkip (2404.16710); the adapter A is what `vsd train exits` has trained.
            adapter = self.exits[layer]
            states = self.stack.norm(states if adapter is None else states + adapter(states)).to(self.device)
        return choices_of(self.family.scores(self.head(states)[:, : self.vocab_size]))
