"""`Looks` of an engine that answers several questions at once: a search asks on while earlier answers come.

The thread of the mission follows all of them (`edge.open_answers`). While nothing has come the world goes on
by `pause`, which returns up to what time of the engine's clock answers are waited for: on a robot a short
moment of the wall clock, in a simulator in virtual time its next step.
"""

from __future__ import annotations

from collections.abc import Callable

from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.open_answers import OpenAnswer, OpenAnswers
from vlm_spec_decode.mission.connection import TextUpdate

POLL_S = 0.02
"""How long answers are waited for before the mission looks at its robot again."""


class SeveralLooks:
    """Implements `mission.search.Looks`; `capacity` is at most what the engine and its cloud allow."""

    def __init__(self, engine: Engine, capacity: int = 4, pause: Callable[[], float] | None = None) -> None:
        self.capacity = min(capacity, engine.max_answers)
        self._clock = engine.clock
        self._pause = pause or (lambda: engine.clock.now() + POLL_S)
        self._answers = OpenAnswers(engine)
        self._numbers: dict[OpenAnswer, int] = {}

    def open(self, number: int, observation: Observation) -> None:
        """Ask about a frame; the question is sent, and nothing is waited for.

        Raises EngineBusy if the engine has no room.
        """
        self._numbers[self._answers.ask(observation)] = number

    def next(self, until: Callable[[], bool]) -> tuple[int, TextUpdate] | None:
        """Return the next commit of any open answer; None as soon as `until` is true, or if none is open.

        Raises what ended an answer: CloudError, ActionParseError, Cancelled.
        """
        while True:
            step = self._answers.next(self._clock.now())
            if step is None:
                if until() or not self._answers.open:
                    return None
                step = self._answers.next(self._pause())
            if step is None:
                continue
            if step.error is not None:
                raise step.error
            if step.update is not None:
                return self._numbers[step.answer], step.update

    def cancel(self, keep: int | None = None) -> None:
        """Abandon all open answers but `keep`, here and in the cloud."""
        ending = [answer for answer in self._answers.open if self._numbers[answer] != keep]
        self._answers.cancel(*ending)
        if keep is None:
            self._answers.close()
