"""Names of the coordinate frames and topics of one robot among several, in parameters and in RViz's config.

A frame has a prefix (`go2_a/base_link`), a topic a namespace (`/go2_a/vlm/path`). RViz has an option for its
fixed frame alone, so the launch files write its config from the template `rviz/vlm.rviz`. Needs no ROS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml


@dataclass(frozen=True, slots=True)
class FrameNames:
    """Names of the coordinate frames."""

    NAMES: ClassVar[tuple[str, ...]] = ("odom", "base", "camera", "optical")

    odom: str = "odom"
    base: str = "base_link"
    camera: str = "front_camera"
    optical: str = "front_camera_optical"

    def prefixed(self, prefix: str) -> FrameNames:
        """Return the names with a prefix, for several robots that share `/tf`."""
        return FrameNames(*(f"{prefix}{getattr(self, name)}" for name in self.NAMES))


def frame_parameters(prefix: str) -> Mapping[str, Mapping[str, str]]:
    """Return the frame parameters of the nodes that have some, by the keywords of `ros.launch.nodes`."""
    frames = FrameNames().prefixed(prefix)
    body = {"odom_frame": frames.odom, "base_frame": frames.base}
    lens = {"camera_frame": frames.camera, "optical_frame": frames.optical}
    return {"camera": {"frame_id": frames.optical}, "locomotion": body | lens, "monitor": body}


FRAME_KEYS = ("Fixed Frame", "Reference Frame", "Target Frame")
"""Keys of RViz's config whose value is a frame."""

TOPIC_KEYS = ("Topic", "Description Topic")
"""Keys of RViz's config that hold a topic, as `Value`."""


def view_config(template: str, *, namespace: str = "", prefix: str = "") -> str:
    """Return RViz's config with every frame prefixed and every topic below the namespace; both YAML.

    The frames that the TF display hides or shows are keys, below `Frames`. `/tf` itself is shared by all.
    """
    below = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    config: Any = yaml.safe_load(template)
    _rename(config, below, prefix)
    return yaml.safe_dump(config, sort_keys=False)


def _rename(part: Any, below: str, prefix: str) -> None:
    if isinstance(part, list):
        for each in part:
            _rename(each, below, prefix)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in FRAME_KEYS and isinstance(value, str):
                part[key] = f"{prefix}{value}"
            elif key in TOPIC_KEYS:
                value["Value"] = f"{below}{value['Value']}"
            elif key == "Frames":
                part[key] = {k if k == "All Enabled" else f"{prefix}{k}": v for k, v in value.items()}
            else:
                _rename(value, below, prefix)


def write_view(template: Path, folder: Path, *, namespace: str = "", prefix: str = "") -> Path:
    """Write the config of one robot into a folder; return the file."""
    path = folder / template.name
    text = template.read_text(encoding="utf-8")
    path.write_text(view_config(text, namespace=namespace, prefix=prefix), encoding="utf-8")
    return path
