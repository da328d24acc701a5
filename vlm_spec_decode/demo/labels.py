"""Labels of a simulated walk: the teacher's answer, computed from ground truth, for each frame.

They go into the bag as `/vlm/label`, so that a replay can score answers and training can learn from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.demo.mission_log import MissionStep
from vlm_spec_decode.sim.render.camera import FrontCamera
from vlm_spec_decode.sim.scene import Pose2D, Scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import scene_description as sight
from vlm_spec_decode.train import teacher, wordings
from vlm_spec_decode.train.frames import observe
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.wordings import held_out

MAX_AGE_S = 0.25
"""A frame further than this from any odometry gets no label."""


def goal_of(instruction: str, scene: Scene) -> Goal | None:
    """Return what an instruction means, if it is one of the wordings that the teacher knows."""
    return _known(scene).get(" ".join(instruction.lower().split()))


def _known(scene: Scene) -> dict[str, Goal]:
    goals: dict[str, Goal] = {}
    for name in scene.names:
        for form in (*wordings.GO_TO, *wordings.OVER_TO, *held_out().wordings):
            text = form.format(x=name)
            goals[text] = Goal(text, "goto", name)
        for form in wordings.FACE:
            text = form.format(x=name)
            goals[text] = Goal(text, "face", name)
        for form in wordings.STOP_BEFORE:
            for tenths in range(8, 21):
                text = form.format(x=name, n=f"{tenths / 10:.1f}")
                goals[text] = Goal(text, "goto", name, stop_m=tenths / 10)
    for action, forms in wordings.GESTURES.items():
        for text in forms:
            goals[text] = Goal(text, "act", action=action)
    return goals


def labels(
    scene: Scene, instruction: str, steps: Iterable[MissionStep], poses: Mapping[float, Pose2D]
) -> list[tuple[float, str]]:
    """Return for each answered step its frame's stamp and the JSON of its label; [] if the goal is unknown.

    `poses` holds odometry by its stamp; its origin is where the robot was switched on.
    """
    goal = goal_of(instruction, scene)
    if goal is None or not poses:
        return []
    world = World(scene, seed=scene.seed)
    camera = FrontCamera(world)
    found = []
    for step in steps:
        stamp_s = min(poses, key=lambda s: abs(s - step.stamp_s))
        if not step.token_ids or abs(stamp_s - step.stamp_s) > MAX_AGE_S:
            continue
        world.teleport(_placed(scene.start, poses[stamp_s]))
        text = teacher.answer(goal, sight.things(observe(camera, world)), step.history[-8:])
        said = {
            "stamp_s": step.stamp_s,
            "instruction": instruction,
            "history": list(step.history),
            "actions": [format_action(action) for action in parse_answer(text)],
            "text": text,
        }
        found.append((step.stamp_s, json.dumps(said)))
    camera.close()
    return found


def _placed(start: Pose2D, moved: Pose2D) -> Pose2D:
    cos, sin = math.cos(start.yaw_rad), math.sin(start.yaw_rad)
    x_m = start.x_m + cos * moved.x_m - sin * moved.y_m
    y_m = start.y_m + sin * moved.x_m + cos * moved.y_m
    return Pose2D(x_m, y_m, math.remainder(start.yaw_rad + moved.yaw_rad, 2 * math.pi))
