"""Where the body is on the floor, by odometry, and where it was when a picture was taken."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pose2D:
    """A position and heading on the floor."""

    x_m: float
    y_m: float
    yaw_rad: float = 0.0

    def seen_from(self, origin: Pose2D) -> Pose2D:
        """Return this pose in the body frame of `origin` (x ahead, y to the left), in SE(2).

        For origin (t, a) and this pose (p, b): (R(-a) (p - t), b - a), the angle within half a turn.
        """
        dx_m, dy_m = self.x_m - origin.x_m, self.y_m - origin.y_m
        cos, sin = math.cos(origin.yaw_rad), math.sin(origin.yaw_rad)
        yaw_rad = math.remainder(self.yaw_rad - origin.yaw_rad, 2 * math.pi)
        return Pose2D(cos * dx_m + sin * dy_m, cos * dy_m - sin * dx_m, yaw_rad)


MAX_SPEED_MPS, MAX_TURN_RADPS = 1.0, 1.5
"""What no walking robot here exceeds, whatever its limits: a gap in the messages lets it come this far."""


def has_jumped(moved: Pose2D, elapsed_s: float, max_m: float, max_rad: float) -> bool:
    """Whether odometry that says `moved` within `elapsed_s` has jumped, by more than these tolerances.

    False where a number is none: that is for those to refuse who use the pose.
    """
    allowed_m, allowed_rad = max_m + MAX_SPEED_MPS * elapsed_s, max_rad + MAX_TURN_RADPS * elapsed_s
    return math.hypot(moved.x_m, moved.y_m) > allowed_m or abs(moved.yaw_rad) > allowed_rad


KEPT_S = 30.0
"""How long poses are kept: longer than the oldest frame that any plan may be decided on."""


class PoseHistory:
    """Poses by their stamps, of the last `KEPT_S` seconds. Safe for threads.

    A reset of the odometry (a jump that no robot makes) empties it: no motion is known across it.
    """

    MAX_JUMP_M, MAX_JUMP_RAD = 0.5, 0.8

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poses: deque[tuple[float, Pose2D]] = deque()
        self.jumps = 0
        """How often the odometry has jumped."""

    def put(self, stamp_s: float, pose: Pose2D) -> None:
        """Add the newest pose; one that is not newer than the last, or no number, is dropped."""
        if not all(map(math.isfinite, (stamp_s, pose.x_m, pose.y_m, pose.yaw_rad))):
            return
        with self._lock:
            if self._poses:
                last_s, last = self._poses[-1]
                if stamp_s <= last_s:
                    return
                moved, elapsed_s = pose.seen_from(last), stamp_s - last_s
                if has_jumped(moved, elapsed_s, self.MAX_JUMP_M, self.MAX_JUMP_RAD):
                    self.jumps += 1
                    self._poses.clear()
            self._poses.append((stamp_s, pose))
            while self._poses[0][0] < stamp_s - KEPT_S:
                self._poses.popleft()

    def at(self, stamp_s: float, tolerance_s: float = 0.25) -> Pose2D | None:
        """Return the pose at a time, between two poses by interpolation; None if none is near enough."""
        with self._lock:
            poses = list(self._poses)
        index = bisect_left(poses, stamp_s, key=lambda item: item[0])
        after = poses[index] if index < len(poses) else None
        before = poses[index - 1] if index else None
        near = [item for item in (before, after) if item and abs(item[0] - stamp_s) <= tolerance_s]
        if len(near) < 2:
            return near[0][1] if near else None
        (early_s, early), (late_s, late) = near
        share = (stamp_s - early_s) / (late_s - early_s)
        turned_rad = math.remainder(late.yaw_rad - early.yaw_rad, 2 * math.pi)
        return Pose2D(
            early.x_m + share * (late.x_m - early.x_m),
            early.y_m + share * (late.y_m - early.y_m),
            early.yaw_rad + share * turned_rad,
        )

    @property
    def newest(self) -> Pose2D | None:
        """The last pose, None before any."""
        with self._lock:
            return self._poses[-1][1] if self._poses else None
