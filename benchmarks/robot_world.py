"""A mission in virtual time whose camera, odometry, link and plans are faulty: for benchmarks/robot.py.

The real mission runner, executor and gate on the computed robot. What the models would say is made from where
the thing truly was when the frame was taken, and comes at times that a fault chooses: late, or in another
order than asked. `World` looks at every control period and counts what must not happen, from the robot's true
pose and the frames' true times, independently of the code that is measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from lib.virtual_condition import VirtualCondition
from robot_answers import EarlyAnswers, Looks, OpenAnswer, Piece, any_motion, commit_of

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.reprojection import end_of
from vlm_spec_decode.actions.types import MOTIONS, Action, Forward, Turn, action_numbers, format_action
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import CloudUnreachable, ModelError, VsdError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.edge.engine import AnswerUpdate, DraftedAction
from vlm_spec_decode.mission.connection import Answerer, TextUpdate
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.runner import MissionRunner, Report
from vlm_spec_decode.mission.state import MissionEnd, MissionJob, RunnerConfig
from vlm_spec_decode.robot.fake import FakeRobot

INSTRUCTION = "go to the red box"
CAMERA_S, VIEW_DEG, REACH_M = 0.1, 45.0, 1.5
LINK_SILENCE_S = 0.6
"""Silence after which the link says that the cloud is lost, as in the VLM node."""

SLACK_M, SLACK_DEG = 0.35, 22.0
"""What a motion may exceed the action by: coasting, and the jump of the odometry that counts as none."""

AHEAD_DEG = 180.0 + SLACK_DEG
"""How far a search may turn beyond the newest frame that was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong. Times in seconds; shares are chances: of an answer, of a control period.

    `answer_s`: bounds of an answer's time; `late_share` of them take 3 to 9 s. `camera_s`: a frame arrives so
    much after its capture, which its stamp tells. `jump_share`: the odometry jumps by up to 3 m and half a
    turn. `old_share`: an earlier plan arrives again. `wild_share`: an answer holds any action at all.
    `wrong_share`: the draft names another first action than the cloud.
    """

    answer_s: tuple[float, float] = (0.3, 2.5)
    late_share: float = 0.0
    camera_s: float = 0.0
    jump_share: float = 0.0
    old_share: float = 0.0
    wild_share: float = 0.0
    wrong_share: float = 0.3


@dataclass(slots=True)
class Counts:
    """What must not happen, and how often what was to be tried did happen."""

    beyond: int = 0
    too_old: int = 0
    uncommitted: int = 0
    outdated: int = 0
    """Motions by a plan that was not the newest any more."""
    after_end: int = 0
    """Missions after whose end the body still moved a second later."""
    late_gap_m: list[float] = field(default_factory=list)
    """How far the end of a plan that was told anew is from where its answer led, without a jump since."""
    jumps: int = 0
    reprojected: int = 0
    early: int = 0
    starts: int = 0
    out_of_order: int = 0
    ends: dict[str, int] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add another mission's counts."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                for key, value in theirs.items():
                    mine[key] = mine.get(key, 0) + value
            else:
                setattr(self, name, mine + theirs)


class JumpingRobot(FakeRobot):
    """A computed robot whose odometry jumps: its state tells the true pose, seen from elsewhere."""

    origin = Pose2D(0.0, 0.0)

    def jump(self, x_m: float, y_m: float, yaw_rad: float) -> None:
        """Let the odometry have the body elsewhere from now on."""
        told, true = Pose2D(self.state().x_m + x_m, self.state().y_m + y_m), Pose2D(*self.true_pose)
        yaw_rad += self.state().yaw_rad
        turned = yaw_rad - true.yaw_rad
        cos, sin = math.cos(turned), math.sin(turned)
        self.origin = Pose2D(
            told.x_m - cos * true.x_m + sin * true.y_m, told.y_m - sin * true.x_m - cos * true.y_m, turned
        )

    def state(self) -> RobotState:
        """Return the state as the odometry has it."""
        true, at = super().state(), self.origin
        cos, sin = math.cos(at.yaw_rad), math.sin(at.yaw_rad)
        return replace(
            true,
            x_m=at.x_m + cos * true.x_m - sin * true.y_m,
            y_m=at.y_m + sin * true.x_m + cos * true.y_m,
            yaw_rad=math.remainder(true.yaw_rad + at.yaw_rad, 2 * math.pi),
        )


class World:
    """One robot, one thing in its room, one mission at a time. `tick` lets one control period pass."""

    def __init__(self, rng: random.Random, config: RunnerConfig, faults: Faults) -> None:
        self.rng, self.config, self.faults = rng, config, faults
        self.clock = VirtualClock(100.0)
        self.robot = JumpingRobot(self.clock)
        self.robot.start()
        self.limits = SafetyLimits()
        self.executor = Executor(self.robot, SafetyGate(self.limits), self.clock, runner=InlineCallRunner())
        self.events = MissionEvents(self.clock, VirtualCondition(self.clock, self.tick))
        self.runner = MissionRunner(self.events, self.hear, self.clock.now, config, EarlyAnswers(self))
        bearing_rad, far_m = rng.uniform(-math.pi, math.pi), rng.uniform(1.2, 4.0)
        self.thing = (far_m * math.cos(bearing_rad), far_m * math.sin(bearing_rad))
        self.counts = Counts()
        self.lost_s = math.inf
        self.open: list[OpenAnswer] = []
        self.early: list[OpenAnswer] = []
        self.plan: Plan | None = None
        self.is_dead = False
        """Whether the VLM node is: no plan is sent any more."""
        self.on_tick: Callable[[World], None] = lambda _: None
        self._plans: list[Plan] = []
        self._arrived_s: dict[tuple[int, int], float] = {}
        self._told: dict[int, tuple[Pose2D, float]] = {}
        self._frames: list[tuple[float, float]] = []
        self._taken: dict[float, Pose2D] = {}
        self._words: dict[float, str] = {}
        self._said: dict[float, tuple[Action, ...]] = {}
        self._answered_rad: float | None = None
        self._answered_s = -math.inf
        self._jumped_s = -math.inf
        self._calls = 0
        self._action: tuple[int, int] | None = None
        self._is_new = False
        self._began = Pose2D(0.0, 0.0)
        self._frame_s = 0.0

    # The mission's side --------------------------------------------------------------------------

    def run(self) -> MissionEnd:
        """Run one mission; afterwards the world goes on for a second without a commander."""
        ending = self.runner.run(MissionJob("m", INSTRUCTION), self)
        self.rest()
        self.counts.ends[ending.reason or ending.status] = 1
        return ending

    def rest(self) -> None:
        """Let a second pass in which nobody commands, and count a body that still moves."""
        self.is_dead = True
        until_s = self.clock.now() + 1.0
        while self.clock.now() < until_s:
            self.tick()
        self.counts.after_end += not self.robot.state().is_still

    def hear(self, job: MissionJob, report: Report) -> None:  # noqa: ARG002
        """Take what the mission emits: plans go to the executor."""
        if not isinstance(report, Plan):
            return
        self.plan = report
        self._plans.append(report)
        self._check_plan(report)
        self.executor.submit(report)

    def _check_plan(self, plan: Plan) -> None:
        """Note when each action came and how old its frame truly was; look at where the plan leads."""
        taken = self._taken.get(plan.stamp_s)
        for index in range(len(plan.actions)):
            age_s = math.inf if taken is None else self.clock.now() - plan.stamp_s
            self._arrived_s.setdefault((plan.answer, index), age_s)
        said = self._said.get(plan.stamp_s, ())
        if plan.origin == "answer" and not plan.draft_start:
            self.counts.uncommitted += plan.actions != said[: len(plan.actions)]
        elif plan.origin == "search" and plan.actions:
            (turn,) = plan.actions
            ways = {action.angle_deg > 0 for action in said if isinstance(action, Turn)}
            is_told = bool(self._words.get(plan.stamp_s)) and not said
            is_known = isinstance(turn, Turn) and ((turn.angle_deg > 0) in ways or is_told)
            self.counts.uncommitted += not is_known
        elif plan.origin == "reprojected" and plan.actions and taken is not None:
            self.counts.uncommitted += not said
            here, _ = self._told.setdefault(plan.answer, (self.pose, self.clock.now()))
            is_way = any(isinstance(action, Forward) for action in said)
            if is_way and plan.final and all(isinstance(each, MOTIONS) for each in (*said, *plan.actions)):
                self.counts.reprojected += 1
                if self._jumped_s < plan.stamp_s:
                    led, leads = end_of(taken, *said), end_of(here, *plan.actions)
                    self.counts.late_gap_m.append(math.hypot(led.x_m - leads.x_m, led.y_m - leads.y_m))
        self.counts.starts += plan.draft_start and bool(plan.actions)

    # The robot's side ----------------------------------------------------------------------------

    @property
    def pose(self) -> Pose2D:
        """The body's true pose; its yaw is unwrapped."""
        return Pose2D(*self.robot.true_pose)

    @property
    def is_broken_off(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self.events.broken_off() is not None or bool(self.events.cancel_reason)

    @property
    def loss_known_s(self) -> float:
        """When the loss of the cloud is known."""
        return self.lost_s + LINK_SILENCE_S

    def tick(self) -> None:
        """Let one control period pass."""
        clock, faults, rng = self.clock, self.faults, self.rng
        self.on_tick(self)
        if self.plan is not None and not self.is_dead:
            self.executor.submit(self.plan)
            if len(self._plans) > 1 and rng.random() < faults.old_share:
                self.executor.submit(rng.choice(self._plans[-6:]))
        if rng.random() < faults.jump_share:
            self._jumped_s, size = clock.now(), rng.choice((0.15, 1.0, 1.0))
            self.counts.jumps += 1
            self.robot.jump(*(size * rng.uniform(-3, 3) for _ in range(3)) if size == 1.0 else
                            (size, 0.0, rng.uniform(-0.25, 0.25)))  # fmt: skip
        self.executor.tick()
        self._look_at(self.executor.status())
        clock.sleep(self.executor.period_s)
        state = self.robot.state()
        self.events.put_pose(clock.now(), Pose2D(state.x_m, state.y_m, state.yaw_rad))
        self._film()
        self.events.put_status(self.executor.status())

    def _film(self) -> None:
        """Take a frame when one is due; hand over those that have arrived."""
        now_s = self.clock.now()
        if now_s - self._frame_s >= CAMERA_S:
            self._frame_s = now_s
            self._taken[now_s] = self.pose
            self._frames.append((now_s + self.faults.camera_s, now_s))
        while self._frames and self._frames[0][0] <= now_s:
            _, stamp_s = self._frames.pop(0)
            self.events.put_frame(Frame(Image(b"frame", 32, 24), stamp_s, "camera"))

    def _look_at(self, status: PlanStatus) -> None:
        """Count what must not happen in this control period."""
        counts, limits = self.counts, self.limits
        plan = self.plan
        on_draft = status.start == "begun"
        if on_draft or (plan is not None and not plan.verified):
            limits = limits.unverified()
        sent = self.robot.calls[self._calls :]
        self._calls += len(sent)
        for _, call in sent:
            if call.startswith("move("):
                vx, vy, vyaw = map(float, call[5:-1].split(","))
                too_fast = math.hypot(vx, vy) > limits.max_speed_mps + 1e-3
                counts.beyond += too_fast or abs(vyaw) > limits.max_turn_radps + 1e-3
        if status.state != "moving" or plan is None:
            return
        counts.outdated += status.answer < max(each.answer for each in self._plans)
        action = parse_answer(status.action)[0]
        if (key := (status.answer, status.actions_done)) != self._action:
            self._action, self._began = key, self.pose
            self._is_new = True
            size = action_numbers(action)[0] if isinstance(action, MOTIONS) else 0.0
            longest = limits.max_angle_deg if isinstance(action, Turn) else limits.max_distance_m
            counts.beyond += abs(size) > longest
        if self._is_new and any(call.startswith("move(") for _, call in sent):
            # The first Move of the action: until then the gate may still refuse it.
            self._is_new = False
            age_s = self._arrived_s.get(key, math.inf)
            counts.too_old += isinstance(action, MOTIONS) and age_s > self.limits.max_frame_age_s
            counts.uncommitted += on_draft and self.config.start != "draft"
        moved = self.pose.seen_from(self._began)
        turned_deg = abs(math.degrees(self.pose.yaw_rad - self._began.yaw_rad))
        way_m = math.hypot(moved.x_m, moved.y_m)
        if isinstance(action, Forward) and not on_draft and status.start != "corrected":
            counts.beyond += way_m > abs(action.distance_m) + SLACK_M
        elif isinstance(action, Turn) and status.start != "corrected":
            counts.beyond += turned_deg > abs(action.angle_deg) + SLACK_DEG or way_m > SLACK_M
        if plan.origin == "search" and self._answered_rad is not None:
            ahead_deg = abs(math.degrees(self.pose.yaw_rad - self._answered_rad))
            counts.beyond += ahead_deg > AHEAD_DEG

    # The engine's side: `Answerer`, `HasLooks`, `Engines` ------------------------------------------

    def picture(self, data: bytes) -> Image:
        """Return the frame."""
        return Image(data, 32, 24)

    def ask(self, observation: Observation, *, preview: bool = False) -> OpenAnswer:
        """Begin an answer about a frame; its pieces have their times."""
        return OpenAnswer(self, observation, list(self._pieces(observation, preview)))

    def answer(self, observation: Observation, *, preview: bool = False) -> Iterator[TextUpdate]:
        """Answer as an `Answerer`."""
        return self.ask(observation, preview=preview).updates()

    def draft(self) -> Answerer:
        """Raise: no mission answers by the draft alone here."""
        raise ModelError("no draft alone")

    def looks(self, capacity: int) -> Looks:
        """Return several open answers."""
        return Looks(self, capacity)

    def cancel(self) -> None:
        """Do nothing: who reads an answer sees that it is broken off."""

    @property
    def current(self) -> Answerer | None:
        """The engine, while there is a cloud."""
        return self if self.clock.now() < self.lost_s else None

    def ensure(self) -> Answerer | None:
        """See `current`."""
        return self.current

    def reconnect(self) -> None:
        """Do nothing: the cloud is back when it is."""

    def set_active(self, engine: Answerer | None) -> None:
        """Do nothing."""

    @property
    def error(self) -> VsdError:
        """Why there is no engine."""
        return CloudUnreachable("gone")

    def commit(self, observation: Observation, update: AnswerUpdate) -> None:
        """Note what has been committed about a frame."""
        if update.drafted is not None:
            return
        stamp_s = observation.stamp_s
        self._words[stamp_s] = update.text
        self._said[stamp_s] = self._said.get(stamp_s, ()) + update.actions
        if update.result is not None and stamp_s > self._answered_s:
            self._answered_s, self._answered_rad = stamp_s, self._taken[stamp_s].yaw_rad

    def _pieces(self, observation: Observation, preview: bool) -> Iterator[Piece]:
        rng, faults, asked_s = self.rng, self.faults, self.clock.now()
        spent_s = rng.uniform(3.0, 9.0) if rng.random() < faults.late_share else rng.uniform(*faults.answer_s)
        text = self._says(observation)
        actions = parse_answer(text)
        words = text.split(" .")[0] + " ."
        if preview and actions:
            drafted = any_motion(rng) if rng.random() < faults.wrong_share else actions[0]
            said = DraftedAction(drafted, text, rng.uniform(0.6, 1.0))
            yield Piece(asked_s + 0.3 * spent_s, commit_of(words, (), drafted=said))
        yield Piece(asked_s + 0.4 * spent_s, commit_of(words, ()))
        if len(actions) > 1:
            begun = f"{words} {format_action(actions[0])}"
            yield Piece(asked_s + 0.6 * spent_s, commit_of(begun, actions[:1]))
        rest = actions[1:] if len(actions) > 1 else actions
        yield Piece(asked_s + spent_s, commit_of(text, rest, is_last=True))

    def _says(self, observation: Observation) -> str:
        """Return what the models say of a frame, by where the thing truly was then."""
        if self.rng.random() < self.faults.wild_share:
            return f"well . {format_action(any_motion(self.rng))}"
        seen = Pose2D(*self.thing).seen_from(self._taken[observation.stamp_s])
        bearing_deg = math.degrees(math.atan2(seen.y_m, seen.x_m))
        left_m = math.hypot(seen.x_m, seen.y_m) - 0.6
        if abs(bearing_deg) > VIEW_DEG:
            looked = sum(entry == "turn(60)" for entry in observation.history[-8:])
            none = "i looked around and there is none . done()"
            return none if looked >= 6 else "i do not see the red box . turn(60)"
        if left_m < 0.25:
            return "the red box is here . done()"
        turn = f"turn({bearing_deg:.0f}) " if abs(bearing_deg) >= 5 else ""
        return f"the red box is there . {turn}forward({min(left_m, REACH_M):.1f})"
