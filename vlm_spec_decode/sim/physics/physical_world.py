"""A world in which the Go2 has mass and walks on its legs; everything else is as in `sim.world`.

`make_world` chooses the body: kinematic (fast, exact, for training) or physical (torques, gravity).
"""

from __future__ import annotations

import math

from vlm_spec_decode.core import profiles
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.physics.kinematic_body import STAND_HEIGHT_M, BodyLimits, Imu, Shape
from vlm_spec_decode.sim.physics.physical_body import (
    FALLEN_UPRIGHT,
    LYING_M,
    PERIOD_S,
    PHYSICS_STEP_S,
    LegCommand,
    PhysicalAssets,
    PhysicalBody,
    WalkingPolicy,
    build_physical_model,
    find_assets,
)
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import STEP_S, Vec3, World

PHYSICAL_LIMITS = BodyLimits(
    vx_min_mps=-1.0, vx_max_mps=1.0, vy_max_mps=0.5, vyaw_max_radps=1.5, lag_s=0.02, command_delay_s=0.02
)
"""Velocities that the policy walks reliably, within the vendor's limits; others are clamped."""

VELOCITY_LAG_S = 0.1
APART_S = 0.3
"""After this long without contact, touching again is another collision."""
_CALM_RADPS = 0.4


class PhysicalWorld(World):
    """One room and one robot under gravity; the same scene, seed and calls give the same states."""

    def __init__(
        self,
        scene: Scene,
        *,
        seed: int = 0,
        limits: BodyLimits = PHYSICAL_LIMITS,
        pose: Pose2D | None = None,
        assets: PhysicalAssets | None = None,
    ) -> None:
        """Build room and robot. Raises ConfigError without the body's files, SceneError as `World` does."""
        files = assets or find_assets()
        self._body = PhysicalBody(build_physical_model(scene, files.model), WalkingPolicy(files.policy))
        self._limp = False
        super().__init__(scene, seed=seed, limits=limits, pose=pose)

    @property
    def velocity(self) -> Vec3:
        """Body velocity vx, vy (m/s) and vyaw (rad/s), as an estimator would measure it."""
        return self._velocity

    @property
    def body_height_m(self) -> float:
        """Height of the base frame over the floor."""
        return self._body.trunk[0]

    @property
    def attitude(self) -> Vec3:
        """Roll, pitch (nose down positive) and yaw of the trunk in the room, radians."""
        _, roll, pitch = self._body.trunk
        return (roll, pitch, self._pose.yaw_rad)

    @property
    def posture_settled(self) -> bool:
        """Whether the last `set_posture` has been reached and the legs have come to rest in it."""
        if self._limp:
            return True
        is_there = self._posture.is_settled and not (self._body.righting or self.has_fallen)
        return is_there and self._body.fastest_joint_radps < _CALM_RADPS

    @property
    def joint_angles(self) -> tuple[float, ...]:
        """The 12 leg joints in radians, FR FL RR RL x hip, thigh, calf."""
        return self._body.joints

    @property
    def shape(self) -> Shape:
        """The body's shape after the last step. It is replaced as a whole, so a copy stays valid."""
        return self._shape

    @property
    def has_fallen(self) -> bool:
        """Whether the body lies on its side or back."""
        return self._body.upright < FALLEN_UPRIGHT

    @property
    def imu(self) -> Imu:
        """The values of gyroscope and accelerometer."""
        return self._body.imu

    def _set_limp(self, limp: bool) -> None:
        """Release all joints, or hold them again; a lying body begins at its present height."""
        if self._limp and not limp:
            self._posture.begin_at(min(max(self.body_height_m, LYING_M), STAND_HEIGHT_M))
            self._body.get_up()
        self._limp = limp

    def topple(self) -> None:
        """Knock the body over."""
        self._body.topple()

    def teleport(self, pose: Pose2D) -> None:
        """Set the robot's pose, standing and at rest. Raises SceneError if it does not fit there."""
        super().teleport(pose)
        self._body.place(self._pose)
        self._limp = False
        self._last_touch_s: dict[str, float] = {}
        self._velocity: Vec3 = (0.0, 0.0, 0.0)
        self._shape = self._read_shape()

    def _step(self) -> None:
        self._steps += 1
        wanted = self._servo.advance(self.time_s, STEP_S)
        if not (self._limp or self._body.righting):
            self._posture.advance(STEP_S)
        if self._steps % round(PERIOD_S / STEP_S) == 0:
            wish = LegCommand(wanted, self._posture.height_m, self._posture.tilt_rad, self._limp)
            self._body.decide(self.time_s, wish)
        for _ in range(round(STEP_S / PHYSICS_STEP_S)):
            self._body.step()
        self._body.read()
        self._pose = self._body.pose
        self._shape = self._read_shape()
        share = STEP_S / (VELOCITY_LAG_S + STEP_S)
        vx, vy, vyaw = (
            old + share * (new - old) for old, new in zip(self._velocity, self._body.velocity, strict=True)
        )
        self._velocity = (vx, vy, vyaw)
        self._note_contacts()

    def _read_shape(self) -> Shape:
        height, roll, pitch = self._body.trunk
        return Shape(height, roll, pitch, 0.0, self._body.joints)

    def _note_contacts(self) -> None:
        """Count new contacts of the robot, except with the floor."""
        now_s, seen = self.time_s, self._last_touch_s
        for name in self._body.touched():
            if now_s - seen.get(name, -math.inf) > APART_S:
                self.collisions += 1
            seen[name] = now_s
        self.touching = frozenset(name for name, at_s in seen.items() if now_s - at_s <= APART_S)


BODIES: dict[str, type[World]] = dict(zip(profiles.BODIES, (World, PhysicalWorld), strict=True))


def check_body(body: str) -> None:
    """Raise ConfigError for an unknown body."""
    if body not in BODIES:
        raise ConfigError(f"body: {body!r} is none of {', '.join(BODIES)}")


def make_world(scene: Scene, *, body: str = "kinematic", seed: int = 0) -> World:
    """Return a world with that body. Raises ConfigError (no such body, its files are missing), SceneError."""
    check_body(body)
    return BODIES[body](scene, seed=seed)
