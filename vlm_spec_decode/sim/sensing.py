"""What the robot's range sensor reports: free distance on its four sides."""

from __future__ import annotations

import math

import mujoco
import numpy as np

from vlm_spec_decode.sim.mjcf import GROUP_ROOM, WorldModel
from vlm_spec_decode.sim.robot_mjcf import HULL_HALF_M
from vlm_spec_decode.sim.scene import Pose2D

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
