"""Points, segments and polygons in the plane: what the geofence needs."""

from __future__ import annotations

from itertools import pairwise

Point = tuple[float, float]


def contains(polygon: tuple[Point, ...], point: Point) -> bool:
    """Return whether `point` lies inside `polygon` (even-odd rule; on the edge is either)."""
    x, y = point
    inside = False
    for (ax, ay), (bx, by) in pairwise((*polygon, polygon[0])):
        if (ay > y) != (by > y) and x < ax + (bx - ax) * (y - ay) / (by - ay):
            inside = not inside
    return inside


def crosses(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Return whether the segments ab and cd cross properly (touching at an end does not count)."""
    return _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0


def path_stays_inside(polygon: tuple[Point, ...], start: Point, end: Point) -> bool:
    """Return whether the straight way from `start` stays inside; from outside, whether it leads inside."""
    if not contains(polygon, end):
        # Already outside, a short step may still be on its way in: allowed if it nears the fence.
        return not contains(polygon, start) and distance(polygon, end) < distance(polygon, start)
    if not contains(polygon, start):
        return True
    return not any(crosses(start, end, c, d) for c, d in pairwise((*polygon, polygon[0])))


def distance(polygon: tuple[Point, ...], point: Point) -> float:
    """Return the distance from `point` to the polygon's edge."""
    return min(_to_segment(point, c, d) for c, d in pairwise((*polygon, polygon[0])))


def _side(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _to_segment(point: Point, a: Point, b: Point) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    px, py = point[0] - a[0], point[1] - a[1]
    length2 = dx * dx + dy * dy
    share = 0.0 if length2 == 0 else min(1.0, max(0.0, (px * dx + py * dy) / length2))
    ex, ey = px - share * dx, py - share * dy
    return float((ex * ex + ey * ey) ** 0.5)
