"""The picture that `--view` leaves behind: the room from above beside the robot from behind.

A PNG shows the end of the run. A GIF re-enacts the recorded path afterwards, so that a run costs nothing
for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.canvas import Rgb8
from vlm_spec_decode.sim.scene import Pose2D
from vlm_spec_decode.sim.server_truth import Truth
from vlm_spec_decode.sim.views import Views, save_gif, save_png
from vlm_spec_decode.sim.world import World

SUFFIXES = (".png", ".gif")
PANEL_PX = 480
MAX_FRAMES = 24
GIF_FPS = 6.0


def check_view(file: Path) -> None:
    """Refuse what cannot be written, before the run. Raises ConfigError."""
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"view: {file.name!r} ends in neither of {', '.join(SUFFIXES)}")
    if not file.parent.is_dir():
        raise ConfigError(f"view: there is no folder {str(file.parent)!r}")


def save_view(world: World, truth: Truth, file: Path) -> None:
    """Write the picture of a run that has ended; a GIF leaves the world at the end of the path."""
    path = [Pose2D(x, y, yaw) for _, x, y, yaw in truth.path]
    still = file.suffix.lower() == ".png"
    quality = "nice" if still else "fast"
    views = Views(world, width_px=PANEL_PX, height_px=2 * PANEL_PX, quality=quality)
    try:
        if still:
            save_png(_panels(views, world, path), file)
        else:
            save_gif(_frames(views, world, path, truth), file, fps=GIF_FPS)
    finally:
        views.close()


def _frames(views: Views, world: World, path: list[Pose2D], truth: Truth) -> list[Rgb8]:
    steps = np.linspace(0, len(path) - 1, min(MAX_FRAMES, len(path))).round().astype(int)
    frames = []
    for index in steps.tolist():
        world.show(path[index], truth.shapes[index])
        frames.append(_panels(views, world, path[: index + 1]))
    return frames or [_panels(views, world, path)]


def _panels(views: Views, world: World, path: list[Pose2D]) -> Rgb8:
    above = views.top_down(world, path, width_px=PANEL_PX)
    behind = views.third_person(world, width_px=PANEL_PX, height_px=above.shape[0])
    return np.hstack([above, behind])
