"""The camera's intrinsics: a pinhole from its field of view, or a ROS calibration file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensor_msgs.msg import CameraInfo

from vlm_spec_decode.bridge.convert import to_time
from vlm_spec_decode.bridge.settings import load_yaml
from vlm_spec_decode.core.errors import ConfigError

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
    """Read a file as `camera_calibration` writes it. Raises ConfigError naming what does not hold."""
    try:
        return _parse(load_yaml(path))
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
