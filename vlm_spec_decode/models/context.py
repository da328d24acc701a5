"""One answer's KV cache behind the `ModelContext` port.

Knows slots and a decoder; nothing of images (the prompt arrives embedded, and only when it is
needed), sampling or networks. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_spec_decode.core.errors import ModelError, VsdError
from vlm_spec_decode.core.ports import ExitHook, Logits
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.models.checkpoint.failures import memory_named
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.forward_batch import ADVICE, BatchEntry, run_pass
from vlm_spec_decode.models.kv_slots import Index, SlotTable
from vlm_spec_decode.models.varlen_attention import VarlenEntry

MAX_DEAD_SLOTS = 64


@dataclass(frozen=True, slots=True)
class EmbeddedPrompt:
    """A prompt with its image features in place: `embedded` [p, width], `positions` [1, p] or [3, 1, p]."""

    embedded: Tensor
    positions: Tensor


@dataclass(slots=True)
class ContextStats:
    """What a context has computed: forward passes, prompt rows, answer tokens, gathers of the cache."""

    passes: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    gathers: int = 0


class VlmContext:
    """`ModelContext` over a slot table; every state is computed once and kept while it may matter.

    The first pass takes prompt, prefix and nodes together. Final states stay with their slots, so a
    row that is known needs only the LM head. Slots that are neither above nor below the current
    prefix are dead: masked by construction, revived if the prefix returns to them, and gathered
    away once there are more than `max_dead`.
    """

    def __init__(
        self, decoder: Decoder, prompt: Callable[[], EmbeddedPrompt], *, max_dead: int = MAX_DEAD_SLOTS
    ) -> None:
        self.stats = ContextStats()
        self._decoder = decoder
        self._embed_prompt = prompt
        self._max_dead = max_dead
        self._slots = SlotTable()
        self._cache: DynamicCache | None = DynamicCache()
        self._states: dict[int, Tensor] = {}  # by exit layer and depth: [slots, width]
        self._filled = 0  # slots whose KV is in the cache; slot 0 counts for the whole prompt
        self._prompt_len = 0
        self._last_position = 0  # of the prompt, in rotary positions
        self._rope_rows: tuple[int, ...] = (1,)

    def prefill(self) -> None:
        """Fill the prompt's KV now. Idempotent. Raises InstructionError if the prompt is too long."""
        if not self._filled:
            self.score(())

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab]: row 0 after `prefix`, row i after the i-th node.

        `on_exit` is called while a pass climbs; a call that needs no pass has nothing to announce.
        If it raises, the pass is undone and the context stays usable. Raises ModelError after
        `close` or for a token outside the vocabulary, ValueError for parents that are no tree.
        """
        (scored,) = run_pass(self._decoder, (self.share(prefix, tokens, parents, on_exit),))
        if isinstance(scored, VsdError):
            raise scored
        return scored

    @torch.inference_mode()
    def share(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), on_exit: ExitHook | None = None
    ) -> BatchEntry:
        """Return what `score` asks of a pass; `run_pass` completes it. Raises as `score` does."""
        cache = self._open_cache((*prefix, *tokens))
        self._evict(prefix, cache)
        before = len(self._slots)
        rows = torch.tensor(self._slots.place(prefix, tokens, parents), device=self._decoder.device)
        with memory_named(ADVICE):
            strand = self._strand(cache) if self._filled < len(self._slots) else None
        return BatchEntry(
            self, rows, before, on_exit, strand, dict(self._states), len(self._slots) - self._filled
        )

    def states(self, layer: int) -> Tensor:
        """Return what an exit layer, or the last one, holds [1 + n, width]: after the prompt and each token.

        Tokens come in the order in which they were first asked for. The last layer's states are normed.
        """
        return self._states[layer]

    def forced(self, prefix: Tokens) -> Tokens:  # noqa: ARG002
        """Return (): weights alone force nothing (see `decoding.grammar_mask`)."""
        return ()

    def exit_chance(self, exit_layer: int, confidence: float) -> float:
        """Return how likely the first choice of an exit that is so sure is the final one."""
        return self._decoder.calibration.chance(exit_layer, confidence)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values held now."""
        layers = self._cache.layers if self._cache else []
        held = [layer.keys for layer in layers if layer.is_initialized]
        return 2 * sum(int(keys.nbytes) for keys in held)

    def forget(self) -> None:
        """Free the KV cache; the next `score` computes prompt and prefix again."""
        if self._cache is not None:
            self._cache, self._slots, self._states, self._filled = DynamicCache(), SlotTable(), {}, 0

    def close(self) -> None:
        """Free the KV cache. Idempotent."""
        self._cache = None
        self._states = {}

    def _open_cache(self, tokens: Tokens) -> DynamicCache:
        """Return the cache. Raises ModelError if it is closed or `tokens` are not of the vocabulary."""
        if self._cache is None:
            raise ModelError("this answer's context is closed")
        if tokens and not (min(tokens) >= 0 and max(tokens) < self._decoder.vocab_size):
            raise ModelError(f"a token is outside the vocabulary of {self._decoder.vocab_size}")
        return self._cache

    def _strand(self, cache: DynamicCache) -> VarlenEntry:
        """Return the rows of every slot that has no KV yet, together with the prompt if it is due."""
        embedded, positions = self._inputs(self._filled)
        end = self._last_position + max(self._slots.positions[self._filled :]) + 1
        return VarlenEntry(embedded, positions, end, self._mask(self._filled, len(embedded)), cache)

    def keep(self, share: BatchEntry) -> None:
        """A pass has ended: its states are this context's."""
        self.stats.passes += 1
        self.stats.tokens += len(self._slots) - max(self._filled, 1)
        self._states, self._filled = share.states, len(self._slots)

    def drop(self, share: BatchEntry) -> None:
        """A pass has broken off: undo what it has added."""
        if self._cache is not None:
            self._undo(self._cache, share.before)

    def _inputs(self, first: int) -> tuple[Tensor, Tensor]:
        """Return embeddings [n, width] and positions [1, n] or [3, 1, n] of the slots from `first` on."""
        device = self._decoder.device
        start = max(first, 1)
        embedded = self._decoder.embed(
            torch.tensor(self._slots.tokens[start:], dtype=torch.long, device=device)
        )
        if first:
            return embedded, self._positions(start)
        prompt = self._embed_prompt()
        self._prompt_len = self.stats.prompt_tokens = len(prompt.embedded)
        self._rope_rows, self._last_position = prompt.positions.shape[:-1], int(prompt.positions.max())
        positions = self._positions(start)
        # With layers spread over devices, the eye may lie on another one than the head.
        before = prompt.positions.to(device)
        return torch.cat([prompt.embedded.to(embedded), embedded]), torch.cat([before, positions], dim=-1)

    def _positions(self, start: int) -> Tensor:
        """Return the rotary positions [1, n] or [3, 1, n] of the slots from `start` on."""
        last = self._last_position
        places = [last + depth for depth in self._slots.positions[start:]]
        return torch.tensor(places, dtype=torch.long, device=self._decoder.device).expand(
            *self._rope_rows, -1
        )

    def _mask(self, first: int, rows: int) -> Tensor | None:
        """Return the additive mask [1, 1, rows, past + rows]; None when all of it would be zero."""
        before_root = self._prompt_len - 1
        nodes = self._slots.visible(max(first, 1))
        if nodes.all() and (first or rows == 1):  # one more token of a chain, most of the time
            return None
        sees = np.ones((rows, before_root + len(self._slots)), dtype=np.bool_)
        if not first:
            sees[: self._prompt_len] = np.tri(self._prompt_len, sees.shape[1], dtype=np.bool_)
        sees[rows - len(nodes) :, before_root:] = nodes
        mask = torch.zeros(sees.shape, dtype=self._decoder.dtype)
        mask.masked_fill_(torch.from_numpy(~sees), torch.finfo(mask.dtype).min)
        return mask[None, None].to(self._decoder.device)

    def _evict(self, prefix: Tokens, cache: DynamicCache) -> None:
        """Gather away what is neither above nor below `prefix`, if it has become too much."""
        if len(self._slots) <= self._max_dead:
            return
        keep = self._slots.alive(self._slots.descend(prefix)[0])
        if len(self._slots) - len(keep) > self._max_dead:
            self._gather(cache, keep)

    def _gather(self, cache: DynamicCache, keep: Index) -> None:
        """Keep the slots `keep` and their KV and states."""
        index = torch.from_numpy(keep).to(self._decoder.device)
        columns = torch.arange(self._prompt_len - 1, device=index.device)
        columns = torch.cat([columns, index + self._prompt_len - 1])
        for layer in cache.layers:
            kept = columns.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        self._states = {depth: states[index] for depth, states in self._states.items()}
        self._slots.gather(keep)
        self._filled = len(keep)
        self.stats.gathers += 1

    def _undo(self, cache: DynamicCache, slots: int) -> None:
        """Drop what a broken pass has added: slots from `slots` on and their KV in the layers it reached."""
        self._slots.gather(np.arange(slots))
        if not self._filled:
            self._cache = DynamicCache()
            return
        columns = self._prompt_len - 1 + self._filled
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]
