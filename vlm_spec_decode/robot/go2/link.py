"""The ports below a Go2 driver, for any transport, and the sport service's calls as messages.

A link is three callers of the sport service and a source of states. Uses neither SDK nor ROS; `robot.go2.sdk`
makes a link over Unitree's SDK, `ros.unitree_topics` one over ROS 2 with `SportCalls`: API id and JSON out,
return code back, as the SDK does it inside.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from vlm_spec_decode.core.errors import RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2.codes import StateTable, is_down, posture_of, state_name
from vlm_spec_decode.robot.spec import LEG_JOINTS, LEG_NAMES


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
        """Wait until `done` is true for the newest state; False if the deadline passes first."""
        ...


@dataclass(frozen=True, slots=True)
class RobotLink:
    """A started driver's connection: three callers, so that no call waits for another's timeout."""

    feed: StateSource
    posture: SportClient
    move: SportClient
    stop: SportClient
    close: Callable[[], None]
    """Disconnect; nothing may be called afterwards."""


def to_state(
    message: Any,
    received_s: float,
    battery_soc: float,
    states: StateTable | None = None,
    joints_rad: tuple[float, ...] = (),
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
    # A translated code is also named by the firmware's own number.
    name = state_name(reported)
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
        posture="unknown" if code is None else posture_of(code),
        code=reported if code is None else code,
        reported_code=reported,
        description=name,
        is_down=is_down(message),
        battery_soc=battery_soc,
        range_obstacle_m=(ranges[0], ranges[1], ranges[2], ranges[3]),
        joints_rad=joints_rad,
    )


NUM_JOINTS = len(LEG_NAMES) * len(LEG_JOINTS)
"""The first motors of a LowState: three of each leg."""


class StateMonitor:
    """The newest state, and whether the robot's stamp still moves. Readable from any thread."""

    def __init__(
        self, clock: Clock, topic: str, stale_after_s: float, states: StateTable | None = None
    ) -> None:
        """Begin without a state. The subscriber of the topics calls `on_sport_state` and `on_low_state`."""
        self._states = states or StateTable()
        self._clock = clock
        self._topic = topic
        self._stale_after_s = stale_after_s
        self._state: RobotState | None = None
        self._progress_s = -math.inf
        self._battery_soc: float | None = None
        self._joints_rad: tuple[float, ...] = ()
        self._is_complete = False

    def is_moving(self) -> bool:
        """Return whether there is a state whose stamp has moved lately."""
        return self._clock.now() - self._progress_s <= self._stale_after_s

    def is_live(self) -> bool:
        """Return whether there is such a state and the battery, which has its own topic, is known too."""
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
        """Wait until `done` is true for the newest state; False if `deadline_s` of the clock passes first."""
        while True:
            state = self._state
            if state is not None and done(state):
                return True
            if self._clock.now() >= deadline_s:
                return False
            self._clock.sleep(0.01)

    def on_sport_state(self, message: Any) -> None:
        """Store a SportModeState."""
        now_s = self._clock.now()
        soc = 0.0 if self._battery_soc is None else self._battery_soc
        old, self._state = self._state, to_state(message, now_s, soc, self._states, self._joints_rad)
        self._is_complete = self._battery_soc is not None
        if old is None or old.stamp_s != self._state.stamp_s:
            self._progress_s = now_s

    def on_low_state(self, message: Any) -> None:
        """Store the battery's charge and the joints' angles from a LowState."""
        soc = message.bms_state.soc / 100
        # The field holds up to 255. Above 100 it is invalid, and the gate refuses an unknown charge.
        self._battery_soc = soc if soc <= 1.0 else math.nan
        angles = tuple(float(motor.q) for motor in message.motor_state[:NUM_JOINTS])
        self._joints_rad = angles if all(map(math.isfinite, angles)) else ()


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One call: its id, the JSON keys of its arguments, and whether the robot answers it."""

    id: int
    keys: tuple[str, ...] = ()
    is_answered: bool = True


APIS: dict[str, ApiCall] = {
    "Damp": ApiCall(1001),
    "BalanceStand": ApiCall(1002),
    "StopMove": ApiCall(1003),
    "StandUp": ApiCall(1004),
    "StandDown": ApiCall(1005),
    "RecoveryStand": ApiCall(1006),
    "Euler": ApiCall(1007, ("x", "y", "z")),
    "Move": ApiCall(1008, ("x", "y", "z"), is_answered=False),
    "Sit": ApiCall(1009),
    "RiseSit": ApiCall(1010),
    "Hello": ApiCall(1016),
    "Stretch": ApiCall(1017),
    "Pose": ApiCall(1028, ("data",)),
}
"""Every call that the postures and the driver make. Acrobatics are not among them."""


class RequestCarrier(Protocol):
    """Sends requests to the robot; its replies go to `PendingReplies.put`, from any thread."""

    def send(self, request_id: int, api: ApiCall, parameter: str) -> bool:
        """Send a request; False if it has no subscriber. Never blocks."""
        ...


class PendingReplies:
    """Matches replies to the callers that wait for them. Safe for threads."""

    def __init__(self, clock: Clock) -> None:
        # As the SDK does: the clock's nanoseconds, so that a restarted client repeats no id.
        self._ids: Iterator[int] = itertools.count(int(clock.now() * 1e9) + 1)
        self._changed = threading.Condition()
        self._codes: dict[int, int | None] = {}

    def expect(self) -> int:
        """Return the id of a new request, whose reply is accepted from now on."""
        with self._changed:
            request_id = next(self._ids)
            self._codes[request_id] = None
            return request_id

    def put(self, request_id: int, code: int) -> None:
        """Store a reply; one that nobody waits for (another client's, or late) is dropped."""
        with self._changed:
            if request_id in self._codes:
                self._codes[request_id] = code
                self._changed.notify_all()

    def wait(self, request_id: int, timeout_s: float) -> int | None:
        """Return the code of a reply, or None if it is late. Its id is not accepted afterwards."""
        with self._changed:
            self._changed.wait_for(lambda: self._codes[request_id] is not None, timeout_s)
            return self._codes.pop(request_id)


class SportCalls:
    """A `SportClient` over a carrier. Codes are the SDK's: 3102 not received, 3104 not answered."""

    def __init__(self, carrier: RequestCarrier, replies: PendingReplies, timeout_s: float) -> None:
        self._carrier = carrier
        self._replies = replies
        self._timeout_s = timeout_s

    def call(self, name: str, *arguments: float) -> int:
        """Make one call and return its code. Raises KeyError for one that is not in `APIS`."""
        api = APIS[name]
        parameter = json.dumps(dict(zip(api.keys, arguments, strict=True)))
        request_id = self._replies.expect()
        is_heard = self._carrier.send(request_id, api, parameter)
        wait_s = self._timeout_s if is_heard and api.is_answered else 0.0
        code = self._replies.wait(request_id, wait_s)
        if not is_heard:
            return codes.CLIENT_SEND
        if not api.is_answered:
            return codes.OK
        return codes.TIMEOUT if code is None else code
