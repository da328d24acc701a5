"""What a mission was worth, from its story and from what really happened in the room."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlm_spec_decode.demo.story import Step, Story
from vlm_spec_decode.sim.scene import COLOURS, KINDS, Scene

REACHED_M = 0.7
"""A go-to mission ends well at most this far from the object's nearest surface."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over a mission's answers."""

    tokens: int
    target_passes: int
    drafted: int
    accepted: int
    answer_s: float
    uplink_bytes: int
    downlink_bytes: int
    image_bytes: int

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


def figures(traces: Iterable[Mapping[str, Any]]) -> Figures:
    """Add up traces as `/vlm/trace` has them."""
    told = [trace for trace in traces if trace]

    def total(key: str) -> int:
        return sum(int(trace[key]) for trace in told)

    return Figures(
        tokens=total("tokens"),
        target_passes=total("target_passes"),
        drafted=total("drafted"),
        accepted=total("accepted"),
        answer_s=sum(float(trace["total_s"]) for trace in told),
        uplink_bytes=total("uplink_bytes"),
        downlink_bytes=total("downlink_bytes"),
        image_bytes=total("image_bytes"),
    )


def named_object(instruction: str, scene: Scene) -> str | None:
    """Return the object that is named by colour and kind, or by a kind that is there only once."""
    words = re.sub(r"[^a-z]+", " ", instruction.lower())
    for colour, kind in re.findall(rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(KINDS)})\b", words):
        fits = [item.name for item in scene.objects if item.kind == kind and colour in ("", item.colour)]
        if len(fits) == 1:
            return fits[0]
    return None


def object_ahead(scene: Scene) -> str:
    """Return the object that stands nearest to where the robot looks at the start."""
    start = scene.start

    def off_axis_rad(x_m: float, y_m: float) -> float:
        bearing = math.atan2(y_m - start.y_m, x_m - start.x_m) - start.yaw_rad
        return abs(math.atan2(math.sin(bearing), math.cos(bearing)))

    return min(scene.objects, key=lambda item: off_axis_rad(item.x_m, item.y_m)).name


def is_success(story: Story, target: str | None, distance_m: float | None, collisions: int) -> bool:
    """Whether the models said `done()`, nothing was touched, and a named object was reached."""
    reached = target is None or (distance_m is not None and distance_m <= REACHED_M)
    return story.state == "done" and collisions == 0 and reached


def same_tokens(steps: Iterable[Step], again: Mapping[int, Mapping[str, Any]]) -> bool | None:
    """Compare answers with those decoded again, by step; None if there was nothing to compare."""
    compared = [
        step.token_ids == tuple(again[step.number]["token_ids"]) for step in steps if step.number in again
    ]
    return all(compared) if compared else None
