"""The optional libraries, the extra of this package that brings each, and what to do where one is missing.

A machine installs what its part needs: a robot no MuJoCo, a GPU server no robot SDK (`setup.py` has the
lists). Libraries are imported where they are used. The entry points (command line, public API, node programs)
put `translate_missing` around their calls: it turns Python's ModuleNotFoundError for such a library into
MissingExtra with the command that installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from vlm_spec_decode.core.errors import MissingExtra

PACKAGE = "vlm_spec_decode"
_MODELS = ("edge", "cloud", "bags", "train", "bench")
"""Extras with what runs and trains models."""

_ROBOT = ("edge", "sim", "train")
"""Extras with the robot's SDK, which the simulator speaks too."""

_BAGS = ("bags", "train")
"""Extras with what reads and writes recordings."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": _MODELS,
    "transformers": _MODELS,
    "tokenizers": _MODELS,
    "safetensors": _MODELS,
    "huggingface_hub": _MODELS,
    "llguidance": _MODELS,
    "jinja2": _MODELS,
    "unitree_sdk2py": _ROBOT,
    "cyclonedds": _ROBOT,
    "prometheus_client": ("cloud", "serve"),
    "starlette": ("serve",),
    "uvicorn": ("serve",),
    "mujoco": ("sim", "train"),
    "imageio": ("sim", "train"),
    "tqdm": _MODELS,
    "rosbags": _BAGS,
    "mcap": _BAGS,
    "apsw": _BAGS,
    "lz4": _BAGS,
    "zstandard": _BAGS,
    "ray": ("cluster",),
    "accelerate": ("large",),
    "bitsandbytes": ("large",),
    "torchao": ("large",),
    "av": ("video",),
    "cv2": ("video",),
    "onnxruntime": ("physical",),
    "rclpy": ("ros",),
    "builtin_interfaces": ("ros",),
    "diagnostic_msgs": ("ros",),
    "geometry_msgs": ("ros",),
    "nav_msgs": ("ros",),
    "rcl_interfaces": ("ros",),
    "rosgraph_msgs": ("ros",),
    "sensor_msgs": ("ros",),
    "std_msgs": ("ros",),
    "std_srvs": ("ros",),
    "tf2_msgs": ("ros",),
    "visualization_msgs": ("ros",),
    "vlm_spec_decode_msgs": ("ros",),
}
"""Each optional library by the name that is imported, and the extras that bring it."""


BUILT = ("vlm_spec_decode_msgs", "tf2_msgs")
"""ROS messages that no package index has: they are built on the computer that needs them."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install '{PACKAGE}[{extra}]'"


def missing_extra(library: str) -> MissingExtra:
    """Return the error for an optional library that is not installed."""
    first, *others = EXTRAS[library]
    if library in BUILT and find_spec("rclpy") is not None:
        return MissingExtra(
            f"{library} is not built, and this needs it: vsd build-msgs (in a ROS 2 workspace: "
            "colcon build --base-paths src/vlm_spec_decode src/vlm_spec_decode/vlm_spec_decode_msgs)"
        )
    ways = install_command(first) + (f" (or {', '.join(f'[{extra}]' for extra in others)})" if others else "")
    more = "; with a ROS 2 installation, source its setup.bash" if first == "ros" else ""
    return MissingExtra(f"{library} is not installed, and this needs it: {ways}{more}")


@contextmanager
def translate_missing() -> Iterator[None]:
    """Raise MissingExtra in place of ModuleNotFoundError for an optional library; others stay as they are."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        raise missing_extra(library) from error
