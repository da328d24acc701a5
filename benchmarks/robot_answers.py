"""The answers of the faulty world of benchmarks/robot.py: their pieces, each at its time, as an engine's.

One that is read by the mission's thread, several at once in any order, and one under way in the background.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_spec_decode.actions.types import Action, Forward, Turn
from vlm_spec_decode.core.errors import Cancelled, CloudUnreachable, ModelError
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.engine import AnswerUpdate, DraftedAction
from vlm_spec_decode.mission.connection import Answerer, TextUpdate

if TYPE_CHECKING:
    from robot_world import World


@dataclass(slots=True)
class Piece:
    """One commit of an answer, and when it arrives."""

    at_s: float
    update: AnswerUpdate


@dataclass(slots=True)
class OpenAnswer:
    """An answer that is being said: its pieces, in order."""

    world: World
    observation: Observation
    pieces: list[Piece]
    taken: int = 0

    @property
    def is_over(self) -> bool:
        """Whether all of it has been read."""
        return self.taken == len(self.pieces)

    @property
    def next_s(self) -> float:
        """When its next piece arrives, or the link is known to be lost."""
        return min(self.pieces[self.taken].at_s, self.world.loss_known_s)

    def take(self) -> AnswerUpdate:
        """Return the next piece, which has arrived. Raises CloudUnreachable if it never comes."""
        piece = self.pieces[self.taken]
        if piece.at_s > self.world.lost_s:
            raise CloudUnreachable("nothing was heard")
        self.taken += 1
        self.world.commit(self.observation, piece.update)
        return piece.update

    def updates(self) -> Iterator[TextUpdate]:
        """Yield the pieces as they arrive, while the world goes on."""
        self.world.open.append(self)
        try:
            while not self.is_over:
                while self.world.clock.now() < self.next_s and not self.world.is_broken_off:
                    self.world.tick()
                if self.world.is_broken_off:
                    raise Cancelled("the answer was cancelled")
                yield self.take()
        finally:
            self.cancel()

    @property
    def has_ended(self) -> bool:
        """See `mission.background.BackgroundAnswer`."""
        return not self.is_over and self.pieces[-1].at_s <= self.world.clock.now()

    def cancel(self) -> None:
        """Abandon it. Idempotent."""
        if self in self.world.open:
            self.world.open.remove(self)
        if self in self.world.early:
            self.world.early.remove(self)


class Looks:
    """Several open answers, each with its own time, so that they come in any order."""

    def __init__(self, world: World, capacity: int) -> None:
        self.capacity = capacity
        self._world = world
        self._answers: dict[int, OpenAnswer] = {}

    def open(self, number: int, observation: Observation) -> None:
        """See `mission.search.Looks`."""
        answer = self._answers[number] = self._world.ask(observation)
        self._world.open.append(answer)

    def next(self, until: Callable[[], bool]) -> tuple[int, TextUpdate] | None:
        """See `mission.search.Looks`."""
        world = self._world
        while True:
            if world.is_broken_off:
                raise Cancelled("the answer was cancelled")
            due = [(a.next_s, n) for n, a in self._answers.items() if not a.is_over]
            if due and min(due)[0] <= world.clock.now():
                number = min(due)[1]
                world.counts.out_of_order += any(n < number for _, n in due)
                return number, self._answers[number].take()
            if until() or not due:
                return None
            world.tick()

    def cancel(self, keep: int | None = None) -> None:
        """See `mission.search.Looks`."""
        for number in [n for n in self._answers if n != keep]:
            self._answers.pop(number).cancel()


@dataclass(frozen=True, slots=True)
class EarlyAnswers:
    """A `mission.background.Background` in the world's time."""

    world: World

    def answer(self, engine: Answerer, observation: Observation, *, preview: bool = False) -> OpenAnswer:  # noqa: ARG002
        """Begin an answer now, to be read later."""
        answer = self.world.ask(observation, preview=preview)
        self.world.early.append(answer)
        self.world.counts.early += 1
        return answer

    def draft(self, engine: Any, observation: Observation) -> OpenAnswer:  # noqa: ARG002
        """Raise: nothing is drafted ahead here."""
        raise ModelError("nothing is drafted ahead")


def any_motion(rng: random.Random) -> Action:
    """Return any motion, within the limits or not."""
    return rng.choice(
        (
            Forward(round(rng.uniform(-1.5, 3.5), 1)),
            Turn(float(rng.randint(-180, 180))),
            Turn(float(rng.choice((-60, 60, 190)))),
        )
    )


def commit_of(
    text: str, actions: tuple[Action, ...], *, is_last: bool = False, drafted: DraftedAction | None = None
) -> AnswerUpdate:
    """Return one commit of an answer, or what its draft says."""
    result = None
    if is_last:
        result = GenerationResult(
            tokens=(1,),
            text=text,
            strategy="hybrid",
            rule="coupled",
            rounds=(),
            early_verdicts=0,
            time_to_first_token_s=0.1,
            time_to_first_action_s=0.1,
            total_s=0.1,
        )
    return AnswerUpdate(answer=1, tokens=(1,), text=text, actions=actions, result=result, drafted=drafted)
