"""Model contexts that charge a clock for what they compute, by a hardware profile's durations.

Knows which rows a context has computed before, so that what sits in the KV cache is not charged twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.ports import ExitHook, Logits, Model, ModelCard, ModelContext
from vlm_spec_decode.core.profiles import HardwareProfile
from vlm_spec_decode.core.types import Observation, Tokens


@dataclass(slots=True)
class CachedRows:
    """The rows of one answer that are in a KV cache, as the paths that lead to them."""

    known: set[Tokens] = field(default_factory=set)

    def new(self, prefix: Tokens, tokens: Tokens, parents: Tokens) -> int:
        """Return how many rows a `score` of this would compute now, and take them as computed."""
        paths = [prefix]
        for token, parent in zip(tokens, parents, strict=True):
            paths.append((*paths[parent], token))
        wanted = {*paths, *(prefix[:depth] for depth in range(len(prefix)))} - self.known
        self.known |= wanted
        return len(wanted)


@dataclass(slots=True)
class ChargedContext(ModelContext):
    """`inner`, each step of which takes `duration_s(new rows, whether it is the first)` of `clock`."""

    inner: ModelContext
    clock: VirtualClock
    duration_s: Callable[[int, bool], float]
    rows: CachedRows = field(default_factory=CachedRows)

    def prefill(self) -> None:
        """Fill the prompt; charged with the first step."""
        self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Charge the step and pass on."""
        is_first = not self.rows.known
        self.clock.sleep(self.duration_s(self.rows.new(prefix, tokens, parents), is_first))
        return self.inner.score(prefix, tokens, parents, on_exit=on_exit)

    def forced(self, prefix: Tokens) -> Tokens:
        """Pass on: the grammar's tokens cost no step."""
        return self.inner.forced(prefix)

    def close(self) -> None:
        """Pass on."""
        self.inner.close()


@dataclass(frozen=True, slots=True)
class VirtualModel(Model):
    """A draft model whose contexts charge the edge's clock: each step, and each further row of a batch."""

    inner: Model
    hardware: HardwareProfile
    clock: VirtualClock

    @property
    def card(self) -> ModelCard:
        """What the inner model is."""
        return self.inner.card

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer."""
        return ChargedContext(self.inner.open(observation), self.clock, self.hardware.draft_s)
