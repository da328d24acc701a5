"""What a session asks of a strategy's cloud half; those that reckon with time are in `decoding.session`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from vlm_spec_decode.core.types import EarlyExitVerdict, Tokens
from vlm_spec_decode.decoding.tree import SpeculationTree


class CloudPolicy(Protocol):
    """The cloud half of a strategy: what the next pass holds."""

    wants_exits: bool

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Return the live nodes to verify (with their ancestors), () for a plain step, None to wait."""
        ...


class EarlyExitHook(Protocol):
    """Receives early verdicts while a pass runs, on the thread that runs it."""

    def __call__(self, early: EarlyExitVerdict, /) -> None:
        """Take one early verdict."""
        ...


@runtime_checkable
class PipelinePolicy(Protocol):
    """A cloud half whose edge drafts on while a pass runs.

    Where such a chain is accepted to its end, the edge may have drawn the next token already: under the
    `rejection` rule that one must be tried, so there is no bonus token.
    """

    is_pipeline: bool
