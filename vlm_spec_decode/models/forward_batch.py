"""One forward pass over the batch entries of one or many contexts.

Uses a decoder and each context's entry; independent of slots, masks and images.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.ports import ExitHook, Logits
from vlm_spec_decode.decoding.batching import Scored
from vlm_spec_decode.models.checkpoint.failures import memory_named
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.varlen_attention import VarlenEntry

ADVICE = "a smaller --batch or --kv-mib, or a smaller model"


class BatchOwner(Protocol):
    """The context that a batch entry belongs to."""

    def keep(self, share: BatchEntry) -> None:
        """Take over the states of a pass that has ended."""
        ...

    def drop(self, share: BatchEntry) -> None:
        """Undo what a pass that broke off has added."""
        ...


@dataclass(slots=True)
class BatchEntry:
    """One context's part of a pass: logits of the slots `rows`, and the rows to compute for them.

    `strand` None asks for nothing new. `states` are the context's by exit layer, [slots, width] each; they
    grow by `fresh` slots during the pass. `before` is how many slots there were.
    """

    owner: BatchOwner
    rows: Tensor
    before: int
    on_exit: ExitHook | None
    strand: VarlenEntry | None
    states: dict[int, Tensor]
    fresh: int
    failure: VsdError | None = None

    def take(self, layer: int, computed: Tensor) -> None:
        """Add the states [n, width] of this share's rows; of a prompt only its last row is ever asked for."""
        known = self.states.get(layer)
        new = computed[-self.fresh :]
        self.states[layer] = new if known is None else torch.cat([known, new])

    def announce(self, layer: int, decoder: Decoder) -> None:
        """Tell an early exit; a listener that raises ends its own share of the pass."""
        if self.on_exit is None or self.failure:
            return
        try:
            self.on_exit(layer, decoder.logits(layer, self.states[layer][self.rows]))
        except VsdError as error:
            self.failure = error


@torch.inference_mode()
def run_pass(decoder: Decoder, shares: Seq[BatchEntry | VsdError]) -> list[Scored]:
    """Complete the shares in one pass and return each one's logits, or why it has none.

    Raises OutOfMemory if the pass has no room. Whatever it raises, every share is undone first.
    """
    asked = [share for share in shares if isinstance(share, BatchEntry)]
    due = [share for share in asked if share.strand is not None]
    with memory_named(ADVICE), _undone(due):
        if due:
            _climb(decoder, due)
        sound = [share for share in asked if share.failure is None]
        states = [share.states[decoder.depth][share.rows] for share in sound]
        logits = _split(decoder.logits(decoder.depth, torch.cat(states)), states) if sound else iter(())
    for share in due:
        share.owner.drop(share) if share.failure else share.owner.keep(share)
    return [_scored(share, logits) for share in shares]


def _climb(decoder: Decoder, due: Seq[BatchEntry]) -> None:
    strands = [share.strand for share in due if share.strand is not None]
    for layer, computed in decoder.climb(strands):
        for share, states in zip(due, computed, strict=True):
            share.take(layer, states)
            if layer != decoder.depth:
                share.announce(layer, decoder)
        if all(share.failure for share in due):
            return


def _split(logits: Logits, states: Seq[Tensor]) -> Iterator[Logits]:
    start = 0
    for rows in states:
        yield logits[start : start + len(rows)]
        start += len(rows)


def _scored(share: BatchEntry | VsdError, logits: Iterator[Logits]) -> Scored:
    if isinstance(share, VsdError):
        return share
    return share.failure or next(logits)


@contextmanager
def _undone(due: Seq[BatchEntry]) -> Iterator[None]:
    try:
        yield
    except BaseException:  # not handled, only undone: half a pass must not stay in the caches
        for share in due:
            share.owner.drop(share)
        raise
