"""A plan as markers for RViz and Foxglove: where it leads, what each part is, how far the body reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Action, Forward, Strafe, Turn, format_action
from vlm_spec_decode.bridge.convert import to_time

Pose = tuple[float, float, float]
"""x, y in metres and yaw in radians, in the odometry frame."""

HULL_M = (0.70, 0.31, 0.40)
FOOTPRINT_Z_M = 0.02
LIFETIME_S = 30


def waypoints(start: Pose, actions: Iterable[Action]) -> list[tuple[Pose, Action]]:
    """Return where the body would be after each action, from `start`."""
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


def plan_markers(plan: Plan, start: Pose, stamp_s: float, frame: str) -> MarkerArray:
    """Return the plan's path, a label for each action and the body where it ends.

    Green is verified, orange is the draft alone. The first marker wipes those of the plan before.
    """
    wipe = Marker(action=Marker.DELETEALL, ns="plan")
    wipe.header.frame_id = frame
    steps = waypoints(start, plan.actions)
    colour = ColorRGBA(r=0.2, g=0.9, b=0.3, a=0.9) if plan.verified else ColorRGBA(r=1.0, g=0.6, b=0.1, a=0.9)
    found = [wipe]

    def marker(kind: int, number: int, pose: Pose, z_m: float) -> Marker:
        made = Marker(type=kind, ns="plan", id=number, color=colour, lifetime=Duration(sec=LIFETIME_S))
        made.header.frame_id, made.header.stamp = frame, to_time(stamp_s)
        made.pose.position.x, made.pose.position.y, made.pose.position.z = pose[0], pose[1], z_m
        made.pose.orientation.w, made.pose.orientation.z = math.cos(pose[2] / 2), math.sin(pose[2] / 2)
        found.append(made)
        return made

    line = marker(Marker.LINE_STRIP, 0, (0.0, 0.0, 0.0), FOOTPRINT_Z_M)
    line.points = [Point(x=x, y=y) for x, y, _ in (start, *(pose for pose, _ in steps))]
    line.scale.x = 0.04
    for number, (pose, action) in enumerate(steps, 1):
        label = marker(Marker.TEXT_VIEW_FACING, number, pose, 0.5 + 0.12 * (number % 3))
        label.text, label.scale.z = format_action(action), 0.12
    if steps:
        body = marker(Marker.CUBE, len(steps) + 1, steps[-1][0], HULL_M[2] / 2)
        body.scale.x, body.scale.y, body.scale.z = HULL_M
        body.color = ColorRGBA(r=colour.r, g=colour.g, b=colour.b, a=0.25)
    return MarkerArray(markers=found)


def body_marker(stamp_s: float, frame: str, stop_m: float) -> MarkerArray:
    """Return the body as a box and the zone before it in which it stops for obstacles."""
    box = Marker(type=Marker.CUBE, ns="body", id=0, color=ColorRGBA(r=0.6, g=0.6, b=0.65, a=0.6))
    box.scale.x, box.scale.y, box.scale.z = HULL_M
    zone = Marker(type=Marker.CUBE, ns="body", id=1, color=ColorRGBA(r=1.0, g=0.2, b=0.2, a=0.35))
    zone.scale.x, zone.scale.y, zone.scale.z = stop_m, HULL_M[1], 0.02
    zone.pose.position.x, zone.pose.position.z = HULL_M[0] / 2 + stop_m / 2, -0.3
    for each in (box, zone):
        each.header.frame_id, each.header.stamp = frame, to_time(stamp_s)
    return MarkerArray(markers=[box, zone])
