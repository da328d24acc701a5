"""The run as a GIF: the room from above with path and plan, from behind the robot, and what is said when.

Re-enacted from the simulator's path. Its clock began earlier than the mission's; the first motion of both
ties one to the other.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.reprojection import end_of
from vlm_spec_decode.core.images import drawable
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.demo.report import MissionStep
from vlm_spec_decode.demo.timeline import ANSWERING, MOVING, UPLOADING, Timeline
from vlm_spec_decode.sim.camera import Rgb8
from vlm_spec_decode.sim.ground_truth import GroundTruth
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.views import WorldViews, save_gif
from vlm_spec_decode.sim.world import World

PANEL_PX, STRIP_PX, LINE_PX = 480, 96, 24
FRAMES, FPS, HELD = 30, 6.0, 10
"""Pictures of a run, their rate, and how often the last one is repeated before the film begins anew."""

MOVED_M, TURNED_RAD = 0.02, 0.02
COLUMNS = 106
INK, QUIET, PAPER = (22, 25, 29), (79, 88, 97), (255, 255, 255)
STATES = {"walks": (0, 105, 75), "answers": (11, 95, 165), "waits": (148, 81, 10), "done": (0, 105, 75)}


@dataclass(frozen=True, slots=True)
class Story:
    """What a mission's messages told: the instruction, its steps, when each was answered and carried out."""

    instruction: str
    steps: Sequence[MissionStep]
    timeline: Timeline
    target: str | None = None

    def at(self, mission_s: float) -> tuple[str, MissionStep | None]:
        """Return the state in a word, and the step whose answer is known, at a time of the mission."""
        spans = [span for span in self.timeline.spans if span.start_s <= mission_s < span.end_s]
        kinds = {span.kind for span in spans}
        if mission_s >= self.timeline.total_s:
            state = "done"
        elif MOVING in kinds:
            state = "walks"
        else:
            state = "answers" if kinds & {UPLOADING, ANSWERING} else "waits"
        ended = [s.look for s in self.timeline.spans if s.kind == ANSWERING and s.end_s <= mission_s]
        known = [step for step in self.steps if step.number == max(ended, default=0)]
        return state, known[-1] if known else None

    def first_motion_s(self) -> float:
        """Return when the robot first moves, in seconds of the mission; 0 if it never does."""
        return min((span.start_s for span in self.timeline.spans if span.kind == MOVING), default=0.0)

    def moves_of(self, step: MissionStep) -> tuple[float, float]:
        """Return from when to when a step is carried out, in seconds of the mission."""
        mine = [s for s in self.timeline.spans if s.kind == MOVING and s.look == step.number]
        return min((s.start_s for s in mine), default=math.inf), max(
            (s.end_s for s in mine), default=-math.inf
        )


def first_motion_s(truth: GroundTruth) -> float:
    """Return when the body first moves, in seconds of the simulator; its beginning if it never does."""
    began_s, x_m, y_m, yaw_rad = truth.path[0]
    for at_s, x, y, yaw in truth.path:
        if math.hypot(x - x_m, y - y_m) > MOVED_M or abs(yaw - yaw_rad) > TURNED_RAD:
            return at_s
    return began_s


def plan_of(step: MissionStep, start: Pose2D) -> tuple[Pose2D, ...]:
    """Return the poses that a step's actions lead through."""
    poses = [start]
    for text in step.actions:
        poses.append(end_of(poses[-1], parse_action(text)))
    return tuple(poses)


def save_film(scene: Scene, truth: GroundTruth, story: Story, file: Path, frames: int = FRAMES) -> None:
    """Write the GIF of so many pictures; nothing for a run without a path."""
    if not truth.path:
        return
    world = World(scene)
    path = [Pose2D(x, y, yaw) for _, x, y, yaw in truth.path]
    times = [at_s for at_s, *_ in truth.path]
    offset_s = first_motion_s(truth) - story.first_motion_s()
    views = WorldViews(world, width_px=PANEL_PX, height_px=2 * PANEL_PX, quality="fast")
    pictures: list[Rgb8] = []
    # From the instruction on: what lies before is the simulator's waiting.
    first = min(bisect_left(times, offset_s), len(path) - 1)
    try:
        count = min(frames, len(path) - first)
        for index in np.linspace(first, len(path) - 1, count).round().astype(int).tolist():
            world.show(path[index], truth.shapes[index])
            is_last = index == len(path) - 1
            mission_s = story.timeline.total_s if is_last else times[index] - offset_s
            state, step = story.at(mission_s)
            plan: tuple[Pose2D, ...] = ()
            if step is not None and mission_s < story.moves_of(step)[1]:
                begun = bisect_left(times, story.moves_of(step)[0] + offset_s)
                plan = plan_of(step, path[min(begun, index)])
            above = views.top_down(
                world, path[: index + 1], target=story.target, width_px=PANEL_PX, plan=plan
            )
            behind = views.third_person(world, width_px=PANEL_PX, height_px=above.shape[0])
            words = _strip(story.instruction, mission_s, state, step, above.shape[1] + behind.shape[1])
            pictures.append(np.vstack([np.hstack([above, behind]), words]))
    finally:
        views.close()
    save_gif([*pictures, *pictures[-1:] * HELD], file, fps=FPS)


def _strip(instruction: str, mission_s: float, state: str, step: MissionStep | None, width_px: int) -> Rgb8:
    """Return what is said at a time: the instruction, the clock and the state, and the answer in force."""
    picture = PilImage.new("RGB", (width_px, STRIP_PX), PAPER)
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    draw.text((12, 8), f"\u201c{drawable(instruction)}\u201d", fill=INK, font=large)
    draw.text(
        (width_px - 12, 8),
        f"{max(0.0, mission_s):.1f} s   {state}",
        fill=STATES[state],
        font=large,
        anchor="ra",
    )
    words = "" if step is None else f"answer {step.number}: {step.text}"
    for number, line in enumerate(textwrap.wrap(words, COLUMNS)[:2]):
        draw.text((12, 38 + LINE_PX * number), drawable(line), fill=QUIET, font=small)
    return np.asarray(picture)
