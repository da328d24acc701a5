"""Scene and robot to a MuJoCo model: an XML string of primitive geoms, no mesh files.

Lengths of the Go2 are those of the vendor's URDF: hips at x ±0.1934, y ±0.0465 m, abduction link 0.0955,
thigh and calf 0.213, foot radius 0.022, camera at x 0.327, z 0.043 m of the base frame, no rotation; body
0.70 x 0.31 x 0.40 m standing.

Nothing here is driven by forces: the world sets every joint. The outer body ("hull", joints x, y, yaw) stays
upright and carries the box that collides; the trunk ("base") moves inside it with posture and gait, so that
leaning never pushes the robot into something.

All models share one set of textures in one order, so that a render context made for one model draws every
other. Geom groups: 0 room and objects, 1 the robot's appearance, 2 ceiling, 3 the body box that collides
(never drawn).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt

from vlm_spec_decode.sim.objects import MATERIALS, PALETTE, Primitive, Rgb, SceneObject
from vlm_spec_decode.sim.scene import Scene

HIP_X_M, HIP_Y_M = 0.1934, 0.0465
ABDUCTION_M, THIGH_M, CALF_M, FOOT_RADIUS_M = 0.0955, 0.213, 0.213, 0.022
HULL_HALF_M = (0.35, 0.155, 0.19)
CAMERA_POS_M = (0.327, 0.0, 0.043)
HULL_GEOM = "hull"
FRONT_CAMERA = "front"
LEGS = ("FR", "FL", "RR", "RL")
"""Order of the vendor's motor arrays; each leg has hip (abduction), thigh and calf."""
NUM_JOINTS = 12
HULL_JOINTS = ("hull_x", "hull_y", "hull_yaw", "base_z", "base_yaw", "base_pitch", "base_roll")

_SHELL, _GREY, _BLACK, _LENS = "0.80 0.81 0.83 1", "0.48 0.50 0.53 1", "0.13 0.13 0.15 1", "0.05 0.20 0.32 1"


def _leg(name: str) -> str:
    fx, fy = (1 if name[0] == "F" else -1), (1 if name[1] == "L" else -1)
    y = fy * ABDUCTION_M
    return f"""
<body name="{name}_hip" pos="{fx * HIP_X_M} {fy * HIP_Y_M} 0">
  <joint name="{name}_hip_joint" axis="1 0 0" range="-60 60"/>
  <geom class="looks" type="cylinder" size="0.047 0.028" pos="{fx * 0.055} 0 0" euler="0 90 0"
    rgba="{_BLACK}"/>
  <geom class="looks" type="cylinder" size="0.049 0.034" pos="0 {fy * 0.062} 0" euler="90 0 0"
    rgba="{_GREY}"/>
  <body name="{name}_thigh" pos="0 {y} 0">
    <joint name="{name}_thigh_joint" axis="0 1 0"/>
    <geom class="looks" type="cylinder" size="0.050 0.017" euler="90 0 0" rgba="{_BLACK}"/>
    <geom class="looks" type="capsule" size="0.029" fromto="0 0 -0.02 -0.012 0 -0.11" rgba="{_SHELL}"/>
    <geom class="looks" type="capsule" size="0.022" fromto="-0.012 0 -0.10 0 0 {-THIGH_M}" rgba="{_SHELL}"/>
    <body name="{name}_calf" pos="0 0 {-THIGH_M}">
      <joint name="{name}_calf_joint" axis="0 1 0"/>
      <geom class="looks" type="sphere" size="0.025" rgba="{_BLACK}"/>
      <geom class="looks" type="capsule" size="0.015" fromto="0 0 0 0.012 0 -0.10" rgba="{_GREY}"/>
      <geom class="looks" type="capsule" size="0.012" fromto="0.012 0 -0.10 0 0 -0.20" rgba="{_GREY}"/>
      <geom name="{name}_foot" class="looks" type="sphere" size="{FOOT_RADIUS_M}" pos="0 0 {-CALF_M}"
        rgba="{_BLACK}"/>
    </body>
  </body>
</body>"""


_TRUNK = f"""
<geom class="looks" type="box" size="0.185 0.062 0.045" pos="0 0 0.005" rgba="{_SHELL}"/>
<geom class="looks" type="capsule" size="0.050" fromto="-0.17 0.045 0.006 0.17 0.045 0.006" rgba="{_SHELL}"/>
<geom class="looks" type="capsule" size="0.050" fromto="-0.17 -0.045 0.006 0.17 -0.045 0.006"
  rgba="{_SHELL}"/>
<geom class="looks" type="box" size="0.15 0.055 0.012" pos="-0.02 0 0.056" rgba="{_BLACK}"/>
<geom class="looks" type="box" size="0.14 0.075 0.030" pos="0 0 -0.035" rgba="{_BLACK}"/>
<geom class="looks" type="box" size="0.045 0.048 0.040" pos="0.235 0 0.015" rgba="{_SHELL}"/>
<geom class="looks" type="ellipsoid" size="0.055 0.056 0.052" pos="0.268 0 0.024" rgba="{_SHELL}"/>
<geom class="looks" type="cylinder" size="0.037 0.012" pos="0.302 0 0.034" euler="0 82 0" rgba="{_BLACK}"/>
<geom class="looks" type="sphere" size="0.017" pos="0.310 0 0.040" rgba="{_LENS}"/>
<geom class="looks" type="cylinder" size="0.040 0.022" pos="0.289 0 -0.040" euler="0 15 0" rgba="{_BLACK}"/>
<geom class="looks" type="ellipsoid" size="0.038 0.038 0.020" pos="0.294 0 -0.062" rgba="{_LENS}"/>
<geom class="looks" type="box" size="0.012 0.040 0.020" pos="-0.225 0 0.010" rgba="{_BLACK}"/>
"""

ROBOT_XML = f"""
<body name="hull_body">
  <joint name="hull_x" type="slide" axis="1 0 0"/>
  <joint name="hull_y" type="slide" axis="0 1 0"/>
  <joint name="hull_yaw" type="hinge" axis="0 0 1"/>
  <geom name="{HULL_GEOM}" type="box" size="{HULL_HALF_M[0]} {HULL_HALF_M[1]} {HULL_HALF_M[2]}" pos="0 0 0.21"
    contype="1" conaffinity="0" group="3" margin="0.02" rgba="0 0 0 0"/>
  <body name="base">
    <joint name="base_z" type="slide" axis="0 0 1"/>
    <joint name="base_yaw" type="hinge" axis="0 0 1"/>
    <joint name="base_pitch" type="hinge" axis="0 1 0"/>
    <joint name="base_roll" type="hinge" axis="1 0 0"/>
    <camera name="{FRONT_CAMERA}" pos="{CAMERA_POS_M[0]} {CAMERA_POS_M[1]} {CAMERA_POS_M[2]}"
      xyaxes="0 -1 0 0 0 1" fovy="60"/>
    {_TRUNK}
    {"".join(_leg(name) for name in LEGS)}
  </body>
</body>
"""


GROUP_ROOM, GROUP_ROBOT, GROUP_CEILING, GROUP_HULL = range(4)
WALL_HEIGHT_M = 2.5
_WALL_HALF_M = 0.05
_NEAR_M = 0.02
"""Nearest distance to the lens, which is 2.3 cm behind the body's front."""
WALL_NAMES = ("east wall", "north wall", "west wall", "south wall")

_HEAD = """
<mujoco model="room">
  <compiler angle="degree" eulerseq="XYZ" autolimits="true"/>
  <option timestep="0.005" gravity="0 0 0"/>
  <statistic center="0 0 0.5" extent="{extent}"/>
  <visual>
    <map znear="{near}" zfar="2" shadowclip="0.72"/>
    <quality shadowsize="0" offsamples="0" numslices="20" numstacks="12"/>
    <headlight ambient="{ambient} {ambient} {ambient}" diffuse="0.14 0.14 0.14" specular="0 0 0"/>
  </visual>
  <asset>
    <texture name="tiles" type="2d" builtin="checker" rgb1="1 1 1" rgb2="0.90 0.90 0.90" width="64"
      height="64" mark="edge" markrgb="0.80 0.80 0.80"/>
    <texture name="plain" type="2d" builtin="flat" rgb1="0.97 0.97 0.97" width="16" height="16"/>
    <texture name="chequered" type="2d" builtin="checker" rgb1="1 1 1" rgb2="0.72 0.72 0.72" width="64"
      height="64"/>
    <texture name="speckled" type="2d" builtin="flat" rgb1="0.97 0.97 0.97" width="64" height="64"
      mark="random" markrgb="0.70 0.70 0.70" random="0.12"/>
    <texture name="planks" type="2d" builtin="gradient" rgb1="1 1 1" rgb2="0.80 0.80 0.80" width="64"
      height="64" mark="edge" markrgb="0.70 0.70 0.70"/>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.93 0.94 0.96" rgb2="0.80 0.83 0.88"
      width="32" height="192"/>
    <material name="floor" texture="{floor}" texrepeat="1 1" texuniform="true" specular="0.1"/>
    <material name="matt" specular="0.05" shininess="0.1"/>
    <material name="gloss" specular="0.35" shininess="0.5"/>
  </asset>
  <default>
    <geom contype="0" conaffinity="1" group="0" material="matt"/>
    <default class="looks"><geom conaffinity="0" group="1" density="100" material="gloss"/></default>
  </default>
"""


@dataclass(frozen=True, slots=True)
class WorldModel:
    """A compiled model and the meaning of its geoms.

    `geom_object` [ngeom]: index into `Scene.objects`, or -1 for room and robot. `solids[g]` is the
    name of the object or wall that geom g belongs to; `shell` are walls, skirting and ceiling;
    with the doors they are `shadowless`.
    `joints` are the legs' addresses in qpos [12].
    """

    model: mujoco.MjModel
    geom_object: npt.NDArray[np.int32]
    solids: dict[int, str]
    shell: list[int]
    shadowless: frozenset[int]
    hull_geom: int
    trunk_body: int
    joints: slice


def build(scene: Scene) -> WorldModel:
    """Compile `scene` with the robot in it."""
    model = mujoco.MjModel.from_xml_string(scene_xml(scene))
    owner = np.full(model.ngeom, -1, dtype=np.int32)
    shell: list[int] = []
    for g in range(model.ngeom):
        body = int(model.geom_bodyid[g])
        if (index := _object_index(model, g)) is not None:
            owner[g] = index
        elif body == 0 and model.geom(g).name != "floor":
            shell.append(g)
    solids = solid_names(model, scene)
    kinds = [item.kind for item in scene.objects]
    doors = [g for g in range(model.ngeom) if owner[g] >= 0 and kinds[owner[g]] == "door"]
    trunk = int(model.body("base").id)
    first = int(model.joint("FR_hip_joint").qposadr[0])
    return WorldModel(
        model,
        owner,
        solids,
        shell,
        frozenset([*shell, *doors]),
        int(model.geom(HULL_GEOM).id),
        trunk,
        slice(first, first + NUM_JOINTS),
    )


def solid_names(model: mujoco.MjModel, scene: Scene) -> dict[int, str]:
    """Return the name of the object or wall that each solid geom of a model of `scene` belongs to."""
    names: dict[int, str] = {}
    for g in range(model.ngeom):
        index, wall = _object_index(model, g), model.geom(g).name
        if index is not None:
            names[g] = scene.objects[index].name
        elif wall in WALL_NAMES:
            names[g] = wall
    return names


def _object_index(model: mujoco.MjModel, geom: int) -> int | None:
    name = str(model.body(int(model.geom_bodyid[geom])).name)
    return int(name.removeprefix("object ")) if name.startswith("object ") else None


def scene_xml(scene: Scene, robot: str = ROBOT_XML) -> str:
    """Return the MJCF text of a scene with the robot."""
    bright = scene.light.brightness
    extent = max(scene.length_m, scene.width_m, 6.0)
    parts = [
        _HEAD.format(
            ambient=_num(0.58 * bright), extent=_num(extent), floor=scene.floor, near=_num(_NEAR_M / extent)
        ),
        "<worldbody>",
        _light(scene),
        _room(scene),
    ]
    parts += [_object(i, item) for i, item in enumerate(scene.objects)]
    return "\n".join([*parts, robot, "</worldbody></mujoco>"])


def _light(scene: Scene) -> str:
    light = scene.light
    flat = math.cos(light.elevation_rad)
    towards = (
        -flat * math.cos(light.azimuth_rad),
        -flat * math.sin(light.azimuth_rad),
        -math.sin(light.elevation_rad),
    )
    main, fill = _num(0.48 * light.brightness), _num(0.16 * light.brightness)
    # The lamp is outside the room, so that its shadow map covers the whole room.
    away = max(scene.length_m, scene.width_m, 6.0)
    pos = _nums(*(-away * t for t in towards))
    back = _nums(-towards[0], -towards[1], towards[2])
    return (
        f'<light type="directional" castshadow="true" pos="{pos}" dir="{_nums(*towards)}" '
        f'ambient="0 0 0" diffuse="{main} {main} {main}" specular="0.2 0.2 0.2"/>'
        f'<light type="directional" castshadow="false" pos="0 0 4" dir="{back}" '
        f'ambient="0 0 0" diffuse="{fill} {fill} {fill}" specular="0 0 0"/>'
    )


def _room(scene: Scene) -> str:
    """Floor, four walls with skirting, ceiling. Boxes, because a plane is uploaded to the GL context."""
    hx, hy, h, t = scene.length_m / 2, scene.width_m / 2, WALL_HEIGHT_M / 2, _WALL_HALF_M
    dark = tuple(0.6 * c for c in scene.wall_rgb)
    out = [
        f'<geom name="floor" type="box" size="{_nums(hx + 2 * t, hy + 2 * t, 0.05)}" pos="0 0 -0.05" '
        f'conaffinity="0" material="floor" rgba="{_rgba(scene.floor_rgb)}"/>',
        f'<geom name="ceiling" type="box" size="{_nums(hx + 2 * t, hy + 2 * t, 0.05)}" '
        f'pos="0 0 {_num(2 * h + 0.05)}" conaffinity="0" group="{GROUP_CEILING}" rgba="0.93 0.93 0.92 1"/>',
    ]
    for name, (sx, sy) in zip(WALL_NAMES, ((1, 0), (0, 1), (-1, 0), (0, -1)), strict=True):
        # Neighbouring walls differ a little, as lit walls do, so that corners are seen.
        rgb = scene.wall_rgb if sx else tuple(0.95 * c for c in scene.wall_rgb)
        size = (t, hy + 2 * t, h) if sx else (hx, t, h)
        pos = (sx * (hx + t), sy * (hy + t), h)
        out.append(
            f'<geom name="{name}" type="box" size="{_nums(*size)}" pos="{_nums(*pos)}" rgba="{_rgba(rgb)}"/>'
        )
        strip = (0.008, hy, 0.05) if sx else (hx, 0.008, 0.05)
        pos = (sx * hx, sy * hy, 0.05)
        out.append(
            f'<geom type="box" conaffinity="0" size="{_nums(*strip)}" pos="{_nums(*pos)}" '
            f'rgba="{_rgba(dark)}"/>'
        )
    return "\n".join(out)


def _object(index: int, item: SceneObject) -> str:
    pos = _nums(item.x_m, item.y_m, 0.0)
    geoms = "".join(_geom(p, item) for p in item.primitives)
    return (
        f'<body name="object {index}" pos="{pos}" euler="0 0 {math.degrees(item.yaw_rad):.5f}">{geoms}</body>'
    )


def _geom(p: Primitive, item: SceneObject) -> str:
    rgb = PALETTE[item.colour] if p.paint == "own" else MATERIALS[p.paint]
    rgba = _rgba(tuple(min(1.0, p.shade * c) for c in rgb))
    turn = f' euler="{_nums(*p.turn_deg)}"' if any(p.turn_deg) else ""
    ghost = "" if p.solid else ' conaffinity="0"'
    size = _nums(*(item.scale * s for s in p.size))
    pos = _nums(*(item.scale * c for c in p.pos))
    return f'<geom type="{p.shape}" size="{size}" pos="{pos}" rgba="{rgba}"{turn}{ghost}/>'


def _rgba(rgb: Rgb | tuple[float, ...]) -> str:
    return f"{_nums(*rgb)} 1"


def _nums(*values: float) -> str:
    return " ".join(_num(v) for v in values)


def _num(value: float) -> str:
    return f"{value:.5g}"
