"""What a robot in this process gives a mission: its executor's status, its pose, its frames; on threads.

The VLM node has these from topics; here they are read from the robot itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.core.errors import ImageError, RobotError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.mission.events import Frame
from vlm_spec_decode.mission.robot import Robot
from vlm_spec_decode.mission.service import MissionService

STATUS_POLL_S = 0.025
"""Period of reading the executor's status; a change is seen within it."""

STATUS_S = 0.1
FRAME_S = 0.2
POSE_S = 0.05
"""How often the body's pose is read, as the locomotion node publishes it."""

log = logging.getLogger(__name__)


class RobotFeeds:
    """Reads a robot for a mission service. Each method is the work of one thread until `closing` is set.

    `capture` takes a frame, with its time. `on_status` gets every new status of the executor, `on_state`
    every state of the body that is read.
    """

    def __init__(
        self,
        service: MissionService,
        robot: Robot,
        capture: Callable[[], tuple[Image, float]],
        clock: Clock,
        closing: threading.Event,
        on_status: Callable[[PlanStatus], None],
        on_state: Callable[[RobotState], None] = lambda _: None,
    ) -> None:
        self._service, self._robot, self._capture, self._clock = service, robot, capture, clock
        self._closing, self._on_status, self._on_state = closing, on_status, on_state

    def watch_robot(self) -> None:
        """Give the mission the executor's status: at once when it changes, and as a regular sign of life."""
        reported, reported_s, placed_s = None, 0.0, 0.0
        while not self._closing.wait(STATUS_POLL_S):
            status, now_s = self._robot.status, self._clock.now()
            if now_s - placed_s >= POSE_S:
                placed_s = now_s
                with suppress(RobotError):
                    state = self._robot.state
                    self._service.put_pose(now_s, Pose2D(state.x_m, state.y_m, state.yaw_rad))
                    self._on_state(state)
            if status == reported and now_s - reported_s < STATUS_S:
                continue
            if status != reported:
                self._on_status(status)
            reported, reported_s = status, now_s
            self._service.put_status(status)

    def read_camera(self) -> None:
        """Read frames. A failing camera is tried again; the mission ends by its own time-out."""
        while not self._closing.is_set():
            try:
                image, captured_s = self._capture()
                self._service.put_frame(Frame(image, captured_s, "camera"))
            except (RobotError, ImageError) as error:
                log.debug("no frame: %s", error)
            self._closing.wait(FRAME_S)
