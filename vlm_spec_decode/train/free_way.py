"""The way to an object past what stands before it, by the truth of a view: one heading, one distance."""

from __future__ import annotations

import math

from vlm_spec_decode.sim.objects import footprint_radius_m
from vlm_spec_decode.train.scene_description import VisibleObject

TURN_GRID_DEG = 10
"""Grid of turns in degrees."""

BODY_HALF_WIDTH_M = 0.27
"""Half the body's width and a margin."""


def plan(thing: VisibleObject, view: tuple[VisibleObject, ...], step_m: float) -> tuple[float, float]:
    """Return heading in degrees and distance: straight to the object, or past an obstacle."""
    others = [t for t in view if t is not thing and abs(t.bearing_deg) < 75]
    straight_deg = TURN_GRID_DEG * round(thing.bearing_deg / TURN_GRID_DEG)
    best = (float(straight_deg), 0.2)
    for off in (0, *_detours(thing, others)):
        heading = float(straight_deg + off)
        free_m = min((_free_m(t, heading) for t in others), default=math.inf)
        if free_m >= step_m:
            return heading, step_m
        if free_m > best[1]:
            best = (heading, free_m)
    return best[0], min(best[1], step_m)


def _detours(thing: VisibleObject, others: list[VisibleObject]) -> list[int]:
    """Return angles off the straight way: small ones first, of each size first away from the obstacle."""
    blocking = min(others, key=lambda t: _free_m(t, thing.bearing_deg), default=thing)
    side = -1 if blocking.bearing_deg > thing.bearing_deg else 1
    return [sign * side * off for off in range(10, 61, 10) for sign in (1, -1)]


def _free_m(other: VisibleObject, heading_deg: float) -> float:
    """Return how far the robot may walk along `heading_deg` before the body comes near `other`."""
    angle = math.radians(other.bearing_deg - heading_deg)
    along, across = other.centre_m * math.cos(angle), abs(other.centre_m * math.sin(angle))
    radius = footprint_radius_m(other.kind)
    if along <= 0 or across >= radius + BODY_HALF_WIDTH_M:
        return math.inf
    return max(0.0, along - radius - 0.5)
