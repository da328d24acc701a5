"""Any robot that takes velocities and publishes odometry, behind `RobotDriver`: no SDK, postures or codes.

What carries velocities and odometry is a `VelocityLink`; `ros.velocity_robot` makes one of ROS 2 topics. A
Go2's firmware stops when no commands arrive; here the robot's base has to do that. A base that repeats its
last velocity drives on forever if this process dies. Most base controllers stop after 0.5 s.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from vlm_spec_decode.core.errors import RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.spec import Hull, RobotSpec

STALE_S = 0.5
START_S = 3.0
STOP_S = 1.2
AGAIN_S = 0.05

SPEC = RobotSpec(
    name="cmd_vel",
    title="any robot that takes cmd_vel and publishes odometry, over ROS 2",
    hull=Hull(length_m=0.70, width_m=0.32, height_m=0.40),
    max_speed_mps=1.0,
    max_turn_radps=2.0,
)

PERCENT_ABOVE = 1.0
SURELY_PERCENT = 2.0


@dataclass(slots=True)
class Charge:
    """Reads `BatteryState.percentage`: a fraction by its definition, but a percentage in many drivers.

    A value above 1 can only be a percentage. From 2 on all later values count as percentages too, or the
    last per cent of a battery would read as a full one. `message` is what to log about the newest value,
    once for each kind.
    """

    is_percent: bool = False
    message: str = ""
    _reported: set[str] = field(default_factory=set)

    def soc(self, percentage: float) -> float:
        """Return the state of charge, 0 to 1; NaN for an invalid value."""
        self.message = ""
        if not 0.0 <= percentage <= 100.0:
            self._report("unknown", f"percentage {percentage:g} is no charge: it counts as unknown")
            return math.nan
        self.is_percent = self.is_percent or percentage >= SURELY_PERCENT
        if percentage > PERCENT_ABOVE:
            self._report("percent", f"percentage {percentage:g} is above 1: taken as per cent")
        return percentage / 100 if self.is_percent or percentage > PERCENT_ABOVE else percentage

    def _report(self, kind: str, text: str) -> None:
        self.message = "" if kind in self._reported else text
        self._reported.add(kind)


class VelocityLink(Protocol):
    """Sends velocities to the robot. Odometry that it receives goes to `VelocityRobot.put_odometry`."""

    odometry: str
    """Name of the odometry in error messages."""

    def send(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Send a velocity. Never blocks."""
        ...


class VelocityRobot:
    """A `RobotDriver`; safe for threads. The odometry carries the velocity in the body frame (REP 105)."""

    def __init__(self, link: VelocityLink, clock: Clock, *, has_battery: bool = False) -> None:
        """Send nothing yet. With `has_battery` the charge is unknown until `put_charge` is called."""
        self._link, self._clock = link, clock
        # A charge that has not arrived yet is NaN, not full: the gate refuses NaN.
        self._battery_soc = math.nan if has_battery else 1.0
        self._changed = threading.Condition()
        self._state: RobotState | None = None
        self._closed = self._commanded = False

    def put_odometry(self, state: RobotState) -> None:
        """Store the robot's pose and velocity; the charge is added here."""
        with self._changed:
            self._state = replace(state, battery_soc=self._battery_soc)
            self._changed.notify_all()

    def put_charge(self, soc: float) -> None:
        """Store the state of charge, 0 to 1; NaN: unknown."""
        self._battery_soc = soc

    def start(self) -> None:
        """Wait for odometry. Raises RobotUnreachable without any."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_live() or self._closed, START_S):
                raise RobotUnreachable(f"no odometry on {self._link.odometry}")
        self._commanded = True

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Send a velocity."""
        if not self._closed:
            self._link.send(vx_mps, vy_mps, vyaw_radps)

    def stop(self) -> None:
        """Send zeros until the odometry shows standstill. Raises RobotRefused if it does not."""
        self._commanded = True
        until_s = self._clock.now() + STOP_S
        while True:
            asked_s = self._clock.now()
            self._link.send(0.0, 0.0, 0.0)
            with self._changed:
                if self._changed.wait_for(partial(self._is_at_rest, asked_s), AGAIN_S):
                    return
            if self._clock.now() > until_s:
                raise RobotRefused("stop", f"{self._link.odometry} shows no standstill within {STOP_S:g} s")

    def posture(self, name: str) -> None:
        """Do nothing for `stand_up`. Raises RobotRefused for every other posture."""
        if name != "stand_up":
            raise RobotRefused(name, "a robot behind cmd_vel has no postures")

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Raise RobotRefused: the body does not tilt."""
        if pitch_rad or yaw_rad:
            raise RobotRefused("look", "a robot behind cmd_vel does not tilt")

    def state(self) -> RobotState:
        """Return the newest state. Raises RobotUnreachable before the first, RobotStale for an old one."""
        state = self._state
        if state is None:
            raise RobotUnreachable(f"no odometry on {self._link.odometry}")
        if not self._is_live():
            age_s = self._clock.now() - state.received_s
            raise RobotStale(f"{self._link.odometry} is {age_s:.2f} s old")
        return state

    def close(self) -> None:
        """Stop, but only if this driver has ever commanded anything. Idempotent."""
        if self._commanded and not self._closed:
            self._link.send(0.0, 0.0, 0.0)
        self._closed = True

    def _is_live(self) -> bool:
        return self._state is not None and self._clock.now() - self._state.received_s <= STALE_S

    def _is_at_rest(self, since_s: float) -> bool:
        return self._state is not None and self._state.received_s >= since_s and self._state.is_still
