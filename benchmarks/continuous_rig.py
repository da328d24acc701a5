"""A mission in virtual time: the real mission runner, engine, executor and gate on the headless simulator.

Two clocks: the robot's, in which the executor ticks, and the engine's, in which an answer is decoded. At the
start of an answer the engine's clock is set to the robot's; before each commit is handed to the mission, the
robot's time runs up to the commit's. So the robot moves while the rest of an answer is decoded, as it does
with two computers, and a slow posture delays no decoding.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from lib.virtual_condition import VirtualCondition

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Action, Turn, format_action
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import Cancelled, CloudUnreachable, ModelError, VsdError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.types import Image, Observation, Tokens
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.mission.background import Background, DraftsAhead
from vlm_spec_decode.mission.connection import Answerer, TextUpdate
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.runner import MissionRunner, Report
from vlm_spec_decode.mission.several_looks import SeveralLooks
from vlm_spec_decode.mission.state import Answer, MissionEnd, MissionJob, RunnerConfig
from vlm_spec_decode.sim.headless import HeadlessGo2

CAMERA_S = 0.2
"""Period of the camera node's frames, by default."""

PATH_S = 0.5
"""How often the path is sampled, for every way alike."""

REST_S = 1.0
"""How long the world goes on after a mission before it is judged, as in an evaluation."""

Ahead: TypeAlias = Literal["draft", "nobody"]

HARMLESS = ("stop", "done", "wait")
LOCOMOTION = ("forward", "strafe", "turn")


@dataclass(slots=True)
class Look:
    """One look: its frame's time, and when the first action and the end of its answer were committed."""

    frame_s: float
    first_action_s: float | None = None
    end_s: float | None = None


@dataclass(slots=True)
class Timeline:
    """What one mission spent its time on; seconds of the robot's clock.

    `overlap_s`: moved while an answer was decoded. `stops`: how often the body stood between two actions that
    walk or turn. `uncommitted`: periods with an action that no commit had said, but for starts on a draft:
    `starts` counts those by what became of them, `unverified_s` is their time. `too_old`: actions carried out
    on a frame older than the gate allows.
    """

    mission_s: float = 0.0
    moving_s: float = 0.0
    overlap_s: float = 0.0
    stops: int = 0
    uncommitted: int = 0
    too_old: int = 0
    unverified_s: float = 0.0
    starts: dict[str, int] = field(default_factory=dict)
    oldest_frame_s: float = 0.0
    looks: list[Look] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    path: list[Pose2D] = field(default_factory=list)
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    @property
    def waiting_s(self) -> float:
        """How long the robot stood."""
        return self.mission_s - self.moving_s

    def summary(self) -> dict[str, Any]:
        """Plain data for a report, without the path."""
        left_out = ("path", "spans", "answers", "executed")
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
        return found | {"waiting_s": self.waiting_s}


@dataclass(slots=True)
class Standstills:
    """Counts how often the body stands between two actions that walk or turn.

    Within one action it does not count: a correction of the last centimetres begins at rest.
    """

    count: int = 0
    _last: tuple[int, int] | None = None
    _stood: bool = False

    def see(self, status: PlanStatus, is_still: bool) -> None:
        """Take in the executor's status and whether the body stands, once a control period."""
        walks = status.state == "moving" and status.action.startswith(LOCOMOTION)
        number = (status.answer, status.actions_done)
        if is_still:
            self._stood = self._last is not None
        elif walks:
            self.count += self._stood and number != self._last
            self._last, self._stood = number, False


class VirtualEvents(MissionEvents):
    """Takes a frame when the mission waits for one: the next of a camera with a fixed period."""

    def __init__(self, robot: VirtualRobot) -> None:
        super().__init__(robot.clock, VirtualCondition(robot.clock, robot.tick))
        self._robot = robot
        self._looked_s = -math.inf

    def wait_frame(self, after_s: float, timeout_s: float) -> Frame:
        """Let time pass until the camera's next frame, and return it."""
        # More than rounding after `after_s`: a frame of that very moment is none that the mission may use.
        due_s = (math.floor(after_s / CAMERA_S + 1e-6) + 1) * CAMERA_S
        # The step before may have ended at an obstacle; time passes all the same.
        while self._robot.clock.now() < due_s:
            self._robot.tick()
        self._capture()
        frame = super().wait_frame(after_s, timeout_s)
        self._robot.timeline.looks.append(Look(frame.stamp_s))
        return frame

    def frame_after(self, stamp_s: float) -> Frame | None:
        """Let the camera take a frame if its next one is due, and return the newest if it is that new."""
        now_s = self._robot.clock.now()
        due_s = math.floor(now_s / CAMERA_S + 1e-6) * CAMERA_S
        if max(self._looked_s, now_s - self._robot.executor.period_s) < due_s - 1e-6:
            self._capture()
        return super().frame_after(stamp_s)

    def _capture(self) -> None:
        image, stamp_s = self._robot.driver.frame()
        self._looked_s = stamp_s
        self.put_frame(Frame(image, stamp_s, "front_camera"))


class VirtualRobot:
    """One simulated robot with its executor. `tick` lets one control period pass and records it."""

    def __init__(self, driver: HeadlessGo2, limits: SafetyLimits) -> None:
        clock = driver.clock
        assert isinstance(clock, VirtualClock)
        self.driver, self.clock, self.limits = driver, clock, limits
        driver.start()
        self.executor = Executor(
            driver, SafetyGate(limits), clock, runner=InlineCallRunner(), frame_now=self.frame_now
        )
        self.delivered_s: float | None = None
        self.events = VirtualEvents(self)
        self.timeline = Timeline(path=[driver.world.pose])
        self.committed: dict[float, list[Action]] = {}
        """What was committed about each frame, by its stamp."""
        self.told: dict[float, str] = {}
        """The committed text about each frame."""
        self.is_answering = False
        self._standstills = Standstills()
        self._plan: Plan | None = None
        self._frame_ages_s: dict[int, list[float]] = {}
        self._sampled_s = clock.now()

    def frame_now(self) -> float:
        """Return when a plan that is handed over arrives: not later than the commit that it comes from.

        A posture may take seconds of one control period; a commit from that time is handed over after it.
        """
        now_s = self.clock.now()
        return now_s if self.delivered_s is None else min(now_s, self.delivered_s)

    def submit(self, plan: Plan) -> None:
        """Send a plan to the executor now; it is repeated in every period, as the real node does."""
        if self._plan is not None and self._plan.draft_start and not plan.draft_start:
            self._frame_ages_s[plan.answer] = []
        self._plan = plan
        ages = self._frame_ages_s.setdefault(plan.answer, [])
        ages += [self.frame_now() - plan.stamp_s] * (len(plan.actions) - len(ages))
        self.executor.submit(plan)

    def run_until(self, time_s: float) -> None:
        """Let time pass up to a moment, or to the end of the answer in progress by the executor."""
        while self.clock.now() < time_s and self.events.broken_off() is None:
            self.tick()

    def take(self, update: TextUpdate, arrived_s: float, look: Look, committed: list[Action]) -> None:
        """Let time pass until a commit has arrived, and note what it says."""
        self.run_until(arrived_s)
        committed += update.actions
        if update.actions and look.first_action_s is None:
            look.first_action_s = arrived_s
        if update.result is not None:
            look.end_s = arrived_s
            self.is_answering = False

    def tick(self) -> None:
        """Let one control period pass."""
        began_s, before = self.clock.now(), self.executor.status()
        if self._plan is not None:
            self.executor.submit(self._plan)
        self.executor.tick()
        self.clock.sleep(self.executor.period_s)
        after = self.executor.status()
        self._record(before, after, began_s)
        pose = self.driver.world.pose
        self.events.put_pose(self.clock.now(), pose)
        self.events.put_status(after)

    def _record(self, before: PlanStatus, after: PlanStatus, began_s: float) -> None:
        timeline, now_s = self.timeline, self.clock.now()
        moves = "moving" in (before.state, after.state)
        if moves:
            timeline.moving_s += now_s - began_s
            timeline.overlap_s += (now_s - began_s) * self.is_answering
        self._span("moving" if moves else "answering" if self.is_answering else "standing", began_s, now_s)
        self._standstills.see(after, self.driver.state().is_still)
        timeline.stops = self._standstills.count
        if after.start != (before.start if after.answer == before.answer else ""):
            timeline.starts[after.start] = timeline.starts.get(after.start, 0) + 1
        if after.start == "begun":
            timeline.unverified_s += (now_s - began_s) * moves
        elif after.state == "moving":
            timeline.uncommitted += not self._is_committed(after)
        done = len(before.executed) if before.answer == after.answer else 0
        for index in range(done, len(after.executed)):
            age_s = self._frame_ages_s[after.answer][index]
            timeline.executed.append(after.executed[index])
            timeline.oldest_frame_s = max(timeline.oldest_frame_s, age_s)
            # What only ends motion is allowed at any age.
            moves_body = not after.executed[index].startswith(HARMLESS)
            timeline.too_old += moves_body and age_s > self.limits.max_frame_age_s
        if now_s - self._sampled_s >= PATH_S:
            self._sampled_s = now_s
            timeline.path.append(self.driver.world.pose)

    def _is_committed(self, status: PlanStatus) -> bool:
        """Whether the action under way was committed about the frame of its plan, or is made of what was."""
        plan = self._plan
        committed = [] if plan is None else self.committed.get(plan.stamp_s, [])
        if plan is not None and plan.origin != "answer":
            # Told anew, or a search's turn gone on with: it needs the commit that it was made of.
            if plan.origin == "reprojected":
                return bool(committed)
            first = plan.actions[0] if plan.actions else None
            ways = {action.angle_deg > 0 for action in committed if isinstance(action, Turn)}
            # Or back to a view of which committed words tell.
            is_told = bool(self.told.get(plan.stamp_s)) and not committed
            return isinstance(first, Turn) and ((first.angle_deg > 0) in ways or is_told)
        said = [format_action(action) for action in committed]
        # A finished action is named until the next period begins another.
        begun = (*status.executed, status.action)[: max(len(status.executed), status.actions_done + 1)]
        known = begun == tuple(said[: len(begun)])
        return known or status.action == "".join(status.executed[-1:])

    def _span(self, what: str, began_s: float, now_s: float) -> None:
        spans = self.timeline.spans
        if spans and spans[-1][0] == what:
            began_s = spans.pop()[1]
        spans.append((what, began_s, now_s))


@dataclass(slots=True)
class PacedEngine:
    """An `Answerer` whose commits reach the mission at their virtual times, while the robot goes on."""

    engine: Answerer
    clock: VirtualClock
    robot: VirtualRobot

    def picture(self, data: bytes) -> Image:
        """Return the frame as the engine sends it."""
        return self.engine.picture(data)

    def answer(self, observation: Observation, *, preview: bool = False) -> Iterator[TextUpdate]:
        """Yield each commit when it has arrived at the robot."""
        robot, look = self.robot, self.robot.timeline.looks[-1]
        # Also back: the answer before may have been broken off ahead of its next commit.
        self.clock.now_s = robot.clock.now()
        committed = robot.committed.setdefault(observation.stamp_s, [])
        robot.is_answering = True
        try:
            with closing(self.engine.answer(observation, preview=preview)) as updates:  # type: ignore[type-var]
                for update in updates:
                    robot.take(update, self.clock.now(), look, committed)
                    robot.told[observation.stamp_s] = update.text
                    robot.delivered_s = self.clock.now()
                    yield update
                    robot.delivered_s = None
        finally:
            robot.is_answering, robot.delivered_s = False, None

    def looks(self, capacity: int) -> VirtualLooks:
        """Return several open answers at once, in shared passes of the virtual cloud."""
        assert isinstance(self.engine, Engine)
        return VirtualLooks(self.engine, self.robot, self.clock, min(capacity, self.engine.max_answers))

    def cancel(self) -> None:
        """Abandon the answer."""
        self.engine.cancel()

    def draft_ahead(self, observation: Observation, *, walks_m: float = 0.0) -> Iterator[Tokens]:
        """Draft as the engine does, if it does."""
        if not isinstance(self.engine, DraftsAhead):
            return iter(())
        return self.engine.draft_ahead(observation, walks_m=walks_m)


@dataclass(slots=True)
class VirtualBackground:
    """A `Background` in virtual time.

    `ahead` is what is asked about frames on the way: the draft model, or nobody. `busy_until_s`: a
    draft step cannot be broken off, only waited for.
    """

    paced: PacedEngine
    ahead: Ahead = "draft"
    busy_until_s: float = 0.0

    def answer(
        self,
        engine: Answerer,  # noqa: ARG002
        observation: Observation,
        *,
        preview: bool = False,
    ) -> VirtualAnswer:
        """Begin an answer now, to be read later."""
        return VirtualAnswer(self, observation, self.paced.engine.answer(observation, preview=preview))

    def draft(
        self,
        engine: DraftsAhead,  # noqa: ARG002
        observation: Observation,
        walks_m: float = 0.0,
    ) -> VirtualAnswer:
        """Begin a draft now."""
        ahead = self.ahead == "draft"
        drafts = self.paced.draft_ahead(observation, walks_m=walks_m) if ahead else iter(())
        return VirtualAnswer(self, observation, drafts, is_draft=True)


class VirtualAnswer:
    """A `BackgroundAnswer` in virtual time: its commits arrive by the engine's clock."""

    def __init__(
        self,
        background: VirtualBackground,
        observation: Observation,
        updates: Iterator[Any],
        *,
        is_draft: bool = False,
    ) -> None:
        self._background, self._observation, self._updates = background, observation, updates
        self._paced, self._is_draft = background.paced, is_draft
        self._paced.clock.now_s = max(self._paced.robot.clock.now(), background.busy_until_s)
        self._arrived: deque[tuple[float, Any]] = deque()
        self._is_closed = False

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by the robot's time, up to which it is decoded."""
        while not self._is_closed and self._paced.clock.now() <= self._paced.robot.clock.now():
            self._fetch()
        return self._is_closed

    def updates(self) -> Iterator[TextUpdate]:
        """Yield each commit when it has arrived at the robot."""
        robot = self._paced.robot
        robot.timeline.looks.append(look := Look(self._observation.stamp_s))
        committed = robot.committed.setdefault(self._observation.stamp_s, [])
        robot.is_answering = True
        try:
            while self._arrived or self._fetch():
                arrived_s, update = self._arrived.popleft()
                robot.take(update, arrived_s, look, committed)
                robot.delivered_s = arrived_s
                yield update
                robot.delivered_s = None
        finally:
            robot.is_answering, robot.delivered_s = False, None
            self.cancel()

    def cancel(self) -> None:
        """Abandon it at the robot's time, to which the engine's goes back, or at the end of a draft step."""
        if self.has_ended:
            return
        self._is_closed = True
        if self._is_draft:
            self._background.busy_until_s = self._paced.clock.now()
        else:
            self._paced.clock.now_s = self._paced.robot.clock.now()
        self._updates.close()  # type: ignore[attr-defined]

    def _fetch(self) -> bool:
        """Decode to the next commit or step; return whether there was one."""
        update = next(self._updates, None)
        self._is_closed = update is None or (not self._is_draft and update.result is not None)
        if update is not None:
            self._arrived.append((self._paced.clock.now(), update))
        return update is not None


class VirtualLooks(SeveralLooks):
    """Several looks in virtual time: the robot goes on until the next commit has arrived at it."""

    def __init__(self, engine: Engine, robot: VirtualRobot, clock: VirtualClock, capacity: int) -> None:
        super().__init__(engine, capacity, self._go_on)
        self._robot, self._engine_clock = robot, clock
        self._looks: dict[int, tuple[float, Look]] = {}

    def _go_on(self) -> float:
        if self._robot.events.broken_off() is not None:
            raise Cancelled("the executor broke the plan off")
        self._robot.tick()
        return self._robot.clock.now()

    def open(self, number: int, observation: Observation) -> None:
        """Ask about the newest frame."""
        if not self._answers.open:
            self._engine_clock.now_s = self._robot.clock.now()
        super().open(number, observation)
        self._looks[number] = observation.stamp_s, self._robot.timeline.looks[-1]
        self._robot.committed.setdefault(observation.stamp_s, [])
        self._robot.is_answering = True

    def next(self, until: Callable[[], bool]) -> tuple[int, TextUpdate] | None:
        """Let time pass to the next commit; None as soon as `until` is true. Raises Cancelled."""
        if (commit := super().next(until)) is None:
            return None
        robot, (stamp_s, look), update = self._robot, self._looks[commit[0]], commit[1]
        robot.committed[stamp_s] += update.actions
        robot.told[stamp_s] = update.text
        if update.actions and look.first_action_s is None:
            look.first_action_s = robot.clock.now()
        if update.result is not None:
            look.end_s = robot.clock.now()
            robot.is_answering = bool(self._answers.open)
        return commit

    def cancel(self, keep: int | None = None) -> None:
        """Abandon all open answers but `keep`."""
        super().cancel(keep)
        self._robot.is_answering = keep is not None


@dataclass(frozen=True, slots=True)
class OneEngine:
    """`Engines` with one engine that is always there: the virtual cloud does not fail."""

    current: Answerer

    @property
    def error(self) -> VsdError:
        """What nobody should see."""
        return CloudUnreachable("the virtual cloud does not fail")

    def set_active(self, engine: Answerer | None) -> None:
        """Do nothing: a broken-off answer is noticed at its next commit, at the time it was broken off."""

    def ensure(self) -> Answerer:
        """Return the engine."""
        return self.current

    def reconnect(self) -> None:
        """Raise: nothing can be lost here."""
        raise self.error

    def draft(self) -> Answerer:
        """Raise ModelError: a mission here never answers by the draft alone."""
        raise ModelError("no draft alone in virtual time")


_MISSIONS = itertools.count(1)


def run_mission(
    robot: VirtualRobot,
    answerer: Answerer,
    instruction: str,
    config: RunnerConfig,
    background: Background | None = None,
) -> MissionEnd:
    """Run one instruction to its end; the robot's timeline holds what happened.

    `background` is what early frames are asked about with; without it there are none.
    """
    if background is None:
        config = replace(config, early_frames="off")
    timeline, began_s = robot.timeline, robot.clock.now()

    def emit(job: MissionJob, report: Report) -> None:  # noqa: ARG001
        if isinstance(report, Plan):
            robot.submit(report)
        elif isinstance(report, Answer):
            timeline.answers.append(report.result.text)

    runner = MissionRunner(robot.events, emit, robot.clock.now, config, background)
    ending = runner.run(MissionJob(f"m{next(_MISSIONS)}", instruction), OneEngine(answerer))
    timeline.mission_s = robot.clock.now() - began_s
    # What is counted ends with the mission; the world goes on until the body stands.
    robot.executor.close()
    robot.clock.sleep(REST_S)
    robot.driver.state()
    timeline.path.append(robot.driver.world.pose)
    return ending
