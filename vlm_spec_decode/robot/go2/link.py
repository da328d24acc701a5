"""The ports below a Go2 driver, for any transport: three callers of the sport service and a source of states.

Uses neither SDK nor ROS; `robot.go2.sdk` makes a link over Unitree's SDK, `ros.unitree_topics` one over ROS
2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vlm_spec_decode.core.errors import RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2.states import StateTable, is_down


class SportClient(Protocol):
    """Requests to the sport service, by the SDK's names. Safe for one thread at a time."""

    def call(self, name: str, *arguments: float) -> int:
        """Make one call and return its code (`robot.go2.codes`); Move returns when it is sent."""
        ...


class StateSource(Protocol):
    """The newest state; `StateMonitor` is one."""

    def is_moving(self) -> bool:
        """Whether there is a state whose stamp has moved lately."""
        ...

    def is_live(self) -> bool:
        """Whether there is such a state, with the battery."""
        ...

    def newest(self) -> RobotState:
        """Return it. Raises RobotStale or RobotUnreachable."""
        ...

    def wait(self, done: Callable[[RobotState], bool], deadline_s: float) -> bool:
        """Wait until `done` holds for the newest state; whether it did in time."""
        ...


@dataclass(frozen=True, slots=True)
class RobotLink:
    """What a started driver holds. Three callers, so that no call waits behind another's timeout."""

    feed: StateSource
    posture: SportClient
    move: SportClient
    stop: SportClient
    close: Callable[[], None]
    """Leave; nothing is called afterwards."""


def to_state(
    message: Any, received_s: float, battery_soc: float, states: StateTable | None = None
) -> RobotState:
    """Translate a SportModeState, of the SDK or of ROS. Four ranges of 0 mean "not measured": infinity.

    A single 0 is contact: a robot that touches something must not take it for free ground.
    """
    ranges = [float(value) for value in message.range_obstacle]
    if not any(ranges):
        ranges = [math.inf] * 4
    roll, pitch, yaw = (float(angle) for angle in message.imu_state.rpy)
    reported = int(message.error_code)
    code = (states or StateTable()).canonical(reported)
    return RobotState(
        stamp_s=message.stamp.sec + 1e-9 * message.stamp.nanosec,
        received_s=received_s,
        x_m=float(message.position[0]),
        y_m=float(message.position[1]),
        yaw_rad=yaw,
        vx_mps=float(message.velocity[0]),
        vy_mps=float(message.velocity[1]),
        vyaw_radps=float(message.yaw_speed),
        roll_rad=roll,
        pitch_rad=pitch,
        body_height_m=float(message.body_height),
        code=reported if code is None else code,
        reported_code=reported,
        is_known=code is not None,
        is_down=is_down(message),
        battery_soc=battery_soc,
        range_obstacle_m=(ranges[0], ranges[1], ranges[2], ranges[3]),
    )


class StateMonitor:
    """The newest state, and whether the robot's stamp still moves. Readable from any thread."""

    def __init__(
        self, clock: Clock, topic: str, stale_after_s: float, states: StateTable | None = None
    ) -> None:
        """Know nothing yet; whoever hears the topics calls `take_sport` and `take_low`."""
        self._states = states or StateTable()
        self._clock = clock
        self._topic = topic
        self._stale_after_s = stale_after_s
        self._state: RobotState | None = None
        self._progress_s = -math.inf
        self._battery_soc: float | None = None
        self._is_complete = False

    def is_moving(self) -> bool:
        """Return whether there is a state whose stamp has moved lately."""
        return self._clock.now() - self._progress_s <= self._stale_after_s

    def is_live(self) -> bool:
        """Return whether there is such a state that holds the battery, too, which has its own topic."""
        return self.is_moving() and self._is_complete

    def newest(self) -> RobotState:
        """Return the newest state. Raises RobotStale if its stamp stands still, or RobotUnreachable."""
        state = self._state
        if state is None:
            raise RobotUnreachable(f"no robot state on {self._topic}")
        if not self.is_moving():
            age_s = self._clock.now() - self._progress_s
            raise RobotStale(f"the stamp of {self._topic} has stood still for {age_s:.2f} s")
        return state

    def wait(self, done: Callable[[RobotState], bool], deadline_s: float) -> bool:
        """Wait until `done` holds for the newest state; whether it did before `deadline_s` of the clock."""
        while True:
            state = self._state
            if state is not None and done(state):
                return True
            if self._clock.now() >= deadline_s:
                return False
            self._clock.sleep(0.01)

    def take_sport(self, message: Any) -> None:
        """Take a SportModeState."""
        now_s = self._clock.now()
        soc = 0.0 if self._battery_soc is None else self._battery_soc
        old, self._state = self._state, to_state(message, now_s, soc, self._states)
        self._is_complete = self._battery_soc is not None
        if old is None or old.stamp_s != self._state.stamp_s:
            self._progress_s = now_s

    def take_low(self, message: Any) -> None:
        """Take a LowState, for its battery."""
        soc = message.bms_state.soc / 100
        # The field holds up to 255: above 100 it is no charge, and an unknown one passes no gate.
        self._battery_soc = soc if soc <= 1.0 else math.nan
