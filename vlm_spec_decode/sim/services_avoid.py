"""Service `obstacles_avoid`: velocities and goals that keep clear of what is in front.

Velocity mode passes the command on and takes the forward part away in front of an obstacle. Goals (relative
or absolute in the odometry frame) are driven to by a plain proportional law; the robot reports no arrival.
Without `UseRemoteCommandFromApi(true)` every Move is taken and does nothing, as on the robot.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from vlm_spec_decode.sim.server_robot import Odometry2D, SimulatedRobot
from vlm_spec_decode.sim.services import BAD_PARAMETER, JsonService, Parameters, Reply, flag, number

VELOCITY_MODE, RELATIVE_MODE, ABSOLUTE_MODE = 0, 1, 2
CLEARANCE_M = 0.5
SPEED_MPS = 0.5
TURN_RADPS = 1.0
ARRIVED_M = 0.05
ARRIVED_RAD = 0.05


@dataclass(frozen=True, slots=True)
class Goal:
    """A pose in the odometry frame."""

    x_m: float
    y_m: float
    yaw_rad: float


def towards(goal: Goal, pose: Odometry2D) -> tuple[float, float, float]:
    """Return the body velocity that leads from `pose` to `goal`; zeros where it is reached."""
    dx, dy = goal.x_m - pose.x_m, goal.y_m - pose.y_m
    turn = math.remainder(goal.yaw_rad - pose.yaw_rad, 2 * math.pi)
    distance = math.hypot(dx, dy)
    if distance < ARRIVED_M and abs(turn) < ARRIVED_RAD:
        return (0.0, 0.0, 0.0)
    speed = min(SPEED_MPS, 1.5 * distance) if distance >= ARRIVED_M else 0.0
    bearing = math.atan2(dy, dx) - pose.yaw_rad
    vyaw = min(max(2.0 * turn, -TURN_RADPS), TURN_RADPS)
    return (speed * math.cos(bearing), speed * math.sin(bearing), vyaw)


class AvoidService(JsonService):
    """The service's switches, and the goal that the robot is driven to."""

    name = "obstacles_avoid"
    version = "1.0.0.2"

    def __init__(self, robot: SimulatedRobot) -> None:
        self._robot = robot
        self._enabled = False
        self._from_api = False
        self._goal: Goal | None = None
        super().__init__(
            {
                1001: self._switch_set,
                1002: lambda _: Reply(data=json.dumps({"enable": self._enabled})),
                1003: self._move,
                1004: self._use_remote,
            }
        )

    def drive(self) -> None:
        """Refresh the Move towards the goal; called at the control rate."""
        goal = self._goal
        if goal is None:
            return
        velocity = towards(goal, self._robot.odometry())
        if velocity == (0.0, 0.0, 0.0):
            self._goal = None
        self._send(*velocity)

    def _switch_set(self, p: Parameters) -> Reply:
        self._enabled = flag(p, "enable")
        return Reply()

    def _use_remote(self, p: Parameters) -> Reply:
        self._from_api = flag(p, "is_remote_commands_from_api")
        if not self._from_api:
            self._goal = None
        return Reply()

    def _move(self, p: Parameters) -> Reply:
        x, y, yaw, mode = (number(p, key) for key in ("x", "y", "yaw", "mode"))
        if mode not in (VELOCITY_MODE, RELATIVE_MODE, ABSOLUTE_MODE):
            return Reply(BAD_PARAMETER)
        if not self._from_api:
            return Reply()
        if mode == VELOCITY_MODE:
            self._goal = None
            self._send(x, y, yaw)
            return Reply()
        pose = self._robot.odometry()
        if mode == ABSOLUTE_MODE:
            self._goal = Goal(x, y, yaw)
        else:
            cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
            goal_x, goal_y = pose.x_m + cos * x - sin * y, pose.y_m + sin * x + cos * y
            self._goal = Goal(goal_x, goal_y, pose.yaw_rad + yaw)
        return Reply()

    def _send(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        self._robot.move(vx_mps, vy_mps, vyaw_radps, clearance_m=CLEARANCE_M if self._enabled else 0.0)
