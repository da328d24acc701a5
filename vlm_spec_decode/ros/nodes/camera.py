"""The camera node: publishes a camera's frames and their calibration, independent of their use.

Intrinsics are a pinhole from the field of view, or a ROS calibration file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage

from vlm_spec_decode.core.config import Setting, read_mapping
from vlm_spec_decode.core.errors import ConfigError, ImageError, RobotError
from vlm_spec_decode.core.ports import Camera, Clock
from vlm_spec_decode.core.types import FUTURE_TOLERANCE_S, Image
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import STEADY, ClockConverter, to_compressed, to_time
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S

MODELS = {"plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}
"""Distortion models of `sensor_msgs/distortion_models` and how many coefficients each has."""


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """A camera of `width` x `height` pixels; focal lengths and centre in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "plumb_bob"
    distortion: tuple[float, ...] = (0.0,) * 5

    def scaled(self, width: int, height: int) -> Intrinsics:
        """Return the intrinsics of the same view at another resolution."""
        if (width, height) == (self.width, self.height):
            return self
        sx, sy = width / self.width, height / self.height
        focal = (self.fx * sx, self.fy * sy)
        return Intrinsics(width, height, *focal, self.cx * sx, self.cy * sy, self.model, self.distortion)

    def message(self, stamp_s: float, frame_id: str) -> CameraInfo:
        """Return the camera_info that belongs to a frame of this stamp."""
        info = CameraInfo(width=self.width, height=self.height, distortion_model=self.model)
        info.header.stamp = to_time(stamp_s)
        info.header.frame_id = frame_id
        info.d = list(self.distortion)
        info.k = [self.fx, 0.0, self.cx, 0.0, self.fy, self.cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [self.fx, 0.0, self.cx, 0.0, 0.0, self.fy, self.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info


def pinhole(width: int, height: int, hfov_deg: float) -> Intrinsics:
    """Return an ideal camera with square pixels and this horizontal field of view."""
    if not 1.0 <= hfov_deg < 179.0:
        raise ConfigError(f"a horizontal field of view of {hfov_deg} deg; 1 to 179 are possible")
    focal = width / 2 / math.tan(math.radians(hfov_deg) / 2)
    return Intrinsics(width, height, focal, focal, width / 2, height / 2)


def load(path: Path) -> Intrinsics:
    """Read a file as `camera_calibration` writes it. Raises ConfigError that names the fault."""
    try:
        return _parse(read_mapping(path))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error


def _parse(values: Any) -> Intrinsics:
    matrix = [float(v) for v in values["camera_matrix"]["data"]]
    if len(matrix) != 9:
        raise ValueError(f"camera_matrix has {len(matrix)} numbers, not 9")
    model = str(values["distortion_model"])
    distortion = tuple(float(v) for v in values["distortion_coefficients"]["data"])
    if MODELS.get(model) != len(distortion):
        raise ValueError(f"distortion model {model!r} with {len(distortion)} coefficients")
    size = (int(values["image_width"]), int(values["image_height"]))
    return Intrinsics(*size, matrix[0], matrix[4], matrix[2], matrix[5], model, distortion)


SILENCE_S = 2.0
CLOCKS = "if all are, the camera's clock and this machine's differ (chrony or PTP keeps them together)"

PARAMETERS = (
    Setting("rate_hz", 5.0, "Frames asked of the camera per second.", 0.2, 30.0),
    Setting("frame_id", "front_camera_optical", "Optical frame of the images (REP 103)."),
    Setting("hfov_deg", 100.0, "Horizontal field of view of the pinhole without a file.", 10.0, 170.0),
    Setting("calibration_file", "", "Calibration YAML as camera_calibration writes it; empty: pinhole."),
    Setting("max_age_s", 1.0, "A frame older than this when it arrives is dropped.", 0.05, 10.0),
)


@dataclass(slots=True)
class _Counts:
    """Figures of the camera for diagnostics."""

    published: int = 0
    stale: int = 0
    future: int = 0
    backwards: int = 0
    failed: int = 0
    last_error: str = ""
    last_drop: str = ""
    last_s: float | None = None


class CameraNode:
    """Polls a `Camera` at a fixed rate; a frame seen before is not published again.

    `open_camera` is called from the polling callback and again after a failure, so a robot that is
    switched on later, or returns, is used without a restart.
    """

    def __init__(self, node: Node, open_camera: Callable[[], Camera], clock: Clock) -> None:
        self._node = node
        self._open_camera = open_camera
        self._camera: Camera | None = None
        self._clock = clock
        self._stamps = ClockConverter(node, clock)
        self._parameters = Parameters(node, PARAMETERS)
        self._frame_id = self._parameters.text("frame_id")
        self._calibration = self._load_calibration()
        self._counts = _Counts()
        self._looked_s = self._published_s = float("-inf")
        self._closed = False
        sensor = qos_profile_sensor_data
        self._images = node.create_publisher(CompressedImage, "camera/image_raw/compressed", sensor)
        self._infos = node.create_publisher(CameraInfo, "camera/camera_info", sensor)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    @property
    def is_settled(self) -> bool:
        """Always true: a missing camera is tried again without limit."""
        return True

    def begin(self) -> None:
        """Start to poll the camera."""
        node, polling = self._node, MutuallyExclusiveCallbackGroup()
        node.create_timer(1 / self._parameters.real("rate_hz"), self.poll, polling, clock=STEADY)
        node.create_timer(1.0, self._diagnose, MutuallyExclusiveCallbackGroup(), clock=STEADY)

    def poll(self) -> None:
        """Read one frame and publish it with its calibration."""
        if self._closed:
            return
        try:
            self._camera = self._camera or self._open_camera()
            image, captured_s = self._camera.frame()
        except (RobotError, ImageError) as error:
            self._fail(f"{type(error).__name__}: {error}")
            return
        if captured_s == self._looked_s:
            return
        self._looked_s = captured_s
        if self._is_in_time(captured_s):
            self._published_s = captured_s
            self._publish(image, self._stamps.to_ros_s(captured_s))

    def _is_in_time(self, captured_s: float) -> bool:
        """Return whether a frame's age is within limits; if not, it is counted and logged as dropped."""
        counts, age_s = self._counts, self._clock.now() - captured_s
        limit_s = self._parameters.real("max_age_s")
        if age_s > limit_s:
            counts.stale += 1
            self._drop(f"{age_s:.1f} s old when it came, and max_age_s is {limit_s:g}; {CLOCKS}")
        elif age_s < -FUTURE_TOLERANCE_S:
            counts.future += 1
            self._drop(f"stamped {-age_s:.1f} s in the future; {CLOCKS}")
        elif captured_s < self._published_s:
            counts.backwards += 1
            self._drop("stamped before the frame that came before it")
        else:
            return True
        return False

    def _drop(self, why: str) -> None:
        self._counts.last_drop = why
        self._node.get_logger().warning(f"frame dropped: {why}", throttle_duration_sec=WARN_EVERY_S)

    def close(self) -> None:
        """Free the camera. Idempotent."""
        self._closed = True
        if self._camera is not None:
            self._camera.close()
        self._camera = None

    def _publish(self, image: Image, stamp_s: float) -> None:
        intrinsics = self._intrinsics(image)
        self._images.publish(to_compressed(image, stamp_s, self._frame_id))
        self._infos.publish(intrinsics.message(stamp_s, self._frame_id))
        self._counts.published += 1
        self._counts.last_s = self._clock.now()

    def _intrinsics(self, image: Image) -> Intrinsics:
        if self._calibration is not None:
            return self._calibration.scaled(image.width, image.height)
        return pinhole(image.width, image.height, self._parameters.real("hfov_deg"))

    def _load_calibration(self) -> Intrinsics | None:
        path = self._parameters.path("calibration_file")
        return load(path) if path else None

    def _fail(self, message: str) -> None:
        self._counts.failed += 1
        self._counts.last_error = message
        self._node.get_logger().warning(f"no frame: {message}", throttle_duration_sec=WARN_EVERY_S)

    def _diagnose(self) -> None:
        counts = self._counts
        values = {
            "frames": str(counts.published),
            "stale_dropped": str(counts.stale),
            "future_dropped": str(counts.future),
            "backwards_dropped": str(counts.backwards),
            "last_drop": counts.last_drop,
            "failed": str(counts.failed),
            "last_error": counts.last_error,
        }
        age_s = None if counts.last_s is None else self._clock.now() - counts.last_s
        line = diagnostics.rate(f"{diagnostics.name_of(self._node)}: frames", age_s, SILENCE_S, values)
        self._diagnostics.publish(diagnostics.array([line], self._stamps.ros_now_s(), "go2"))
