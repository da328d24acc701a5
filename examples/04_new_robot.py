"""A robot of your own: one file, one `register_robot` line, nothing of the package edited.

    python examples/04_new_robot.py

A base on two wheels that knows velocities and its own odometry. A driver moves the robot and says where it
is; safety gate, executor, watchdog and e-stop are the package's, the same for every robot. It is moved here
by two plans, of which it refuses one.

For `vsd edge --robot rover` put such a file into a package and name it as an entry point of that package:

    [project.entry-points."vlm_spec_decode.robots"]
    rover = "my_package.rover:ROBOT"
"""

from __future__ import annotations

import math
import threading
import time

from vlm_spec_decode.core.errors import RobotRefused, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.registry import RobotAddress, RobotKind, RobotParts, check_settings, register_robot
from vlm_spec_decode.robot.spec import Hull, RobotSpec

HOLD_S = 0.5
"""A base must stop by itself when velocities stay out: a program that dies sends no stop."""

SPEC = RobotSpec(
    name="rover",
    title="a base on two wheels",
    hull=Hull(length_m=0.4, width_m=0.3, height_m=0.2),
    max_speed_mps=0.4,
    max_turn_radps=1.0,
)


class Rover:
    """A `RobotDriver`. Instead of a serial line it has a little arithmetic."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._pose, self._velocity, self._sent_s = (0.0, 0.0, 0.0), (0.0, 0.0), 0.0
        self._at_s, self._closed = clock.now(), False

    def start(self) -> None:
        """Nothing to do: it is on its wheels."""

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Take a velocity; it cannot go sideways."""
        if vy_mps:
            raise RobotRefused("move", "a base on two wheels does not go sideways")
        with self._lock:
            self._drive()
            self._velocity, self._sent_s = (vx_mps, vyaw_radps), self._clock.now()

    def stop(self) -> None:
        """Stand at once."""
        self.move(0.0, 0.0, 0.0)

    def posture(self, name: str) -> None:
        """Refuse everything but standing, which it does anyway."""
        if name != "stand_up":
            raise RobotRefused(name, "a base on two wheels has no postures")

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Refuse to tilt."""
        if pitch_rad or yaw_rad:
            raise RobotRefused("look", "a base on two wheels does not tilt")

    def state(self) -> RobotState:
        """Return where it is now."""
        with self._lock:
            if self._closed:
                raise RobotUnreachable("the rover has been closed")
            self._drive()
            (x, y, yaw), (speed, turn) = self._pose, self._velocity
            return RobotState(self._at_s, self._at_s, x, y, yaw, speed, 0.0, turn)

    def close(self) -> None:
        """Stop and leave."""
        with self._lock:
            self._velocity, self._closed = (0.0, 0.0), True

    def _drive(self) -> None:
        """Let the time since the last call pass."""
        now_s = self._clock.now()
        dt_s, self._at_s = now_s - self._at_s, now_s
        if now_s - self._sent_s > HOLD_S:
            self._velocity = (0.0, 0.0)
        (x, y, yaw), (speed, turn) = self._pose, self._velocity
        self._pose = (
            x + speed * math.cos(yaw) * dt_s,
            y + speed * math.sin(yaw) * dt_s,
            yaw + turn * dt_s,
        )


def connect(address: RobotAddress, clock: Clock) -> RobotParts:
    """Return the parts of a rover. One with a camera would say so here, with `open_camera`."""
    check_settings(ROBOT, address)
    return RobotParts(driver=Rover(clock))


ROBOT = RobotKind(SPEC, connect)

register_robot(SPEC.name, ROBOT)


def main() -> None:
    """Carry out two plans and say what became of them."""
    from vlm_spec_decode.actions.parser import parse_answer
    from vlm_spec_decode.actions.plan import Plan
    from vlm_spec_decode.mission.robot import Robot

    with Robot.connect("rover") as robot:
        print(f"at most {robot.limits.max_speed_mps} m/s")
        for mission, text in enumerate(("turn(45) forward(0.5) done()", "strafe(0.5) done()")):
            plan = Plan(str(mission), 0, time.monotonic(), 0, parse_answer(text), final=True)
            robot.submit(plan)
            while not (robot.status.is_terminal and robot.status.mission == plan.mission):
                robot.submit(plan)  # the heartbeat: silence would stop the robot
                time.sleep(0.05)
            state = robot.state
            where = f"at ({state.x_m:.1f}, {state.y_m:.1f})"
            print(f"{text}: {robot.status.state} {robot.status.detail} {where}")


if __name__ == "__main__":
    main()
