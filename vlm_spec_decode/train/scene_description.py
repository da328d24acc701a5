"""The objects in view of one frame and their description: names, directions, rounded distances.

Uses the ground truth of a frame; no instructions and no actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.sim.objects import COLOURS, KINDS

MIN_PIXELS = 24
"""Of 16,384: less than this of an object does not count as seen."""

GRIDS_M = ((1.2, 0.1), (2.4, 0.2), (math.inf, 0.5))
"""Up to which distance they are told how finely. What is far is read again from nearer."""

MAX_TOLD_M = 5.0

MAX_TOLD = 4
"""Things told of one frame."""

AHEAD_DEG = 12
"""Less off the heading than this is called ahead."""


@dataclass(frozen=True, slots=True)
class VisibleObject:
    """One object as seen from the robot."""

    kind: str
    colour: str
    bearing_deg: float
    distance_m: float
    centre_m: float
    pixels: int

    @property
    def name(self) -> str:
        """Colour and kind."""
        return f"{self.colour} {self.kind}"

    @property
    def seen(self) -> bool:
        """Whether enough of it is in view."""
        return self.pixels >= MIN_PIXELS


def things(rows: npt.NDArray[np.float32]) -> tuple[VisibleObject, ...]:
    """Read the objects of one frame [8, 6] (see `train.frames.Column`)."""
    return tuple(
        VisibleObject(KINDS[int(k)], COLOURS[int(c)], float(b), float(d), float(m), int(p))
        for k, c, b, d, m, p in rows
        if k >= 0
    )


def describe(view: tuple[VisibleObject, ...], with_distance: bool = False) -> str:
    """Say what is in view from left to right, at most the largest `MAX_TOLD`."""
    told = sorted((t for t in view if t.seen), key=lambda t: -t.pixels)[:MAX_TOLD]
    parts = [
        f"a {t.name} {where(t)}" + (f" at {metres(told_m(t.distance_m))} m" if with_distance else "")
        for t in sorted(told, key=lambda t: -t.bearing_deg)
    ]
    return "i see " + (" , ".join(parts) or "nothing")


def told_m(distance_m: float) -> float:
    """Return a distance as it is told: the farther, the rounder."""
    grid_m = next(grid_m for limit_m, grid_m in GRIDS_M if distance_m < limit_m)
    return min(MAX_TOLD_M, max(0.1, grid_m * round(distance_m / grid_m)))


def where(thing: VisibleObject) -> str:
    """Return the direction of a thing in a word."""
    if abs(thing.bearing_deg) <= AHEAD_DEG:
        return "ahead"
    return "left" if thing.bearing_deg > 0 else "right"


def metres(distance_m: float) -> str:
    """Return a distance as a number of the vocabulary."""
    return f"{min(5.0, max(0.1, distance_m)):.1f}"
