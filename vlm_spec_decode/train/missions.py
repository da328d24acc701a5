"""Episodes in held-out rooms: look, answer, act in virtual time, with the project's own executor.

The target alone decodes: under the `coupled` rule every strategy would say the same. Knows no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image as PilImage
from tqdm import tqdm

from vlm_spec_decode.actions.executor import Executor
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.actions.jobs import InlineRunner
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.safety import SafetyGate
from vlm_spec_decode.actions.scripted import run_plan
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.local import LocalVerifier
from vlm_spec_decode.edge.mission import LOOK_AGAIN, Mission
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.vlm import VlmModel
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.views import Views
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.judging import Episode, judge
from vlm_spec_decode.train.tasks import FOLLOW_STEPS, Task

_ANSWER_S = 0.4
"""Virtual time that one answer takes; the robot stands meanwhile."""

Draw = Callable[[int, World, FrontCamera], Task]


class Stage:
    """Robot, camera and executor, reused from episode to episode."""

    def __init__(self, target: VlmModel, first: World) -> None:
        self.clock = VirtualClock()
        self.camera = FrontCamera(first)
        self.robot = HeadlessGo2(first, self.clock, camera=self.camera)
        params = SamplingParams(stop_ids=target.codec.stop_ids, max_tokens=64)
        config = EngineConfig("autoregressive", params)
        held = constrained(target, target.codec, language())
        self.engine = Engine(None, target.codec, LocalVerifier(held, self.clock), self.clock, config)

    def run(self, task: Task, world: World, max_answers: int) -> Episode:
        """Carry out one task to its end, and judge it."""
        self.robot.attach(world)
        self.robot.start()
        executor = Executor(self.robot, SafetyGate(SafetyLimits()), self.clock, runner=InlineRunner())
        steps = FOLLOW_STEPS if task.kind == "follow" else max_answers
        mission = Mission(task.goal.text, steps)
        episode = Episode(task, path=[world.pose])
        if task.thing:
            episode.first_distance_m = world.distance_to(task.thing)
        while mission.is_running:
            self._step(episode, mission, executor)
            episode.path.append(world.pose)
        executor.close()
        self.clock.sleep(1.0)
        self.robot.state()
        episode.status = mission.status
        episode.collisions = world.collisions
        if task.thing:
            episode.item = world.object(task.thing)
            episode.distance_m = world.distance_to(task.thing)
            episode.bearing_deg = math.degrees(world.bearing_to(task.thing))
        episode.success = judge(episode)
        return episode

    def _step(self, episode: Episode, mission: Mission, executor: Executor) -> None:
        image, stamp_s = self.robot.frame()
        try:
            *_, last = self.engine.answer(mission.observation(image, stamp_s))
        except ActionParseError as error:
            episode.reason = str(error)
            mission.end("failed")
            return
        self.clock.sleep(_ANSWER_S)
        actions = parse_answer(last.text)
        episode.answers.append(last.text)
        plan = Plan(str(episode.task.seed), mission.steps + 1, stamp_s, 1, actions, final=True)
        status = run_plan(executor, plan, self.clock)
        episode.executed += status.executed
        if status.reason in LOOK_AGAIN:
            mission.record_obstruction(status.executed)
        elif status.state in {"refused", "stopped", "fault", "estop"}:
            episode.reason = f"{status.reason}: {status.action}: {status.detail}"
            mission.end("refused" if status.state == "refused" else "failed")
        else:
            mission.record(status.executed, actions)


def run_missions(
    target: VlmModel, seeds: range, draw: Draw, max_answers: int = 24, pictures: Path | None = None
) -> list[Episode]:
    """Run the task of each seed in its room; pictures of those that fail go to `pictures`."""
    stage: Stage | None = None
    episodes = []
    for seed in (bar := tqdm(seeds, desc="episodes", mininterval=5)):
        world = World(random_scene(seed), seed=seed)
        stage = stage or Stage(target, world)
        stage.camera.attach(world)
        episode = stage.run(draw(seed, world, stage.camera), world, max_answers)
        episodes.append(episode)
        bar.set_postfix(success=f"{sum(e.success for e in episodes)}/{len(episodes)}")
        if pictures and not episode.success:
            _picture(episode, world, pictures / f"failed_{seed}.png")
    return episodes


def _picture(episode: Episode, world: World, path: Path) -> None:
    views = Views(world)
    picture = views.top_down(world, episode.path, target=episode.task.thing or None)
    views.close()
    PilImage.fromarray(picture).save(path)
