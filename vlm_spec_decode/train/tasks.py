"""The tasks of an evaluation in held-out rooms. Uses rooms and instructions, not models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.sim.render.camera import FrontCamera
from vlm_spec_decode.sim.scene import Pose2D
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import instructions, wordings
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.wordings import held_out

FOLLOW_STEPS = 8

MOTION_KINDS = {
    "go to": 0.40,
    "stop before": 0.09,
    "go and act": 0.08,
    "nearest or outermost": 0.08,
    "behind": 0.05,
    "face": 0.08,
    "find": 0.06,
    "follow": 0.04,
    "pass": 0.05,
    "plain motion": 0.07,
}
DECLINED_KINDS = {"unsafe": 0.3, "impossible": 0.2, "unknown": 0.2, "absent": 0.3}
UNKNOWN_WORDS = ("dragon", "spaceship", "unicorn", "zeppelin", "gargoyle", "xylophone")


@dataclass(frozen=True, slots=True)
class Task:
    """One episode's instruction. `thing` is the object that it is about, empty if there is none."""

    seed: int
    kind: str
    goal: Goal
    thing: str = ""
    seen_at_start: bool = False

    @property
    def is_held_out_pair(self) -> bool:
        """Whether no training room has ever held such a thing."""
        return self.thing in held_out().pairs


def draw_task(seed: int, world: World, camera: FrontCamera, kinds: dict[str, float] | None = None) -> Task:
    """Draw the task of a seed: any thing of its room, in view or not, in any wording, held out or not."""
    rng = np.random.default_rng([seed, 0x7A5C])
    shares = kinds or MOTION_KINDS
    kind = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
    names = world.scene.names
    thing = names[int(rng.integers(len(names)))]
    if kind == "pass":
        thing = next((n for n in names if not n.endswith("door")), thing)
    goal, about = _GOALS[kind](TaskSetting(rng, thing, world, camera))
    return Task(seed, kind, goal, about, bool(about) and about in names and camera.visible(about))


def go_to_task(seed: int, world: World, camera: FrontCamera) -> Task:
    """Draw a plain "go to" task."""
    return draw_task(seed, world, camera, {"go to": 1.0})


@dataclass(frozen=True, slots=True)
class TaskSetting:
    """What a task is drawn from: a source of chance, some thing of the room, the room, and its camera."""

    rng: np.random.Generator
    thing: str
    world: World
    camera: FrontCamera


Drawn = tuple[Goal, str]


def _go_to(at: TaskSetting) -> Drawn:
    forms = held_out().wordings if at.rng.random() < 0.3 else wordings.GO_TO
    return Goal(_one(at.rng, forms).format(x=at.thing), "goto", at.thing), at.thing


def _stop_before(at: TaskSetting) -> Drawn:
    stop = round(float(at.rng.integers(8, 21)) / 10, 1)
    words = _one(at.rng, wordings.STOP_BEFORE).format(x=at.thing, n=f"{stop:.1f}")
    return Goal(words, "goto", at.thing, stop_m=stop), at.thing


def _go_and_act(at: TaskSetting) -> Drawn:
    action = _one(at.rng, ("sit ( )", "stand_down ( )", "hello ( )", "stretch ( )"))
    go, act = _one(at.rng, wordings.GO_TO).format(x=at.thing), _one(at.rng, wordings.GESTURES[action])
    return Goal(_one(at.rng, wordings.THEN).format(go=go, act=act), "goto", at.thing, action), at.thing


def _picked(at: TaskSetting) -> Drawn:
    """Ask for the nearest or outermost of a kind, or of all, among what is in view at the start."""
    seen = [n for n in at.world.scene.names if at.camera.visible(n)]
    if not seen:
        return _go_to(at)
    kinds = [n.split()[1] for n in seen]
    twice = [k for k in kinds if kinds.count(k) > 1]
    kind = _one(at.rng, tuple(twice)) if twice else ""
    goal = instructions.picked(at.rng, kind)
    while goal.verb != "goto":
        goal = instructions.picked(at.rng, kind)
    fits = [n for n in seen if not kind or n.endswith(kind)]
    keys: dict[str, Callable[[str], float]] = {
        "nearest": at.world.distance_to,
        "leftmost": lambda n: -at.world.bearing_to(n),
        "rightmost": at.world.bearing_to,
    }
    return goal, min(fits, key=keys[goal.pick])


def _behind(at: TaskSetting) -> Drawn:
    back = max(at.world.scene.names, key=lambda n: abs(at.world.bearing_to(n)))
    return Goal(_one(at.rng, wordings.BEHIND).format(x=back), "goto", back, is_behind=True), back


def _face(at: TaskSetting) -> Drawn:
    return Goal(_one(at.rng, wordings.FACE).format(x=at.thing), "face", at.thing), at.thing


def _find(at: TaskSetting) -> Drawn:
    return Goal(_one(at.rng, wordings.FIND).format(x=at.thing), "find", at.thing), at.thing


def _follow(at: TaskSetting) -> Drawn:
    return Goal(_one(at.rng, wordings.FOLLOW).format(x=at.thing), "follow", at.thing), at.thing


def _past(at: TaskSetting) -> Drawn:
    return instructions.past(at.rng, at.thing), at.thing


def _motion(at: TaskSetting) -> Drawn:
    """A plain motion that there is room for."""
    pose = at.world.pose
    for _ in range(100):
        goal = instructions.motion(at.rng)
        forward, left, _ = wanted_motion(goal.action)
        cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
        ways = [0.25, 0.5, 0.75, 1.0, 1.0 + 0.3 / max(0.3, math.hypot(forward, left))]
        if all(
            at.world.is_free(
                Pose2D(
                    pose.x_m + k * (cos * forward - sin * left),
                    pose.y_m + k * (sin * forward + cos * left),
                    pose.yaw_rad,
                )
            )
            for k in ways
        ):
            break
    return goal, ""


def _unsafe(at: TaskSetting) -> Drawn:
    return Goal(_one(at.rng, wordings.UNSAFE).format(x=at.thing), "unsafe"), ""


def _impossible(at: TaskSetting) -> Drawn:
    return Goal(_one(at.rng, wordings.IMPOSSIBLE).format(x=at.thing), "impossible"), ""


def _unknown(at: TaskSetting) -> Drawn:
    word = _one(at.rng, UNKNOWN_WORDS)
    return Goal(_one(at.rng, wordings.GO_TO).format(x=word), "unknown"), ""


def _absent(at: TaskSetting) -> Drawn:
    pool = [f"{c} {k}" for c in COLOURS for k in KINDS if f"{c} {k}" not in at.world.scene.names]
    absent = _one(at.rng, tuple(pool))
    return Goal(_one(at.rng, wordings.GO_TO).format(x=absent), "goto", absent), ""


_GOALS: dict[str, Callable[[TaskSetting], Drawn]] = {
    "go to": _go_to,
    "stop before": _stop_before,
    "go and act": _go_and_act,
    "nearest or outermost": _picked,
    "behind": _behind,
    "face": _face,
    "find": _find,
    "follow": _follow,
    "pass": _past,
    "plain motion": _motion,
    "unsafe": _unsafe,
    "impossible": _impossible,
    "unknown": _unknown,
    "absent": _absent,
}


def wanted_motion(action: str) -> tuple[float, float, float]:
    """Return forward and left in metres and the turn in degrees of a plain motion."""
    name, _, value, *_ = action.split()
    amount = float(value)
    return {"forward": (amount, 0.0, 0.0), "strafe": (0.0, amount, 0.0), "turn": (0.0, 0.0, amount)}[name]


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
