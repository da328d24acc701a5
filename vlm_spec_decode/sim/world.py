"""The room with the robot in it, advanced in small steps of virtual time, and its range sensor.

The base is kinematic: it follows velocity commands with delay, lag and limits (`sim.physics.kinematic_body`)
and is stopped by obstacles, as MuJoCo's collision detection finds them. The range sensor reports the free
distance on the robot's four sides. Independent of cameras, services and wall time. Not thread-safe: threads
that share a world need a lock.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.objects import SceneObject, distance_to_footprint
from vlm_spec_decode.sim.physics import room_model
from vlm_spec_decode.sim.physics.kinematic_body import (
    GO2_LIMITS,
    STAND_HEIGHT_M,
    STRIDE_HZ,
    BodyLimits,
    Imu,
    Posture,
    Shape,
    VelocityServo,
    joint_angles,
    trotting,
)
from vlm_spec_decode.sim.physics.room_model import GROUP_ROOM, HULL_HALF_M, WorldModel
from vlm_spec_decode.sim.scene import Scene, facing

RANGE_MAX_M = 8.0
_HEIGHTS_M = (0.07, 0.20, 0.36, 0.39)
_SPREAD = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)


def ranges(built: WorldModel, data: mujoco.MjData, pose: Pose2D) -> tuple[float, float, float, float]:
    """Return metres free in front, left, rear and right, measured from the body box; infinity beyond 8 m.

    Each side sends parallel rays over the width of the body at four heights up to its back, so the
    answer is how far the body could move that way. What is lower than 7 cm is missed; the robot's own
    sensors miss more than that.
    """
    mujoco.mj_kinematics(built.model, data)
    front, left, rear, right = (_side(built, data, pose, side) for side in range(4))
    return (front, left, rear, right)


def _side(built: WorldModel, data: mujoco.MjData, pose: Pose2D, side: int) -> float:
    reach, half = HULL_HALF_M[side % 2], HULL_HALF_M[1 - side % 2]
    yaw = pose.yaw_rad + side * math.pi / 2
    ahead = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    groups = np.zeros(6, dtype=np.uint8)
    groups[GROUP_ROOM] = 1
    hit = np.zeros(1, dtype=np.int32)
    nearest = math.inf
    for height in _HEIGHTS_M:
        for share in _SPREAD:
            x = pose.x_m - ahead[1] * share * half
            y = pose.y_m + ahead[0] * share * half
            start = np.array([x, y, height])
            far = mujoco.mj_ray(built.model, data, start, ahead, groups, 1, -1, hit)
            if far >= 0:
                nearest = min(nearest, max(0.0, far - reach))
    return nearest if nearest <= RANGE_MAX_M else math.inf


STEP_S = 0.005
GRAVITY_MPS2 = 9.81
_TOUCH_M = 0.02
"""A touched object counts as touched until the body is this far from it."""

Vec3 = tuple[float, float, float]


class World:
    """One room and one robot; the same scene, seed and calls give the same states.

    `collisions` counts onsets of contact; `touching` names what is in contact now (objects, or
    "east wall", "north wall", "west wall", "south wall" for +x, +y, -x, -y).
    """

    def __init__(
        self, scene: Scene, *, seed: int = 0, limits: BodyLimits = GO2_LIMITS, pose: Pose2D | None = None
    ) -> None:
        """Build the room. Raises SceneError if the robot does not fit at its pose."""
        self.scene = scene
        self.limits = limits
        self.rng = np.random.default_rng([seed, 0x60])
        self.built = room_model.build(scene)
        self.data = mujoco.MjData(self.built.model)
        self.collisions = 0
        self.touching: frozenset[str] = frozenset()
        self._steps = 0
        self._owed_s = 0.0
        self._phase = 0.0
        self._shown: Shape | None = None
        self._by_name = {item.name: item for item in scene.objects}
        self.teleport(pose or scene.start)

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model."""
        return self.built.model

    @property
    def time_s(self) -> float:
        """Virtual seconds since the world was made."""
        return self._steps * STEP_S

    @property
    def pose(self) -> Pose2D:
        """Pose of the base; its yaw is in (-pi, pi]."""
        return self._pose

    @property
    def velocity(self) -> Vec3:
        """Body velocity vx, vy (m/s) and vyaw (rad/s)."""
        return self._servo.velocity

    @property
    def body_height_m(self) -> float:
        """Height of the base frame over the floor."""
        return self._posture.height_m

    @property
    def attitude(self) -> Vec3:
        """Roll, pitch (nose down positive) and yaw of the trunk in the room, radians."""
        roll, pitch, yaw = self._posture.tilt_rad
        return (roll, pitch, _wrap(self._pose.yaw_rad + yaw))

    @property
    def posture_settled(self) -> bool:
        """Whether the last `set_posture` has been reached."""
        return self._posture.is_settled

    @property
    def joint_angles(self) -> tuple[float, ...]:
        """The 12 leg joints in radians, FR FL RR RL x hip, thigh, calf."""
        posture = self._posture
        return joint_angles(posture.height_m, posture.tilt_rad, self.velocity, self._phase)

    @property
    def has_fallen(self) -> bool:
        """Whether the body has fallen over; a kinematic one does not."""
        return False

    @property
    def imu(self) -> Imu:
        """The values of an inertial sensor in this attitude: yaw rate and gravity."""
        roll, pitch, _ = self.attitude
        ahead, left = -math.sin(pitch), math.sin(roll) * math.cos(pitch)
        # A sensor at rest measures the floor's push, g upwards, in axes that tilt with the trunk.
        up = math.cos(roll) * math.cos(pitch)
        felt = (GRAVITY_MPS2 * ahead, GRAVITY_MPS2 * left, GRAVITY_MPS2 * up)
        return Imu((0.0, 0.0, self.velocity[2]), felt)

    def command(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Set the velocity target (body frame, x forward, y left, yaw left); it holds until the next."""
        self._servo.command(self.time_s, (vx_mps, vy_mps, vyaw_radps))

    def set_posture(
        self,
        height_m: float = STAND_HEIGHT_M,
        roll_rad: float = 0.0,
        pitch_rad: float = 0.0,
        yaw_rad: float = 0.0,
        *,
        limp: bool = False,
    ) -> None:
        """Move the trunk over its feet; nose down is positive pitch. `limp` is for bodies with weight."""
        self._set_limp(limp)
        self._posture.set_target(height_m, roll_rad, pitch_rad, yaw_rad)

    def _set_limp(self, limp: bool) -> None:
        """Release all joints, or hold them again; does nothing for a kinematic body."""

    def topple(self) -> None:
        """Make the body fall; a kinematic one falls by its posture alone."""

    def teleport(self, pose: Pose2D) -> None:
        """Set the robot's pose, standing and at rest. Raises SceneError if it does not fit there."""
        if not self.is_free(pose):
            raise SceneError(f"the robot does not fit at x {pose.x_m:.2f}, y {pose.y_m:.2f} m")
        self._pose = Pose2D(pose.x_m, pose.y_m, _wrap(pose.yaw_rad))
        self._servo = VelocityServo(self.limits)
        self._posture = Posture(self.limits)
        self._shown = None
        self.touching = frozenset()

    def step(self, dt_s: float) -> None:
        """Advance by `dt_s`, in steps of 5 ms; a remainder is kept for the next call."""
        self._owed_s += dt_s
        # The small number keeps a step that rounding has made slightly too short.
        count = int(self._owed_s / STEP_S + 1e-6)
        self._owed_s -= count * STEP_S
        for _ in range(count):
            self._step()

    def sync(self) -> None:
        """Update MuJoCo's data to the present state. Call it before drawing."""
        shape = self._shown or self.shape
        self._place(self._pose)
        qpos = self.data.qpos
        qpos[3:7] = (shape.height_m, shape.yaw_rad, shape.pitch_rad, shape.roll_rad)
        qpos[self.built.joints] = shape.joints_rad
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    @property
    def shape(self) -> Shape:
        """The body's shape, for drawing."""
        return trotting(self._posture.height_m, self._posture.tilt_rad, self.velocity, self._phase)

    def show(self, pose: Pose2D, shape: Shape) -> None:
        """Draw this pose and shape until the next `teleport`, for pictures of a run that has ended."""
        self._pose, self._shown = pose, shape

    def is_free(self, pose: Pose2D) -> bool:
        """Whether the body box fits at `pose` without touching anything, inside the room."""
        inside = self.scene.length_m / 2 > abs(pose.x_m) and self.scene.width_m / 2 > abs(pose.y_m)
        return inside and not any(depth < 0 for _, depth in self._contacts(pose))

    def range_obstacle(self) -> tuple[float, float, float, float]:
        """Metres free in front, left, rear and right of the body box; infinity beyond 8 m."""
        return ranges(self.built, self.data, self._pose)

    def distance_to(self, name: str) -> float:
        """Metres from the base's centre to the object's footprint. Raises SceneError for an unknown name."""
        return distance_to_footprint(self.object(name), self._pose.x_m, self._pose.y_m)

    def bearing_to(self, name: str) -> float:
        """Bearing of the object's centre from the body's heading, radians, left positive."""
        item = self.object(name)
        return facing(self._pose, item.x_m, item.y_m)

    def object(self, name: str) -> SceneObject:
        """Return the object of that name. Raises SceneError if there is none."""
        if name not in self._by_name:
            raise SceneError(f"no {name!r} in this scene; it holds: {', '.join(self._by_name) or 'nothing'}")
        return self._by_name[name]

    def _step(self) -> None:
        self._steps += 1
        self._posture.advance(STEP_S)
        vx, vy, vyaw = self._servo.advance(self.time_s, STEP_S)
        if vx == vy == vyaw == 0.0:
            return
        self._phase = (self._phase + STRIDE_HZ * STEP_S) % 1.0
        old = self._pose
        # Midpoint rule: x += v cos(yaw + vyaw dt / 2) dt, so that a curve does not widen with the step.
        yaw = old.yaw_rad + 0.5 * vyaw * STEP_S
        cos, sin = math.cos(yaw), math.sin(yaw)
        new = Pose2D(
            old.x_m + (cos * vx - sin * vy) * STEP_S,
            old.y_m + (sin * vx + cos * vy) * STEP_S,
            _wrap(old.yaw_rad + vyaw * STEP_S),
        )
        self._move_to(new)

    def _move_to(self, new: Pose2D) -> None:
        """Move to `new`, or stay with zero velocity if an obstacle is in the way."""
        contacts = self._contacts(new)
        hit = frozenset(name for name, depth in contacts if depth < 0)
        near = frozenset(name for name, depth in contacts if depth < _TOUCH_M)
        # One touch is one collision: it counts again only after the body has left the margin `_TOUCH_M`.
        self.collisions += len(hit - self.touching)
        self.touching = hit | (self.touching & near)
        if hit:
            self._servo.halt()
        else:
            self._pose = new

    def _contacts(self, pose: Pose2D) -> list[tuple[str, float]]:
        """Names and distances (negative inside) of what lies within the margin of the body at `pose`."""
        self._place(pose)
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)
        contact = self.data.contact
        if not self.data.ncon:
            return []
        solids = self.built.solids
        return [
            (solids[a if a in solids else b], dist)
            for (a, b), dist in zip(contact.geom.tolist(), contact.dist.tolist(), strict=True)
        ]

    def _place(self, pose: Pose2D) -> None:
        self.data.qpos[:3] = (pose.x_m, pose.y_m, pose.yaw_rad)


def _wrap(angle_rad: float) -> float:
    return (
        angle_rad if -math.pi < angle_rad <= math.pi else math.atan2(math.sin(angle_rad), math.cos(angle_rad))
    )
