"""What a family of checkpoints may do differently, in one base class whose defaults suit most of them.

The decoder loop runs any stack of Llama's shape (`embed_tokens`, `layers`, `norm`, `rotary_emb`). The rest is
a family's: how a picture becomes rows of embeddings, what stands for it in the prompt, which positions the
prompt has, what happens between two layers, and what the cache holds. Knows no session.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Set
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.types import ImageLimits, Tokens
from vlm_spec_decode.models.checkpoint import CheckpointSource, generation_ends, load_tokenizer
from vlm_spec_decode.models.families.image_limits import processor_limits
from vlm_spec_decode.models.kv_pool import ALIGNMENT, KvPool
from vlm_spec_decode.models.kv_slots import AttentionSpan, SlotTable

SPARE_COLUMNS = 64
"""Columns beyond the first ones, which are a prompt's: room for an answer and its drafts."""

NEUTRAL_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "num_kv_shared_layers": (None, 0),
    "hidden_size_per_layer_input": (None, 0),
}
"""Settings of text models that their own `forward` applies and the decoder loop does not, unless neutral.

A family that applies one of them names it in `applied`."""

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
"""Types of layers as Transformers' configs name them: all of the past, a sliding window of it, a state."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What a vision tower says of a picture.

    `rows` [n, width] replace the image's placeholder in the prompt. `deep` are further features [n, width]
    each, for `Family.layer_hook` to add behind layers; most families have none.
    """

    rows: Tensor
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the features take."""
        return sum(int(part.nbytes) for part in (self.rows, *self.deep))


@dataclass(frozen=True, slots=True)
class EmbeddedPrompt:
    """A prompt with its image features in place: `embedded` [p, width], `positions` [1, p] or [3, 1, p].

    `ids` [p] are the tokens, the image's placeholder in all of its rows. `image` are the features, None
    without a picture; `image_rows` [n] are the rows in which they stand, ascending.
    """

    embedded: Tensor
    positions: Tensor
    ids: Tensor
    image: ImageFeatures | None = None
    image_rows: Tensor | None = None


class PlacedPrompt(NamedTuple):
    """A prompt that takes part in a pass, and the first of its rows in the pass."""

    start: int
    prompt: EmbeddedPrompt


class KvLayer:
    """Keys and values [1, heads, columns, width] of one layer; empty until the first are added.

    A cache that grows by concatenation copies all of itself with every token, and its tensors move. Here
    columns are written behind each other into a tensor that has more of them than are in use; when they run
    out, a tensor half as large again takes over.
    """

    def __init__(self) -> None:
        self.columns = 0
        self._keys = self._values = torch.empty(1, 0, 0, 0)

    @property
    def keys(self) -> Tensor:
        """The keys in use, a view that the next `update` leaves as it is."""
        return self._keys[:, :, : self.columns]

    @property
    def values(self) -> Tensor:
        """The values in use, likewise."""
        return self._values[:, :, : self.columns]

    @property
    def capacity(self) -> int:
        """Columns that there is room for."""
        return self._keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held, those of unused columns included."""
        return int(self._keys.nbytes + self._values.nbytes)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add columns; return all keys and values in use."""
        end = self.columns + keys.shape[2]
        self.reserve(end, keys, values)
        self._keys[:, :, self.columns : end] = keys
        self._values[:, :, self.columns : end] = values
        self.columns = end
        return self.keys, self.values

    def gather(self, columns: Tensor) -> None:
        """Keep these columns, in this order."""
        if not self.columns:
            return
        kept = columns.to(self._keys.device)
        for storage in (self._keys, self._values):
            storage[:, :, : len(kept)] = storage[:, :, kept]
        self.columns = len(kept)

    def cut(self, columns: int) -> None:
        """Keep the first `columns`, or all if there are fewer."""
        self.columns = min(self.columns, columns)

    def reserve(self, columns: int, keys: Tensor, values: Tensor) -> None:
        """Make room for `columns` of the heads, width, format and device of `keys` and `values`."""
        if columns <= self.capacity:
            return
        wanted = max(columns + SPARE_COLUMNS, self.capacity * 3 // 2)
        wanted = -(-wanted // ALIGNMENT) * ALIGNMENT
        # Both are there before either is replaced: without memory for the second, nothing has changed.
        larger = [part.new_empty(1, part.shape[1], wanted, part.shape[3]) for part in (keys, values)]
        if self.columns:
            larger[0][:, :, : self.columns] = self.keys
            larger[1][:, :, : self.columns] = self.values
        self._keys, self._values = larger


class AnswerCache:
    """Keys and values of one answer, layer by layer; a column is a token. Filled by attention.

    They are the answer's own, in `layers`, or lie in a pool of all answers' that it has joined, in `columns`.

    `max_dead` is how many columns may lie on branches that the prefix has left before they are gathered
    away: a gather copies the cache, and a prefix may come back.
    """

    max_dead: ClassVar[int] = 64

    def __init__(self) -> None:
        self.layers: list[KvLayer] = []
        self.columns: list[int] = []
        self._pool: KvPool | None = None

    def join(self, pool: KvPool) -> None:
        """Keep the columns in a pool, until nobody holds this cache any more."""
        self._pool = pool
        weakref.finalize(self, pool.release, self.columns)

    @property
    def sources(self) -> Mapping[int, int]:
        """Layers, from 0, that have no keys and values of their own, and the one whose they see."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes held now, room for coming columns included."""
        pooled = len(self.columns) * self._pool.column_bytes if self._pool else 0
        return pooled + sum(layer.nbytes for layer in self.layers)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add columns to a layer that has its own; return all keys and values that the layer sees.

        They are [1, heads, columns, width].
        """
        if layer not in self.sources:
            return self._layer(layer).update(keys, values)
        seen = self.layers[self.sources[layer]]
        # With layers spread over devices, what is shared follows the layer.
        return seen.keys.to(keys.device), seen.values.to(keys.device)

    def take(self, count: int) -> list[int]:
        """Add `count` columns of the pool, and return their numbers."""
        assert self._pool is not None
        taken = self._pool.take(count)
        self.columns.extend(taken)
        return taken

    def gather(self, columns: Tensor) -> None:
        """Keep these columns, indices in host memory, in this order, in every layer."""
        for layer in self.layers:
            layer.gather(columns)
        if self._pool is not None:
            kept = [self.columns[column] for column in columns.tolist()]
            self._pool.release(sorted(set(self.columns).difference(kept)))
            self.columns[:] = kept

    def cut(self, columns: int) -> None:
        """Keep the first `columns` of every layer."""
        # After a broken pass only some layers have more, so each is cut by itself.
        for layer in self.layers:
            layer.cut(columns)
        if self._pool is not None:
            self._pool.release(self.columns[columns:])
            del self.columns[columns:]

    def begin_pass(self, slots: SlotTable, first: int, prompt_len: int, device: torch.device) -> None:
        """Hear which slots the coming pass adds: those from `first` on, at 0 the prompt of `prompt_len` too.

        Attention is told by a mask which slots a row sees. Layers that look at their past in another way
        read here how the slots hang together; `device` is that of the pass.
        """

    def _layer(self, layer: int) -> KvLayer:
        while len(self.layers) <= layer:
            self.layers.append(KvLayer())
        return self.layers[layer]


class Family:
    """One loaded checkpoint's family: an object per checkpoint, with its tokenizer and its config.

    A subclass overrides what it does differently.
    `sees` says whether it has a vision tower, `layer_kinds` which `layer_types` of a config it runs,
    `applied` which of `NEUTRAL_SETTINGS` it applies, `reads_pickles` whether its weights may be pickles even
    beside safetensors, `exact_modules` which modules are never quantized. `token_texts` has the special
    tokens by their names in the config, `end_texts` those that end an answer, none if these differ between
    checkpoints. `max_aspect_ratio` is how many times as long as the short side of a picture the long
    one may be, 0 for any shape. Raises ModelError, when it is made, for a checkpoint that it does not cover.
    """

    sees: ClassVar[bool] = True
    layer_kinds: ClassVar[frozenset[str]] = frozenset({FULL})
    applied: ClassVar[frozenset[str]] = frozenset()
    reads_pickles: ClassVar[bool] = False
    exact_modules: ClassVar[tuple[str, ...]] = ("lm_head", "vision_tower", "visual", "multi_modal_projector")
    token_texts: ClassVar[Mapping[str, str]] = {}
    end_texts: ClassVar[frozenset[str]] = frozenset()
    max_aspect_ratio: ClassVar[int] = 0

    def __init__(self, source: CheckpointSource) -> None:
        self.source = source
        self.tokenizer = self.load_tokenizer()
        self.config = self.load_config()
        self.check_config()
        self.check_tokens()

    @classmethod
    def variant(cls, raw: Mapping[str, Any]) -> type[Family]:  # noqa: ARG003
        """Return the class for this config.json: another one where a model type has several layouts."""
        return cls

    @classmethod
    def of_config(cls, config: Any) -> Family:
        """Return the family of a network that is made in memory: there is no checkpoint to read."""
        family = object.__new__(cls)
        family.config = config
        return family

    @property
    def network_class(self) -> Any:
        """The class of Transformers, or the Auto class, whose `from_pretrained` builds the network."""
        return AutoModelForImageTextToText

    # Reading the checkpoint.

    def load_tokenizer(self) -> Any:
        """Return the tokenizer, with its chat template if there is one."""
        return load_tokenizer(self.source.folder)

    def load_config(self) -> Any:
        """Return Transformers' config."""
        return AutoConfig.from_pretrained(self.source.folder)

    def check_config(self) -> None:
        """Raise ModelError, with the family's name and the reason, for what the loop does not cover."""
        text = self.config.get_text_config()
        kinds = set(self.layer_types) - self.layer_kinds
        if SLIDING in kinds:
            raise self.refusal("sliding-window attention is not supported: Transformers applies none here")
        if kinds:
            raise self.refusal(f"layers of the kind {', '.join(sorted(kinds))} are not supported")
        if SLIDING in self.layer_types and not getattr(text, "sliding_window", None):
            raise self.refusal("sliding-window attention needs a width, and sliding_window gives none")
        for name, neutral in NEUTRAL_SETTINGS.items():
            if name not in self.applied and (value := getattr(text, name, None)) not in neutral:
                raise self.refusal(f"{name} {value} is not supported: the decoder loop does not apply it")

    def check_tokens(self) -> None:
        """Raise ModelError if an id of the config or of an end is another token's in the tokenizer.

        So it is where a token was added to or taken from one of them. A token whose text the tokenizer does
        not know is none of a shift: such a checkpoint has names of its own.
        """
        asked: list[tuple[str, int | None, Set[str]]]
        asked = [(name, getattr(self.config, name, None), {text}) for name, text in self.token_texts.items()]
        if self.end_texts:
            ends = self.end_texts | {str(self.tokenizer.eos_token)}
            asked += [("eos_token_id", end, ends) for end in generation_ends(self.source.folder)]
        for name, token, texts in asked:
            read = None if token is None else self.tokenizer.convert_ids_to_tokens(token)
            if read is None or read in texts:
                continue
            ids = {text: self.tokenizer.convert_tokens_to_ids(text) for text in sorted(texts)}
            known = [
                f"{text!r} as {i}"
                for text, i in ids.items()
                if i is not None and self.tokenizer.convert_ids_to_tokens(i) == text
            ]
            if known:
                raise self.refusal(
                    f"{name} is {token}, which its tokenizer reads as {read!r}; it has {' and '.join(known)}"
                    ": the tokenizer is not this checkpoint's"
                )

    def check_room(self, tiles: int, each: int) -> None:
        """Raise ModelError if a picture of so many tiles with `each` tokens may take all of the context."""
        room = self.config.get_text_config().max_position_embeddings
        if tiles * each >= room:
            raise self.refusal(
                f"a picture may take {tiles} tiles of {each} tokens, more than its context of {room} holds"
            )

    def refusal(self, reason: str) -> ModelError:
        """Return the error of a checkpoint that this family does not cover."""
        return ModelError(f"architecture {self.config.model_type!r}: {reason}")

    def load_network(self, settings: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Return the network and Transformers' report of missing and misshapen tensors.

        `settings` are arguments of `from_pretrained`, `output_loading_info` among them.
        """
        network, report = self.network_class.from_pretrained(self.source.folder, **settings)
        return network, report

    def image_processor(self) -> Any:
        """Return the image processor. Always the PIL back end: robot and cloud must see the same pixels."""
        return AutoImageProcessor.from_pretrained(self.source.folder, backend="pil")

    def image_limits(self, processor: Any) -> ImageLimits:
        """Return the largest picture of which this image processor keeps the detail.

        The default reads it from the processor's settings, and leaves half of the context to the text. Of a
        processor with settings of another meaning nothing is known, unless a family says it here.
        """
        text = self.config.get_text_config()
        return processor_limits(processor, int(getattr(text, "max_position_embeddings", 0) or 0) // 2)

    @property
    def folders(self) -> list[Path]:
        """Every folder that something was read from, for the checkpoint's fingerprint."""
        return [self.source.folder]

    # The prompt. `body` is the network without its head.

    @property
    def image_token_id(self) -> int | None:
        """Id of the image's placeholder in the prompt, None for a family that does not see."""
        return int(self.config.image_token_id) if self.sees else None

    @cached_property
    def image_mark(self) -> str:
        """What stands for the image in a rendered prompt, written by the chat template."""
        mark: str = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return mark

    def image_text(self, image: Mapping[str, Tensor]) -> str:  # noqa: ARG002
        """Return what replaces the mark before the text is tokenized, with the placeholder at least once.

        `image` are the image processor's tensors.
        """
        return self.image_mark

    def encode_image(self, body: Any, image: Mapping[str, Tensor]) -> ImageFeatures:
        """Run the vision tower on the image processor's tensors; return its features, kept by the frame."""
        # An image processor returns more than the tower takes, such as how it has cut.
        known = inspect.signature(body.get_image_features).parameters
        own = {name: tensor for name, tensor in image.items() if name in known}
        found = body.get_image_features(**own, return_dict=True)
        return ImageFeatures(torch.cat(list(found.pooler_output)))

    def expand_prompt(
        self,
        ids: Tokens,
        image: Mapping[str, Tensor],  # noqa: ARG002
        features: ImageFeatures,
    ) -> Tokens:
        """Return the prompt's ids with as many placeholders as there are image rows, in the place of one.

        The number is whatever the vision tower returned, so no family needs a count of its own. A family
        that sets marks between tiles adds them here; `image` are the image processor's tensors. Of several
        placeholders, as `image_text` may write them, each stands for as many rows.
        """
        token = self.image_token_id
        each, rest = divmod(len(features.rows), max(1, count := ids.count(token or 0)))
        if not count or rest:
            raise self.refusal(f"{len(features.rows)} image rows do not fit {count} placeholders")
        return tuple(chain.from_iterable((one,) * each if one == token else (one,) for one in ids))

    def positions(self, body: Any, ids: Tensor, image: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Return the rotary positions of expanded prompt ids [p]: [1, p], or [3, 1, p] with M-RoPE.

        A token of the answer at depth d below the prompt, in whatever branch of a tree, stands at the
        prompt's highest position plus d, in all rows.
        """
        return torch.arange(len(ids), device=ids.device)[None]

    # The pass.

    def prepare(self, stack: Any) -> None:
        """Change the layers of a loaded decoder stack that cannot take the entries of a pass as they are."""

    @cached_property
    def layer_types(self) -> tuple[str, ...]:
        """The type of each layer, which says what its rows see and by which angles it turns them."""
        text = self.config.get_text_config()
        if named := getattr(text, "layer_types", None):
            return tuple(named)
        # Configs without types of layers, such as Mistral's, mean all layers by a window's width.
        windowed = getattr(text, "sliding_window", None)
        return (SLIDING if windowed else FULL,) * int(text.num_hidden_layers)

    def attention(self) -> Mapping[str, AttentionSpan]:
        """Return what rows see in each type of layers that has attention."""
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        spans = {FULL: AttentionSpan(), SLIDING: AttentionSpan(window)}
        return {name: span for name, span in spans.items() if name in self.layer_types}

    def embed(self, stack: Any, ids: Tensor) -> Tensor:
        """Return the embeddings [n, width] of an answer's tokens [n]."""
        embedded: Tensor = stack.embed_tokens(ids)
        return embedded

    def pass_context(self, stack: Any, hidden: Tensor, ids: Seq[Tensor]) -> Any:  # noqa: ARG002
        """Return what `layer_arguments` needs of one pass, computed once for all of its layers.

        `hidden` [1, rows, width] are the embeddings, `ids` the tokens of every entry's rows, [n] each.
        """
        return None

    def layer_arguments(self, layer: int, context: Any) -> Mapping[str, Any]:  # noqa: ARG002
        """Return further arguments of layer `layer` (from 1) in a pass with this `pass_context`."""
        return {}

    def layer_hook(self, layer: int, hidden: Tensor, prompts: Seq[PlacedPrompt]) -> Tensor:  # noqa: ARG002
        """Return what follows layer `layer` (from 1) of a pass in place of `hidden` [1, rows, width].

        `prompts` are those that this pass computes. Called for every layer, before its exit is read.
        """
        return hidden

    def scores(self, logits: Tensor) -> Tensor:
        """Return what follows the head's product [n, vocab], of the last layer and of early exits alike.

        The product may be overwritten; nobody else has it.
        """
        return logits

    def cache(self) -> AnswerCache:
        """Return the empty cache of one answer."""
        return AnswerCache()
