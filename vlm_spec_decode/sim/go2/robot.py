"""The simulated robot as services and topics see it: world, sport states, odometry, battery and faults.

Passes the body's state to the state machine and the machine's commands to the body. One lock makes it safe
for the request thread, the control loop and the render thread. Independent of DDS.

Faults are written `NAME`, `NAME@START` or `NAME@START+DURATION` in seconds. Times count from the first
request on the sport service, so that a fault occurs while the robot works, however late its user starts. Only
`sport_off` counts from the simulator's start.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.sim.go2.state_machine import (
    DOCUMENTED,
    BodyCommand,
    Firmware,
    SportStateMachine,
    StateCode,
    StateRequest,
)
from vlm_spec_decode.sim.physics.kinematic_body import Imu
from vlm_spec_decode.sim.world import World

BURST_PERIOD_S = 4.0
BURST_LENGTH_S = 0.8

FAULTS: dict[str, tuple[float, str]] = {
    "sport_off": (0.0, "the sport service is absent and its state topics are silent"),
    "link_loss": (3.0, "nothing crosses the link any more, while discovery still believes in it"),
    "burst_3102": (2.0, "the sport service's reader vanishes for 0.8 s every 4 s"),
    "burst_3104": (2.0, "requests of all services are lost for 0.8 s every 4 s"),
    "frozen_stamp": (3.0, "the motion computer freezes: calls return 0, body and state stand still"),
    "low_battery": (0.0, "the battery is at 9 % and falls fast"),
    "fall": (3.0, "the robot tips over and needs RecoveryStand"),
}
"""Start time in seconds where none is given, and meaning of each fault."""

_PATTERN = re.compile(r"(?P<name>\w+)(@(?P<start>\d+(\.\d+)?)(\+(?P<duration>\d+(\.\d+)?))?)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and when it is active."""

    name: str
    start_s: float
    duration_s: float = float("inf")


def parse_fault(text: str) -> Fault:
    """Read `NAME[@START[+DURATION]]`. Raises ConfigError that names the known faults."""
    match = _PATTERN.fullmatch(text)
    if match is None or match["name"] not in FAULTS:
        known = ", ".join(sorted(FAULTS))
        raise ConfigError(f"unknown fault {text!r}; NAME[@START_S[+DURATION_S]] with a NAME of: {known}")
    start_s = float(match["start"]) if match["start"] else FAULTS[match["name"]][0]
    return Fault(match["name"], start_s, float(match["duration"]) if match["duration"] else float("inf"))


class FaultSchedule:
    """Tells which faults are active at a given time."""

    def __init__(self, faults: Iterable[Fault], now_s: float) -> None:
        self._faults = tuple(faults)
        self._started_s = now_s
        self._armed_s: float | None = None

    def arm(self, now_s: float) -> None:
        """Record the first sport request; later ones change nothing."""
        if self._armed_s is None:
            self._armed_s = now_s

    def active(self, name: str, now_s: float) -> bool:
        """Return whether a fault of that name is active now."""
        return any(self._is_active(fault, now_s) for fault in self._faults if fault.name == name)

    def _is_active(self, fault: Fault, now_s: float) -> bool:
        origin_s = self._started_s if fault.name == "sport_off" else self._armed_s
        if origin_s is None:
            return False
        age_s = now_s - origin_s - fault.start_s
        if not 0.0 <= age_s < fault.duration_s:
            return False
        return not fault.name.startswith("burst_") or age_s % BURST_PERIOD_S < BURST_LENGTH_S


def update_machine(machine: SportStateMachine, world: World, now_s: float) -> BodyCommand:
    """Give the state machine the body's state, and return its command to the body."""
    if world.has_fallen and not machine.fallen:
        machine.fall(now_s)
    machine.body_settled = world.posture_settled
    return machine.advance(now_s)


def apply_attitude(world: World, wanted: BodyCommand) -> None:
    """Apply the command's attitude to the body; the caller applies the velocity."""
    tilt = wanted.attitude
    world.set_posture(tilt.height_m, tilt.roll_rad, tilt.pitch_rad, tilt.yaw_rad, limp=wanted.limp)


MAX_TICK_S = 0.1
"""The world's longest step after a stall of the loop; the rest of the stall is lost, not caught up."""

FULL_DRAIN_S = 1.5 * 3600
"""A full 8,000 mAh battery lasts one to two hours."""
LOW_BATTERY_SOC = 0.09
LOW_BATTERY_DRAIN_S = 100.0


@dataclass(frozen=True, slots=True)
class Odometry2D:
    """Pose in the odometry frame, whose origin is where the robot was switched on."""

    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The contents of the state topics at one moment of the robot's time."""

    time_s: float
    code: int
    mode: int
    gait: int
    progress: float
    odometry: Odometry2D
    velocity: tuple[float, float, float]
    body_height_m: float
    roll_rad: float
    pitch_rad: float
    yaw_rad: float
    imu: Imu
    joints_rad: tuple[float, ...]
    range_obstacle_m: tuple[float, float, float, float]
    battery_soc: float


class SimulatedRobot:
    """A world, a state machine and a clock behind one lock. `drift` is odometry's scale error (0 is none)."""

    def __init__(
        self,
        world: World,
        clock: Clock,
        faults: FaultSchedule,
        *,
        code: StateCode = StateCode.DAMPING,
        drift: float = 0.0,
        firmware: Firmware = DOCUMENTED,
    ) -> None:
        self.firmware = firmware
        self._world = world
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._machine = SportStateMachine(clock.now(), code)
        self._drift = drift
        self._ticked_s = clock.now()
        self._last_pose = world.pose
        self._odometry = Odometry2D(0.0, 0.0, 0.0)
        self._clearance_m = 0.0
        self._soc = 0.94
        self._fell = False
        self._started_s = clock.now()
        self._frozen: Snapshot | None = None
        self.sport_on = True
        self.auto_recovery = False

    def now_s(self) -> float:
        """Return the time of the robot's clock."""
        return self._clock.now()

    def fault(self, name: str) -> bool:
        """Return whether that fault is active now."""
        return self._faults.active(name, self._clock.now())

    def arm_faults(self) -> None:
        """Start the clock of the faults, if it does not run yet."""
        self._faults.arm(self._clock.now())

    def request(self, request: StateRequest) -> bool:
        """Begin a posture; return whether it is accepted."""
        return self._apply(lambda machine, now_s: machine.request(request, now_s))

    def stop(self) -> bool:
        """End the motion."""
        return self._apply(lambda machine, now_s: machine.stop(now_s))

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float, *, clearance_m: float = 0.0) -> bool:
        """Walk for the next 1 s, not forward within `clearance_m` of something in front."""
        self._clearance_m = clearance_m
        return self._apply(lambda machine, now_s: machine.move(vx_mps, vy_mps, vyaw_radps, now_s))

    def look(self, roll_rad: float, pitch_rad: float, yaw_rad: float) -> bool:
        """Tilt the standing body."""
        return self._apply(lambda machine, now_s: machine.look(roll_rad, pitch_rad, yaw_rad, now_s))

    def set_gait(self, gait: StateCode) -> bool:
        """Choose the gait that walking reports."""
        return self._apply(lambda machine, now_s: machine.set_gait(gait, now_s))

    def set_speed_level(self, level: int) -> None:
        """Choose the share of the velocity limits; -1, 0 or 1."""
        with self._lock:
            self._machine.speed_level = level

    def odometry(self) -> Odometry2D:
        """Return the pose in the odometry frame."""
        with self._lock:
            return self._odometry

    @contextmanager
    def drawing(self) -> Iterator[World]:
        """Yield the world for drawing. The control loop waits meanwhile, so keep it short."""
        with self._lock:
            yield self._world

    def tick(self) -> None:
        """Advance robot and world to the clock's now; called at the control rate."""
        with self._lock:
            now_s = self._clock.now()
            dt_s, self._ticked_s = min(now_s - self._ticked_s, MAX_TICK_S), now_s
            if self._faults.active("fall", now_s) and not self._fell:
                self._fell = True
                self._machine.fall(now_s)
                self._world.topple()
            self._drive(now_s)
            self._world.step(dt_s)
            self._integrate()
            low = self._faults.active("low_battery", now_s)
            self._soc = min(self._soc, LOW_BATTERY_SOC) if low else self._soc
            self._soc = max(0.0, self._soc - dt_s / (LOW_BATTERY_DRAIN_S if low else FULL_DRAIN_S))

    def snapshot(self) -> Snapshot:
        """Return the state to publish; always the same one while the stamp is frozen."""
        with self._lock:
            now_s = self._clock.now()
            if not self._faults.active("frozen_stamp", now_s):
                self._frozen = None
                return self._observe(now_s)
            if self._frozen is None:
                self._frozen = self._observe(now_s)
            return self._frozen

    def _apply(self, act: Callable[[SportStateMachine, float], bool]) -> bool:
        with self._lock:
            now_s = self._clock.now()
            if self._faults.active("frozen_stamp", now_s):
                return True
            return act(self._machine, now_s)

    def _drive(self, now_s: float) -> None:
        body = update_machine(self._machine, self._world, now_s)
        vx, vy, vyaw = body.vx_mps, body.vy_mps, body.vyaw_radps
        if self._faults.active("frozen_stamp", now_s):
            vx = vy = vyaw = 0.0
        elif vx > 0.0 and self._clearance_m > 0.0 and self._world.range_obstacle()[0] < self._clearance_m:
            vx = 0.0
        self._world.command(vx, vy, vyaw)
        apply_attitude(self._world, body)

    def _integrate(self) -> None:
        """Add the step just made to the odometry, in the body's own frame and with its scale error."""
        old, new = self._last_pose, self._world.pose
        self._last_pose = new
        dx, dy = new.x_m - old.x_m, new.y_m - old.y_m
        turn = math.remainder(new.yaw_rad - old.yaw_rad, 2 * math.pi)
        angle = self._odometry.yaw_rad - old.yaw_rad
        cos, sin = math.cos(angle), math.sin(angle)
        scale = 1.0 + self._drift
        self._odometry = Odometry2D(
            self._odometry.x_m + scale * (cos * dx - sin * dy),
            self._odometry.y_m + scale * (sin * dx + cos * dy),
            math.remainder(self._odometry.yaw_rad + scale * turn, 2 * math.pi),
        )

    def _observe(self, now_s: float) -> Snapshot:
        world, machine = self._world, self._machine
        roll, pitch, yaw = world.attitude
        return Snapshot(
            time_s=now_s - self._started_s,
            code=self.firmware.code(machine.code),
            mode=machine.legacy_mode if self.firmware.fills_mode else 0,
            gait=machine.gait_type if self.firmware.fills_mode else 0,
            progress=machine.progress(now_s),
            odometry=self._odometry,
            velocity=world.velocity,
            body_height_m=world.body_height_m,
            roll_rad=roll,
            pitch_rad=pitch,
            yaw_rad=math.remainder(yaw - world.pose.yaw_rad + self._odometry.yaw_rad, 2 * math.pi),
            imu=world.imu,
            joints_rad=world.joint_angles,
            range_obstacle_m=world.range_obstacle(),
            battery_soc=self._soc,
        )
