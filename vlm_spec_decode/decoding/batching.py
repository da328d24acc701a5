"""Many contexts of one model in one forward pass, and the memory that they hold between passes.

Both are optional abilities of a model or a context beyond its port; a server of many answers checks for them
here and works without them if they are missing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.ports import ExitHook, Logits, Model, ModelContext
from vlm_spec_decode.core.types import Tokens


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One context's share of a pass: what `ModelContext.score` takes."""

    context: ModelContext
    prefix: Tokens
    tokens: Tokens = ()
    parents: Tokens = ()
    on_exit: ExitHook | None = None

    def score(self) -> Logits:
        """Score this one by itself. Raises what `ModelContext.score` does."""
        return self.context.score(self.prefix, self.tokens, self.parents, on_exit=self.on_exit)

    def scored(self) -> Scored:
        """Score this one by itself and keep an error as the result."""
        try:
            return self.score()
        except VsdError as error:
            return error


Scored: TypeAlias = Logits | VsdError
"""A query's logits [1 + n, vocab], or why it has none."""


@runtime_checkable
class BatchModel(Protocol):
    """A model that scores many of its contexts in one forward pass."""

    def score_batch(self, queries: Seq[ScoreRequest]) -> list[Scored]:
        """Return what `score` would for each query; one that fails leaves the others alone.

        No context may occur twice. Raises OutOfMemory if the pass as a whole has no room; then nothing has
        been computed, and a part of the queries may be tried again.
        """
        ...


@runtime_checkable
class Evictable(Protocol):
    """A context whose cache can be given up between passes; its next score computes what it needs again."""

    @property
    def kv_bytes(self) -> int:
        """Bytes that the cache holds now."""
        ...

    def forget(self) -> None:
        """Free the cache and stay usable."""
        ...


def score_batch(model: Model, queries: Seq[ScoreRequest]) -> list[Scored]:
    """Score many contexts of `model`, in one pass if it can. Raises OutOfMemory (see `BatchModel`)."""
    if isinstance(model, BatchModel):
        return model.score_batch(queries)
    return [query.scored() for query in queries]


def kv_bytes(context: ModelContext) -> int:
    """Return the bytes that a context's cache holds, 0 if it does not say."""
    return context.kv_bytes if isinstance(context, Evictable) else 0


def forget(context: ModelContext) -> None:
    """Free a context's cache, if it can do without."""
    if isinstance(context, Evictable):
        context.forget()
