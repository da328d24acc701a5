"""`vsd sim --headless`: action text carried out on the simulated robot in virtual time, without DDS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor, run_plan
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.errors import ActionParseError, ConfigError
from vlm_spec_decode.core.text import text_problem
from vlm_spec_decode.sim.go2.state_machine import DOCUMENTED
from vlm_spec_decode.sim.ground_truth import PathRecorder, save_view
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.physics.physical_world import make_world
from vlm_spec_decode.sim.scene import load_scene, random_scene
from vlm_spec_decode.sim.settings import SimConfig
from vlm_spec_decode.sim.world import World


@dataclass(slots=True)
class NotingClock:
    """A virtual clock that has the path noted as time passes."""

    world: World
    path: PathRecorder
    now_s: float = 0.0

    def now(self) -> float:
        """Return virtual seconds."""
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        """Advance at once."""
        self.now_s += max(0.0, duration_s)
        self.path.note(self.world)


def carry_out(config: SimConfig, actions: str) -> dict[str, Any]:
    """Get up, carry out `actions`, save what `config` asks for; return how it ended.

    Raises ActionParseError for text that is no action, ConfigError for settings of services and topics, which
    do not exist here, and what a scene can raise.
    """
    if config.faults:
        raise ConfigError(
            f"fault {config.faults[0]}: faults are of the robot's services; --headless has none"
        )
    if config.firmware != DOCUMENTED.name:
        raise ConfigError(
            f"firmware {config.firmware}: --headless has no services, only the documented states"
        )
    if problem := text_problem(actions):
        raise ActionParseError(f"actions: {problem}")
    wanted = parse_answer(actions)
    if actions.strip() and not wanted:
        raise ActionParseError(f"there is no action in {actions!r}; turn(20) forward(1.6) are two")
    scene = load_scene(config.scene) if config.scene else random_scene(config.scene_seed)
    world, path = make_world(scene, body=config.body, seed=config.seed), PathRecorder()
    clock = NotingClock(world, path)
    robot = HeadlessGo2(world, clock)
    robot.start()
    executor = Executor(robot, SafetyGate(SafetyLimits()), clock, runner=InlineCallRunner())
    status = run_plan(executor, Plan("headless", 1, clock.now(), 1, wanted, final=True), clock)
    executor.close()
    truth = path.finish(world)
    if config.truth:
        truth.save(config.truth)
    if config.view:
        save_view(world, truth, config.view)
    return {
        "state": status.state,
        "reason": status.reason,
        "executed": list(status.executed),
        "time_s": clock.now(),
        "collisions": truth.collisions,
        "pose": [truth.x_m, truth.y_m, truth.yaw_rad],
        "distances_m": truth.distances_m,
    }
