"""A simulated Unitree Go2: room, body, front camera and the robot's own services.

Importing the package chooses MuJoCo's OpenGL backend, because MuJoCo reads it once, at its own import; what
DDS reads then is settled as well. MuJoCo itself is not imported here.
"""

from __future__ import annotations

import os

from vlm_spec_decode.core import environment
from vlm_spec_decode.core.environment_checks import OFFSCREEN, default_gl


def choose_backend() -> None:
    """Set MUJOCO_GL unless the user has, and PYOPENGL_PLATFORM with it; `core.environment` has checked both.

    With a display and no library to draw without one, MuJoCo's own choice is left to it.
    """
    chosen = os.environ.get("MUJOCO_GL") or default_gl(bool(os.environ.get("DISPLAY")))
    if chosen:
        os.environ["MUJOCO_GL"] = chosen
    if chosen.lower() in OFFSCREEN:
        os.environ["PYOPENGL_PLATFORM"] = chosen.lower()


environment.prepare(environment.PYTHON, environment.DDS, environment.OPENGL)
choose_backend()
