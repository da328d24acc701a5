"""The public robot: a driver behind the executor, with gate, lease and watchdog, and its camera.

::

    with vsd.Robot.connect("go2", interface="eth0") as robot:  # "sim", "fake", "cmd_vel", your own
        print(robot.state.battery_soc)

Nothing but the executor moves it. It stands when `connect` returns, and at the end of the block it is
stopped, whatever ended the block. `emergency_stop` runs on the caller's thread and waits for no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.control.emergency_stop import StopReport
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.robot_supervisor import RobotSupervisor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, RobotError, RobotUnreachable
from vlm_spec_decode.core.ports import Camera, Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.robot.lease import Lease
from vlm_spec_decode.robot.registry import RobotAddress, RobotParts, robot_kind
from vlm_spec_decode.robot.spec import RobotSpec

if TYPE_CHECKING:
    from typing_extensions import Self

START_S = 30.0
"""How long to wait for a robot that does not answer."""

REST_S = 1.0
"""How long a stop may take to show in the robot's state before the e-stop is engaged."""

POLL_S = 0.02


class Robot:
    """A robot that is up. Make one by `connect`, and close it, best by `with`.

    Every method may be called from any thread. Only one executor moves a robot: a second `connect` to the
    same one raises RobotHeld.
    """

    def __init__(
        self,
        spec: RobotSpec,
        parts: RobotParts,
        *,
        limits: SafetyLimits | None = None,
        clock: Clock | None = None,
        start_timeout_s: float = START_S,
    ) -> None:
        """Put the parts together; `start` brings the robot up. Raises ConfigError for impossible limits."""
        self.spec = spec
        self.limits = spec.narrowed(limits or SafetyLimits())
        self._parts, self._clock = parts, clock or WallClock()
        executor = Executor(parts.driver, SafetyGate(self.limits), self._clock)
        lease = (
            Lease(parts.boards, f"vsd {spec.name}", self._clock, self._on_lease_lost)
            if parts.boards
            else None
        )
        self._failed = threading.Event()
        self._supervisor = RobotSupervisor(
            parts.driver, executor, self._clock, start_timeout_s, lambda _: self._failed.set(), lease
        )
        self._camera: Camera | None = None
        self._camera_lock = threading.Lock()
        self._is_closed = False

    @classmethod
    def connect(
        cls,
        name: str,
        *,
        interface: str | None = None,
        domain: int | None = None,
        limits: SafetyLimits | None = None,
        start_timeout_s: float = START_S,
        **settings: str,
    ) -> Self:
        """Reach the robot called `name`, take its lease, and let it stand up.

        `name` is one of the registered robots (`robot.registry`). `interface` and `domain` are those of its
        network, by default the robot's usual ones. `settings` are the robot's own, such as `state_codes` of a
        Go2. `limits` are the safety gate's; they are narrowed to what the robot can do.

        Raises ConfigError for a name, setting or limit that does not exist, RobotUnreachable if nobody
        answers within `start_timeout_s`, RobotHeld if another executor moves it, RobotError if it does not
        stand up.
        """
        kind = robot_kind(name)
        clock = WallClock()
        parts = kind.connect(RobotAddress(interface=interface, domain=domain, settings=settings), clock)
        robot = cls(kind.spec, parts, limits=limits, clock=clock, start_timeout_s=start_timeout_s)
        try:
            robot.start()
        except BaseException:
            # Why it did not start is what matters, not that a robot which is not there confirms no stop.
            with suppress(RobotError):
                robot.close()
            raise
        return robot

    def start(self) -> None:
        """Bring the robot up and wait until it stands. Raises RobotError."""
        self._supervisor.begin()
        while not self._supervisor.readiness.is_ready and not self._failed.wait(POLL_S):
            pass
        if error := self._supervisor.readiness.error:
            raise error

    # State and camera ----------------------------------------------------------------------------------

    @property
    def state(self) -> RobotState:
        """Return the newest state. Raises RobotStale if its stamp stands still, or RobotUnreachable."""
        return self._supervisor.state()

    @property
    def status(self) -> PlanStatus:
        """Return what the executor does with its plan."""
        return self._supervisor.status()

    @property
    def last_stop(self) -> StopReport | None:
        """Return the newest stop that had a reason, with its times."""
        return self._supervisor.last_stop()

    @property
    def is_stopped(self) -> bool:
        """Whether the e-stop is engaged."""
        return self._supervisor.source == "estop"

    @property
    def source(self) -> str:
        """Return what commands it now: `estop`, `teleop`, `language` or `none`."""
        return self._supervisor.source

    @property
    def has_camera(self) -> bool:
        """Whether it has a camera of its own."""
        return self._parts.open_camera is not None

    def capture(self) -> tuple[Image, float]:
        """Return a new frame and its capture time in seconds of the monotonic clock.

        Raises ConfigError without a camera, RobotUnreachable or ImageError if no frame comes.
        """
        if self._parts.open_camera is None:
            raise ConfigError(f"robot {self.spec.name!r} has no camera of its own")
        with self._camera_lock:
            if self._is_closed:
                raise RobotUnreachable("this robot has been closed")
            self._camera = self._camera or self._parts.open_camera()
            return self._camera.frame()

    def frame(self) -> Image:
        """Return a new camera frame. Raises as `capture` does."""
        return self.capture()[0]

    # Commands ------------------------------------------------------------------------------------------

    def submit(self, plan: Plan) -> None:
        """Send a plan to the executor. Repeat it as its heartbeat: silence stops the robot. Never blocks."""
        self._supervisor.submit(plan)

    def steer(self, velocity: tuple[float, float, float]) -> bool:
        """Let a person steer: forward and left in m/s, left in rad/s; that goes before plans. Never blocks.

        Repeat it: silence stops the robot. False, and nothing done, for what is no velocity.
        """
        return self._supervisor.steer(velocity)

    def end_steering(self) -> None:
        """Let the person steer no more: the executor's next period stops the robot. Never blocks."""
        self._supervisor.end_steering()

    def cancel(self) -> None:
        """Let the executor drop its plan: it stops within one of its periods. Never blocks."""
        self._supervisor.cancel()

    def stop(self) -> None:
        """Cancel the plan and return when the robot stands. Engages the e-stop if it continues to move.

        Raises RobotError if no state confirms that it stands.
        """
        self.cancel()
        until_s = self._clock.now() + REST_S
        while self._clock.now() < until_s:
            if self._is_at_rest():
                return
            self._clock.sleep(POLL_S)
        if (report := self.emergency_stop()) is not None:
            report.check()

    def emergency_stop(self) -> StopReport | None:
        """Stop at once, on this thread, waiting for no other; nothing moves the robot until `release`."""
        return self._supervisor.estop(True)

    def release(self) -> None:
        """Release the e-stop. Releasing alone moves nothing. Raises ActionRefused while the robot moves."""
        self._supervisor.estop(False)

    def close(self) -> None:
        """Stop the robot, wait until it stands, and disconnect, also during an interrupt. Idempotent.

        Raises RobotError if the stop was not confirmed.
        """
        found: list[RobotError | None] = []
        without_interrupts(lambda: found.append(self._close()))
        if found and found[0] is not None:
            raise found[0]

    def __enter__(self) -> Self:
        """Return the robot itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and disconnect. An exception of the block takes precedence over an unconfirmed stop."""
        try:
            self.close()
        except RobotError:
            if error is None:
                raise

    def _close(self) -> RobotError | None:
        self._is_closed = True
        error = self._supervisor.close()
        with self._camera_lock:
            camera, self._camera = self._camera, None
            if camera is not None:
                camera.close()
        self._parts.close()
        return error

    def _on_lease_lost(self, error: RobotError) -> None:
        self._supervisor.on_lease_lost(error)

    def _is_at_rest(self) -> bool:
        status = self._supervisor.status()
        try:
            return status.state != "moving" and self.state.is_still
        except RobotError:
            return False


def without_interrupts(call: Callable[[], object]) -> None:
    """Run `call` to its end on another thread; a Ctrl-C meanwhile is raised only afterwards.

    What `call` raises is raised here.
    """
    errors: list[BaseException] = []
    begun, done = threading.Lock(), threading.Event()

    def run() -> None:
        if not begun.acquire(blocking=False):
            return
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that waits
            errors.append(error)
        finally:
            done.set()

    interrupt: KeyboardInterrupt | None = None
    while not done.is_set():
        try:
            # Again after an interrupt, which may have come before the thread was there; `run` runs once.
            threading.Thread(target=run, name="finish").start()
            done.wait()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
    if errors:
        raise errors[0]
