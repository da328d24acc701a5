"""The only caller of the robot's move, posture and look: plans in, robot motion and status out.

Ticks on a thread of its own (`start`), or by the owner of the clock: evaluation in virtual time, tests,
scripts. Independent of models, network and ROS. Priorities: e-stop, then teleoperation, then plans. The
robot is stopped by gate, obstacle, watchdog, cancel, a stale state, a robot error, close, and from any
thread by the e-stop, which latches.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import MOTIONS, Action, Done, format_action
from vlm_spec_decode.control.action_runner import (
    ODOMETRY_JUMP,
    ActionRunner,
    ActionSteps,
    CallRunner,
    ThreadCallRunner,
)
from vlm_spec_decode.control.draft_start import CorrectedCourse, StartedMotion, pose_of
from vlm_spec_decode.control.emergency_stop import RESTOP_S, EmergencyStop, StopReport, fault_reason
from vlm_spec_decode.control.motion_profile import STILL, MotionTuning, Velocity
from vlm_spec_decode.control.plan_queue import PlanQueue, PlanReceipt, TimedPlan
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.control.settling import Settling, SettlingLimits
from vlm_spec_decode.core.errors import ActionRefused, Cancelled, RobotError
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.robot import RobotState

JOIN_S = 5.0


class PeriodicThread:
    """Runs `tick` every `period_s`. `on_end` is called at the end, also after an unexpected error."""

    def __init__(
        self, name: str, clock: Clock, period_s: float, tick: Callable[[], None], on_end: Callable[[], object]
    ) -> None:
        self._clock, self._period_s = clock, period_s
        self._tick, self._on_end = tick, on_end
        self._closing = threading.Event()
        self.error: Exception | None = None
        """The unexpected error that ended the thread, if there was one."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Call `on_end` now, then wait for the thread. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            self._on_end()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=JOIN_S)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                began_s = self._clock.now()
                self._tick()
                self._clock.sleep(self._period_s - (self._clock.now() - began_s))
        except Exception as error:
            self.error = error
            raise
        finally:
            self._on_end()


TELEOP_TIMEOUT_S = 0.5
"""What twist_mux usually gives a source."""


@dataclass(slots=True)
class Teleoperation:
    """The newest velocity from a person and when it arrived; passes it to the action runner.

    A stick or key that is held while the e-stop is engaged counts only once it was let go: releasing the
    e-stop moves nothing.

    `put`, `is_live` and `clear` are safe for threads; `follow` and `was_live` belong to the control thread.
    """

    action_runner: ActionRunner
    emergency_stop: EmergencyStop
    timeout_s: float = TELEOP_TIMEOUT_S
    was_live: bool = False
    _velocity: Velocity = STILL
    _received_s: float = -math.inf
    _put_s: float = -math.inf
    _must_let_go: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, velocity: Velocity, now_s: float) -> bool:
        """Store a velocity. False, and nothing stored, if a number of it is not finite."""
        if not all(map(math.isfinite, velocity)):
            return False
        with self._lock:
            has_let_go = velocity == STILL or now_s - self._put_s > self.timeout_s
            self._put_s = now_s
            self._must_let_go = self.emergency_stop.latched or (self._must_let_go and not has_let_go)
            if not self._must_let_go:
                self._velocity, self._received_s = velocity, now_s
        return True

    def is_live(self, now_s: float) -> bool:
        """Whether a velocity arrived within the timeout."""
        with self._lock:
            return now_s - self._received_s <= self.timeout_s

    def clear(self) -> None:
        """Remove the velocity: the person has let go."""
        with self._lock:
            self._received_s = self._put_s = -math.inf
            self._must_let_go = False

    def void(self) -> None:
        """Remove the velocity at an e-stop: what is held now counts only once it was let go."""
        with self._lock:
            self._received_s = -math.inf
            self._must_let_go = True

    def follow(self, now_s: float) -> bool:
        """Command the newest velocity; return whether there is one. When it times out, the robot is stopped.

        Raises RobotError if it does not stop, or takes no Moves.
        """
        was_live, self.was_live = self.was_live, self.is_live(now_s)
        if self.was_live:
            self.action_runner.steer(self._velocity)
        elif was_live:
            self.action_runner.abandon()
            self.emergency_stop.stop("teleop_silent").check()
        return self.was_live


PERIOD_S = 0.025
"""40 Hz: far below the 1 s that the robot holds a Move, spaced enough for its request queue."""


class Executor:
    """Carries out plans. `submit`, `steer`, `cancel`, `estop` and `status` may be called from any thread.

    `frame_now` reads the clock of the plans' stamps, if it is not `clock`. Exactly one thread ticks.
    """

    def __init__(
        self,
        driver: RobotDriver,
        gate: SafetyGate,
        clock: Clock,
        *,
        runner: CallRunner | None = None,
        tuning: MotionTuning | None = None,
        frame_now: Callable[[], float] | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        self.period_s = period_s
        self._driver, self._gate, self._clock = driver, gate, clock
        self._gates = {True: gate, False: SafetyGate(gate.limits.unverified())}
        self._start_gate = SafetyGate(gate.limits.start())
        self._start: StartedMotion | None = None
        self._course: CorrectedCourse | None = None
        self._frame_now = frame_now or clock.now
        self._runner = runner or ThreadCallRunner()
        self._emergency_stop = EmergencyStop(driver, clock)
        stages = ActionSteps(driver, self._emergency_stop, gate.limits, tuning or MotionTuning())
        self._action_runner = ActionRunner(gate, self._emergency_stop, stages, self._runner)
        self._settling = Settling(SettlingLimits())
        self._steering = Teleoperation(self._action_runner, self._emergency_stop)
        self._queue = PlanQueue()
        self._tracker = self._queue.tracker
        self._estop_lock = threading.Lock()
        self._status, self._active = PlanStatus(), False
        self._read_s = 0.0
        self._stop_retry_s: float | None = None
        self._loop = PeriodicThread(
            "executor", clock, period_s, self.tick, lambda: self._emergency_stop.stop("close")
        )

    @property
    def last_stop(self) -> StopReport | None:
        """The newest stop that had a reason, with its times."""
        return self._emergency_stop.last

    def status(self) -> PlanStatus:
        """Return the status of the present answer; `estop` as soon as `estop(True)` is called."""
        status, crash = self._status, self._loop.error
        if self._emergency_stop.latched:
            return replace(status, state="estop", reason="estop")
        if crash is not None:
            # The thread has stopped the robot and ended. Callers that wait for the plan must see that.
            return replace(status, state="fault", reason="internal", detail=f"the executor ended: {crash!r}")
        return status

    def submit(self, plan: Plan) -> None:
        """Queue a plan. Sending the same plan again is its heartbeat. Never blocks."""
        timed_plan = TimedPlan(plan, self._clock.now(), self._frame_now() - plan.stamp_s)
        self._queue.put(timed_plan, void=self._emergency_stop.latched)

    def cancel(self) -> None:
        """End the present mission; the robot is stopped within one period. Never blocks."""
        self._queue.drop("cancelled")

    def estop(self, engaged: bool) -> StopReport | None:
        """Engage: stop at once on this thread and latch; whatever was commanded until then is void.

        Release: only once the robot stands still and no posture is under way; raises ActionRefused with
        `estop` otherwise. Nothing moves by releasing: a new mission must come.
        """
        if engaged:
            trigger_s = self._clock.now()
            with self._estop_lock:  # no release between latch and drop
                self._emergency_stop.engage()
                self._steering.void()
                self._queue.drop("estop")
            return self._emergency_stop.stop_now(trigger_s)
        with self._estop_lock:
            if self._action_runner.is_busy:
                raise ActionRefused("estop", "a posture is still under way")
            self._emergency_stop.release()
        return None

    def steer(self, velocity: Velocity) -> bool:
        """Set a person's velocity, which overrides plans. False if it is not finite. Never blocks."""
        return self._steering.put(velocity, self._clock.now())

    def end_steering(self) -> None:
        """Forget a person's velocity; if it moved the robot, the next period stops it. Never blocks."""
        self._steering.clear()

    @property
    def source(self) -> str:
        """What commands the robot now: `estop`, `teleop`, `language` or `none`."""
        if self._emergency_stop.latched:
            return "estop"
        if self._steering.is_live(self._clock.now()):
            return "teleop"
        return "language" if self._active else "none"

    def start(self) -> None:
        """Tick on a thread of its own until `close`."""
        self._loop.start()

    def close(self) -> None:
        """Stop the robot and the thread. Idempotent."""
        self._loop.close()

    def tick(self) -> None:
        """Run one control period."""
        began_s = self._clock.now()
        self._action_runner.begin_period()
        try:
            self._read_queue()
            self._control(self._clock.now())
        except ActionRefused as refusal:
            self._on_refusal(refusal)
        except Cancelled as problem:
            self._end("stopped", "cancelled", str(problem))
        except RobotError as problem:
            self._end("fault", fault_reason(problem), str(problem))
        if not self._runner.concurrent:
            # The call ran on this thread, so no heartbeat could arrive meanwhile.
            self._tracker.received_s += self._clock.now() - began_s

    def _read_queue(self) -> None:
        self._read_s = self._clock.now()
        steered = self._steering.is_live(self._read_s) and not self._emergency_stop.latched
        reason, timed_plans = self._queue.drain("teleop" if steered else "")
        if reason and (reason != "teleop" or self._active):
            self._action_runner.set_gate(self._gates[True])
            self._end("stopped", reason, "")
        for timed_plan in timed_plans:
            self._receive(timed_plan)

    def _receive(self, timed_plan: TimedPlan) -> None:
        plan = timed_plan.plan
        receipt = self._tracker.receive(plan, timed_plan.arrived_s, timed_plan.frame_age_s)
        if receipt is PlanReceipt.DROPPED:
            self._reject_closed(plan)
        elif receipt is PlanReceipt.NEW:
            self._supersede(plan)
        if not self._active or receipt in (PlanReceipt.DROPPED, PlanReceipt.BEAT):
            return
        if receipt is PlanReceipt.WITHDRAWN:
            self._end_start("withdrawn", "the draft says something else by now")
        elif receipt is PlanReceipt.COMMITTED:
            self._use_gate(self._gates[True])
            if self._start is not None:
                self._start.is_decided = True
        elif plan.draft_start:
            self._use_gate(self._start_gate)
            self._start = StartedMotion(plan.actions[0] if plan.actions else None)
        self._gate.check_plan(plan.actions)

    def _reject_closed(self, plan: Plan) -> None:
        """Report a closed mission's plan as stopped, for commanders that continue after a stop."""
        why = self._tracker.closed_reason(plan.mission)
        known = (self._status.mission, self._status.answer) == (plan.mission, plan.answer)
        if why in ("cancelled", "estop", "teleop") and not self._active and not known:
            self._status = PlanStatus(plan.mission, plan.answer, state="stopped", reason=why)

    def _supersede(self, plan: Plan) -> None:
        # A newer answer of the same mission that walks or turns on replaces the rest of the older plan while
        # the body moves: its first motion starts from the velocity commanded now, and the gate sees it first.
        # What only a draft says begins at rest, and nothing goes on from it but its own answer.
        goes_on = self._active and plan.mission == self._status.mission and plan.begins_with_motion
        goes_on = goes_on and not (plan.draft_start or self._start)
        was_moving = self._action_runner.abandon(keep_velocity=goes_on)
        if plan.mission != self._status.mission or self._start or (was_moving and plan.actions):
            self._action_runner.resumable.clear()
        self._use_gate(self._gates[plan.verified])
        self._active, self._start, self._course = True, None, None
        self._status = PlanStatus(plan.mission, plan.answer)
        self._settling.reset()
        if was_moving and not goes_on:
            self._emergency_stop.stop("superseded").check()

    def _use_gate(self, gate: SafetyGate) -> None:
        self._gate = gate
        self._action_runner.set_gate(gate)

    def _control(self, now_s: float) -> None:
        if self._stop_retry_s is not None and now_s >= self._stop_retry_s:
            self._note_unconfirmed(self._emergency_stop.stop("again"))
        latched = self._emergency_stop.latched
        try:
            motion_input = self._action_runner.observe(self._driver.state(), now_s)
        except RobotError:
            if (self._active or self._steering.was_live) and not latched:
                raise
            return
        if latched and not motion_input.state.is_still and self._stop_retry_s is None:
            self._stop_retry_s = now_s
        if latched or self._stop_retry_s is not None:
            return
        jump = self._action_runner.jump
        if jump and (self._course or (self._start and self._start.origin)):
            # Where the plan would have the body is not known any more.
            raise ActionRefused(ODOMETRY_JUMP, jump)
        if not self._steering.follow(now_s) and self._active:
            if self._start is not None and self._start.is_decided:
                self._settle_start(self._start, motion_input.state)
            self._execute(motion_input.state)

    def _execute(self, state: RobotState) -> None:
        """Continue the present action, begin the next one, or end the answer."""
        if self._start is not None and self._start.is_over:
            return
        done = self._status.actions_done
        upcoming = self._tracker.action(done)
        if upcoming is None:
            self._finish_or_wait()
            return
        # Silence is measured up to the last read of the queue, so the time of a slow stop does not count.
        # The watchdog acts one period early, because at the next read it would be late.
        if self._read_s - self._tracker.received_s > self._gate.limits.watchdog_s - self.period_s:
            self._end("stopped", "watchdog", "the commander fell silent", self._tracker.received_s)
            return
        action, frame_age_s = upcoming
        if self._start is not None:
            self._perform_start(self._start, action, frame_age_s, state)
            return
        text = format_action(action)
        self._status = replace(self._status, state="moving", action=text)
        following = self._tracker.action(done + 1)
        if self._perform(action, frame_age_s, state, following and following[0]):
            executed = (*self._status.executed, text)
            self._status = replace(self._status, actions_done=done + 1, executed=executed)
            if isinstance(action, Done):
                self._finish()
            elif self._tracker.action(done + 1) is None:
                self._finish_or_wait()
        self._note_settling(state)

    def _note_settling(self, state: RobotState) -> None:
        """Say from when on a frame counts as one at rest: during the last action of a whole answer."""
        plan, done = self._tracker.plan, self._status.actions_done
        if plan is not None and plan.final and done >= len(plan.actions) - 1:
            self._settling.observe(self._action_runner.motion, state)
            if self._status.settling != self._settling.is_settling:
                self._status = replace(self._status, settling=self._settling.is_settling)

    def _perform(
        self, action: Action, frame_age_s: float, state: RobotState, following: Action | None
    ) -> bool:
        """Advance `action` by one period; return whether it is complete."""
        course = self._course
        if course is None:
            return self._action_runner.perform(action, frame_age_s, following)
        part = course.part(action, state)
        if part is not None:
            if not self._action_runner.perform(part, frame_age_s):
                return False
            course.end_part()
            if course.part(action, state) is not None:
                return False
        course.end_action(action)
        return True

    # A start on a draft ---------------------------------------------------------------------------

    def _perform_start(
        self, start: StartedMotion, action: Action, frame_age_s: float, state: RobotState
    ) -> None:
        """Advance an action that only the draft has said. What is refused here ends no answer."""
        if start.origin is None:
            if self._action_runner.is_busy:
                return
            if self._action_runner.is_tilted:
                raise ActionRefused("start_action", "the body is tilted")
            self._start_gate.check_start(action, state)
        start.is_over = self._action_runner.perform(action, frame_age_s)
        if start.origin is None:
            start.origin, text = state, format_action(action)
            self._status = replace(self._status, state="moving", action=text)
            self._status = replace(self._status, start="begun", start_detail=text)
        if start.is_over:
            self._action_runner.come_to_rest()
            self._status = replace(self._status, state="idle", action="")

    def _settle_start(self, start: StartedMotion, state: RobotState) -> None:
        """Go on with the committed plan: from the motion that was made, or after a stop from where it led."""
        self._start = None
        if start.origin is None:
            return
        said = self._tracker.action(0)
        assert start.action is not None
        detail = format_action(start.action)
        if said is not None and start.is_beginning_of(said[0], state):
            action, frame_age_s = said
            assert isinstance(action, MOTIONS)
            self._status = replace(self._status, start="confirmed", start_detail=detail)
            self._action_runner.go_on(action, start.origin, frame_age_s)
            return
        detail += f", the cloud says {format_action(said[0]) if said else 'no action'}"
        self._status = replace(self._status, start="corrected", start_detail=detail)
        self._course = CorrectedCourse(pose_of(start.origin), self._gate.limits)
        self._halt("draft_corrected")

    def _end_start(self, outcome: str, detail: str) -> None:
        """End the motion on the draft; the answer goes on. Raises RobotRefused if the robot does not stop."""
        start = self._start or StartedMotion(None)
        start.is_over, self._start = True, start
        self._status = replace(self._status, state="idle", action="", start=outcome, start_detail=detail)
        self._halt(f"draft_{outcome}")

    def _halt(self, cause: str) -> None:
        was_moving = self._action_runner.abandon()
        self._action_runner.resumable.clear()
        if was_moving:
            self._emergency_stop.stop(cause).check()

    def _on_refusal(self, refusal: ActionRefused) -> None:
        """End the answer; while it has but a start on a draft, end that alone."""
        is_start = self._active and self._start is not None and not self._start.is_decided
        if not is_start or refusal.reason in ("plan_changed", ODOMETRY_JUMP):
            self._end("refused", refusal.reason, refusal.detail)
            if refusal.reason == ODOMETRY_JUMP:
                self._action_runner.resumable.clear()
            return
        try:
            self._end_start("refused", f"{refusal.reason}: {refusal.detail}")
        except RobotError as problem:
            self._end("fault", fault_reason(problem), str(problem))

    # The end of an answer ---------------------------------------------------------------------------

    def _finish_or_wait(self) -> None:
        """After the last known action: end the answer if the plan is final, else wait for more actions."""
        if self._tracker.plan is not None and self._tracker.plan.final:
            self._finish()
        elif self._status.state != "idle":
            self._action_runner.come_to_rest()
            self._status = replace(self._status, state="idle", action="")

    def _finish(self) -> None:
        self._action_runner.come_to_rest()
        self._active = False
        self._status = replace(self._status, state="done", action="")

    def _end(self, state: str, reason: str, detail: str, trigger_s: float | None = None) -> None:
        """Stop the robot, then set the status. An unconfirmed stop is a fault and is tried again."""
        self._action_runner.abandon()
        if self._start is not None:
            self._action_runner.resumable.clear()
        self._active, self._start, self._course = False, None, None
        # An e-stop stopped the robot on its caller's thread and is reported there; this stop is only a
        # repeat.
        self._note_unconfirmed(
            report := self._emergency_stop.stop("again" if reason == "estop" else reason, trigger_s)
        )
        if report.confirmed_s is None and state != "fault":
            state, detail = "fault", f"{detail} (stop not confirmed: {report.error})"
        plan, status = self._tracker.plan, self._status
        if plan is not None and (plan.mission, plan.answer) != (status.mission, status.answer):
            status = PlanStatus(plan.mission, plan.answer)
        self._settling.reset()
        self._status = replace(status, state=state, reason=reason, detail=detail, settling=False)

    def _note_unconfirmed(self, report: StopReport) -> None:
        self._stop_retry_s = None if report.confirmed_s is not None else self._clock.now() + RESTOP_S


def run_plan(executor: Executor, plan: Plan, clock: Clock, timeout_s: float = 120.0) -> PlanStatus:
    """Submit `plan` and tick until it has ended; return its status. Each tick is also its heartbeat.

    Returns early when all known actions of a plan that is not final are carried out, and after `timeout_s` of
    the clock whatever the state.
    """
    give_up_s = clock.now() + timeout_s
    while True:
        executor.submit(plan)
        executor.tick()
        status = executor.status()
        waits = status.state == "idle" and status.actions_done >= len(plan.actions)
        mine = (status.mission, status.answer) == (plan.mission, plan.answer)
        if (mine and (status.is_terminal or waits)) or status.state == "estop" or clock.now() > give_up_s:
            return status
        clock.sleep(executor.period_s)
