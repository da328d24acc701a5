"""What the node classes need from the engine and from whoever brings it up, as protocols."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation, Tokens


class Update(Protocol):
    """What one commit added to an answer; `edge.engine.AnswerUpdate` is one."""

    @property
    def tokens(self) -> Tokens:
        """New tokens."""
        ...

    @property
    def text(self) -> str:
        """The whole answer so far."""
        ...

    @property
    def actions(self) -> tuple[Action, ...]:
        """New actions."""
        ...

    @property
    def result(self) -> GenerationResult | None:
        """The finished answer, with the last update."""
        ...


class Answerer(Protocol):
    """Decodes one answer at a time; `edge.engine.Engine` is one."""

    def answer(self, observation: Observation) -> Iterator[Update]:
        """Yield an update per commit. Raises CloudError, ActionParseError, ImageError or Cancelled."""
        ...

    def cancel(self) -> None:
        """Abandon the answer in progress, from any thread."""
        ...


class EngineSource(Protocol):
    """Brings up the engine, or says in one error why not."""

    def connect(self) -> Answerer:
        """Return an engine whose cloud has welcomed it; may be called again after a loss.

        Raises CloudError, or ModelError if the draft cannot be loaded.
        """
        ...

    def draft(self) -> Answerer:
        """Return an engine that is the draft model alone, without a cloud. Raises ModelError."""
        ...

    def facts(self) -> str:
        """Return the JSON of what decides the tokens of the engine that is up; "" without one."""
        ...

    def close(self) -> None:
        """Leave the cloud. Idempotent."""
        ...


class Engines(Protocol):
    """Who answers now; `bridge.keeper.EngineKeeper` is one."""

    @property
    def current(self) -> Answerer | None:
        """The engine that the cloud has welcomed, or None while there is no cloud."""
        ...

    def use(self, engine: Answerer | None) -> None:
        """Name the engine whose answer a cancel is to end."""
        ...

    def ensure(self) -> Answerer | None:
        """Return the engine, after one more attempt to reach the cloud if there is none."""
        ...

    def lost(self) -> None:
        """Give the engine up, since its cloud has failed it, and begin to look for it again."""
        ...

    def draft(self) -> Answerer:
        """Return the draft model alone as an engine. Raises ModelError."""
        ...

    @property
    def error(self) -> VsdError:
        """Why there is no engine."""
        ...
