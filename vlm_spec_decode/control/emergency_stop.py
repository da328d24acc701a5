"""Stopping the robot: every velocity passes here on its way to the driver, and the e-stop latch blocks it.

Stop and e-stop never wait for decoding, network, the control thread or a posture under way: they run the
driver's stop on the caller's thread.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from vlm_spec_decode.core.errors import ActionRefused, RobotError, RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock, RobotDriver

MOVE_IN_FLIGHT_S = 0.05
"""How long the e-stop waits for a Move that is just being written, so that it cannot overtake the stop."""

RESTOP_S = 0.2
"""How often a stop that was not confirmed is tried again."""

ROUTINE = frozenset({"rest", "again", "close"})
"""Causes of routine stops, which are not reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReport:
    """One stop: why, and when in the clock's seconds.

    `trigger_s` is what the reaction time counts from (the call, or the last heartbeat), `commanded_s` when
    the driver was asked, `confirmed_s` when the state showed standstill (None if it did not), `distance_m`
    what the body still moved (None if the state does not tell).
    """

    cause: str
    trigger_s: float
    commanded_s: float
    confirmed_s: float | None
    distance_m: float | None
    error: str = ""

    @property
    def reaction_s(self) -> float:
        """Seconds from the trigger to the command."""
        return self.commanded_s - self.trigger_s

    @property
    def standstill_s(self) -> float:
        """Seconds from the command to the confirmed standstill; infinity if it was not confirmed."""
        return math.inf if self.confirmed_s is None else self.confirmed_s - self.commanded_s

    def check(self) -> None:
        """Raise RobotRefused unless standstill was confirmed."""
        if self.confirmed_s is None:
            raise RobotRefused("stop", self.error)


class EmergencyStop:
    """Controls a driver's move and stop, and latches the e-stop. Safe for threads."""

    def __init__(self, driver: RobotDriver, clock: Clock) -> None:
        self._driver = driver
        self._clock = clock
        self._moving = threading.Lock()
        self._latched = threading.Event()
        self._engaged = 0
        self._last: StopReport | None = None

    @property
    def latched(self) -> bool:
        """Whether the e-stop is engaged."""
        return self._latched.is_set()

    @property
    def last(self) -> StopReport | None:
        """The newest stop that had a reason."""
        return self._last

    @property
    def permit(self) -> int:
        """A number for `allows`. It is void once the e-stop was engaged, also after its release.

        Get it before reading plans: what was ordered before an e-stop then cannot begin after it, however
        soon it was released.
        """
        return self._engaged

    def allows(self, permit: int) -> bool:
        """Whether `permit` is still valid: no e-stop has been engaged since."""
        return not self.latched and permit == self._engaged

    def move(self, velocity: tuple[float, float, float], permit: int) -> None:
        """Send a velocity to the driver, if `permit` is still valid. Raises RobotError."""
        with self._moving:
            if self.allows(permit):
                self._driver.move(*velocity)

    def stop(self, cause: str, trigger_s: float | None = None) -> StopReport:
        """Stop the robot and wait until its state confirms it. An unconfirmed stop is reported, not raised.

        Stops whose cause is in `ROUTINE` are not stored in `last`.
        """
        before = self._position()
        commanded_s = self._clock.now()
        confirmed_s, error = None, ""
        try:
            self._driver.stop()
            confirmed_s = self._clock.now()
        except RobotError as problem:
            error = str(problem)
        after = self._position()
        moved = math.dist(before, after) if before is not None and after is not None else None
        since_s = commanded_s if trigger_s is None else trigger_s
        report = StopReport(
            cause=cause,
            trigger_s=since_s,
            commanded_s=commanded_s,
            confirmed_s=confirmed_s,
            distance_m=moved,
            error=error,
        )
        if cause not in ROUTINE:
            self._last = report
        return report

    def engage(self) -> None:
        """Latch the e-stop: nothing begins from now on. The caller then calls `stop_now`."""
        self._engaged += 1
        self._latched.set()

    def stop_now(self, trigger_s: float) -> StopReport:
        """Stop on this thread, after any Move that passed the latch's check before the e-stop was engaged."""
        if self._moving.acquire(timeout=MOVE_IN_FLIGHT_S):
            self._moving.release()
        return self.stop("estop", trigger_s)

    def release(self) -> None:
        """Disengage the e-stop. Raises ActionRefused unless the state shows standstill."""
        if not self.latched:
            return
        try:
            is_still = self._driver.state().is_still
        except RobotError as problem:
            raise ActionRefused("estop", f"the robot's state is unknown: {problem}") from problem
        if not is_still:
            raise ActionRefused("estop", "the robot still moves")
        self._latched.clear()

    def _position(self) -> tuple[float, float] | None:
        # Only for the report: whatever a driver raises here, a fault of its own too, the stop must be sent.
        try:
            state = self._driver.state()
        except Exception:  # noqa: BLE001 - see above
            return None
        return (state.x_m, state.y_m)


def fault_reason(error: RobotError) -> str:
    """Return the stable name under which `error` is published: `stale_state`, `unreachable` or `robot`."""
    if isinstance(error, RobotStale):
        return "stale_state"
    return "unreachable" if isinstance(error, RobotUnreachable) else "robot"
