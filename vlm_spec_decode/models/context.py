"""The contexts of a model: one answer's KV cache each, and one forward pass over the entries of many.

A context turns what `score` asks for into a batch entry: the rows that are not in its cache yet. A pass runs
the entries of one or many contexts through the decoder and gives each its logits. Knows slots and a decoder;
nothing of images (the prompt arrives embedded, and only when it is needed), sampling or networks. One thread
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_spec_decode.core.choices import Choices, Logits
from vlm_spec_decode.core.errors import ModelError, VsdError
from vlm_spec_decode.core.ports import NO_NODES, ExitHook, ModelContext, OnExit, Rows, Tree
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import as_logits
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.families.base import AnswerCache, EmbeddedPrompt
from vlm_spec_decode.models.hardware import memory_named, to_device
from vlm_spec_decode.models.kv_slots import NO_ROWS, Index, SlotTable, Visibility, sees_by_type
from vlm_spec_decode.models.varlen_attention import VarlenEntry

PASS_ADVICE = "a smaller --batch or --kv-mib, or a smaller model"


@dataclass(slots=True)
class ContextStats:
    """What a context has computed: forward passes, prompt rows, answer tokens, gathers of the cache."""

    passes: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    gathers: int = 0


@dataclass(slots=True)
class BatchEntry:
    """One context's part of a pass: the slots `rows` of its tree, those `asked` for, and what to compute.

    `varlen` None asks for nothing new. `states` are the context's by exit layer, [slots, width] each; they
    grow by `fresh` slots during the pass. `before` is how many slots there were.
    """

    context: VlmContext
    rows: Tensor
    asked: Tensor
    before: int
    on_exit: ExitHook | None
    varlen: VarlenEntry | None
    states: dict[int, Tensor]
    fresh: int
    failure: VsdError | None = None

    def add_states(self, layer: int, computed: Tensor) -> None:
        """Add the states [n, width] of this entry's rows; of a prompt only its last row is ever asked for."""
        known = self.states.get(layer)
        new = computed[-self.fresh :]
        self.states[layer] = new if known is None else torch.cat([known, new])

    def report_exit(self, layer: int, decoder: Decoder) -> None:
        """Report an early exit; a listener that raises ends its own entry's part of the pass."""
        if self.on_exit is None or self.failure:
            return
        try:
            self.on_exit(layer, decoder.choices(layer, self.states[layer][self.rows]))
        except VsdError as error:
            self.failure = error


@torch.inference_mode()
def run_pass(decoder: Decoder, entries: Seq[BatchEntry | VsdError]) -> list[Choices | VsdError]:
    """Complete the entries in one pass and return each one's rows, or why it has none.

    Raises OutOfMemory if the pass has no room. Whatever it raises, every entry is undone first.
    """
    asked = [entry for entry in entries if isinstance(entry, BatchEntry)]
    due = [entry for entry in asked if entry.varlen is not None]
    with memory_named(PASS_ADVICE), _undone(due):
        if due:
            _run_layers(decoder, due)
        sound = [entry for entry in asked if entry.failure is None]
        states = [entry.states[decoder.depth][entry.asked] for entry in sound]
        # One product with the head for the rows of all entries: it reads the head's matrix only once.
        choices = _split(decoder.choices(decoder.depth, torch.cat(states)), states) if sound else iter(())
    for entry in due:
        entry.context.undo_pass(entry) if entry.failure else entry.context.keep_pass(entry)
    return [_scored(entry, choices) for entry in entries]


def _run_layers(decoder: Decoder, due: Seq[BatchEntry]) -> None:
    for layer, computed in decoder.run_layers([entry.varlen for entry in due if entry.varlen is not None]):
        for entry, states in zip(due, computed, strict=True):
            entry.add_states(layer, states)
            if layer != decoder.depth:
                entry.report_exit(layer, decoder)
        # Nobody waits for the rest of a pass that every listener has given up.
        if all(entry.failure for entry in due):
            return


def _split(choices: Choices, states: Seq[Tensor]) -> Iterator[Choices]:
    start = 0
    for rows in states:
        yield choices.part(start, start + len(rows))
        start += len(rows)


def _scored(entry: BatchEntry | VsdError, choices: Iterator[Choices]) -> Choices | VsdError:
    if isinstance(entry, VsdError):
        return entry
    return entry.failure or next(choices)


@contextmanager
def _undone(due: Seq[BatchEntry]) -> Iterator[None]:
    try:
        yield
    except BaseException:  # not handled, only undone: half a pass must not stay in the caches
        for entry in due:
            entry.context.undo_pass(entry)
        raise


class VlmContext(ModelContext):
    """`ModelContext` over a slot table; every state is computed once and kept while it may matter.

    The first pass takes prompt, prefix and nodes together. Final states stay with their slots, so a
    row that is known needs only the LM head. Slots that are neither above nor below the current
    prefix are dead: masked by construction, revived if the prefix returns to them, and gathered
    away once there are more than `max_dead`, by default the family's cache's own number.
    """

    def __init__(
        self, decoder: Decoder, prompt: Callable[[], EmbeddedPrompt], *, max_dead: int | None = None
    ) -> None:
        self.stats = ContextStats()
        self._decoder = decoder
        self._embed_prompt = prompt
        self._slots = SlotTable()
        cache = decoder.cache()
        self._max_dead = cache.max_dead if max_dead is None else max_dead
        self._cache: AnswerCache | None = cache
        self._states: dict[int, Tensor] = {}  # by exit layer and depth: [slots, width]
        self._filled = 0  # slots whose KV is in the cache; slot 0 counts for the whole prompt
        self._prompt_len = 0
        self._last_position = 0  # of the prompt, in rotary positions
        self._rope_rows: tuple[int, ...] = (1,)

    def prefill(self) -> None:
        """Fill the prompt's KV now. Idempotent. Raises InstructionError if the prompt is too long."""
        if not self._filled:
            self.choose(())

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab] on the host: row 0 after `prefix`, row i after the i-th node.

        For tests and training; `choose` leaves them on the device. Raises as `choose`.
        """
        return as_logits(self, prefix, (tokens, parents), on_exit)

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Choices:
        """Return the rows: row 0 after `prefix`, row i after the i-th node; with `rows` those alone.

        `on_exit` is called while a pass runs; a call that needs no pass has nothing to report.
        If it raises, the pass is undone and the context stays usable. Raises ModelError after
        `close` or for a token outside the vocabulary, ValueError for parents that are no tree.
        """
        entry = self.batch_entry(prefix, *tree, on_exit, rows)
        (scored,) = run_pass(self._decoder, (entry,))
        if isinstance(scored, VsdError):
            raise scored
        return scored

    @torch.inference_mode()
    def batch_entry(
        self,
        prefix: Tokens,
        tokens: Tokens = (),
        parents: Tokens = (),
        on_exit: ExitHook | None = None,
        asked: Rows = None,
    ) -> BatchEntry:
        """Return what `choose` asks of a pass; `run_pass` completes it. Raises as `choose` does."""
        cache = self._open_cache((*prefix, *tokens))
        self._evict(prefix, cache)
        before = len(self._slots)
        placed = self._slots.place(prefix, tokens, parents)
        rows = self._on_device(placed)
        # What nobody asks for needs no product with the head, which is the most expensive matrix.
        wanted = rows if asked is None else self._on_device([placed[row] for row in asked])
        # Rows are missing for new nodes, and for tokens of the prefix that no pass has had yet: those that
        # the target chose itself at the end of a pass. Without any, known states need only the head.
        fresh = len(self._slots) - self._filled
        with memory_named(PASS_ADVICE):
            varlen = self._varlen(cache) if fresh else None
        return BatchEntry(self, rows, wanted, before, on_exit, varlen, dict(self._states), fresh)

    def states(self, layer: int) -> Tensor:
        """Return what an exit layer, or the last one, holds [1 + n, width]: after the prompt and each token.

        Tokens come in the order in which they were first asked for. The last layer's states are normed.
        """
        return self._states[layer]

    def exit_chance(self, exit_layer: int, confidence: float) -> float:
        """Return how likely the first choice of an exit that is so sure is the final one."""
        return self._decoder.calibration.chance(exit_layer, confidence)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values held now."""
        return self._cache.nbytes if self._cache else 0

    def forget(self) -> None:
        """Free the KV cache; the next `score` computes prompt and prefix again."""
        if self._cache is not None:
            self._slots, self._states, self._filled = SlotTable(), {}, 0
            self._cache = self._decoder.cache()

    def close(self) -> None:
        """Free the KV cache. Idempotent."""
        self._cache = None
        self._states = {}

    def _open_cache(self, tokens: Tokens) -> AnswerCache:
        """Return the cache. Raises ModelError if it is closed or `tokens` are not of the vocabulary."""
        if self._cache is None:
            raise ModelError("this answer's context is closed")
        if tokens and not (min(tokens) >= 0 and max(tokens) < self._decoder.vocab_size):
            raise ModelError(f"a token is outside the vocabulary of {self._decoder.vocab_size}")
        return self._cache

    def _varlen(self, cache: AnswerCache) -> VarlenEntry:
        """Return the rows of every slot that has no KV yet, together with the prompt if it is due."""
        prompt = None if self._filled else self._embed_prompt()
        embedded, positions, ids = self._inputs(self._filled, prompt)
        cache.begin_pass(self._slots, self._filled, self._prompt_len, self._decoder.device)
        end = self._last_position + max(self._slots.positions[self._filled :]) + 1
        return VarlenEntry(embedded, positions, ids, end, self._masks(prompt), cache, prompt)

    def keep_pass(self, entry: BatchEntry) -> None:
        """A pass has ended: its states are this context's."""
        self.stats.passes += 1
        self.stats.tokens += len(self._slots) - max(self._filled, 1)
        self._states, self._filled = entry.states, len(self._slots)

    def undo_pass(self, entry: BatchEntry) -> None:
        """A pass has broken off: undo what it has added."""
        if self._cache is not None:
            self._undo(self._cache, entry.before)

    def _inputs(self, first: int, prompt: EmbeddedPrompt | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings [n, width], positions [1, n] or [3, 1, n], ids [n] of the slots from `first` on.

        The first pass has the prompt's rows before them: slot 0 is the prompt and has no row of its own.
        """
        device = self._decoder.device
        start = max(first, 1)
        ids = self._on_device(self._slots.tokens[start:])
        embedded = self._decoder.embed(ids)
        if prompt is None:
            return embedded, self._positions(start), ids
        self._prompt_len = self.stats.prompt_tokens = len(prompt.embedded)
        self._rope_rows, self._last_position = prompt.positions.shape[:-1], int(prompt.positions.max())
        positions = self._positions(start)
        # With layers spread over devices, the vision tower may lie on another one than the head.
        before = prompt.positions.to(device)
        return (
            torch.cat([prompt.embedded.to(embedded), embedded]),
            torch.cat([before, positions], dim=-1),
            torch.cat([prompt.ids.to(device), ids]),
        )

    def _positions(self, start: int) -> Tensor:
        """Return the rotary positions [1, n] or [3, 1, n] of the slots from `start` on."""
        # A node stands at (last position of the prompt) + (its depth): siblings share a position, as the
        # alternatives that they are. Every row of M-RoPE has the same one behind the prompt.
        last = self._last_position
        places = [last + depth for depth in self._slots.positions[start:]]
        return self._on_device(places).expand(*self._rope_rows, -1)

    def _on_device(self, numbers: Seq[int]) -> Tensor:
        """Return whole numbers [n] where the weights lie."""
        return to_device(np.array(numbers, dtype=np.int64), self._decoder.device)

    def _masks(self, prompt: EmbeddedPrompt | None) -> dict[str, Tensor | None]:
        """Return by type of layer the additive mask [1, 1, rows, past + rows] of what has no KV yet."""
        rows, spans = NO_ROWS, self._decoder.attention
        # Read from the device, which then is waited for, only where a picture's rows look ahead.
        if prompt and prompt.image_rows is not None and any(span.image_blocks for span in spans.values()):
            rows = prompt.image_rows.cpu().numpy()
        sees = sees_by_type(self._slots, self._filled, self._prompt_len, rows, spans)
        # Types of layers that see the same share one mask: it is copied to the device once.
        masks = {id(array): additive(array, self._decoder.head.weight) for array in sees.values()}
        return {name: masks[id(array)] for name, array in sees.items()}

    def _evict(self, prefix: Tokens, cache: AnswerCache) -> None:
        """Gather away what is neither above nor below `prefix`, if it has become too much."""
        if len(self._slots) <= self._max_dead:
            return
        slot, matched = self._slots.descend(prefix)
        keep = self._slots.alive(slot, with_below=matched == len(prefix))
        # Dead slots are only masked at first: a gather copies the whole cache, and a prefix may come back.
        if len(self._slots) - len(keep) > self._max_dead:
            self._gather(cache, keep)

    def _gather(self, cache: AnswerCache, keep: Index) -> None:
        """Keep the slots `keep` and their KV and states."""
        # The prompt's columns before its last one stay as they are; slot s lies in column prompt_len - 1 + s.
        index = to_device(keep, self._decoder.device)
        columns = np.concatenate([np.arange(self._prompt_len - 1), keep + self._prompt_len - 1])
        cache.gather(torch.from_numpy(columns))
        self._states = {depth: states[index] for depth, states in self._states.items()}
        self._slots.gather(keep)
        self._filled = len(keep)
        self.stats.gathers += 1

    def _undo(self, cache: AnswerCache, slots: int) -> None:
        """Drop what a broken pass has added: slots from `slots` on and their KV in the layers it reached."""
        self._slots.gather(np.arange(slots))
        if not self._filled:
            self._cache = self._decoder.cache()
            return
        cache.cut(self._prompt_len - 1 + self._filled)


def additive(sees: Visibility | None, like: Tensor) -> Tensor | None:
    """Return the mask [1, 1, rows, columns] to be added to attention's scores, in the format of `like`."""
    if sees is None:
        return None
    mask = torch.zeros(sees.shape, dtype=like.dtype)
    mask.masked_fill_(torch.from_numpy(~sees), torch.finfo(mask.dtype).min)
    return to_device(mask[None, None], like.device)
