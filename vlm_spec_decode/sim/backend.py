"""Choice of MuJoCo's OpenGL backend on machines without a display.

Knows the environment and the installed libraries; must not import MuJoCo, which reads the choice
when it is imported.
"""

from __future__ import annotations

import ctypes.util
import os


def choose_backend() -> None:
    """Set MUJOCO_GL unless the user has: OSMesa (software) before EGL; with a display, MuJoCo's default.

    OSMesa comes first although EGL may be a GPU: its frames are the same on every machine, and the
    models are trained and judged on these frames.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY"):
        return
    for name, library in (("osmesa", "OSMesa"), ("egl", "EGL")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
