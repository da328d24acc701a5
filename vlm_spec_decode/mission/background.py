"""What an engine does while its asker does something else: begun here, read or cancelled later.

`Threaded` has a thread of its own, for real time. In virtual time, where one thread owns the clock, an answer
is advanced with it (benchmarks/continuous_rig.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.mission.connection import Answerer, TextUpdate

CANCEL_S = 0.05
"""How often a cancelled answer is cancelled again: the first call may come before it has begun."""


class BackgroundAnswer(Protocol):
    """One answer, or draft, under way. Until it is read to its end or cancelled the engine is taken."""

    @property
    def has_ended(self) -> bool:
        """Whether the engine is done with it, also by an error."""
        ...

    def updates(self) -> Iterator[TextUpdate]:
        """Yield all updates from the first on, waiting for those to come. Raises as `answer` does."""
        ...

    def cancel(self) -> None:
        """Abandon it; afterwards the engine is free. Idempotent."""
        ...


@runtime_checkable
class DraftsAhead(Protocol):
    """An engine that can draft an answer without its cloud; `edge.engine.Engine` is one."""

    def draft_ahead(self, observation: Observation, *, walks_m: float = 0.0) -> Iterator[Tokens]:
        """Yield the draft's own answer as it grows; where it is left off, it is kept for `answer`.

        `walks_m`: how far the body walks forward until the frame that will be asked about.
        """
        ...


class Background(Protocol):
    """Begins answers, and drafts about frames on the way, and returns at once."""

    def answer(
        self, engine: Answerer, observation: Observation, *, preview: bool = False
    ) -> BackgroundAnswer:
        """Begin an answer; with `preview` its draft is shown, too."""
        ...

    def draft(self, engine: DraftsAhead, observation: Observation, walks_m: float = 0.0) -> BackgroundAnswer:
        """Begin a draft of the answer, by the draft model alone. Its updates are not for reading."""
        ...


class Threads:
    """A `Background` with a thread for each answer."""

    def answer(
        self, engine: Answerer, observation: Observation, *, preview: bool = False
    ) -> BackgroundAnswer:
        """Begin an answer on a thread of its own."""
        shown = {"preview": True} if preview else {}
        return ThreadedAnswer(lambda: engine.answer(observation, **shown), engine.cancel)

    def draft(self, engine: DraftsAhead, observation: Observation, walks_m: float = 0.0) -> BackgroundAnswer:
        """Begin a draft on a thread of its own; it is left off after the step under way."""
        return ThreadedAnswer(lambda: engine.draft_ahead(observation, walks_m=walks_m), lambda: None)


class ThreadedAnswer:
    """Iterates on a thread of its own, from its construction on; `cancel` ends a wait in the iteration."""

    def __init__(self, iterate: Callable[[], Iterator[Any]], cancel: Callable[[], None]) -> None:
        self._iterate, self._cancel = iterate, cancel
        self._updates: SimpleQueue[Any] = SimpleQueue()
        self._is_cancelled = False
        self._thread = threading.Thread(target=self._run, name="early answer", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def updates(self) -> Iterator[TextUpdate]:
        """Yield all updates; the engine's own time-outs bound each wait."""
        try:
            while (item := self._updates.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Cancel, and wait until the engine has let go: at most until its next step or commit."""
        self._is_cancelled = True
        while self._thread.is_alive():
            self._cancel()
            self._thread.join(CANCEL_S)

    def _run(self) -> None:
        try:
            with closing(self._iterate()) as updates:  # type: ignore[type-var]
                for update in updates:
                    if self._is_cancelled:
                        break
                    self._updates.put(update)
            self._updates.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that reads the answer
            self._updates.put(error)
