"""One action under way: its steps, slow driver calls, and the interrupted motion that may be resumed.

Used by the executor's control thread only; plans, heartbeats and the e-stop are decided elsewhere.

`ActionSteps` defines what each action means to a robot: controlled motions, and calls that take seconds. A
step is created when its turn comes, so a motion starts from the state of that moment. Slow calls run in a
`CallRunner`: `ThreadCallRunner` in real time; in virtual time, where one thread owns the clock,
`InlineCallRunner`.

`ResumableMotion`: a watchdog, an obstacle or a lost cloud ends an answer in the middle of a motion. The
mission asks again, and for a plain "walk forward 2.5 metres" the next answer is the same `forward(2.5)`:
the distance already walked counts. Any other answer refers to its own frame and is carried out as it is.
Distances are measured by the odometry that steered the motion.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.types import (
    MOTIONS,
    Action,
    Done,
    Forward,
    Look,
    Stop,
    Strafe,
    Turn,
    Wait,
    format_action,
)
from vlm_spec_decode.control.emergency_stop import EmergencyStop
from vlm_spec_decode.control.motion_profile import (
    STILL,
    Motion,
    MotionInput,
    MotionTuning,
    Pause,
    Slew,
    StraightMotion,
    TurnMotion,
    Velocity,
)
from vlm_spec_decode.control.safety import OBSTACLE_MARGIN_M, SafetyGate, motion_direction
from vlm_spec_decode.core.errors import ActionRefused, Cancelled, RobotError, RobotRefused, RobotStale
from vlm_spec_decode.core.ports import RobotDriver
from vlm_spec_decode.core.pose import Pose2D, has_jumped
from vlm_spec_decode.core.robot import RobotState


@dataclass(slots=True)
class DriverCall:
    """A driver call that runs or has ended. Once `ended` is true, either `succeeded` or `error` is set."""

    name: str
    ended: bool = False
    succeeded: bool = False
    error: RobotError | Cancelled | None = None

    def run(self, call: Callable[[], None]) -> None:
        """Run `call` on this thread. `ended` is true afterwards, also after an error."""
        try:
            call()
            self.succeeded = True
        except (RobotError, Cancelled) as problem:
            self.error = problem
        finally:
            self.ended = True


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A driver's call that has not begun."""

    name: str
    run: Callable[[], None]


class CallRunner(Protocol):
    """Runs one driver call, on the caller's thread or on another."""

    @property
    def concurrent(self) -> bool:
        """Whether the caller continues while a call runs."""
        ...

    def run(self, job: DriverCall, call: PendingCall) -> None:
        """Run `call` and record its end in `job`.

        The caller has stored `job` before, so it counts as running.
        """
        ...


class ThreadCallRunner:
    """A daemon thread per call, so that a robot that never answers cannot hold the process."""

    concurrent = True

    def run(self, job: DriverCall, call: PendingCall) -> None:
        """Run `call` on a new thread."""
        threading.Thread(target=job.run, args=(call.run,), name=f"robot-{call.name}", daemon=True).start()


class InlineCallRunner:
    """Runs calls on the caller's thread."""

    concurrent = False

    def run(self, job: DriverCall, call: PendingCall) -> None:
        """Run `call` now."""
        job.run(call.run)


@dataclass(slots=True)
class ResumableMotion:
    """Stores at most one interrupted motion. What is left of it is measured late, so coasting counts."""

    _action: Action | None = None
    _motion: StraightMotion | TurnMotion | None = None

    def store(self, action: Action | None, motion: Motion | None) -> None:
        """Store the motion that was running for `action`. Does nothing if `motion` is a pause or None."""
        if isinstance(motion, (StraightMotion, TurnMotion)):
            self._action, self._motion = action, motion

    def clear(self) -> None:
        """Remove the stored motion: the next action is carried out in full."""
        self._action = self._motion = None

    def remaining_of(self, action: Action, state: RobotState) -> Action:
        """Return what is left of `action` if it is the interrupted one, else `action` itself."""
        if self._motion is None or action != self._action:
            return action
        left = self._motion.remaining(state)
        if isinstance(action, (Forward, Strafe)):
            return replace(action, distance_m=_between(left, action.distance_m))
        if isinstance(action, Turn):
            return replace(action, angle_deg=_between(math.degrees(left), action.angle_deg))
        return action


def _between(left: float, whole: float) -> float:
    return min(max(left, min(0.0, whole)), max(0.0, whole))


LOOK_SETTLE_S = 0.6
"""Seconds from the request to tilt until the body is still enough for a picture."""

ActionStep = Callable[[MotionInput], Motion | PendingCall]


@dataclass(slots=True)
class ActionSteps:
    """Turns actions into steps for one robot. `is_tilted`: the body is tilted by an earlier look."""

    driver: RobotDriver
    emergency_stop: EmergencyStop
    limits: SafetyLimits
    tuning: MotionTuning
    is_tilted: bool = False

    def steps(self, action: Action) -> list[ActionStep]:
        """Return the steps of `action`, in order."""
        if isinstance(action, (Forward, Strafe)):
            return [*self._level(), lambda at: self.motion(action, at.state)]
        if isinstance(action, Turn):
            return [*self._level(), lambda at: self.motion(action, at.state)]
        if isinstance(action, Wait):
            return [self._pause(action.duration_s)]
        if isinstance(action, Look):
            return self._look(action.pitch_deg, action.yaw_deg)
        if isinstance(action, Done):
            return []
        if isinstance(action, Stop):
            return [self._call("stop", self._stop)]
        return self._posture(format_action(action).removesuffix("()"))

    def motion(self, action: Forward | Strafe | Turn, start: RobotState) -> StraightMotion | TurnMotion:
        """Return the motion of `action`, measured from `start`."""
        if isinstance(action, Turn):
            return TurnMotion(math.radians(action.angle_deg), self.limits, self.tuning, start)
        is_strafe = isinstance(action, Strafe)
        return StraightMotion(action.distance_m, is_strafe, self.limits, self.tuning, start)

    def _posture(self, name: str) -> list[ActionStep]:
        """Standing up is followed by `start`: a robot may stand with locked joints, which do not walk."""
        self.is_tilted = False
        stages = [self._call(name, partial(self.driver.posture, name))]
        return [*stages, self._call("start", self.driver.start)] if name == "stand_up" else stages

    def _look(self, pitch_deg: float, yaw_deg: float) -> list[ActionStep]:
        self.is_tilted = bool(pitch_deg or yaw_deg)
        pitch_rad, yaw_rad = math.radians(pitch_deg), math.radians(yaw_deg)
        return [
            self._call("look", lambda: self.driver.look(pitch_rad, yaw_rad)),
            self._pause(LOOK_SETTLE_S),
        ]

    def _level(self) -> list[ActionStep]:
        """Level a tilted body before walking: tilted, it walks badly and its yaw is not its heading."""
        return self._look(0.0, 0.0) if self.is_tilted else []

    def _call(self, name: str, call: Callable[[], None]) -> ActionStep:
        return lambda _: PendingCall(name, call)

    @staticmethod
    def _pause(duration_s: float) -> ActionStep:
        return lambda at: Pause(at.now_s + duration_s)

    def _stop(self) -> None:
        self.emergency_stop.stop("action").check()


ARRIVED_M = 0.10
"""A motion that an obstacle ends this near to its goal counts as carried out."""

MOVE_FAILING_S = 0.3
"""Moves that fail for this long are a fault. A single lost Move is not: the robot holds the last for 1 s."""


JUMP_M, JUMP_RAD = 0.2, 0.3
"""What the odometry may be off between two states, beyond the motion possible. Motions are measured by it: a
larger jump would be walked as if it were way that is left, or back."""


ODOMETRY_JUMP = "odometry_jump"


class ActionRunner:
    """Carries out one action at a time."""

    def __init__(
        self, gate: SafetyGate, emergency_stop: EmergencyStop, steps: ActionSteps, runner: CallRunner
    ) -> None:
        self._gate = gate
        self._emergency_stop = emergency_stop
        self._action_steps = steps
        self._runner = runner
        self._permit = emergency_stop.permit
        self._slew = Slew(gate.limits)
        self._steps: deque[ActionStep] | None = None
        self._requested: Action | None = None
        self._action: Action | None = None
        self._motion: Motion | None = None
        self._heading_rad = math.nan
        self.resumable = ResumableMotion()
        self._running: DriverCall | None = None
        self._moved = False
        self._failing_since_s: float | None = None
        self._input: MotionInput | None = None
        self._stamp_s = -math.inf
        self._stamp_seen_s = -math.inf
        self.jump = ""

    @property
    def is_busy(self) -> bool:
        """Whether a driver call is still running, also one of an abandoned action."""
        return self._running is not None and not self._running.ended

    @property
    def motion(self) -> Motion | None:
        """The motion or pause under way, None between two and during a driver call."""
        return self._motion

    @property
    def is_tilted(self) -> bool:
        """Whether the body is tilted by an earlier look."""
        return self._action_steps.is_tilted

    def set_gate(self, gate: SafetyGate) -> None:
        """Use the limits of `gate` from now on. Call it between actions only."""
        self._gate = gate
        self._slew.limits = self._action_steps.limits = gate.limits

    def begin_period(self) -> None:
        """Get the permit for this control period. Call it before the queue of plans is read."""
        self._permit = self._emergency_stop.permit

    def observe(self, state: RobotState, now_s: float) -> MotionInput:
        """Store the newest state, and return it with its time; `jump` then says whether the odometry has
        jumped since the one before. What was interrupted is not resumed across a jump.
        """
        before = None if self._input is None else self._input.state
        self.jump = "" if before is None else _jump(before, state)
        if self.jump:
            self.resumable.clear()
        if state.stamp_s != self._stamp_s:
            self._stamp_s, self._stamp_seen_s = state.stamp_s, now_s
        self._input = MotionInput(state, now_s)
        return self._input

    def perform(self, action: Action, frame_age_s: float, then: Action | None = None) -> bool:
        """Advance `action` by one control period; return whether it is complete.

        If `then`, the action after it, walks or turns too, it ends without coming to rest.
        If it is the motion that was interrupted last, only the rest of it is carried out.
        Raises ActionRefused if the gate refuses it or it is blocked, RobotError if the robot fails.
        """
        motion_input = self._input
        if motion_input is None or (self._steps is None and self.is_busy):
            return False
        age_s = motion_input.now_s - self._stamp_seen_s
        if self._steps is None:
            self._running = None
            rest = self.resumable.remaining_of(action, motion_input.state)
            self._gate.check(rest, motion_input.state, frame_age_s, age_s)
            self._requested, self._action = action, rest
            self._steps = deque(self._action_steps.steps(rest))
        elif age_s > self._gate.limits.max_state_age_s:
            raise RobotStale(f"the state's stamp stands still for {age_s:.2f} s")
        if self._motion is None and self._running is None and not self._next_step(motion_input):
            return True
        if self._running is not None:
            self._poll(self._running)
        elif self._motion is not None and self._action is not None:
            if isinstance(self._motion, (StraightMotion, TurnMotion)):
                self._motion.flow(isinstance(then, MOTIONS))
            self._drive(self._motion, self._action, motion_input, age_s)
        return False

    def go_on(self, action: Forward | Strafe | Turn, start: RobotState, frame_age_s: float) -> None:
        """Make what the body has done since `start` the beginning of `action`; `perform` does the rest.

        A motion under way goes on without a stop: the slew keeps its velocity. Raises ActionRefused if the
        gate refuses the rest.
        """
        motion_input = self._input
        if motion_input is None or self.is_busy:
            return
        motion = self._action_steps.motion(action, start)
        rest = ResumableMotion(action, motion).remaining_of(action, motion_input.state)
        self._gate.check(rest, motion_input.state, frame_age_s, motion_input.now_s - self._stamp_seen_s)
        self._requested, self._action, self._motion = action, rest, motion
        self._steps, self._running = deque(), None
        self.resumable.clear()

    def steer(self, wanted: Velocity) -> None:
        """Command a person's velocity, within the limits of speed and slew, and not into an obstacle.

        Raises RobotStale if the state stands still, RobotRefused if the robot takes no Moves.
        """
        motion_input = self._input
        if motion_input is None or self.is_busy:
            return
        age_s = motion_input.now_s - self._stamp_seen_s
        if age_s > self._gate.limits.max_state_age_s:
            raise RobotStale(f"the state's stamp stands still for {age_s:.2f} s")
        if not self._gate.may_walk(motion_input.state):
            self._slew.reset()
            return
        if not self._has_room(wanted, motion_input.state):
            if self._slew.velocity[:2] != STILL[:2]:
                self._slew.reset()
                self._emergency_stop.stop("obstacle").check()
            wanted = (0.0, 0.0, wanted[2])
        self._command(wanted, motion_input.now_s)

    def abandon(self, *, keep_velocity: bool = False) -> bool:
        """Abandon the present action; return whether there was one.

        A running driver call still counts as busy. With `keep_velocity` the next motion goes on from the
        velocity that was commanded last; without it the caller stops the robot.
        """
        was_active = self._steps is not None
        if not self.jump:  # across a jump of the odometry nobody knows what is left of it
            self.resumable.store(self._requested, self._motion)
        self._steps, self._motion, self._heading_rad = None, None, math.nan
        if self._running is not None and self._running.ended:
            self._running = None
        self._failing_since_s = None
        if not keep_velocity:
            self._slew.reset()
        return was_active

    def come_to_rest(self) -> None:
        """Stop the gait after the last known action, if anything moved. Raises RobotRefused."""
        if self._moved:
            self._moved = False
            self._emergency_stop.stop("rest").check()

    def _next_step(self, motion_input: MotionInput) -> bool:
        if not self._steps:
            self._steps = None
            return False
        begun = self._steps.popleft()(motion_input)
        if isinstance(begun, PendingCall):
            self._start(begun)
        else:
            if isinstance(begun, StraightMotion) and not math.isnan(self._heading_rad):
                begun.heading_rad = self._heading_rad
            # It is measured from the state after a jump, if there is one.
            self._motion, self._heading_rad, self.jump = begun, math.nan, ""
            self.resumable.clear()
        return True

    def _start(self, call: PendingCall) -> None:
        """Store the call before it runs: no e-stop may be released in between."""
        permit = self._permit

        def guarded() -> None:
            if not self._emergency_stop.allows(permit):
                raise Cancelled(f"{call.name} was not begun: there has been an e-stop")
            call.run()

        self._running = DriverCall(call.name)
        self._runner.run(self._running, PendingCall(call.name, guarded))

    def _poll(self, job: DriverCall) -> None:
        if not job.ended:
            return
        self._running = None
        if job.error is not None:
            raise job.error
        if not job.succeeded:
            raise RobotRefused(job.name, "the call died of an unforeseen error")

    def _drive(self, motion: Motion, action: Action, motion_input: MotionInput, age_s: float) -> None:
        state = motion_input.state
        try:
            self._gate.check_motion(action, state, age_s)
        except ActionRefused as refusal:
            if refusal.reason == "mode":
                raise RobotRefused("move", f"stopped walking: {refusal.detail}") from refusal
            raise
        if self.jump and isinstance(motion, (StraightMotion, TurnMotion)):
            raise ActionRefused(ODOMETRY_JUMP, self.jump)
        direction = motion_direction(action)
        room_m = math.inf if direction is None else self._gate.room_m(state, *direction)
        wanted = motion.step(MotionInput(state, motion_input.now_s, room_m))
        if wanted is None:
            # A turn that flows into a way ends while the body still turns a little: the way's heading is the
            # one that was to be turned to.
            self._heading_rad = motion.heading_rad if isinstance(motion, TurnMotion) else math.nan
            self._motion = None
            self._command(STILL, motion_input.now_s)
        elif self._has_room(wanted, state):
            self._command(wanted, motion_input.now_s)
        elif isinstance(motion, StraightMotion) and abs(motion.remaining(state)) <= ARRIVED_M:
            self._halt_before_obstacle()
        else:
            clearance_m = self._gate.clearance_m(state, wanted[0], wanted[1])
            raise ActionRefused("obstacle", f"{clearance_m:.2f} m ahead of the body")

    def _has_room(self, wanted: Velocity, state: RobotState) -> bool:
        """Whether there is room to continue in that direction, including the way that the body coasts."""
        if not wanted[0] and not wanted[1]:
            return True
        coasting_m = state.speed_mps * self._action_steps.tuning.latency_s
        return self._gate.room_m(state, wanted[0], wanted[1]) - coasting_m > OBSTACLE_MARGIN_M

    def _command(self, wanted: Velocity, now_s: float) -> None:
        velocity = self._slew.towards(wanted, now_s)
        if velocity != STILL:
            self._moved = True
        if not self._moved:
            return
        try:
            self._emergency_stop.move(velocity, self._permit)
            self._failing_since_s = None
        except RobotRefused:
            if self._failing_since_s is None:
                self._failing_since_s = now_s
            if now_s - self._failing_since_s > MOVE_FAILING_S:
                raise

    def _halt_before_obstacle(self) -> None:
        self._motion = None
        self._slew.reset()
        self.come_to_rest()


def _jump(before: RobotState, state: RobotState) -> str:
    """Return how far the odometry has jumped from one state to the next, in words; "" if it has not.

    From or to a pose that is no number nobody knows how far it was: that counts as a jump.
    """
    if not all(
        map(math.isfinite, (before.x_m, before.y_m, before.yaw_rad, state.x_m, state.y_m, state.yaw_rad))
    ):
        return "the odometry is or was no number"
    was = Pose2D(before.x_m, before.y_m, before.yaw_rad)
    moved = Pose2D(state.x_m, state.y_m, state.yaw_rad).seen_from(was)
    if not has_jumped(moved, max(0.0, state.stamp_s - before.stamp_s), JUMP_M, JUMP_RAD):
        return ""
    way_m, turn_deg = math.hypot(moved.x_m, moved.y_m), math.degrees(moved.yaw_rad)
    return f"the odometry has jumped by {way_m:.2f} m and {turn_deg:.0f} deg"
