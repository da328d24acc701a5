"""A search without standing still: the robot turns on, and frames are asked about while it turns.

A search begins with a committed answer that says that the thing is not in view and turns on the spot, such as
"i do not see the red box . turn(60)". Stepwise the robot would turn by 60 degrees, come to rest, take a frame
and wait for its answer. Here it turns on in the same direction and a frame is taken at every further 60
degrees. Each is asked about with the history that it has there (one turn more for each), so its answer is the
one that the stepwise search would have got, but for the frame having been taken in motion.

As soon as a committed phrase of an answer tells of the thing the robot turns back to that view; should the
answer then deny it, the search goes on. The first answer that does not turn on the same way wins: it sees the
thing, or gives up. Its plan was told for its frame, so it is told anew for where the body looks by then
(`actions.reprojection`; after turning on the spot that is exact) and replaces the turn without a stop; other
open answers are cancelled. An answer that
does not move, such as "i looked around and there is none", waits until every earlier frame has been answered.

Bounded: with n answers open at once the robot turns at most to the frame after those that are open, and at
most `MAX_AHEAD_DEG` beyond the newest frame that a committed answer is known for. No token that is not
committed moves the robot: what it turns on is the turn of the last committed answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from vlm_spec_decode.actions.plan import Origin, Plan
from vlm_spec_decode.actions.types import MOTIONS, Action, Turn, format_action
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.mission_loop import MissionLoop
from vlm_spec_decode.mission.connection import Answerer, TextUpdate
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.late_answer import LateAnswer, Note, grown, no_note
from vlm_spec_decode.mission.several_looks import SeveralLooks
from vlm_spec_decode.mission.state import LOOK_DROPPED, LOOK_USED, format_actions

MIN_TURN_DEG = 40.0
"""A smaller turn is one towards a thing, not on to the next view."""

MAX_AHEAD_DEG = 180.0
"""How far the robot turns beyond the newest frame that has been answered."""

CIRCLE_DEG = 360.0

NEAR_DEG = 4.0
"""A frame this much before its heading counts as taken there."""

TURN_S = 15.0
"""Longest time for one turn on; then the frame is taken where the robot looks."""

NOT_SEEN = re.compile(r"\b(not|n't|cannot|no longer|nothing|never)\b|n't\b|\bno\b", re.IGNORECASE)
"""Words by which an answer says that the thing is not in view."""


def search_turn(text: str, actions: tuple[Action, ...]) -> Turn | None:
    """Return the turn if an answer says that the thing is not in view and only turns; else None."""
    if len(actions) != 1 or not isinstance(turn := actions[0], Turn) or abs(turn.angle_deg) < MIN_TURN_DEG:
        return None
    told = text.split(format_action(turn).split("(")[0], 1)[0]
    return turn if NOT_SEEN.search(told) else None


WORD = re.compile(r"[a-z]+")
COMMON = frozenset(("the", "a", "an", "i", "do", "see", "to", "of", "is", "it", "and", "on", "at", "in"))


def thing_words(text: str, instruction: str) -> frozenset[str]:
    """Return the words of what an answer does not see: those of its denial that the instruction has too."""
    asked = set(WORD.findall(instruction.lower())) - COMMON
    denial = next((part for part in text.lower().split(".") if NOT_SEEN.search(part)), "")
    return frozenset(asked.intersection(WORD.findall(denial)))


def tells_of(text: str, thing: frozenset[str]) -> bool:
    """Whether what is committed of an answer tells of the thing: a whole phrase of it, that is no denial."""
    phrases = re.split(r"[.,]", text.lower())[:-1]
    return bool(thing) and any(
        thing <= set(WORD.findall(phrase)) and not NOT_SEEN.search(phrase) for phrase in phrases
    )


class Looks(Protocol):
    """Open answers of one robot: several at once, as many as `capacity`."""

    @property
    def capacity(self) -> int:
        """How many may be open at once."""
        ...

    def open(self, number: int, observation: Observation) -> None:
        """Ask about a frame."""
        ...

    def next(self, until: Callable[[], bool]) -> tuple[int, TextUpdate] | None:
        """Return the next commit of any open answer; None as soon as `until` is true, if it can wait so.

        Raises CloudError or Cancelled as the answers do.
        """
        ...

    def cancel(self, keep: int | None = None) -> None:
        """Abandon all open answers but `keep`."""
        ...


class OneLook:
    """`Looks` of an engine that answers one question at a time."""

    capacity = 1

    def __init__(self, engine: Answerer) -> None:
        self._engine = engine
        self._number = 0
        self._updates: Iterator[TextUpdate] = iter(())

    def open(self, number: int, observation: Observation) -> None:
        """See `Looks`."""
        self._number, self._updates = number, iter(self._engine.answer(observation))

    def next(self, until: Callable[[], bool]) -> tuple[int, TextUpdate] | None:  # noqa: ARG002
        """See `Looks`; it waits for the commit."""
        update = next(self._updates, None)
        return None if update is None else (self._number, update)

    def cancel(self, keep: int | None = None) -> None:
        """See `Looks`."""
        close = getattr(self._updates, "close", None)
        if keep != self._number and close is not None:
            close()


def looks_of(engine: Answerer, capacity: int) -> Looks:
    """Return the looks that an engine can carry at once."""
    if isinstance(engine, HasLooks):
        return engine.looks(capacity)
    if isinstance(engine, Engine) and min(capacity, engine.max_answers) > 1:
        return SeveralLooks(engine, capacity)
    return OneLook(engine)


@runtime_checkable
class HasLooks(Protocol):
    """An engine that makes its own `Looks`, as one in virtual time does."""

    def looks(self, capacity: int) -> Looks:
        """Return at most `capacity` looks at once."""
        ...


@dataclass(slots=True, kw_only=True)
class Search:
    """One search, from the committed turn of its first answer to the answer that wins.

    Views are numbered by the turns between the first frame and theirs. `plan` is that of the first frame's
    answer, which is under way; `emit` sends a plan, `ask` takes a new frame and makes its observation with a
    history, `report` is told of every commit.
    """

    mission: MissionLoop
    events: MissionEvents
    looks: Looks
    turn: Turn
    plan: Plan
    emit: Callable[[Plan], None]
    ask: Callable[[tuple[str, ...]], tuple[Frame, Observation]]
    report: Callable[[LateAnswer, TextUpdate], None]
    note: Note = no_note
    views: dict[int, LateAnswer] = field(default_factory=dict)
    thing: frozenset[str] = frozenset()
    """Words of what is searched; once a committed phrase has them the robot turns back to that view."""
    answered: int = 0
    winner: LateAnswer | None = None
    _history: tuple[str, ...] = ()
    _answered_s: float = 0.0
    _turned_rad: float = 0.0
    _jumps: int = 0
    _yaw_rad: float | None = None
    _goal_deg: float = 0.0
    _sighted: bool = False

    def run(self) -> LateAnswer | None:
        """Turn on until an answer wins, and return it, its plan under way.

        None if none does, or if its plan cannot be told anew: the robot then stops, and the mission looks
        again. Raises what the events and the answers raise, after abandoning the open answers.
        """
        self._history, self._answered_s = tuple(self.mission.history), self.plan.stamp_s
        start = self.events.poses.at(self.plan.stamp_s)
        self._yaw_rad = None if start is None else start.yaw_rad
        self._jumps = self.events.poses.jumps
        # The robot turns already, by the first answer's plan.
        self._goal_deg = self._step_deg
        self._record()
        try:
            return self._run()
        except ActionRefused as refusal:
            if (lost := self.winner) is not None:
                self.note(LOOK_DROPPED, lost.number, lost.frame, refusal.detail)
            self._send((), self._answered_s, origin="search")
            return None
        finally:
            self.looks.cancel()

    def _run(self) -> LateAnswer | None:
        while self.mission.is_running:
            self._turn_on()
            if not self._open:
                if self._next_deg > CIRCLE_DEG + NEAR_DEG:
                    return None
                self.events.wait_until(self._is_at_next_view, TURN_S)
                self._look()
            elif (commit := self.looks.next(self._may_look)) is not None:
                if (winner := self._take(*commit)) is not None:
                    return self._win(*winner)
            elif self._may_look():
                self._look()
        return None

    def told(self, executed: tuple[str, ...]) -> tuple[str, ...]:
        """Return what has been carried out of the winner's plan, in the words of its answer.

        Before an answer wins nothing is told: the search's own turns are recorded as their answers come.
        """
        return () if self.winner is None else self.winner.told(executed, self.plan.actions)

    # Turning -------------------------------------------------------------------------------------

    @property
    def _step_deg(self) -> float:
        return abs(self.turn.angle_deg)

    @property
    def _next_deg(self) -> float:
        return (len(self.views) + 1) * self._step_deg

    def _heading_deg(self) -> float:
        """Return how far the body has turned from the first frame, in the search's direction.

        Raises ActionRefused once the odometry has jumped: what it had turned until then is not known.
        """
        if self.events.poses.jumps != self._jumps:
            raise ActionRefused("reprojection", "the odometry has jumped since the search began")
        pose = self.events.poses.newest
        if pose is not None:
            if self._yaw_rad is not None:
                self._turned_rad += math.remainder(pose.yaw_rad - self._yaw_rad, 2 * math.pi)
            self._yaw_rad = pose.yaw_rad
        return math.copysign(1.0, self.turn.angle_deg) * math.degrees(self._turned_rad)

    def _turn_on(self) -> None:
        """Have the robot turn to the view after those that may be open, without a stop."""
        if self._sighted:
            return
        ahead_deg = min((self.looks.capacity + 1) * self._step_deg, MAX_AHEAD_DEG)
        goal_deg = min(self.answered * self._step_deg + ahead_deg, CIRCLE_DEG)
        left_deg = goal_deg - self._heading_deg()
        if goal_deg <= self._goal_deg + NEAR_DEG or left_deg < NEAR_DEG:
            return
        self._goal_deg = goal_deg
        turn = Turn(round(math.copysign(min(left_deg, MAX_AHEAD_DEG), self.turn.angle_deg), 1))
        self._send((turn,), self._answered_s, origin="search")

    def _send(
        self, actions: tuple[Action, ...], stamp_s: float, *, origin: Origin, final: bool = False
    ) -> None:
        """Replace the plan under way by one of the next answer."""
        number = self.mission.answer = self.mission.next_answer
        mission, verified = self.plan.mission, self.plan.verified
        self.plan = Plan(mission, number, stamp_s, 0, actions, final, verified, origin)
        self.events.begin(mission, number)
        self.emit(self.plan)

    # Looking -------------------------------------------------------------------------------------

    @property
    def _open(self) -> int:
        return sum(not view.is_whole for view in self.views.values())

    def _is_at_next_view(self) -> bool:
        return self._heading_deg() >= self._next_deg - NEAR_DEG

    def _may_look(self) -> bool:
        return (
            not self._sighted
            and self._open < self.looks.capacity
            and self._next_deg <= CIRCLE_DEG + NEAR_DEG
            and self._is_at_next_view()
        )

    def _look(self) -> None:
        number = len(self.views) + 1
        frame, observation = self.ask((*self._history, *[format_action(self.turn)] * number))
        self.mission.answer = self.mission.next_answer
        self.views[number] = LateAnswer(self.mission.answer, frame, observation, on_the_spot=True)
        self.looks.open(number, observation)

    # Answers -------------------------------------------------------------------------------------

    def _take(self, number: int, update: TextUpdate) -> tuple[int, LateAnswer] | None:
        """Take in a commit; return the view that wins by it, if one does."""
        self.events.check()
        view = self.views[number]
        view.take(update)
        self.report(view, update)
        if self._moves_on(view):
            return number, view
        if not self._sighted and not view.actions and tells_of(view.text, self.thing):
            self._turn_back(view)
        while (following := self.views.get(self.answered + 1)) is not None:
            if self._goes_on(following):
                if not following.is_whole:
                    break
                self.answered += 1
                self._answered_s = following.frame.stamp_s
                # What was told of is not what was searched: the search goes on.
                self._sighted, self._goal_deg = False, -CIRCLE_DEG if self._sighted else self._goal_deg
                self._record()
            elif following.actions or following.is_whole:
                return self.answered + 1, following
            else:
                break
        return None

    def _turn_back(self, view: LateAnswer) -> None:
        """Turn back to a view whose answer tells of the thing, before it says what to do."""
        taken, newest = self.events.poses.at(view.frame.stamp_s), self.events.poses.newest
        if taken is None or newest is None:
            return
        self._sighted = True
        back_deg = round(-math.degrees(newest.seen_from(taken).yaw_rad), 1)
        if abs(back_deg) >= NEAR_DEG:
            self._send((Turn(back_deg),), view.frame.stamp_s, origin="search")

    def _goes_on(self, view: LateAnswer) -> bool:
        """Whether an answer so far is the search's turn once more."""
        return search_turn(view.text, view.actions) == self.turn

    def _moves_on(self, view: LateAnswer) -> bool:
        """Whether an answer sees the thing: it moves the robot, and not by the search's turn."""
        moves = any(isinstance(action, MOTIONS) for action in view.actions)
        return moves and not self._goes_on(view)

    def _record(self) -> None:
        # A turn that is recorded as its answer comes may still be blocked: it is no end of obstructions.
        obstructions = self.mission.obstructions
        self.mission.record((format_action(self.turn),), (self.turn,))
        self.mission.obstructions = obstructions

    def _win(self, number: int, view: LateAnswer) -> LateAnswer:
        """Carry out the answer about a view that lies behind by now; return it when it is whole."""
        self.looks.cancel(keep=number)
        self.winner = view
        for other, dropped in self.views.items():
            if other > self.answered and other != number:
                why = "answer came, but " if dropped.is_whole else "given up: "
                self.note(
                    LOOK_DROPPED, dropped.number, dropped.frame, f"{why}answer {view.number} is gone by"
                )
        # The robot has turned by every view up to this one, whether or not its answer was waited for.
        while self.answered < number - 1 and self.mission.is_running:
            self.answered += 1
            self._record()
        begun = False
        while True:
            actions = view.retold(self.events.poses)
            if actions is not None and not begun:
                begun = True
                self._send(actions, view.frame.stamp_s, origin="reprojected", final=view.is_whole)
                told = f"asked as {view.number}, told anew as {format_actions(actions)}"
                self.note(LOOK_USED, self.plan.answer, view.frame, told)
                view.number = self.plan.answer
            elif actions is not None:
                before, self.plan = self.plan, grown(self.plan, actions, view.is_whole)
                if self.plan is not before:
                    self.emit(self.plan)
            if view.is_whole:
                return view
            commit = self.looks.next(lambda: False)
            if commit is not None and commit[0] == number:
                self.events.check()
                view.take(commit[1])
                self.report(view, commit[1])
