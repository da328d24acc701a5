"""Pictures of a mission: each frame with its answer, the path from above, a short GIF."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.demo.mission_log import MissionStep
from vlm_spec_decode.sim.ground_truth import GroundTruth, save_view
from vlm_spec_decode.sim.render.views import WorldViews, save_png
from vlm_spec_decode.sim.scene import Pose2D, Scene
from vlm_spec_decode.sim.world import World

WIDTH_PX = 640
LINE_PX = 22
CHARS = 74


def save_frames(
    folder: Path, instruction: str, steps: Iterable[MissionStep], frames: Mapping[float, Image]
) -> list[Path]:
    """Write each step's frame as it was seen (.jpg) and annotated (.png); return the paths of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("step_*.*"):
        old.unlink()
    written = []
    for step in steps:
        if step.stamp_s in frames and step.text:
            path = folder / f"step_{step.number:02d}.png"
            path.with_suffix(".jpg").write_bytes(frames[step.stamp_s].jpeg)
            annotate(frames[step.stamp_s], instruction, step).save(path)
            written.append(path)
    return written


def annotate(frame: Image, instruction: str, step: MissionStep) -> PilImage.Image:
    """Return the frame with instruction, answer and actions below it."""
    with PilImage.open(io.BytesIO(frame.jpeg)) as opened:
        height = round(WIDTH_PX * opened.height / opened.width)
        picture = opened.convert("RGB").resize((WIDTH_PX, height))
    done = ", ".join(step.executed) or "nothing"
    lines = [
        *textwrap.wrap(f"step {step.number} · {instruction}", CHARS, max_lines=2),
        *textwrap.wrap(f"answer: {step.text}", CHARS, max_lines=5),
        *textwrap.wrap(f"carried out: {done}", CHARS, max_lines=3),
    ]
    page = PilImage.new("RGB", (WIDTH_PX, height + LINE_PX * len(lines) + 16), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=16)
    for index, line in enumerate(lines):
        draw.text((10, height + 6 + LINE_PX * index), line, fill="black", font=font)
    return page


def save_path(scene: Scene, truth: GroundTruth, target: str | None, file: Path) -> None:
    """Write the room from above with the path that the robot took and where it ended."""
    world = World(scene)
    path = [Pose2D(x, y, yaw) for _, x, y, yaw in truth.path]
    _put(world, Pose2D(truth.x_m, truth.y_m, truth.yaw_rad))
    views = WorldViews(world)
    try:
        save_png(views.top_down(world, path, target=target), file)
    finally:
        views.close()


def save_gif(scene: Scene, truth: GroundTruth, file: Path) -> None:
    """Write the run as a GIF, re-enacted from the path: from above beside from behind."""
    save_view(World(scene), truth, file)


def _put(world: World, pose: Pose2D) -> None:
    try:
        world.teleport(pose)
    except SceneError:
        # It leans on something, where no robot can be put down; the path still ends there.
        return
