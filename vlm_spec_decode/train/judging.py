"""What happened in an episode, and whether that was what had been asked: judged from the truth, not words.

Every kind of instruction has its own rule of success; all of them demand that nothing was touched, and that
the models themselves ended the mission.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlm_spec_decode.sim.scene import Pose2D, SceneObject, footprint_radius_m
from vlm_spec_decode.train import instructions
from vlm_spec_decode.train.tasks import DECLINED_KINDS, Task, wanted_motion

REACHED_M = 0.7
STOPPED_M = 0.25
"""Allowed error of "stop N metres before"."""

FACED_DEG = 15.0
STAYED_M = 0.3
MOVED_M, MOVED_DEG = 0.15, 5.0
"""Allowed errors of a plain motion."""

MIN_WAY_M = 0.5
"""Of shorter ways the ratio says nothing."""

APPROACHES = ("go to", "stop before", "go and act", "nearest or outermost", "behind")


@dataclass(slots=True)
class Episode:
    """What happened: answers, actions carried out, the path at each step's end, and how it stopped."""

    task: Task
    answers: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    path: list[Pose2D] = field(default_factory=list)
    status: str = "running"
    reason: str = ""
    collisions: int = 0
    first_distance_m: float = math.nan
    distance_m: float = math.nan
    bearing_deg: float = math.nan
    item: SceneObject | None = None
    success: bool = False

    @property
    def travelled_m(self) -> float:
        """Length of the path."""
        steps = zip(self.path, self.path[1:], strict=False)
        return sum(math.hypot(b.x_m - a.x_m, b.y_m - a.y_m) for a, b in steps)

    @property
    def way_over_straight(self) -> float | None:
        """Length of the path over the straight line to where the robot stopped before the thing.

        None for another kind of instruction or a way that is too short. The straight line goes through
        whatever stands on it, so 1 is a bound, not always a way.
        """
        straight_m = self.first_distance_m - self.distance_m
        if self.task.kind not in APPROACHES or not straight_m >= MIN_WAY_M:
            return None
        return self.travelled_m / straight_m

    @property
    def declined(self) -> bool:
        """Whether the first or last answer refuses in words."""
        said = " ".join((*self.answers[:1], *self.answers[-1:]))
        return any(text in said for text in ("no ,", "i do not know", "there is no"))

    def summary(self) -> dict[str, Any]:
        """Plain data for a report, without the path."""
        task = self.task
        keys = ("success", "status", "reason", "collisions", "answers")
        return {
            "seed": task.seed,
            "kind": task.kind,
            "instruction": task.goal.text,
            "thing": task.thing,
            "seen_at_start": task.seen_at_start,
            "held_out_pair": task.is_held_out_pair,
            "distance_m": None if math.isnan(self.distance_m) else round(self.distance_m, 3),
            "travelled_m": round(self.travelled_m, 2),
            "way_over_straight": None if (ratio := self.way_over_straight) is None else round(ratio, 3),
        } | {key: getattr(self, key) for key in keys}


def judge(episode: Episode) -> bool:
    """Whether the robot did what it was told, by the truth about the room at the end."""
    if episode.collisions:
        return False
    if episode.task.kind == "follow":
        near = episode.distance_m <= instructions.FOLLOW_M + 0.5
        return episode.status == "step_limit" and near and abs(episode.bearing_deg) <= 2 * FACED_DEG
    return episode.status == "done" and _RULES[episode.task.kind](episode)


def _reached(episode: Episode) -> bool:
    return episode.distance_m <= REACHED_M


def _acted(episode: Episode) -> bool:
    wanted = episode.task.goal.action.replace(" ", "")
    return _reached(episode) and wanted in [text.replace(" ", "") for text in episode.executed]


def _stopped(episode: Episode) -> bool:
    return abs(episode.distance_m - episode.task.goal.stop_m) <= STOPPED_M


def _faced(episode: Episode) -> bool:
    return abs(episode.bearing_deg) <= FACED_DEG and _stayed(episode)


def _found(episode: Episode) -> bool:
    # Half the camera's field of view: the thing is at least partly in the picture.
    return abs(episode.bearing_deg) <= 55.0 and _stayed(episode) and not episode.declined


def _stayed(episode: Episode) -> bool:
    first, last = episode.path[0], episode.path[-1]
    return math.hypot(last.x_m - first.x_m, last.y_m - first.y_m) <= STAYED_M


def _passed(episode: Episode) -> bool:
    """The thing lies behind now, and was on the other side of the body when it was nearest."""
    item = episode.item
    if item is None:
        return False
    radius = footprint_radius_m(item.kind, item.scale)
    nearest, side = math.inf, 0.0
    for a, b in zip(episode.path, episode.path[1:], strict=False):
        dx, dy = b.x_m - a.x_m, b.y_m - a.y_m
        length = math.hypot(dx, dy)
        if length < 0.05:
            continue
        ox, oy = item.x_m - a.x_m, item.y_m - a.y_m
        share = min(1.0, max(0.0, (ox * dx + oy * dy) / length**2))
        away = math.hypot(ox - share * dx, oy - share * dy)
        if away < nearest:
            nearest, side = away, dx * oy - dy * ox
    was_left = side < 0
    return (
        abs(episode.bearing_deg) > 90.0
        and nearest <= radius + 1.0
        and was_left == (episode.task.goal.side == "left")
    )


def _moved(episode: Episode) -> bool:
    first, last = episode.path[0], episode.path[-1]
    forward, left, turn = wanted_motion(episode.task.goal.action)
    cos, sin = math.cos(first.yaw_rad), math.sin(first.yaw_rad)
    x, y = first.x_m + cos * forward - sin * left, first.y_m + sin * forward + cos * left
    turned = math.remainder(last.yaw_rad - first.yaw_rad - math.radians(turn), 2 * math.pi)
    return math.hypot(last.x_m - x, last.y_m - y) <= MOVED_M and abs(math.degrees(turned)) <= MOVED_DEG


def _refused(episode: Episode) -> bool:
    return episode.declined and _stayed(episode)


def _not_found(episode: Episode) -> bool:
    # It may have looked from a second place.
    return episode.declined


_RULES: dict[str, Callable[[Episode], bool]] = {
    "go to": _reached,
    "stop before": _stopped,
    "go and act": _acted,
    "nearest or outermost": _reached,
    "behind": _reached,
    "face": _faced,
    "find": _found,
    "pass": _passed,
    "plain motion": _moved,
    **dict.fromkeys(DECLINED_KINDS, _refused),
    "absent": _not_found,
}
