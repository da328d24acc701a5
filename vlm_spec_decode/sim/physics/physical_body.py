"""A Go2 under gravity: MuJoCo state, learned walking policy, and the controller of its legs.

`PhysicalBody` reads and drives MuJoCo's state; it has no commands, timed postures or rooms. A body that
lies on its side is turned upright by an external torque before it gets up, because no policy for that is
available.

`WalkingPolicy` maps sensor values of the body to twelve joint targets: a feed-forward network, trained
elsewhere by reinforcement learning to track a velocity; order and scales of inputs and outputs are those of
its training (rl_sar, `policy/go2/robot_lab`). By itself it ignores slow commands and drifts, so
`VelocityTrim` closes the loop around it.

`LegController` holds a posture, walks, or hangs limp: every 20 ms it chooses joint targets, every physics
step it computes torques from them. Uses the policy and leg kinematics only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import mujoco
import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.physics.base import STAND_HEIGHT_M, Imu, Velocity
from vlm_spec_decode.sim.physics.gait import joint_angles
from vlm_spec_decode.sim.physics.physical_model import FREE_DOF, FREE_QPOS, HOW, PhysicalModel
from vlm_spec_decode.sim.scene import Pose2D

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
        self._legs = LegController(policy, go2.model.actuator_ctrlrange[:, 1].copy())
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

    def decide(self, now_s: float, wish: LegCommand) -> None:
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

    def _feel(self) -> BodySensors:
        data, go2 = self._data, self._go2
        w, x, y, z = data.qpos[3:FREE_QPOS]
        down = np.array([-2 * (x * z - w * y), -2 * (y * z + w * x), -(1 - 2 * (x * x + y * y))])
        carry: Vector = np.zeros(12)
        for foot in go2.feet:
            mujoco.mj_jacGeom(go2.model, data, self._slope, None, foot)
            carry -= self._slope[2, FREE_DOF:] * go2.weight_n / len(go2.feet)
        touching = set(data.contact.geom.ravel().tolist())
        return BodySensors(
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


Vector = npt.NDArray[np.float64]

PERIOD_S = 0.02
STIFFNESS, DAMPING = 20.0, 0.5
"""Of the joints' position control in training, N m/rad and N m s/rad."""

NEUTRAL_RAD: Vector = np.array([0.0, 0.8, -1.5] * 4)
_ACTION_SCALE = np.array([0.125, 0.25, 0.25] * 4)
_TURN_SCALE, _JOINT_SPEED_SCALE = 0.25, 0.05
_BOUND = 100.0


class WalkingPolicy:
    """The network with what it remembers: its last action. Joints are FR FL RR RL x hip, thigh, calf."""

    def __init__(self, file: Path) -> None:
        """Load it. Raises ConfigError if onnxruntime is missing, or the file is no such network."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError(f"the physical body needs onnxruntime; install it with: {HOW}") from error
        options = onnxruntime.SessionOptions()
        # One small product per step: threads would cost more than they save, and hold a core between steps.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (entry,), (end,) = self._session.get_inputs(), self._session.get_outputs()
        if entry.shape[-1] != 45 or end.shape[-1] != 12:
            raise ConfigError(f"{file} maps {entry.shape} to {end.shape}, not 45 numbers to 12")
        self._entry = entry.name
        self.reset()

    def reset(self) -> None:
        """Forget the last action."""
        self._last: Vector = np.zeros(12)

    def targets(self, turning: Vector, down: Vector, joints: Vector, speeds: Vector, asked: Vector) -> Vector:
        """Return joint angles to hold for the next 20 ms [12].

        `turning` is the trunk's angular velocity and `down` the direction of gravity, both in its own frame
        [3]; `joints` and `speeds` are the legs' [12]; `asked` is vx, vy, vyaw.
        """
        felt = np.concatenate(
            [
                turning * _TURN_SCALE,
                down,
                asked,
                joints - NEUTRAL_RAD,
                speeds * _JOINT_SPEED_SCALE,
                self._last,
            ]
        )
        row = np.clip(felt, -_BOUND, _BOUND).astype(np.float32)[None]
        (out,) = self._session.run(None, {self._entry: row})
        self._last = np.clip(np.asarray(out[0], dtype=np.float64), -_BOUND, _BOUND)
        wanted: Vector = NEUTRAL_RAD + self._last * _ACTION_SCALE
        return wanted


class VelocityTrim:
    """Integral control around the policy: what must be asked so that the body does what was asked.

    Compares the body's velocity with the one asked for, both through the same low pass, so that starting
    and stopping, which no body does at once, winds nothing up.
    """

    smoothing_s = 0.3
    gain = np.array([3.0, 3.0, 3.0])
    limit = np.array([0.4, 0.3, 0.6])

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, from rest."""
        self._behind: Vector = np.zeros(3)
        self._trim: Vector = np.zeros(3)

    def correct(self, asked: Vector, measured: Vector) -> Vector:
        """Return what to ask of the policy; called every 20 ms."""
        share = PERIOD_S / (self.smoothing_s + PERIOD_S)
        self._behind += share * ((asked - measured) - self._behind)
        self._trim = np.clip(self._trim + self.gain * self._behind * PERIOD_S, -self.limit, self.limit)
        corrected: Vector = asked + self._trim
        return corrected


HOLD_STIFFNESS, HOLD_DAMPING = 80.0, 3.0
LIMP_DAMPING = 1.5
"""Of joints without a target: the body sinks in about half a second instead of falling."""

ENGAGE_S = 0.5
"""From limp to a posture."""
PLANT_S = 3.0
"""From where the feet stood at the end of a walk to the posture; slow enough to count as standing still."""
BRAKE_MPS, BRAKE_RADPS, BRAKE_S = 0.25, 0.6, 0.6
"""Below these speeds, or after this time at the latest, the feet stay where they are."""


LOW_M, LYING_M = 0.16, 0.10
"""Between these heights of the trunk the legs fold; below, the trunk lies on the floor."""
FOLDED_RAD: Vector = np.array([0.0, 1.36, -2.65] * 4)


class Mode(Enum):
    """The mode of the legs."""

    LIMP = "limp"
    HOLD = "hold"
    WALK = "walk"


@dataclass(frozen=True, slots=True)
class BodySensors:
    """Sensor values of the body: directions in the trunk's frame, `velocity` vx, vy, vyaw in the heading's.

    `carry` [12] are the torques with which standing legs carry the weight; `feet_down` how many touch.
    """

    joints: Vector
    speeds: Vector
    turning: Vector
    down: Vector
    velocity: Vector
    carry: Vector
    feet_down: int


@dataclass(frozen=True, slots=True)
class LegCommand:
    """The command to the legs: a velocity, and the trunk's posture while there is none."""

    velocity: tuple[float, float, float]
    height_m: float
    tilt_rad: tuple[float, float, float]
    limp: bool = False


def stance(height_m: float, tilt_rad: tuple[float, float, float]) -> Vector:
    """Return the joint angles [12] of a standing body; one near the floor folds its legs under it."""
    standing = np.array(joint_angles(max(height_m, LOW_M), tilt_rad, (0.0, 0.0, 0.0), 0.0))
    share = min(1.0, max(0.0, (LOW_M - height_m) / (LOW_M - LYING_M)))
    folded: Vector = standing + share * (FOLDED_RAD - standing)
    return folded


class LegController:
    """Twelve joints under control. It begins holding a posture; `reset` says from which angles."""

    def __init__(self, policy: WalkingPolicy, torque_max: Vector) -> None:
        self._policy = policy
        self._trim = VelocityTrim()
        self._torque_max = torque_max
        self.reset(NEUTRAL_RAD)

    def reset(self, joints: Vector) -> None:
        """Hold from these angles on, as if for ever."""
        self.mode = Mode.HOLD
        self._from = joints.copy()
        self._since_s, self._blend_s = -math.inf, 1.0
        self._still_s = -math.inf
        self._target: Vector = joints.copy()
        self._carry: Vector = np.zeros(12)

    def decide(self, now_s: float, felt: BodySensors, wish: LegCommand) -> None:
        """Choose what to do for the next 20 ms."""
        if wish.limp:
            self.mode = Mode.LIMP
        elif self.mode is Mode.LIMP:
            self._hold(now_s, felt.joints, ENGAGE_S)
        moving = any(wish.velocity)
        if moving and self.mode is Mode.HOLD:
            self.mode = Mode.WALK
            self._policy.reset()
            self._trim.reset()
        if self.mode is Mode.WALK:
            self._walk(now_s, felt, np.array(wish.velocity), moving)
        if self.mode is Mode.HOLD:
            self._stand(now_s, felt, wish)

    def torque(self, joints: Vector, speeds: Vector) -> Vector:
        """Return the torques for the present angles and speeds, within what the motors give."""
        if self.mode is Mode.LIMP:
            torque = -LIMP_DAMPING * speeds
        elif self.mode is Mode.WALK:
            torque = STIFFNESS * (self._target - joints) - DAMPING * speeds
        else:
            torque = HOLD_STIFFNESS * (self._target - joints) - HOLD_DAMPING * speeds + self._carry
        limited: Vector = np.clip(torque, -self._torque_max, self._torque_max)
        return limited

    def _walk(self, now_s: float, felt: BodySensors, asked: Vector, moving: bool) -> None:
        if moving:
            self._still_s = now_s
            asked = self._trim.correct(asked, felt.velocity)
        else:
            self._trim.reset()
            slow = math.hypot(*felt.velocity[:2]) < BRAKE_MPS and abs(felt.velocity[2]) < BRAKE_RADPS
            if (slow and felt.feet_down >= 3) or now_s - self._still_s > BRAKE_S:
                self._hold(now_s, felt.joints, PLANT_S)
                return
        self._target = self._policy.targets(felt.turning, felt.down, felt.joints, felt.speeds, asked)

    def _hold(self, now_s: float, joints: Vector, blend_s: float) -> None:
        self.mode = Mode.HOLD
        self._from, self._since_s, self._blend_s = joints.copy(), now_s, blend_s

    def _stand(self, now_s: float, felt: BodySensors, wish: LegCommand) -> None:
        share = min(1.0, max(0.0, (now_s - self._since_s) / self._blend_s))
        share *= share * (3.0 - 2.0 * share)
        goal = stance(wish.height_m, wish.tilt_rad)
        self._target = self._from + share * (goal - self._from)
        self._carry = felt.carry
