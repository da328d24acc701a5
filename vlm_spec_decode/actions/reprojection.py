"""A plan decided on an earlier frame, told anew from where the body is now.

The body has moved by odometry, an SE(2) motion, since the frame was taken. A plan is a path from the pose of
its frame: turns and ways lead to points of that frame. Seen from the body's pose now the points are the same
ones, so the first way is replaced by a turn towards its end and the way that is left to it; what follows
begins at that end and stays, but for the turn that makes the heading good there. After a pure turn this is
exact. After a motion the words of the answer ("0.9 m ahead") are older than the body, so a limit is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vlm_spec_decode.actions.types import MOTIONS, Action, Forward, Strafe, Turn
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.pose import Pose2D

PURE_TURN_M = 0.05
"""Motion up to which the body has only turned: gaits step a few centimetres aside."""

MIN_DEG, MIN_M = 1.0, 0.05
"""Motions smaller than this are left out: no body makes them."""


@dataclass(frozen=True, slots=True)
class ReprojectionLimits:
    """How far the body may have moved, and how far it may have to turn back when it has walked.

    `max_turn_deg` holds after walking only: a point that is almost reached lies at any side of the body, and
    turning towards it goes back and forth for ever (limit cycles of turns of 171 degrees were seen).
    """

    max_moved_m: float = 1.5
    max_turn_deg: float = 60.0


LIMITS = ReprojectionLimits()


def reproject(
    actions: tuple[Action, ...], moved: Pose2D, limits: ReprojectionLimits = LIMITS
) -> tuple[Action, ...]:
    """Return the plan that leads from the body's pose now to where `actions` led from their frame.

    `moved` is the pose now in the body frame of the moment when the frame was taken (metres, radians).
    After a turn on the spot a plan that begins with no motion is preceded by the turn back: what it does or
    ends with is done where its frame looked. After a walk such a plan is returned as it is. Raises
    ActionRefused with `reprojection` if the body has moved further than `limits` allow, or is past the point
    it was to walk to.
    """
    moved_m = math.hypot(moved.x_m, moved.y_m)
    if moved_m > limits.max_moved_m:
        raise ActionRefused("reprojection", f"the body is {moved_m:.2f} m from where the frame was taken")
    if actions and moved_m <= PURE_TURN_M:
        return _turned(actions, math.degrees(moved.yaw_rad))
    if not actions or not isinstance(actions[0], MOTIONS):
        return actions
    return _walked(actions, moved, limits)


def _turned(actions: tuple[Action, ...], turned_deg: float) -> tuple[Action, ...]:
    """Return the plan after a pure turn: its first turn is shorter by what has been turned."""
    first, *rest = actions
    planned_deg = first.angle_deg if isinstance(first, Turn) else 0.0
    after = tuple(rest) if isinstance(first, Turn) else actions
    return _turn_by(_half_turn(planned_deg - turned_deg), after)


def _walked(actions: tuple[Action, ...], moved: Pose2D, limits: ReprojectionLimits) -> tuple[Action, ...]:
    first, *others = actions
    rest = tuple(others)
    heading_deg = 0.0
    if isinstance(first, Turn):
        heading_deg = first.angle_deg
        if not rest or not isinstance(rest[0], (Forward, Strafe)):
            return _turned(actions, math.degrees(moved.yaw_rad))
        first, rest = rest[0], rest[1:]
    assert isinstance(first, (Forward, Strafe))
    sideways_deg = 90.0 if isinstance(first, Strafe) else 0.0
    # The end of the way in the frame's body frame: p = d (cos(a + s), sin(a + s)), s = 90 degrees sideways.
    direction_rad = math.radians(heading_deg + sideways_deg)
    end = Pose2D(first.distance_m * math.cos(direction_rad), first.distance_m * math.sin(direction_rad))
    goal = end.seen_from(moved)
    left_m = math.hypot(goal.x_m, goal.y_m)
    if left_m < MIN_M:
        return _turn_by(_half_turn(heading_deg - math.degrees(moved.yaw_rad)), rest)
    bearing_deg = math.degrees(math.atan2(goal.y_m, goal.x_m))
    backwards = first.distance_m < 0
    turn_deg = _half_turn(bearing_deg - sideways_deg - (180.0 if backwards else 0.0))
    if abs(turn_deg) > max(limits.max_turn_deg, abs(heading_deg)):
        raise ActionRefused("reprojection", f"the end of the way lies {turn_deg:.0f} deg to the side now")
    way = replace(first, distance_m=-left_m if backwards else left_m)
    # At the end the body looks along the new way; what follows was told for the heading of the old one.
    arrived_deg = math.degrees(moved.yaw_rad) + turn_deg
    correction_deg = _half_turn(heading_deg - arrived_deg)
    if rest and isinstance(rest[0], MOTIONS):
        rest = _turned(rest, -correction_deg)
    return _turn_by(turn_deg, (way, *rest))


def _turn_by(angle_deg: float, rest: tuple[Action, ...]) -> tuple[Action, ...]:
    return (Turn(round(angle_deg, 2)), *rest) if abs(angle_deg) >= MIN_DEG else rest


def _half_turn(angle_deg: float) -> float:
    """Return the same heading as an angle within half a turn."""
    return math.remainder(angle_deg, 360.0)


def end_of(start: Pose2D, *actions: Action) -> Pose2D:
    """Return where a body at `start` is when it has carried out the motions of `actions` exactly."""
    x_m, y_m, yaw_rad = start.x_m, start.y_m, start.yaw_rad
    for action in actions:
        if isinstance(action, Turn):
            yaw_rad += math.radians(action.angle_deg)
        elif isinstance(action, (Forward, Strafe)):
            way_rad = yaw_rad + (math.pi / 2 if isinstance(action, Strafe) else 0.0)
            x_m += action.distance_m * math.cos(way_rad)
            y_m += action.distance_m * math.sin(way_rad)
    return Pose2D(x_m, y_m, yaw_rad)
