"""The Go2's request services: sport, mode switcher, `obstacles_avoid` and `videohub`.

Ids, JSON keys and return codes are those of the public SDK (`unitree_sdk2py`, versions below). Uses the
simulated robot and not DDS, so each service can be tested by plain calls. Where the vendor does not document
which code a refused posture returns, it is 4206 (posture unsuitable for the action).

Service `obstacles_avoid`: velocity mode passes the command on and removes the forward part in front of an
obstacle. Goals (relative or absolute in the odometry frame) are approached by a proportional law; the robot
reports no arrival. Without `UseRemoteCommandFromApi(true)` every Move is accepted and does nothing, as on the
robot.

Service `videohub`: one JPEG of the front camera per request. An OpenGL context belongs to one thread, and
drawing takes tens of milliseconds in software; so a separate thread draws, only on request, and one frame
answers all requests that were waiting when it was begun.
"""

from __future__ import annotations

import json
import math
import queue
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vlm_spec_decode.sim.go2.robot import Odometry2D, SimulatedRobot
from vlm_spec_decode.sim.go2.state_machine import StateCode, StateRequest

OK = 0
SERVER_INTERNAL = 3202
NOT_IMPLEMENTED = 3203
BAD_PARAMETER = 3204
UNSUITABLE_POSTURE = 4206

Parameters: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Reply:
    """A return code with JSON text or bytes; the SDK drops both unless the code is 0."""

    code: int = OK
    data: str = ""
    binary: bytes = b""


class BadParameter(ValueError):
    """The request's JSON lacks a key or holds a value of another kind; answered with 3204."""


class Service(Protocol):
    """What the DDS server needs of a service."""

    name: str
    version: str

    def handle(self, api_id: int, parameter: str, answer: Callable[[Reply], None]) -> None:
        """Carry out one request and call `answer` once, now or later, from any thread."""
        ...


def read_parameters(text: str) -> Parameters:
    """Return the JSON object in a request; an empty text is an empty object. Raises BadParameter."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise BadParameter(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadParameter("the parameter is no JSON object")
    return value


def number(parameters: Parameters, key: str) -> float:
    """Return a finite number. Raises BadParameter."""
    value = parameters.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadParameter(f"{key} is no finite number")
    return float(value)


def flag(parameters: Parameters, key: str) -> bool:
    """Return a boolean. Raises BadParameter."""
    value = parameters.get(key)
    if not isinstance(value, bool):
        raise BadParameter(f"{key} is no boolean")
    return value


Handler: TypeAlias = Callable[[Parameters], Reply]


class JsonService:
    """A service whose handlers return a reply at once."""

    name = ""
    version = ""

    def __init__(self, handlers: Mapping[int, Handler]) -> None:
        self._handlers = dict(handlers)

    def call(self, api_id: int, parameter: str) -> Reply:
        """Return the reply to one request."""
        handler = self._handlers.get(api_id)
        if handler is None:
            return Reply(NOT_IMPLEMENTED)
        try:
            return handler(read_parameters(parameter))
        except BadParameter:
            return Reply(BAD_PARAMETER)

    def handle(self, api_id: int, parameter: str, answer: Callable[[Reply], None]) -> None:
        """Carry out one request and answer it at once."""
        answer(self.call(api_id, parameter))


_REQUESTS: dict[int, StateRequest] = {
    1001: StateRequest.DAMP,
    1002: StateRequest.BALANCE_STAND,
    1004: StateRequest.STAND_UP,
    1005: StateRequest.STAND_DOWN,
    1006: StateRequest.RECOVERY_STAND,
    1009: StateRequest.SIT,
    1010: StateRequest.RISE_SIT,
    1016: StateRequest.HELLO,
    1017: StateRequest.STRETCH,
    1020: StateRequest.CONTENT,
    1022: StateRequest.DANCE1,
    1023: StateRequest.DANCE2,
    1029: StateRequest.SCRAPE,
    1036: StateRequest.HEART,
}

_GAITS: dict[int, StateCode] = {
    1061: StateCode.WALK,
    1062: StateCode.RUN,
    1063: StateCode.ENDURANCE,
    2045: StateCode.WALK,
}
"""Gait requests only change the code that walking reports. Acrobatics are not simulated: 3203."""


def _reply_of(accepted: bool) -> Reply:
    return Reply(OK if accepted else UNSUITABLE_POSTURE)


class SportService(JsonService):
    """Service `sport`: postures, Move and attitude of the robot."""

    name = "sport"
    version = "1.0.0.1"

    def __init__(self, robot: SimulatedRobot) -> None:
        self._robot = robot
        handlers: dict[int, Handler] = {
            1003: lambda _: _reply_of(robot.stop()),
            1007: self._euler,
            1008: self._move,
            1015: self._speed_level,
            1027: self._switch_joystick,
            1028: lambda p: _reply_of(
                robot.request(StateRequest.POSE_ON if flag(p, "data") else StateRequest.POSE_OFF)
            ),
            2049: self._classic_walk,
            2054: self._set_auto_recovery,
            2055: lambda _: Reply(data=json.dumps({"data": robot.auto_recovery})),
        }
        for api_id, request in _REQUESTS.items():
            handlers[api_id] = self._request_handler(request)
        for api_id, gait in _GAITS.items():
            handlers[api_id] = self._gait_setter(gait)
        super().__init__(handlers)

    def call(self, api_id: int, parameter: str) -> Reply:
        """Return the reply to one request; the first one starts the clock of the faults."""
        self._robot.arm_faults()
        if api_id in self._robot.firmware.missing:
            return Reply(NOT_IMPLEMENTED)
        return super().call(api_id, parameter)

    def _request_handler(self, request: StateRequest) -> Handler:
        return lambda _: _reply_of(self._robot.request(request))

    def _gait_setter(self, gait: StateCode) -> Handler:
        return lambda _: _reply_of(self._robot.set_gait(gait))

    def _switch_joystick(self, p: Parameters) -> Reply:
        # There is no remote control to switch; the parameter is still checked.
        flag(p, "data")
        return Reply()

    def _euler(self, p: Parameters) -> Reply:
        return _reply_of(self._robot.look(number(p, "x"), number(p, "y"), number(p, "z")))

    def _move(self, p: Parameters) -> Reply:
        # Move has no reply; the caller does not learn that it is ignored, as on the robot.
        self._robot.move(number(p, "x"), number(p, "y"), number(p, "z"))
        return Reply()

    def _speed_level(self, p: Parameters) -> Reply:
        level = number(p, "data")
        if level not in (-1.0, 0.0, 1.0):
            return Reply(BAD_PARAMETER)
        self._robot.set_speed_level(int(level))
        return Reply()

    def _classic_walk(self, p: Parameters) -> Reply:
        return _reply_of(self._robot.set_gait(StateCode.CLASSIC if flag(p, "data") else StateCode.WALK))

    def _set_auto_recovery(self, p: Parameters) -> Reply:
        self._robot.auto_recovery = flag(p, "data")
        return Reply()


class SwitcherService(JsonService):
    """Service `motion_switcher`: Release disables the sport service, Select enables it again."""

    name = "motion_switcher"
    version = "1.0.0.1"
    busy_code = 7002
    modes = ("normal", "ai", "advanced", "mcf")

    def __init__(self, robot: SimulatedRobot, *, reselect_s: float = 10.0) -> None:
        self._robot = robot
        self._reselect_s = reselect_s
        self._mode = "mcf"
        self._released_s = -math.inf
        self._silent = False
        super().__init__(
            {
                1001: lambda _: Reply(data=json.dumps({"form": "0", "name": self._mode})),
                1002: self._select,
                1003: self._release,
                1004: self._set_silent,
                1005: lambda _: Reply(data=json.dumps({"silent": self._silent})),
            }
        )

    def _select(self, p: Parameters) -> Reply:
        name = p.get("name")
        if name not in self.modes:
            return Reply(BAD_PARAMETER)
        if self._robot.now_s() - self._released_s < self._reselect_s:
            return Reply(self.busy_code)
        self._mode = str(name)
        self._robot.sport_on = True
        return Reply()

    def _release(self, _: Parameters) -> Reply:
        self._mode = ""
        self._released_s = self._robot.now_s()
        self._robot.sport_on = False
        return Reply()

    def _set_silent(self, p: Parameters) -> Reply:
        self._silent = flag(p, "silent")
        return Reply()


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
    """Service `obstacles_avoid`: its switches, and the goal that the robot walks to."""

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


GET_IMAGE_SAMPLE = 1001
Answer: TypeAlias = Callable[[Reply], None]
Draw: TypeAlias = Callable[[], bytes]


class VideoHub:
    """Accepts requests from any thread; `run` draws in the thread that calls it, until `stop`.

    `open_camera` is entered in that thread and yields a function that returns one JPEG.
    """

    name = "videohub"
    version = "1.0.0.1"

    def __init__(self, open_camera: Callable[[], AbstractContextManager[Draw]]) -> None:
        self._open_camera = open_camera
        self._pending: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self.is_open = False
        """Whether the camera has been opened."""

    def handle(self, api_id: int, parameter: str, answer: Answer) -> None:
        """Queue one request for a frame."""
        del parameter
        if api_id != GET_IMAGE_SAMPLE:
            answer(Reply(NOT_IMPLEMENTED))
        else:
            self._pending.put(answer)

    def stop(self) -> None:
        """Let `run` return."""
        self._pending.put(None)

    def run(self) -> None:
        """Open the camera and draw the requested frames."""
        with self._open_camera() as draw:
            self.is_open = True
            while (waiting := self._next()) is not None:
                jpeg = draw()
                for answer in waiting:
                    answer(Reply(binary=jpeg))

    def _next(self) -> list[Answer] | None:
        """Wait for a request and return all waiting ones; None at the end."""
        waiting = [self._pending.get()]
        while not self._pending.empty():
            waiting.append(self._pending.get())
        answers = [answer for answer in waiting if answer is not None]
        return answers if len(answers) == len(waiting) else None
