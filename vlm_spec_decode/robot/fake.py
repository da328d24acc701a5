"""A computed robot: it behaves to the executor as a walking robot does, in wall or virtual time.

A velocity lasts 1 s, postures take seconds, the state is refreshed at a fixed rate, faults are switched by
name, discs are obstacles. There is no DDS and no gait. The body advances to the clock's time at each call.
`FakeCamera` shows the discs as coloured columns, so that a mission has something to look at.
"""

from __future__ import annotations

import io
import math
import threading
from collections import deque
from dataclasses import dataclass, field, replace

from PIL import Image as PilImage
from PIL import ImageDraw

from vlm_spec_decode.core.errors import RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import POSTURES, WALKING, Posture, RobotState
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.robot.registry import RobotAddress, RobotKind, RobotParts, check_settings
from vlm_spec_decode.robot.spec import Hull, RobotSpec

Velocity = tuple[float, float, float]
"""Forward and left in m/s, to the left in rad/s."""

SPEC = RobotSpec(
    name="fake",
    title="a robot made of arithmetic, in this process",
    hull=Hull(length_m=0.70, width_m=0.32, height_m=0.40),
    max_speed_mps=1.0,
    max_turn_radps=2.0,
    postures=POSTURES,
    gestures=("hello", "stretch"),
    tilts=True,
    sensors=frozenset({"camera", "ranges", "battery"}),
)
HULL_HALF_M = SPEC.hull.half_m
"""Half length and half width of the body; ranges are measured from its edges."""

STEP_S = 0.005
STILL: Velocity = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class FakeBody:
    """How the body responds to a velocity command."""

    delay_s: float = 0.03
    lag_s: float = 0.12
    accel_mps2: float = 4.0
    turn_accel_radps2: float = 14.0
    state_period_s: float = 0.02


@dataclass(frozen=True, slots=True)
class Disc:
    """An upright cylinder in the odometry frame."""

    x_m: float
    y_m: float
    radius_m: float = 0.2


@dataclass(slots=True)
class FakeMotion:
    """First-order lag after a command delay, with bounded acceleration; advanced to any later time."""

    body: FakeBody
    discs: tuple[Disc, ...]
    done_s: float
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    velocity: Velocity = STILL
    _target: Velocity = STILL
    _hold_until_s: float = math.inf
    _pending: deque[tuple[float, Velocity, float]] = field(default_factory=deque)

    def command(self, now_s: float, velocity: Velocity, hold_s: float) -> None:
        """Set a velocity that begins after the delay and ends by itself `hold_s` from now."""
        self._pending.append((now_s + self.body.delay_s, velocity, now_s + hold_s))

    def advance(self, now_s: float) -> None:
        """Advance to the time `now_s`."""
        while now_s - self.done_s > 1e-9:
            dt_s = min(STEP_S, now_s - self.done_s)
            self.done_s += dt_s
            self._step(self.done_s, dt_s)

    def range_m(self, side: int) -> float:
        """Return what is free in front, left, behind or right (0 to 3), over the width of the body."""
        x, y, yaw = self.pose
        heading = yaw + side * math.pi / 2
        reach, half = HULL_HALF_M[side % 2], HULL_HALF_M[1 - side % 2]
        nearest = math.inf
        for disc in self.discs:
            dx, dy = disc.x_m - x, disc.y_m - y
            ahead = dx * math.cos(heading) + dy * math.sin(heading)
            off = max(0.0, abs(-dx * math.sin(heading) + dy * math.cos(heading)) - half)
            if ahead > 0 and off < disc.radius_m:
                gap = ahead - math.sqrt(disc.radius_m**2 - off**2) - reach
                nearest = min(nearest, max(0.0, gap))
        return nearest

    def _step(self, now_s: float, dt_s: float) -> None:
        while self._pending and self._pending[0][0] <= now_s + 1e-9:
            _, self._target, self._hold_until_s = self._pending.popleft()
        if now_s > self._hold_until_s:
            self._target = STILL
        fraction = min(1.0, dt_s / self.body.lag_s)
        limits = (self.body.accel_mps2, self.body.accel_mps2, self.body.turn_accel_radps2)
        moved = [
            v + min(max((target - v) * fraction, -limit * dt_s), limit * dt_s)
            for v, target, limit in zip(self.velocity, self._target, limits, strict=True)
        ]
        vx, vy, vyaw = (0.0 if abs(v) < 1e-4 else v for v in moved)
        if self._is_blocked(vx, vy):
            vx = vy = 0.0
        x, y, yaw = self.pose
        self.velocity = (vx, vy, vyaw)
        self.pose = (
            x + (vx * math.cos(yaw) - vy * math.sin(yaw)) * dt_s,
            y + (vx * math.sin(yaw) + vy * math.cos(yaw)) * dt_s,
            yaw + vyaw * dt_s,
        )

    def _is_blocked(self, vx_mps: float, vy_mps: float) -> bool:
        if not self.discs:
            return False
        sides = [0 if vx_mps > 0 else 2] * (vx_mps != 0) + [1 if vy_mps > 0 else 3] * (vy_mps != 0)
        return any(self.range_m(side) <= 0.001 for side in sides)


HOLD_S = 1.0
"""How long one Move lasts on the robot."""

STALE_S = 0.5
"""After this long without a new stamp `state` raises instead of returning an old state."""

_STOP_TIMEOUT_S = 2.0
_POLL_S = 0.01

_STANDING: frozenset[Posture] = WALKING | {"lock"}
_LOW: frozenset[Posture] = frozenset({"damp", "lie"})
_SITTING: frozenset[Posture] = frozenset({"sit"})
_ALL: frozenset[Posture] = _LOW | _STANDING | _SITTING | {"act"}

_RULES: dict[str, tuple[frozenset[Posture], Posture, float]] = {
    "stand_up": (_LOW | _STANDING, "lock", 1.2),
    "stand_down": (_LOW | _STANDING, "lie", 1.2),
    "sit": (_STANDING | _SITTING, "sit", 1.0),
    "rise": (_SITTING, "stand", 1.0),
    "hello": (WALKING, "stand", 3.0),
    "stretch": (WALKING, "stand", 4.0),
    "recovery_stand": (_LOW | _STANDING, "stand", 1.5),
    "balance_stand": (_STANDING, "stand", 0.3),
    "damp": (_ALL, "damp", 0.6),
}
"""Posture: states it starts from, state it ends in, its duration in seconds. The last three are for
operators."""


@dataclass(slots=True)
class FakeFaults:
    """Faults, switched by tests at any time.

    `frozen_stamp`: the state stands still while all calls succeed; `unreachable`: no call is answered;
    `stuck`: Move has no effect; `deaf`: stop has no effect; `refuse`: names of calls (postures, `look`,
    `move`) that are refused.
    """

    frozen_stamp: bool = False
    unreachable: bool = False
    stuck: bool = False
    deaf: bool = False
    refuse: frozenset[str] = frozenset()


class FakeRobot:
    """A computed `RobotDriver`; safe for threads. `calls` records each call with its time.

    It begins lying in damping at the origin, as a real robot does before `start`.
    """

    def __init__(self, clock: Clock, body: FakeBody | None = None, discs: tuple[Disc, ...] = ()) -> None:
        self.faults = FakeFaults()
        self.battery_soc = 1.0
        self.calls: list[tuple[float, str]] = []
        self._clock = clock
        self._motion = FakeMotion(body or FakeBody(), discs, clock.now())
        self._tilt = (0.0, 0.0)
        self._posture: Posture = "damp"
        self._act: object | None = None
        self._published: RobotState | None = None
        self._closed = False
        self._lock = threading.RLock()

    def start(self) -> None:
        """Get up into a state that walks, also from sitting."""
        self.posture("rise" if self._posture == "sit" else "recovery_stand")

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Command a velocity for 1 s; without effect in states that do not walk."""
        with self._lock:
            self._begin_call(f"move({vx_mps:.3f},{vy_mps:.3f},{vyaw_radps:.3f})")
            if "move" in self.faults.refuse:
                raise RobotRefused("move", "the request could not be sent")
            if self._posture in WALKING and self._act is None and not self.faults.stuck:
                self._motion.command(self._clock.now(), (vx_mps, vy_mps, vyaw_radps), HOLD_S)

    def stop(self) -> None:
        """End all motion and wait for standstill. Raises RobotRefused if it does not come."""
        with self._lock:
            self._begin_call("stop")
            wanted = self._motion.velocity if self.faults.deaf else STILL
            self._motion.command(self._clock.now(), wanted, math.inf)
        give_up_s = self._clock.now() + _STOP_TIMEOUT_S
        while not self.state().is_still:
            if self._clock.now() > give_up_s:
                raise RobotRefused("stop", "the body still moves")
            self._clock.sleep(_POLL_S)

    def posture(self, name: str) -> None:
        """Carry out a posture, in its duration. Raises RobotRefused from an unsuitable state."""
        with self._lock:
            self._begin_call(name)
            if name not in _RULES:
                raise RobotRefused(name, f"unknown; known: {', '.join(_RULES)}")
            sources, target, duration_s = _RULES[name]
            busy = self._act is not None and name != "damp"
            if name in self.faults.refuse or busy or self._posture not in sources:
                raise RobotRefused(name, "posture unsuitable for the action")
            self._motion.command(self._clock.now(), STILL, math.inf)
            act = self._act = object()
        self._clock.sleep(duration_s)
        with self._lock:
            self._motion.advance(self._clock.now())
            if self._act is act:  # not overtaken by damp
                self._act = None
                self._posture, self._tilt, self._published = target, (0.0, 0.0), None

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Tilt the body at once. Raises RobotRefused if it does not stand."""
        with self._lock:
            self._begin_call(f"look({pitch_rad:.3f},{yaw_rad:.3f})")
            if "look" in self.faults.refuse or self._act is not None or self._posture not in WALKING:
                raise RobotRefused("look", "posture unsuitable for the action")
            self._tilt, self._published = (0.0, pitch_rad), None

    def state(self) -> RobotState:
        """Return the state of the last refresh. Raises RobotStale once the stamp stands still for 0.5 s."""
        with self._lock:
            self._begin_call("")
            now_s, old = self._clock.now(), self._published
            age_s = math.inf if old is None else now_s - old.stamp_s
            if old is not None and self.faults.frozen_stamp:
                if age_s > STALE_S:
                    raise RobotStale(f"the stamp stands still for {age_s:.2f} s")
                return replace(old, received_s=now_s)
            if old is None or age_s > self._motion.body.state_period_s - 1e-9:
                old = self._published = self._snapshot(now_s)
            return old

    def close(self) -> None:
        """Stop and refuse everything from now on. Idempotent."""
        with self._lock:
            self._motion.command(self._clock.now(), STILL, math.inf)
            self._closed = True

    def fall(self) -> None:
        """Tip over into damping."""
        with self._lock:
            self._begin_call("")
            self._posture, self._tilt, self._published = "damp", (1.2, 0.0), None
            self._motion.command(self._clock.now(), STILL, math.inf)

    def set_pose(self, x_m: float, y_m: float, yaw_rad: float) -> None:
        """Set the robot's pose at once; it stands."""
        with self._lock:
            self._begin_call("")
            self._motion.pose, self._posture, self._published = (x_m, y_m, yaw_rad), "stand", None

    def set_discs(self, *discs: Disc) -> None:
        """Replace the obstacles."""
        with self._lock:
            self._begin_call("")
            self._motion.discs, self._published = discs, None

    @property
    def discs(self) -> tuple[Disc, ...]:
        """The obstacles."""
        return self._motion.discs

    @property
    def true_pose(self) -> tuple[float, float, float]:
        """x, y and unwrapped yaw at the clock's now, whatever the state message says."""
        with self._lock:
            self._motion.advance(self._clock.now())
            return self._motion.pose

    def _begin_call(self, call: str) -> None:
        if self._closed or self.faults.unreachable:
            raise RobotUnreachable("the fake robot does not answer")
        self._motion.advance(self._clock.now())
        if call:
            self.calls.append((self._clock.now(), call))

    def _snapshot(self, now_s: float) -> RobotState:
        x, y, yaw = self._motion.pose
        vx, vy, vyaw = self._motion.velocity
        walking = self._posture in WALKING and math.hypot(vx, vy) + abs(vyaw) > 0.01
        posture: Posture = "act" if self._act is not None else "walk" if walking else self._posture
        ranges = [self._motion.range_m(side) for side in range(4)]
        return RobotState(
            stamp_s=now_s,
            received_s=now_s,
            x_m=x,
            y_m=y,
            yaw_rad=math.remainder(yaw, 2 * math.pi),
            vx_mps=vx,
            vy_mps=vy,
            vyaw_radps=vyaw,
            roll_rad=self._tilt[0],
            pitch_rad=self._tilt[1],
            body_height_m=0.31 if self._posture in _STANDING else 0.1,
            posture=posture,
            battery_soc=self.battery_soc,
            range_obstacle_m=(ranges[0], ranges[1], ranges[2], ranges[3]),
        )


FRAME_PX = (320, 180)
HORIZON = 0.45
"""Row of the horizon in a frame, as a fraction of its height."""

FOCAL_PX = 160.0
COLOURS = ("#c83232", "#3264c8", "#32a03c", "#dcb428")


class FakeCamera:
    """A `Camera` on a `FakeRobot`: floor, wall, and each disc as a column, by a pinhole's geometry."""

    def __init__(self, robot: FakeRobot, clock: Clock) -> None:
        self._robot, self._clock = robot, clock
        self._closed = False

    def frame(self) -> tuple[Image, float]:
        """Return what the robot sees now. Raises RobotUnreachable once closed."""
        if self._closed:
            raise RobotUnreachable("the camera has been closed")
        now_s, (x, y, yaw) = self._clock.now(), self._robot.true_pose
        width, height = FRAME_PX
        picture = PilImage.new("RGB", FRAME_PX, "#d8d4cc")
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, HORIZON * height, width, height), fill="#8c7864")
        for index, disc in enumerate(self._robot.discs):
            ahead = (disc.x_m - x) * math.cos(yaw) + (disc.y_m - y) * math.sin(yaw)
            left = -(disc.x_m - x) * math.sin(yaw) + (disc.y_m - y) * math.cos(yaw)
            if ahead <= disc.radius_m:
                continue
            scale = FOCAL_PX / ahead  # pixels per metre at that distance
            middle, half = width / 2 - left * scale, disc.radius_m * scale
            foot = HORIZON * height + 0.3 * scale  # the camera looks level from 0.3 m above the floor
            draw.rectangle((middle - half, foot - 0.6 * scale, middle + half, foot), fill=COLOURS[index % 4])
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        return Image(buffer.getvalue(), width, height), now_s

    def close(self) -> None:
        """Close the camera: `frame` raises from now on. Idempotent."""
        self._closed = True


def _connect(address: RobotAddress, clock: Clock) -> RobotParts:
    check_settings(ROBOT, address)
    robot = FakeRobot(clock, discs=(Disc(2.5, 0.3),))
    return RobotParts(driver=robot, open_camera=lambda: FakeCamera(robot, clock))


ROBOT = RobotKind(SPEC, _connect)
