"""Figures of benchmarks/robot.py about a start on the draft: it errs, the answer is late, things are near.

In virtual time, on the computed robot, with the real gate and executor and what the mission would send: the
draft's first action, then after a delay the plan that the cloud commits, or nothing for a long time.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from figures import Figure
from robot_gate import gap_to_disc

from vlm_spec_decode.actions.limits import START_ANGLE_DEG, START_DISTANCE_M, SafetyLimits
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.reprojection import end_of
from vlm_spec_decode.actions.types import Action, Done, Forward, Strafe, Turn, Wait
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.mission.draft_start import startable
from vlm_spec_decode.robot.fake import Disc, FakeRobot

FENCE_M = 2.0
FENCE = ((-FENCE_M, -FENCE_M), (FENCE_M, -FENCE_M), (FENCE_M, FENCE_M), (-FENCE_M, FENCE_M))
COAST_M, COAST_DEG = 0.06, 4.0
"""What the body coasts and the controller errs by, beyond a motion's end."""

GONE_S = 8.0
"""Longest delay of an answer: its frame is then older than the gate allows."""


@dataclass(slots=True)
class Trial:
    """One answer: a robot, its executor, and what was seen of the motion on the draft."""

    rng: random.Random
    discs: tuple[Disc, ...] = ()
    limits: SafetyLimits = field(default_factory=lambda: SafetyLimits(geofence=FENCE))
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(100.0))
    robot: FakeRobot = field(init=False)
    executor: Executor = field(init=False)
    nearest_m: float = math.inf

    def __post_init__(self) -> None:
        """Stand the robot up somewhere inside the fence."""
        self.robot = FakeRobot(self.clock)
        self.robot.start()
        x, y = self.rng.uniform(-1.9, 1.9), self.rng.uniform(-1.9, 1.9)
        self.robot.set_pose(x, y, self.rng.uniform(-math.pi, math.pi))
        self.robot.set_discs(*self.discs)
        gate = SafetyGate(self.limits)
        self.executor = Executor(self.robot, gate, self.clock, runner=InlineCallRunner())

    @property
    def pose(self) -> Pose2D:
        """The body's true pose."""
        return Pose2D(*self.robot.true_pose)

    def send(self, plan: Plan, seconds: float) -> None:
        """Send a plan, with its heartbeat, for a time or to its end."""
        until_s = self.clock.now() + seconds
        while self.clock.now() < until_s and not self.executor.status().is_terminal:
            self.executor.submit(plan)
            self.executor.tick()
            self.clock.sleep(self.executor.period_s)
            for disc in self.robot.discs:
                self.nearest_m = min(self.nearest_m, gap_to_disc(self.robot.true_pose, disc))

    def moves(self, after_s: float) -> list[tuple[float, float, float]]:
        """Return the velocities sent since a moment."""
        found = []
        for at_s, call in self.robot.calls:
            if at_s >= after_s and call.startswith("move("):
                vx, vy, vyaw = map(float, call[5:-1].split(","))
                found.append((vx, vy, vyaw))
        return found


def any_action(rng: random.Random) -> Action:
    """Return what a model may say first."""
    return rng.choice(
        (
            Forward(round(rng.uniform(-1.0, 2.0), 2)),
            Turn(float(rng.randint(-170, 170))),
            Turn(float(rng.choice((-60, 60)))),
            Strafe(round(rng.uniform(-0.5, 0.5), 2)),
            Wait(0.5),
            Done(),
        )
    )


def start_of(index: int, began_s: float, drafted: Action) -> Plan:
    """Return the plan that a mission sends for what its draft says; raw where a mission would send none."""
    part = startable(drafted) or drafted
    return Plan(f"m{index}", 1, began_s, 1, (part,), verified=False, draft_start=True)


def is_beyond(trial: Trial, began: Pose2D, began_s: float, started: Action) -> bool:
    """Return whether the motion on a draft has gone beyond what one may, whatever the gate says."""
    moved = trial.pose.seen_from(began)
    walked_m, turned_deg = math.hypot(moved.x_m, moved.y_m), abs(math.degrees(moved.yaw_rad))
    if not isinstance(started, (Forward, Turn)):
        return bool(trial.moves(began_s))
    longest_m = min(START_DISTANCE_M, max(0.0, started.distance_m)) if isinstance(started, Forward) else 0.0
    widest_deg = min(START_ANGLE_DEG, abs(started.angle_deg)) if isinstance(started, Turn) else 0.0
    limits = trial.limits.unverified()
    too_fast = any(
        math.hypot(vx, vy) > limits.max_speed_mps + 1e-3 or abs(vyaw) > limits.max_turn_radps + 1e-3
        for vx, vy, vyaw in trial.moves(began_s)
    )
    outside = max(abs(trial.pose.x_m), abs(trial.pose.y_m)) > FENCE_M and walked_m > 0.02
    return too_fast or outside or walked_m > longest_m + COAST_M or turned_deg > widest_deg + COAST_DEG


def starts(count: int, seed: int) -> list[Figure]:
    """Let answers begin on drafts that err, are late, or stand before something; return the figures."""
    rng = random.Random(seed)
    beyond = corrected = confirmed = late = 0
    slowest_s, gaps_m, old_moves = 0.0, [0.0], 0
    for index in range(count):
        trial = Trial(rng)
        drafted, said = any_action(rng), any_action(rng)
        if rng.random() < 0.4 and isinstance(drafted, (Forward, Turn)):
            said = drafted
        began_s, began = trial.clock.now(), trial.pose
        delay_s = rng.uniform(0.1, 2.5) if rng.random() < 0.8 else rng.uniform(5.1, GONE_S)
        trial.send(Plan(f"m{index}", 1, began_s, 0), 0.05)
        start = start_of(index, began_s, drafted)
        trial.send(start, delay_s)
        beyond += is_beyond(trial, began, began_s, start.actions[0])
        came_s, was = trial.clock.now(), trial.pose
        trial.send(Plan(f"m{index}", 1, began_s, 2, (said, Done()), final=True), 40.0)
        status, stop = trial.executor.status(), trial.executor.last_stop
        if delay_s > trial.limits.max_frame_age_s:
            # The committed action comes on a frame that is too old: it moves nothing any more.
            late += 1
            after = trial.pose.seen_from(was)
            old_moves += bool(trial.moves(came_s + 0.05)) or math.hypot(after.x_m, after.y_m) > COAST_M
            continue
        confirmed += status.start == "confirmed"
        if status.start == "corrected":
            corrected += 1
            if stop is not None and stop.cause == "draft_corrected":
                slowest_s = max(slowest_s, stop.commanded_s - came_s)
            if status.state == "done":
                goal = end_of(began, said)
                gaps_m.append(math.hypot(trial.pose.x_m - goal.x_m, trial.pose.y_m - goal.y_m))
    gap_m = sorted(gaps_m)[int(0.95 * (len(gaps_m) - 1))]
    note = f"{count} answers in virtual time: {confirmed} confirmed, {corrected} corrected, {late} late"
    return [
        Figure("start_beyond_limits", beyond, 0, "at most", note),
        Figure("start_corrected_s", slowest_s, 0.05, "at most", f"slowest; {note}"),
        Figure("start_corrected_gap_m", gap_m, START_DISTANCE_M, "at most", f"95 % of {len(gaps_m) - 1}"),
        Figure("start_late_moves", old_moves, 0, "at most", f"{late} answers over 5 s late"),
        _contacts(count, rng),
    ]


def _contacts(count: int, rng: random.Random) -> Figure:
    """Begin on drafts beside and before things; count contacts and starts that came too near."""
    contacts, nearest_m, begun = 0, math.inf, 0
    for index in range(count):
        trial = Trial(rng, limits=SafetyLimits())
        at, bearing_rad = trial.pose, rng.uniform(-math.pi, math.pi)
        far_m, radius_m = rng.uniform(0.55, 1.6), rng.uniform(0.05, 0.3)
        disc = Disc(
            at.x_m + (far_m + radius_m) * math.cos(bearing_rad),
            at.y_m + (far_m + radius_m) * math.sin(bearing_rad),
            radius_m,
        )
        trial.robot.set_discs(disc)
        drafted = rng.choice((Forward(1.0), Turn(60.0), Turn(-90.0)))
        began_s = trial.clock.now()
        trial.send(Plan(f"m{index}", 1, began_s, 0), 0.05)
        trial.send(start_of(index, began_s, drafted), 4.0)
        begun += bool(trial.moves(began_s))
        nearest_m = min(nearest_m, trial.nearest_m if trial.moves(began_s) else math.inf)
        contacts += trial.nearest_m <= 0.0 and bool(trial.moves(began_s))
    note = f"{count} drafts beside or before something, {begun} begun; nearest {nearest_m:.3f} m"
    return Figure("start_contacts", contacts, 0, "at most", note)
