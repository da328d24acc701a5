"""Go-to missions in held-out rooms: look, answer, act in virtual time, with the project's own executor.

The target alone decodes: under the `coupled` rule every strategy would say the same. Knows no training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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
from vlm_spec_decode.sim.scene import Pose2D, random_scene
from vlm_spec_decode.sim.views import Views
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.held_out import held_out
from vlm_spec_decode.train.wordings import GO_TO

REACHED_M = 0.7
_ANSWER_S = 0.4
"""Virtual time that one answer takes; the robot stands meanwhile."""


@dataclass(slots=True)
class Outcome:
    """One mission: what was asked, what was said, where it ended."""

    seed: int
    instruction: str
    thing: str
    seen_at_start: bool
    answers: list[str] = field(default_factory=list)
    path: list[Pose2D] = field(default_factory=list)
    status: str = "running"
    reason: str = ""
    distance_m: float = 0.0
    collisions: int = 0

    @property
    def reached(self) -> bool:
        """Whether the robot stands within reach of the thing and touched nothing on the way."""
        return self.distance_m <= REACHED_M and self.collisions == 0

    @property
    def success(self) -> bool:
        """Whether it got there and the models themselves said that the mission is done."""
        return self.reached and self.status == "done"

    def summary(self) -> dict[str, Any]:
        """Plain data for a report, without the path."""
        keys = ("seed", "instruction", "seen_at_start", "answers", "status", "reason", "collisions")
        return {"success": self.success, "distance_m": round(self.distance_m, 3)} | {
            key: getattr(self, key) for key in keys
        }


class Stage:
    """Robot, camera and executor, reused from mission to mission."""

    def __init__(self, target: VlmModel, first: World) -> None:
        self.clock = VirtualClock()
        self.camera = FrontCamera(first)
        self.robot = HeadlessGo2(first, self.clock, camera=self.camera)
        params = SamplingParams(stop_ids=target.codec.stop_ids, max_tokens=64)
        config = EngineConfig("autoregressive", params)
        held = constrained(target, target.codec, language())
        self.engine = Engine(None, target.codec, LocalVerifier(held, self.clock), self.clock, config)

    def run(self, outcome: Outcome, world: World, max_answers: int) -> Outcome:
        """Carry out one mission to its end."""
        self.robot.attach(world)
        self.robot.start()
        executor = Executor(self.robot, SafetyGate(SafetyLimits()), self.clock, runner=InlineRunner())
        mission = Mission(outcome.instruction, max_answers)
        while mission.is_running:
            self._step(outcome, mission, executor)
            outcome.path.append(world.pose)
        executor.close()
        self.clock.sleep(1.0)
        self.robot.state()
        outcome.status = mission.status
        outcome.distance_m = world.distance_to(outcome.thing)
        outcome.collisions = world.collisions
        return outcome

    def _step(self, outcome: Outcome, mission: Mission, executor: Executor) -> None:
        image, stamp_s = self.robot.frame()
        try:
            *_, last = self.engine.answer(mission.observation(image, stamp_s))
        except ActionParseError as error:
            outcome.reason = str(error)
            mission.end("failed")
            return
        self.clock.sleep(_ANSWER_S)
        actions = parse_answer(last.text)
        outcome.answers.append(last.text)
        plan = Plan(str(outcome.seed), mission.steps + 1, stamp_s, 1, actions, final=True)
        status = run_plan(executor, plan, self.clock)
        if status.reason in LOOK_AGAIN:
            mission.record_obstruction(status.executed)
        elif status.state in {"refused", "stopped", "fault", "estop"}:
            outcome.reason = f"{status.reason}: {status.action}: {status.detail}"
            mission.end("refused" if status.state == "refused" else "failed")
        else:
            mission.record(status.executed, actions)


def run_missions(target: VlmModel, config: EvaluateConfig) -> list[Outcome]:
    """Run a go-to mission in each held-out scene; pictures of those that fail go to `config.out`."""
    stage: Stage | None = None
    outcomes = []
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    for seed in (bar := tqdm(seeds, desc="missions", mininterval=5)):
        world = World(random_scene(seed), seed=seed)
        stage = stage or Stage(target, world)
        stage.camera.attach(world)
        outcome = stage.run(choose(seed, world, stage.camera), world, config.max_answers)
        outcomes.append(outcome)
        bar.set_postfix(success=f"{sum(o.success for o in outcomes)}/{len(outcomes)}")
        if not outcome.success:
            _picture(outcome, world, config.out / f"failed_{seed}.png")
    return outcomes


def choose(seed: int, world: World, camera: FrontCamera) -> Outcome:
    """Draw what the mission of a seed asks for: any object of the room, in view or not, in any wording."""
    rng = np.random.default_rng([seed, 0x60A1])
    thing = world.scene.objects[int(rng.integers(len(world.scene.objects)))].name
    wordings = held_out().wordings if rng.random() < 0.3 else GO_TO
    said = wordings[int(rng.integers(len(wordings)))].format(x=thing)
    return Outcome(seed, said, thing, camera.visible(thing), path=[world.pose])


def _picture(outcome: Outcome, world: World, path: Path) -> None:
    views = Views(world)
    picture = views.top_down(world, outcome.path, target=outcome.thing)
    views.close()
    PilImage.fromarray(picture).save(path)
