"""A Go2 under gravity: MuJoCo's state of it, read and driven. Knows no commands, postures over time or rooms.

A body that lies on its side is turned upright by an invisible hand before it gets up, because no policy for
that is at hand.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np

from vlm_spec_decode.sim.body import STAND_HEIGHT_M, Imu, Velocity
from vlm_spec_decode.sim.gait import joint_angles
from vlm_spec_decode.sim.physical_legs import Feeling, Legs, Wish
from vlm_spec_decode.sim.physical_mjcf import FREE_DOF, FREE_QPOS, PhysicalModel
from vlm_spec_decode.sim.scene import Pose2D
from vlm_spec_decode.sim.walking_policy import Vector, WalkingPolicy

FALLEN_UPRIGHT = 0.4
"""Upward share of the trunk's vertical axis below which it counts as fallen: 66 degrees."""
_UPRIGHT = 0.95
_HAND_NM, _HAND_NMS = 60.0, 12.0
_HAND_OFF_RADPS = 0.5
_TOPPLE_RADPS, _TOPPLE_MPS = 7.0, 1.5
_LEVEL = (0.0, 0.0, 0.0)


class PhysicalBody:
    """The trunk on its legs; `read` after every step. Whole tuples are replaced, so that others may copy.

    `pose` is the trunk's on the floor, `trunk` its height, roll and pitch, `joints` the vendor's twelve,
    `velocity` vx, vy, vyaw in the heading's frame.
    """

    def __init__(self, go2: PhysicalModel, policy: WalkingPolicy) -> None:
        self._go2 = go2
        self._data = mujoco.MjData(go2.model)
        self._legs = Legs(policy, go2.model.actuator_ctrlrange[:, 1].copy())
        self._slope = np.zeros((3, go2.model.nv))
        self.righting = False
        """Whether the hand is at work."""

    def place(self, pose: Pose2D) -> None:
        """Stand there at rest."""
        data, yaw = self._data, pose.yaw_rad
        mujoco.mj_resetData(self._go2.model, data)
        joints = np.array(joint_angles(STAND_HEIGHT_M, _LEVEL, _LEVEL, 0.0))
        data.qpos[:3] = (pose.x_m, pose.y_m, STAND_HEIGHT_M)
        data.qpos[3:FREE_QPOS] = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
        data.qpos[FREE_QPOS:] = joints
        self.righting = False
        self._legs.reset(joints)
        mujoco.mj_forward(self._go2.model, data)
        self.read()

    def decide(self, now_s: float, wish: Wish) -> None:
        """Let the legs choose what to do for the next 20 ms."""
        self._legs.decide(now_s, self._feel(), wish)
        self._hand()

    def step(self) -> None:
        """Advance by one physics step."""
        data = self._data
        data.ctrl[:] = self._legs.torque(data.qpos[FREE_QPOS:], data.qvel[FREE_DOF:])
        mujoco.mj_step(self._go2.model, data)

    def read(self) -> None:
        """Take pose, trunk, joints and velocity from the physics."""
        qpos, (vx, vy, _) = self._data.qpos, self._data.qvel[:3].tolist()
        w, x, y, z = qpos[3:FREE_QPOS].tolist()
        yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
        pitch = math.asin(min(1.0, max(-1.0, 2 * (w * y - z * x))))
        cos, sin = math.cos(yaw), math.sin(yaw)
        self.pose = Pose2D(float(qpos[0]), float(qpos[1]), yaw)
        self.trunk = (float(qpos[2]), roll, pitch)
        self.joints: tuple[float, ...] = tuple(qpos[FREE_QPOS:].tolist())
        self.velocity: Velocity = (cos * vx + sin * vy, cos * vy - sin * vx, float(self._data.qvel[5]))

    def touched(self) -> set[str]:
        """Return the names of the objects and walls that the body touches."""
        solids, robot = self._go2.solids, self._go2.robot
        pairs = self._data.contact.geom.tolist()
        found = (solids.get(a) or solids.get(b) for a, b in pairs if a in robot or b in robot)
        return {name for name in found if name is not None}

    def topple(self) -> None:
        """Knock the body over, onto its back."""
        self._data.qvel[3] -= _TOPPLE_RADPS
        self._data.qvel[2] += _TOPPLE_MPS

    def get_up(self) -> None:
        """Let the hand help if the body does not lie on its belly."""
        self.righting = self.upright < _UPRIGHT

    @property
    def upright(self) -> float:
        """Upward share of the trunk's vertical axis: 1 standing, 0 on its side, -1 on its back."""
        x, y = self._data.qpos[4:6].tolist()
        return float(1 - 2 * (x * x + y * y))

    @property
    def fastest_joint_radps(self) -> float:
        """Largest joint speed."""
        return float(np.abs(self._data.qvel[FREE_DOF:]).max())

    @property
    def imu(self) -> Imu:
        """What gyroscope and accelerometer measure at their place in the trunk."""
        gx, gy, gz, ax, ay, az = self._data.sensordata.tolist()
        return Imu((gx, gy, gz), (ax, ay, az))

    def _feel(self) -> Feeling:
        data, go2 = self._data, self._go2
        w, x, y, z = data.qpos[3:FREE_QPOS]
        down = np.array([-2 * (x * z - w * y), -2 * (y * z + w * x), -(1 - 2 * (x * x + y * y))])
        carry: Vector = np.zeros(12)
        for foot in go2.feet:
            mujoco.mj_jacGeom(go2.model, data, self._slope, None, foot)
            carry -= self._slope[2, FREE_DOF:] * go2.weight_n / len(go2.feet)
        touching = set(data.contact.geom.ravel().tolist())
        return Feeling(
            joints=data.qpos[FREE_QPOS:].copy(),
            speeds=data.qvel[FREE_DOF:].copy(),
            turning=data.qvel[3:FREE_DOF].copy(),
            down=down,
            velocity=np.array(self.velocity),
            carry=carry,
            feet_down=sum(foot in touching for foot in go2.feet),
        )

    def _hand(self) -> None:
        """Turn a lying body upright, by a torque on the trunk, until it is; then let go."""
        push = self._data.xfrc_applied[self._go2.trunk]
        push[:] = 0.0
        if not self.righting:
            return
        axes = self._data.xmat[self._go2.trunk].reshape(3, 3)
        turning = axes @ self._data.qvel[3:FREE_DOF]
        # Proportional to the sine of the angle, and full beyond a right angle.
        axis = np.cross(axes[:, 2], (0.0, 0.0, 1.0)) if self.upright > -_UPRIGHT else axes[:, 0]
        if self.upright < 0.0:
            axis = axis / np.linalg.norm(axis)
        push[3:] = _HAND_NM * axis - _HAND_NMS * turning
        self.righting = self.upright < _UPRIGHT or float(np.linalg.norm(turning)) > _HAND_OFF_RADPS
