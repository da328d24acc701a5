"""The simulated Go2 without DDS or wall time: driver and camera ports straight on a world.

For training and evaluation. Time is that of the given clock: with a `VirtualClock` an episode runs as fast as
the machine computes it, and gives the same states every time. The world advances to the clock's time at each
call, so it never runs ahead of the clock.
"""

from __future__ import annotations

import math

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import RobotRefused, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.robot import Posture, RobotState
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.go2.robot import apply_attitude, update_machine
from vlm_spec_decode.sim.go2.services import NOT_IMPLEMENTED, UNSUITABLE_POSTURE
from vlm_spec_decode.sim.go2.state_machine import RULES, SportStateMachine, StateCode, StateRequest
from vlm_spec_decode.sim.world import World

TICK_S = 0.01
_REQUESTS: dict[str, StateRequest] = {
    "stand_up": StateRequest.STAND_UP,
    "stand_down": StateRequest.STAND_DOWN,
    "sit": StateRequest.SIT,
    "rise": StateRequest.RISE_SIT,
    "hello": StateRequest.HELLO,
    "stretch": StateRequest.STRETCH,
    "recovery_stand": StateRequest.RECOVERY_STAND,
    "balance_stand": StateRequest.BALANCE_STAND,
    "damp": StateRequest.DAMP,
}
_POSTURES: dict[StateCode, Posture] = {
    StateCode.DAMPING: "damp",
    StateCode.STANDING_LOCK: "lock",
    StateCode.CROUCH: "lie",
    StateCode.ACTING: "act",
    StateCode.SIT: "sit",
    StateCode.BALANCE_STAND: "stand",
    StateCode.POSE: "pose",
}
"""Postures of the machine's states; every other state walks."""

_UNSUITABLE = "posture unsuitable for the action"
_STOP_TIMEOUT_S = 3.0
_POSTURE_SLACK_S = 4.0


class HeadlessGo2:
    """`RobotDriver` and `Camera` on a `World`. One thread only.

    The odometry frame is where the robot stood when the world was attached; it does not drift. A frame is
    rendered when it is asked for, at the camera's size.
    """

    def __init__(
        self,
        world: World,
        clock: Clock | None = None,
        *,
        camera: FrontCamera | None = None,
        jpeg_quality: int = 85,
    ) -> None:
        self.clock = clock or VirtualClock()
        self._jpeg_quality = jpeg_quality
        self._camera = camera
        self._closed = False
        self.attach(world)

    def attach(self, world: World) -> None:
        """Begin a new episode in another world, lying down. Clock and GL context are kept."""
        self.world = world
        self._machine = SportStateMachine(0.0, StateCode.DAMPING)
        self._began_s = self.clock.now()
        self._ticks = 0
        self._origin = world.pose
        if self._camera is not None:
            self._camera.attach(world)

    def start(self) -> None:
        """Get up and unlock the joints: RecoveryStand, which ends in balance stand."""
        self._check_open()
        is_locked = self._machine.code == StateCode.STANDING_LOCK
        self.posture("balance_stand" if is_locked else "recovery_stand")

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Command a body velocity for at most 1 s. Ignored in states that do not walk."""
        self._catch_up()
        self._machine.move(vx_mps, vy_mps, vyaw_radps, self._episode_s)

    def stop(self) -> None:
        """End all motion and wait on the clock for standstill. Raises RobotRefused if it does not come."""
        self._catch_up()
        self._machine.stop(self._episode_s)
        give_up_s = self.clock.now() + _STOP_TIMEOUT_S
        while not self.state().is_still:
            if self.clock.now() > give_up_s:
                raise RobotRefused("stop", "the body still moves")
            self.clock.sleep(TICK_S)

    def posture(self, name: str) -> None:
        """Carry out a posture and wait on the clock for it. Raises RobotRefused from an unsuitable state."""
        if name not in _REQUESTS:
            raise RobotRefused(name, f"unknown; known: {', '.join(_REQUESTS)}", NOT_IMPLEMENTED)
        self._catch_up()
        ask, rule = _REQUESTS[name], RULES[_REQUESTS[name]]
        if not self._machine.request(ask, self._episode_s):
            raise RobotRefused(name, _UNSUITABLE, UNSUITABLE_POSTURE)
        give_up_s = self.clock.now() + rule.duration_s + _POSTURE_SLACK_S
        self.clock.sleep(rule.duration_s)
        self._catch_up()
        while not (self._machine.code == rule.target and self.world.posture_settled):
            if self.clock.now() > give_up_s:
                raise RobotRefused(name, "the posture was not reached in time")
            self.clock.sleep(TICK_S)
            self._catch_up()

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Begin to tilt the body; the state shows when it is done. Raises RobotRefused if not standing."""
        self._catch_up()
        if not self._machine.look(0.0, pitch_rad, yaw_rad, self._episode_s):
            raise RobotRefused("look", _UNSUITABLE, UNSUITABLE_POSTURE)

    def state(self) -> RobotState:
        """Return the state at the clock's now."""
        self._check_open()
        self._catch_up()
        world, now_s = self.world, self.clock.now()
        x, y, yaw = _relative(world.pose, self._origin)
        roll, pitch, _ = world.attitude
        vx, vy, vyaw = world.velocity
        return RobotState(
            stamp_s=now_s,
            received_s=now_s,
            x_m=x,
            y_m=y,
            yaw_rad=yaw,
            vx_mps=vx,
            vy_mps=vy,
            vyaw_radps=vyaw,
            roll_rad=roll,
            pitch_rad=pitch,
            body_height_m=world.body_height_m,
            posture=_POSTURES.get(StateCode(self._machine.code), "walk"),
            code=int(self._machine.code),
            range_obstacle_m=world.range_obstacle(),
        )

    def frame(self) -> tuple[Image, float]:
        """Render the front camera's view. Opens a 640 x 360 camera if none was given."""
        self._check_open()
        self._catch_up()
        if self._camera is None:
            self._camera = FrontCamera(self.world)
        jpeg = self._camera.jpeg(self._jpeg_quality)
        return Image(jpeg, self._camera.width_px, self._camera.height_px), self.clock.now()

    def close(self) -> None:
        """Free the camera, also a given one. Idempotent."""
        self._closed = True
        if self._camera is not None:
            self._camera.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RobotUnreachable("the simulated robot is closed")

    @property
    def _episode_s(self) -> float:
        """Time since the world was attached, in whole ticks, so that the clock's rounding has no effect."""
        return self._ticks * TICK_S

    def _catch_up(self) -> None:
        """Advance states and world tick by tick to the clock's time, without the last incomplete tick."""
        due = int((self.clock.now() - self._began_s) / TICK_S + 1e-6)
        while self._ticks < due:
            self._drive()
            self.world.step(TICK_S)
            self._ticks += 1
        self._drive()

    def _drive(self) -> None:
        body = update_machine(self._machine, self.world, self._episode_s)
        self.world.command(body.vx_mps, body.vy_mps, body.vyaw_radps)
        apply_attitude(self.world, body)


def _relative(pose: Pose2D, origin: Pose2D) -> tuple[float, float, float]:
    """Return x, y and yaw of `pose` in the frame of `origin`."""
    dx, dy = pose.x_m - origin.x_m, pose.y_m - origin.y_m
    cos, sin = math.cos(origin.yaw_rad), math.sin(origin.yaw_rad)
    yaw = math.remainder(pose.yaw_rad - origin.yaw_rad, 2 * math.pi)
    return (cos * dx + sin * dy, -sin * dx + cos * dy, yaw)
