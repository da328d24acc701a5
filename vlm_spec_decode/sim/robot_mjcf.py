"""The Go2's body as MJCF: published link lengths, drawn with primitive geoms.

Lengths are those of the vendor's URDF: hips at x ±0.1934, y ±0.0465 m, abduction link 0.0955, thigh
and calf 0.213, foot radius 0.022, camera at x 0.327, z 0.043 m of the base frame, no rotation; body
0.70 x 0.31 x 0.40 m standing.

Nothing here is driven by forces: the world sets every joint. The outer body ("hull", joints x, y, yaw)
stays upright and carries the box that collides; the trunk ("base") moves inside it with posture and
gait, so that leaning never pushes the robot into something.
"""

from __future__ import annotations

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
