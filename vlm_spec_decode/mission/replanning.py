"""Looking again while walking, so that the robot need not stand for the next answer.

While the last way of a plan is walked, a frame is taken and asked about. When its answer begins with a motion
it is told anew for where the body is by then, and replaces the rest of the older plan without a stop.

When to take the frame: with L the time from a frame to its first action and v the speed, a frame taken
v (L + b) before the end is answered b before the body arrives, which is when it would begin to brake. But an
answer reaches only as far as its own plan, H: of a frame taken d before the end only H - d is new way, and
the time between two such looks is (H - 2 d) / v + L. So it pays where L is below H / 2 v, by running
estimates of L and v; elsewhere the robot looks at rest.

A late answer that turns by more than `MAX_TURN_DEG` goes around something, and where to depends on where it
was decided: it is not carried out from elsewhere. What does not walk (`done()`, a gesture, a refusal) is not
believed on a frame that the body has walked on from; nor is a plan that cannot be told anew. The older plan
is then carried out to its end, and the mission looks at rest, as it does without this. So a thing that is
reached is always reached on a frame at rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.reprojection import end_of
from vlm_spec_decode.actions.types import Action, Forward, Turn, format_action
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.mission_loop import MissionLoop
from vlm_spec_decode.mission.connection import TextUpdate
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.late_answer import LateAnswer, Note, grown, no_note
from vlm_spec_decode.mission.state import LOOK_DROPPED, LOOK_USED, format_actions

MIN_LEFT_M = 0.1
"""With less way left a frame at rest comes as soon."""

MAX_TURN_DEG = 30.0
"""A larger turn in an answer is a detour or a search: for a frame at rest."""

MIN_SPEED_MPS = 0.4
"""Speed that is reckoned with at least: the body may just have begun."""

BRAKING_S = 0.4
"""How long before the end of a way the body begins to brake."""

SPEED_S = 0.5
"""Time over which the speed is measured."""


@dataclass(slots=True)
class Latency:
    """Time from a frame to its answer's first action: a running mean in seconds, None before the first."""

    mean_s: float | None = None
    SHARE = 0.3

    def learn(self, seconds: float) -> None:
        """Take in one answer's time."""
        self.mean_s = seconds if self.mean_s is None else self.mean_s + self.SHARE * (seconds - self.mean_s)


@dataclass(slots=True, kw_only=True)
class Replanning:
    """One plan under way and the later answers that replace its rest, until one is carried out to its end.

    `answer` asks about an observation; the rest is as in `mission.search`.
    """

    mission: MissionLoop
    events: MissionEvents
    plan: Plan
    said: tuple[Action, ...]
    latency: Latency
    now_s: Callable[[], float]
    answer: Callable[[Observation], Iterator[TextUpdate]]
    emit: Callable[[Plan], None]
    ask: Callable[[tuple[str, ...]], tuple[Frame, Observation]]
    report: Callable[[LateAnswer, TextUpdate], None]
    note: Note = no_note
    late: LateAnswer | None = None
    _start: Pose2D | None = None

    def run(self, silence_s: float, limit_s: float) -> PlanStatus:
        """Return the status that ends the last plan. Raises as the events and the answers do."""
        self._start = self.events.poses.at(self.plan.stamp_s) if self.late is None else self.late.start
        # The plan under way has the next number until its step is recorded.
        self.mission.answer = max(self.mission.answer, self.plan.answer)
        while self.mission.is_running and self._reaches_a_look(limit_s):
            if not self._look():
                break
        return self.events.wait_end(silence_s, limit_s)

    def told(self, executed: tuple[str, ...]) -> tuple[str, ...]:
        """Return what has been carried out of the plan under way, in the words of its answer."""
        return executed if self.late is None else self.late.told(executed, self.plan.actions)

    # When ----------------------------------------------------------------------------------------

    def _left_m(self) -> float:
        """Return the way left to the end of the plan under way; infinite before its last way has begun."""
        newest = self.events.poses.newest
        done = self.events.actions_done()
        if done >= len(self.plan.actions):
            return 0.0
        if newest is None or self._start is None or done < len(self.plan.actions) - 1:
            return math.inf
        end = end_of(self._start, *self.plan.actions).seen_from(newest)
        # What lies behind the body has been walked: the end is never reached exactly.
        return max(0.0, end.x_m)

    def _speed_mps(self) -> float:
        poses, newest = self.events.poses, self.events.poses.newest
        before = poses.at(self.now_s() - SPEED_S)
        if newest is None or before is None:
            return MIN_SPEED_MPS
        moved = newest.seen_from(before)
        return max(MIN_SPEED_MPS, math.hypot(moved.x_m, moved.y_m) / SPEED_S)

    def _is_due(self) -> bool:
        last = self.plan.actions[-1]
        assert isinstance(last, Forward)
        ahead_m = self._speed_mps() * ((self.latency.mean_s or 0.0) + BRAKING_S)
        return self._left_m() <= ahead_m and self._pays(last)

    def _pays(self, last: Forward) -> bool:
        return self._speed_mps() * (self.latency.mean_s or 0.0) <= last.distance_m / 2

    def _reaches_a_look(self, limit_s: float) -> bool:
        """Wait for the moment of the next frame; return whether there is one before the plan ends."""
        last = self.plan.actions[-1] if self.plan.actions else None
        if (
            self.latency.mean_s is None
            or self._start is None
            or not self.plan.final
            or not isinstance(last, Forward)
            or last.distance_m / 2 < MIN_LEFT_M
        ):
            return False
        self.events.wait_until(self._is_due, limit_s)
        return MIN_LEFT_M <= self._left_m() < math.inf

    # Looking -------------------------------------------------------------------------------------

    def _history(self) -> tuple[str, ...]:
        """Return the actions up to now, of the last one as much as has been walked."""
        *before, last = self.said
        walked = [format_action(action) for action in before]
        if isinstance(last, Forward):
            walked_m = round(last.distance_m - self._left_m(), 1)
            if walked_m > 0:
                walked.append(format_action(Forward(walked_m)))
        return tuple(walked)

    def _look(self) -> bool:
        """Ask about a frame; return whether its plan has replaced the one under way."""
        history = self._history()
        frame, observation = self.ask((*self.mission.history, *history))
        number = self.mission.answer = self.mission.next_answer
        late = LateAnswer(number, frame, observation)
        updates = self.answer(observation)
        has_begun = False
        try:
            for update in updates:
                self.events.check()
                acts = bool(late.actions)
                late.take(update)
                self.report(late, update)
                if late.actions and not acts:
                    self.latency.learn(self.now_s() - frame.stamp_s)
                if any(isinstance(a, Turn) and abs(a.angle_deg) > MAX_TURN_DEG for a in late.actions):
                    raise ActionRefused("reprojection", "a turn that large is for a frame at rest")
                actions = late.retold(self.events.poses)
                if not actions:
                    continue
                if not has_begun:
                    has_begun = True
                    self._replace(late, actions, history)
                    continue
                before, self.plan = self.plan, grown(self.plan, actions, late.is_whole)
                if self.plan is not before:
                    self.emit(self.plan)
        except ActionRefused as refusal:
            # What has begun is not taken back; what has not is not begun, and the older plan goes on.
            if has_begun:
                raise
            self.note(LOOK_DROPPED, number, frame, refusal.detail)
        else:
            if not has_begun:
                self.note(LOOK_DROPPED, number, frame, "it does not walk on, which is for a frame at rest")
        finally:
            close = getattr(updates, "close", None)
            if close is not None:
                close()
        if has_begun:
            self.said = late.believed
        return has_begun

    def _replace(self, late: LateAnswer, actions: tuple[Action, ...], walked: tuple[str, ...]) -> None:
        """Carry out a later answer from here on; the older one counts up to the later one's frame."""
        self.mission.record(walked, self.said)
        self.late, self._start = late, late.start
        self.plan = Plan(
            self.plan.mission,
            late.number,
            late.frame.stamp_s,
            0,
            actions,
            final=late.is_whole,
            verified=self.plan.verified,
            origin="reprojected",
        )
        self.events.begin(self.plan.mission, late.number)
        self.emit(self.plan)
        self.note(LOOK_USED, late.number, late.frame, f"told anew as {format_actions(actions)}")
