"""Where a plan leads: the body's pose after each action, by dead reckoning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from vlm_spec_decode.actions.types import Action, Forward, Strafe, Turn

Pose: TypeAlias = tuple[float, float, float]
"""x, y in metres and yaw in radians, in the odometry frame."""


def waypoints(start: Pose, actions: Iterable[Action]) -> list[tuple[Pose, Action]]:
    """Return the body's pose after each action, beginning at `start`."""
    x, y, yaw = start
    found = []
    for action in actions:
        if isinstance(action, Forward):
            x, y = x + action.distance_m * math.cos(yaw), y + action.distance_m * math.sin(yaw)
        elif isinstance(action, Strafe):
            x, y = x - action.distance_m * math.sin(yaw), y + action.distance_m * math.cos(yaw)
        elif isinstance(action, Turn):
            yaw += math.radians(action.angle_deg)
        found.append(((x, y, yaw), action))
    return found
