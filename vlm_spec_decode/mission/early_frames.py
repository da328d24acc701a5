"""The next question is asked before the body has come to rest, and drafted before that.

While a plan is carried out, the first frame taken after the executor says that the body is settling counts as
the frame at rest: its picture goes up and its answer is decoded while the body settles. If the plan ends
otherwise, the answer is dropped, and a frame at rest is asked about as ever. So what is carried out is always
the exact answer to a frame that shows what one at rest shows, with the history that has come true.

During the last action before, the draft model, which would rest, drafts answers to frames on the way. The
last one goes up with the question, so that the first pass verifies it. The cloud is not asked: on the way it
says little that holds at rest, and a pass that runs when the body settles delays the answer that counts.

Every history is told as it will be when the plan has been carried out. All methods are called on the
mission's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Action, Done, Forward
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.mission_loop import MissionLoop
from vlm_spec_decode.mission.background import Background, BackgroundAnswer, DraftsAhead, Threads
from vlm_spec_decode.mission.connection import Answerer
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.late_answer import Note, no_note
from vlm_spec_decode.mission.state import LOOK_DROPPED, RunnerConfig

MAX_AGE_S = 2.0
"""An early answer whose frame is older when its step begins is dropped: something else came in between."""

FRESH_S = 0.5
"""What is drafted ahead is about a frame that is not older than this: older ones show another place."""


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """What was asked, or drafted, before its step began: with which engine, and about which frame."""

    engine: Answerer
    frame: Frame
    observation: Observation
    answer: BackgroundAnswer


@dataclass(frozen=True, slots=True)
class _Acting:
    """What is carried out, and with which engine the next question will be answered."""

    engine: Answerer
    mission: MissionLoop
    plan: Plan
    said: tuple[Action, ...]
    preview: bool = False

    def observation(self, frame: Frame) -> Observation | None:
        """Return the next question, about `frame`; None if its picture is damaged."""
        try:
            image = self.engine.picture(frame.image.jpeg)
        except ImageError:
            return None  # if the frame at rest is damaged, too, the step itself will say so
        return self.mission.observation(image, frame.stamp_s, frame.frame_id, self.said)


class EarlyFrames:
    """Looks ahead while one plan is carried out. At most one answer, or one draft, is open at a time."""

    def __init__(
        self, events: MissionEvents, now_s: Callable[[], float], background: Background | None = None
    ) -> None:
        self._events, self._now_s, self._background = events, now_s, background or Threads()
        self._settling_s: float | None = None
        self._early: EarlyAnswer | None = None
        self._taken: EarlyAnswer | None = None
        self._ahead: EarlyAnswer | None = None
        self.note: Note = no_note
        self._last_from: Pose2D | None = None

    def wait_end(
        self,
        engine: Answerer,
        mission: MissionLoop,
        plan: Plan,
        said: tuple[Action, ...],
        config: RunnerConfig,
    ) -> PlanStatus:
        """Wait until `plan` has been carried out, and ask about the next frame as soon as that is possible.

        `said` are the actions that the history will tell: those of the answer that the plan was made of.
        Raises as `MissionEvents.wait_end` does; then nothing is open.
        """
        self.drop()
        self._settling_s = self._last_from = None
        acting = _Acting(engine, mission, plan, said, preview=config.start == "draft")
        # Without its cloud a mission takes one careful step after the other.
        ends = not said or any(isinstance(action, Done) for action in said)
        looks_on = mission.has_steps and plan.verified and not ends
        watch = (lambda: self._watch(acting)) if looks_on and config.early_frames == "on" else None
        try:
            status = self._events.wait_end(config.silence_s, config.act_s, watch)
        except BaseException:
            self.drop()
            raise
        if not status.settling:
            self._give_up(plan.answer, "the body came to rest elsewhere")
        return status

    def take(self, engine: Answerer, mission: MissionLoop) -> EarlyAnswer | None:
        """Return the answer that is already under way for the mission's present step, if there is one."""
        early = self._early
        if early is not None and self._holds(early, engine, mission):
            self._early, self._taken = None, early
            return early
        self._give_up(mission.answer, "something else came in between")
        return None

    def _give_up(self, answer: int, why: str) -> None:
        """Drop, and tell why, what was asked about after an answer."""
        if self._early is not None:
            self.note(LOOK_DROPPED, answer + 1, self._early.frame, f"asked early, but {why}")
        self.drop()

    def drop(self) -> None:
        """Cancel what is open, also what was taken and not read to its end. Idempotent."""
        for early in (self._early, self._taken, self._ahead):
            if early is not None:
                early.answer.cancel()
        self._early = self._taken = self._ahead = None

    def _holds(self, early: EarlyAnswer, engine: Answerer, mission: MissionLoop) -> bool:
        """Whether it is asked of the engine in use, with the history that has come true, and not long ago."""
        is_true = early.engine is engine and early.observation.history == tuple(mission.history)
        return is_true and self._now_s() - early.frame.stamp_s <= MAX_AGE_S

    def _watch(self, acting: _Acting) -> None:
        """Take in new frames and statuses."""
        if not self._events.is_settling:
            self._settling_s = None
            if self._early is not None:
                self._give_up(acting.plan.answer, "the body has moved on by its last centimetres")
            if self._events.actions_done() >= len(acting.plan.actions) - 1:
                self._last_from = self._last_from or self._events.poses.newest
                self._draft_ahead(acting)
            return
        if self._settling_s is None:
            self._settling_s = self._now_s()
        frame = self._events.frame_after(self._settling_s)
        if frame is not None and self._early is None:
            self._ask(acting, frame)

    def _ask(self, acting: _Acting, frame: Frame) -> None:
        self.drop()
        observation = acting.observation(frame)
        if observation is not None:
            answer = self._background.answer(acting.engine, observation, preview=acting.preview)
            self._early = EarlyAnswer(acting.engine, frame, observation, answer)

    def _draft_ahead(self, acting: _Acting) -> None:
        """Draft about the newest frame, once what was drafted before has ended."""
        ahead, engine = self._ahead, acting.engine
        if not isinstance(engine, DraftsAhead) or (ahead is not None and not ahead.answer.has_ended):
            return
        known_s = ahead.frame.stamp_s if ahead else acting.plan.stamp_s
        frame = self._events.frame_after(max(known_s, self._now_s() - FRESH_S))
        observation = acting.observation(frame) if frame is not None else None
        if frame is not None and observation is not None:
            drafts = self._background.draft(engine, observation, self._walks_m(acting, frame))
            self._ahead = EarlyAnswer(engine, frame, observation, drafts)

    def _walks_m(self, acting: _Acting, frame: Frame) -> float:
        """Return how far the last action leads on from where `frame` was taken, 0 if that is not known."""
        last, taken = acting.plan.actions[-1], self._events.poses.at(frame.stamp_s)
        if not isinstance(last, Forward) or last.distance_m <= 0 or taken is None or self._last_from is None:
            return 0.0
        walked_m = taken.seen_from(self._last_from).x_m
        return min(last.distance_m, max(0.0, last.distance_m - walked_m))
