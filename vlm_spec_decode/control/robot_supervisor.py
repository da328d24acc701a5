"""Driver and executor together: started in the background, ended in bounded time. No ROS.

Bringing a robot into a walking state takes seconds and may fail until it is switched on; a node's callbacks,
the e-stop above all, must not wait for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.control.emergency_stop import StopReport
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.core.errors import Cancelled, RobotError, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.lease import Lease

RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of the start-up. `error` is why it failed for good."""

    is_ready: bool = False
    detail: str = "starting"
    error: RobotError | None = None


class RobotSupervisor:
    """A robot that is being started, stands ready, or has given up.

    `on_failure` is called once, on the starting thread, when the robot could not be started within
    `start_timeout_s` or must not be used at all. With a `lease` nothing is commanded before it is held; stops
    never wait for it.
    """

    def __init__(
        self,
        driver: RobotDriver,
        executor: Executor,
        clock: Clock,
        start_timeout_s: float,
        on_failure: Callable[[RobotError], None],
        lease: Lease | None = None,
    ) -> None:
        self._lease = lease
        self._driver = driver
        self._executor = executor
        self._clock = clock
        self._start_timeout_s = start_timeout_s
        self._on_failure = on_failure
        self._closing = threading.Event()
        self._close_lock = threading.Lock()
        self._estop_lock = threading.Lock()
        self._estop_latched = threading.Event()
        self._readiness = Readiness()
        self._thread = threading.Thread(target=self._run, name="robot start", daemon=True)

    @property
    def readiness(self) -> Readiness:
        """The state of the start-up."""
        return self._readiness

    def begin(self) -> None:
        """Start bringing the robot up."""
        self._thread.start()

    def submit(self, plan: Plan) -> bool:
        """Pass a plan on; False while the robot is not ready, and the plan is dropped."""
        if self._readiness.is_ready:
            self._executor.submit(plan)
        return self._readiness.is_ready

    def steer(self, velocity: tuple[float, float, float]) -> bool:
        """Pass a person's velocity on; False if it is none, or the robot is not ready."""
        return self._readiness.is_ready and self._executor.steer(velocity)

    def end_steering(self) -> None:
        """Stop the robot if a person steers it."""
        self._executor.end_steering()

    @property
    def source(self) -> str:
        """What commands the robot now: `estop`, `teleop`, `language` or `none`."""
        return (
            "estop"
            if self._estop_latched.is_set() and not self._readiness.is_ready
            else self._executor.source
        )

    def status(self) -> PlanStatus:
        """Return the executor's status of the present answer."""
        return self._executor.status()

    def last_stop(self) -> StopReport | None:
        """Return the newest stop, with its times."""
        return self._executor.last_stop

    def state(self) -> RobotState:
        """Return the robot's newest state. Raises RobotError."""
        return self._driver.state()

    def cancel(self) -> None:
        """End the present mission."""
        self._executor.cancel()

    def estop(self, engaged: bool) -> StopReport | None:
        """Engage or release, also while the robot is still being started. Raises ActionRefused.

        Before the robot is ready there is no state that could confirm a standstill, so releasing is free
        then: all that it allows is that the start-up goes on.
        """
        with self._estop_lock:
            if self._readiness.is_ready:
                return self._executor.estop(engaged)
            if not engaged:
                self._estop_latched.clear()
                return None
            self._estop_latched.set()
        return self._stop_starting()

    def _stop_starting(self) -> StopReport:
        began_s = self._clock.now()
        try:
            self._driver.stop()
        except RobotError as error:
            return StopReport(
                cause="estop",
                trigger_s=began_s,
                commanded_s=began_s,
                confirmed_s=None,
                distance_m=None,
                error=str(error),
            )
        return StopReport(
            cause="estop",
            trigger_s=began_s,
            commanded_s=began_s,
            confirmed_s=self._clock.now(),
            distance_m=None,
        )

    def close(self) -> RobotError | None:
        """Stop the robot and free everything; return the error if the stop was not confirmed. Idempotent."""
        with self._close_lock:
            if self._closing.is_set():
                return None
            self._closing.set()
        try:
            if self._lease is None or self._lease.was_held:
                self._executor.close()
            # Without the lease another executor moves this robot, and we must send it nothing.
            self._driver.close()
        except RobotError as error:
            return error
        finally:
            if self._lease is not None:
                self._lease.close()
        return None

    def on_lease_lost(self, error: RobotError) -> None:
        """Stop the robot, which belongs to another executor now, and give up for good."""
        if not self._closing.is_set():
            self._readiness = Readiness(detail=str(error))
            self._executor.close()
            self._fail(error)

    def _run(self) -> None:
        """Start the robot. An unexpected error also counts as a failure, so that no caller waits forever."""
        try:
            self._start()
        finally:
            ended = self._readiness.is_ready or self._readiness.error or self._closing.is_set()
            if not ended:
                self._fail(RobotError("the start-up broke off; its traceback is in the log"))

    def _fail(self, error: RobotError) -> None:
        self._readiness = Readiness(detail=str(error), error=error)
        self._on_failure(error)

    def _start(self) -> None:
        deadline_s = self._clock.now() + self._start_timeout_s
        while not self._closing.is_set():
            error = self._try_start()
            if error is None:
                return
            may_retry = isinstance(error, (RobotUnreachable, RobotStale))
            self._readiness = Readiness(detail=str(error))
            if self._closing.is_set():
                return
            if not may_retry or self._clock.now() > deadline_s:
                self._fail(error)
                return
            self._closing.wait(RETRY_S)

    def _try_start(self) -> RobotError | None:
        """Start once. A stop in the middle (the e-stop) is waited out and does not count as failure."""
        while not self._closing.is_set():
            if self._estop_latched.is_set():
                self._readiness = Readiness(detail="the e-stop is latched")
                self._closing.wait(RETRY_S / 10)
                continue
            try:
                if self._lease is not None and not self._lease.acquire():
                    return None
                self._driver.start()
            except Cancelled:
                continue
            except RobotError as error:
                return error
            self._start_executor()
            return None
        return None

    def _start_executor(self) -> None:
        """Start the executor, and engage in it an e-stop that came during the start-up."""
        with self._estop_lock:
            self._executor.start()
            if self._estop_latched.is_set():
                self._executor.estop(True)
            self._readiness = Readiness(True, "ready")
