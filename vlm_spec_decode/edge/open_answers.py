"""Several answers of one engine, followed by one thread: what commits next, in the order of time.

::

    with OpenAnswers(engine) as answers:
        left = answers.ask(observation_left)      # sent now; nothing is waited for
        ...                                       # the robot turns on
        right = answers.ask(observation_right)
        while (step := answers.next(until_s)) is not None:
            if step.update and sees_it(step.update):
                answers.keep(step.answer)         # the others end, here and in the cloud

Each answer is decoded by a process of its own, which waits for its verdicts and takes its turns at the draft
model while the caller does something else. By the wall clock these are threads, and `next` blocks. With an
engine in virtual time (`factory.virtual_engine`) they are processes on its clock (`core.processes`): time
passes only inside `next`, up to the next commit or to `until_s`, and several answers cost what shared passes,
one link and one draft model cost. So a simulator calls `next(until_s)` in every step, with the end of the
step; before its first question it sets the engine's clock to its own. It gets each commit at the time at
which a robot would.

Nothing is lost between two calls: commits wait in the order in which they came. An answer that fails gives
one step with its error; the others go on.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_spec_decode.core.errors import InternalError, VsdError
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.engine import AnswerUpdate, DecodedAnswer, Engine, EngineConfig

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

END_S = 5.0
"""How long `close` waits for the processes that it has ended: a step of the draft model may be under way."""


@dataclass(slots=True, eq=False)
class OpenAnswer:
    """One question that was asked, and how far its answer is. `asked_s` is when, by the engine's clock.

    `updates` counts the commits that `next` has returned. `is_open`: more may come.
    """

    decoded: DecodedAnswer
    asked_s: float
    updates: int = 0
    is_open: bool = True

    @property
    def observation(self) -> Observation:
        """What was asked."""
        return self.decoded.observation


@dataclass(frozen=True, slots=True)
class Step:
    """One commit of an answer, or the error that ended it; `at_s` is when it came, by the engine's clock."""

    answer: OpenAnswer
    at_s: float
    update: AnswerUpdate | None = None
    error: VsdError | None = None

    @property
    def is_last(self) -> bool:
        """Whether this ends the answer."""
        return self.error is not None or (self.update is not None and self.update.result is not None)


class OpenAnswers:
    """The open answers of an engine. Its methods are for one thread; leaving the block ends all answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._processes = engine.processes
        self._asked: list[OpenAnswer] = []
        self._running: list[OpenAnswer] = []
        self._steps: deque[Step] = deque()

    @property
    def open(self) -> Seq[OpenAnswer]:
        """The answers of which `next` may return more, in the order of their questions."""
        return tuple(answer for answer in self._asked if answer.is_open)

    @property
    def has_room(self) -> bool:
        """Whether one more question may be asked now."""
        return self._engine.has_room

    def ask(self, observation: Observation, config: EngineConfig | None = None) -> OpenAnswer:
        """Send a question. Raises EngineBusy if the engine has no room, ConfigError or ImageError."""
        decoded = self._engine.answer(observation, config)
        decoded.start()
        answer = OpenAnswer(decoded, self._engine.clock.now())
        self._asked = [*self.open, answer]
        self._processes.change(lambda: self._running.append(answer))
        self._processes.spawn(lambda: self._decode(answer))
        return answer

    def next(self, until_s: float = math.inf) -> Step | None:
        """Return the next commit of any answer, or the error that ended one.

        None if there is none by `until_s` of the engine's clock, or none can come and `until_s` is not given.
        """
        if not self._steps and not self.open and until_s == math.inf:
            return None
        if not self._processes.wait(lambda: bool(self._steps), until_s - self._engine.clock.now()):
            return None
        step = self._steps.popleft()
        step.answer.updates += step.update is not None
        step.answer.is_open = not step.is_last
        return step

    def keep(self, winner: OpenAnswer) -> None:
        """Cancel all answers but this one."""
        self.cancel(*(answer for answer in self.open if answer is not winner))

    def cancel(self, *answers: OpenAnswer) -> None:
        """End these answers, here and in the cloud; what came of them and was not returned yet is dropped."""

        def drop() -> None:
            for answer in answers:
                answer.is_open = False
            self._steps = deque(step for step in self._steps if step.answer.is_open)

        self._processes.change(drop)
        for answer in answers:
            answer.decoded.cancel()
        self._processes.wait(lambda: not any(answer in self._running for answer in answers), 0.0)

    def close(self) -> None:
        """End all answers and wait for their processes. Idempotent."""
        self.cancel(*self.open)
        self._processes.wait(lambda: not self._running, END_S)

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    # Inside ------------------------------------------------------------------------------------------

    def _decode(self, answer: OpenAnswer) -> None:
        """Put the updates of one answer into the queue, in its own process."""
        try:
            for update in answer.decoded:
                self._put(answer, update)
        except VsdError as error:
            self._put(answer, error=error)
        except Exception as error:
            log.exception("an answer has failed")
            self._put(answer, error=InternalError(repr(error)))
        finally:
            answer.decoded.close()
            self._processes.change(lambda: self._running.remove(answer))

    def _put(
        self, answer: OpenAnswer, update: AnswerUpdate | None = None, error: VsdError | None = None
    ) -> None:
        step = Step(answer, self._engine.clock.now(), update, error)
        self._processes.change(lambda: self._steps.append(step) if answer.is_open else None)
