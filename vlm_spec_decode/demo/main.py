"""`vsd demo`: a mission with the real processes, from an instruction to a table.

Starts simulator, cloud and ROS nodes as processes on their own domains, port and keys, so that nothing else
on the machine is affected. Talks to them as any user does: over ROS topics and sockets.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor, run_plan
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.errors import ActionParseError, ConfigError
from vlm_spec_decode.core.profiles import load_hardware
from vlm_spec_decode.core.types import text_problem
from vlm_spec_decode.demo import report
from vlm_spec_decode.demo.film import Story, save_film
from vlm_spec_decode.demo.process_stack import ProcessStack, ProcessStackConfig
from vlm_spec_decode.demo.report import (
    MissionLog,
    decode_again,
    figures,
    is_success,
    named_object,
    object_ahead,
    same_tokens,
    save_frames,
    save_path,
)
from vlm_spec_decode.demo.settings import DemoConfig
from vlm_spec_decode.demo.timeline import Timeline, save_timelines
from vlm_spec_decode.edge.engine import WITHOUT_DRAFTS
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.sim.go2.state_machine import DOCUMENTED
from vlm_spec_decode.sim.ground_truth import GroundTruth, PathRecorder, save_view
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.physics.physical_world import make_world
from vlm_spec_decode.sim.scene import Scene, load_scene, random_scene
from vlm_spec_decode.sim.settings import SimConfig
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport.keys import generate

DEFAULT_SEED = 1_000_004
"""Seed of a room that training has not used."""

SLOW = 5.0
"""How many times as long a mission may take on a hardware profile."""

Say = Callable[[str], None]


def run(config: DemoConfig, on_line: Say) -> dict[str, Any]:
    """Run one mission and return its document; `on_line` gets each line of text for the user.

    Raises UsageError, ProcessEnded or CloudError. All processes are ended in any case.
    """
    _check(config)
    seed = DEFAULT_SEED if config.scene_seed is None else config.scene_seed
    scene = load_scene(config.scene) if config.scene else random_scene(seed)
    instruction = config.instruction
    instruction = check_instruction(
        f"walk to the {object_ahead(scene)}" if instruction is None else instruction
    )
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vsd-demo-") as folder:
        private = Path(folder)
        generate(private / "keys")
        stack_config = _process_stack_config(config, private, scene)
        with ProcessStack(stack_config, WallClock(), random.Random(), on_line) as stack:
            log, truth, again = _mission(stack, config, instruction, scene)
        runs = {config.strategy: _Run(log, _timeline(stack, log), stack.slower())}
        for name in config.compare:
            runs[name] = _compared(
                replace(stack_config, strategy=name), config, private, instruction, on_line
            )
    on_line("drawing the pictures")
    target = named_object(instruction, scene)
    artifacts = _artifacts(config.out, instruction, scene, log, truth, target, stack)
    document = _document(config, seed, instruction, target, log, truth, again, artifacts)
    document |= _timing(config, instruction, runs, artifacts["timeline"])
    (config.out / "run.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    on_line(report.table(document))
    if config.profile or config.compare:
        for line in _timing_lines(document, runs):
            on_line(line)
    return document


def _check(config: DemoConfig) -> None:
    """Check strategies and profile before anything is started. Raises ConfigError."""
    for name in (config.strategy, *config.compare):
        strategy(name)
    if len({config.strategy, *config.compare}) <= len(config.compare):
        raise ConfigError(
            f"compare {', '.join(config.compare)}: each strategy once, and not the mission's own"
        )
    if config.profile:
        load_hardware(config.profile)


def _process_stack_config(config: DemoConfig, private: Path, scene: Scene) -> ProcessStackConfig:
    room = ("--scene", str(config.scene)) if config.scene else ("--scene-seed", str(scene.seed))
    decoding = (config.strategy, config.rule, config.objective)
    world = (*room, "--body", config.body)
    truth, limits = private / "truth.json", _limits_file(config, config.strategy, private)
    return ProcessStackConfig(
        world,
        config.seed,
        private / "keys",
        truth,
        *decoding,
        config.link,
        config.out,
        config.profile,
        limits,
    )


MAX_TOKENS = settings_of(EdgeSettings)["max_tokens"].default


def _limits_file(config: DemoConfig, name: str, private: Path) -> Path | None:
    """Return a file of limits under which the robot moves at all, None for the defaults.

    Without drafts a token takes a step, and on a slow profile no answer comes before the gate calls its frame
    too old: every plan would be refused.
    """
    limit_s = needed_frame_age_s(config.profile, name)
    if limit_s is None:
        return None
    file = private / f"limits_{name}.yaml"
    file.write_text(f"max_frame_age_s: {limit_s}\n", encoding="utf-8")
    return file


def needed_frame_age_s(profile: str, name: str) -> float | None:
    """Return the limit of a frame's age that a strategy without drafts needs for its longest answer on this
    profile, in seconds; None if the default is enough."""
    if not profile or name != WITHOUT_DRAFTS:
        return None
    hardware = load_hardware(profile)
    longest_s = hardware.pass_s(0, is_first=True) + int(MAX_TOKENS) * hardware.pass_s(0)
    return round(longest_s, 1) if longest_s > SafetyLimits().max_frame_age_s else None


@dataclass(frozen=True, slots=True)
class _Run:
    """A mission that was carried out, its times, and what was said of a machine that is too slow."""

    log: MissionLog
    timeline: Timeline
    slower: list[str]


def _mission(
    stack: ProcessStack, config: DemoConfig, instruction: str, scene: Scene
) -> tuple[MissionLog, GroundTruth, dict[int, dict[str, Any]]]:
    log = _carried_out(stack, config, instruction)
    stack.log("decoding the same answers again with autoregressive")
    settings = EdgeSettings(cloud=stack.address, keys=stack.config.keys, seed=config.seed, link=stack.link)
    again = decode_again(settings, instruction, log.steps, stack.frames) if log.steps else {}
    truth = stack.stop()
    stack.add_labels(scene, instruction, log)
    return log, truth, again


def _carried_out(stack: ProcessStack, config: DemoConfig, instruction: str) -> MissionLog:
    stack.set_up()
    return stack.run_mission(instruction, config.timeout_s * (SLOW if config.profile else 1))


def _compared(
    base: ProcessStackConfig, config: DemoConfig, private: Path, instruction: str, on_line: Say
) -> _Run:
    """Carry out the same mission with the strategy of `base`, with processes and a bag of its own."""
    name = base.strategy
    limits, out = _limits_file(config, name, private), config.out / f"with_{name}"
    on_line(f"the same mission with {name}")
    with ProcessStack(replace(base, limits=limits, out=out), WallClock(), random.Random(), on_line) as stack:
        log = _carried_out(stack, config, instruction)
        stack.stop()
    return _Run(log, _timeline(stack, log), stack.slower())


def _timeline(stack: ProcessStack, log: MissionLog) -> Timeline:
    ended_s = log.given_s + stack.waited_s if log.ended_s is None else log.ended_s
    return log.times.timeline(log.given_s, ended_s, stack.link)


def _timing(config: DemoConfig, instruction: str, runs: Mapping[str, _Run], picture: str) -> dict[str, Any]:
    """Write the picture of all runs' times; return what the document says of them."""
    said = [
        f'"{instruction}"',
        config.profile and f"profile {config.profile}",
        config.link and f"link {config.link}",
    ]
    save_timelines(
        ", ".join(filter(None, said)), {name: run.timeline for name, run in runs.items()}, Path(picture)
    )
    return {
        "profile": config.profile or None,
        "link": config.link or None,
        "slower_than_profile": sorted({line for run in runs.values() for line in run.slower}),
        "runs": {
            name: {
                "status": run.log.state or "timeout",
                "max_frame_age_s": needed_frame_age_s(config.profile, name) or SafetyLimits().max_frame_age_s,
                **run.timeline.document(),
            }
            for name, run in runs.items()
        },
    }


def _timing_lines(document: Mapping[str, Any], runs: Mapping[str, _Run]) -> Iterator[str]:
    """Yield what a person is told of the runs' times."""
    for name, run in runs.items():
        told = document["runs"][name]
        yield f"{name} (mission {told['status']}): {run.timeline.summary()}"
        if told["max_frame_age_s"] > SafetyLimits().max_frame_age_s:
            yield (
                f"  the gate took frames up to {told['max_frame_age_s']:.0f} s old for it: by default, "
                f"{SafetyLimits().max_frame_age_s:.0f} s, it would have refused such late plans"
            )
    yield from (f"! {line}" for line in document["slower_than_profile"])
    yield f"timeline: {document['artifacts']['timeline']}"


def _artifacts(
    out: Path,
    instruction: str,
    scene: Scene,
    log: MissionLog,
    truth: GroundTruth,
    target: str | None,
    stack: ProcessStack,
) -> dict[str, Any]:
    frames = save_frames(out / "frames", instruction, log.steps, stack.frames)
    save_path(scene, truth, target, out / "path.png")
    save_film(scene, truth, Story(instruction, log.steps, _timeline(stack, log), target), out / "run.gif")
    return {
        "frames": [str(path) for path in frames],
        "path": str(out / "path.png"),
        "gif": str(out / "run.gif"),
        "timeline": str(out / "timeline.png"),
        "bag": str(out / "bag"),
        "run": str(out / "run.json"),
        "logs": str(out / "logs"),
    }


def _document(
    config: DemoConfig,
    seed: int,
    instruction: str,
    target: str | None,
    log: MissionLog,
    truth: GroundTruth,
    again: dict[int, dict[str, Any]],
    artifacts: dict[str, Any],
) -> dict[str, Any]:
    distance_m = truth.distances_m.get(target) if target else None
    first_s, ended_s = log.first_action_s, log.ended_s
    baseline = report.sums(figures(again.values())) if again else None
    return {
        "instruction": instruction,
        "scene_seed": None if config.scene else seed,
        "scene": str(config.scene) if config.scene else None,
        "strategy": config.strategy,
        "success": is_success(log, target, distance_m, truth.collisions),
        "status": log.state or "timeout",
        "reason": log.reason,
        "target_object": target,
        "final_distance_m": distance_m if distance_m is None else round(distance_m, 3),
        "collisions": truth.collisions,
        "steps": len(log.steps),
        "answers": report.answers(log.steps),
        **report.sums(figures(step.trace for step in log.steps)),
        "time_to_first_action_s": None if first_s is None else round(first_s - log.given_s, 3),
        "total_s": None if ended_s is None else round(ended_s - log.given_s, 3),
        "same_tokens_as_autoregressive": same_tokens(log.steps, again),
        "autoregressive": baseline,
        "artifacts": artifacts,
    }


@dataclass(slots=True)
class RecordingClock:
    """A virtual clock that records the path while time advances."""

    world: World
    path: PathRecorder
    now_s: float = 0.0

    def now(self) -> float:
        """Return virtual seconds."""
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        """Advance at once."""
        self.now_s += max(0.0, duration_s)
        self.path.record(self.world)


def carry_out(config: SimConfig, actions: str) -> dict[str, Any]:
    """Get up, carry out `actions`, save the files of `config`; return the result.

    Raises ActionParseError for text that is no action, ConfigError for settings of services and topics, which
    do not exist here, and SceneError.
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
    clock = RecordingClock(world, path)
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
