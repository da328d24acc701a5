"""The figures of the main job, measured: missions, acceptance, equal tokens, motion, stopping times.

    python benchmarks/main_job.py [--quick] [--out FILE]

Missions run in virtual time in held-out rooms. Tokens are compared between processes over CURVE sockets.
Motion and stopping are measured through the Unitree SDK over DDS on a simulated Go2. Prints a table; the last
line is one JSON document. The exit code is 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from figures import Figure, report

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.plan import TERMINAL_STATES, Plan, PlanStatus
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.demo.process_stack import Processes
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver
from vlm_spec_decode.sim.scene import Scene, dump_scene
from vlm_spec_decode.train.config import EvaluateConfig, held_out_seed
from vlm_spec_decode.train.episodes import go_to_task, run_missions
from vlm_spec_decode.train.evaluate import Pair, acceptance, accepted_lengths, questions
from vlm_spec_decode.train.evaluate import decode as decode_alone
from vlm_spec_decode.transport.keys import generate

DDS_DOMAIN = 9
TIMEOUT_S = 60.0
CLOCK = WallClock()


def models(episodes: int, frames: int, out: Path) -> list[Figure]:
    """Missions and acceptance on held-out rooms."""
    target, draft = load_model(shipped("target")), load_model(shipped("draft"))
    pair = Pair.of(target, draft)
    asked = [q.observation for q in questions(EvaluateConfig(Path(), None, frames=frames))]
    decoded = [(o, decode_alone(pair, o, pair.params()).tokens) for o in asked]
    accepted = acceptance(pair, decoded)["all"]
    length = f"{accepted_lengths(pair, asked)[8]:.1f} of 8 drafted tokens kept, {frames} held-out frames"
    seeds = range(held_out_seed(), held_out_seed() + episodes)
    found = run_missions(target, seeds, go_to_task, pictures=out)
    touched = sum(e.collisions > 0 for e in found)
    success = sum(e.success for e in found) / episodes
    return [
        Figure("go_to_success", success, 0.8, "at least", f"{episodes} held-out rooms; {touched} touched"),
        Figure("acceptance_greedy", accepted, 0.8, "at least", length),
    ]


@contextmanager
def served(processes: Processes, folder: Path) -> Iterator[EdgeSettings]:
    """A cloud in a process of its own, with keys made for it."""
    generate(folder / "keys")
    command = ["-m", "vlm_spec_decode.cli", "cloud", "--bind", "tcp://127.0.0.1:*", "--json", "--keys"]
    cloud = processes.start("cloud", [*command, str(folder / "keys")])
    ready = processes.wait_ready(cloud, TIMEOUT_S)
    yield EdgeSettings(cloud=str(ready["address"]), keys=folder / "keys")
    processes.stop(["cloud"])


def equal_tokens(settings: EdgeSettings, count: int) -> Figure:
    """Share of answers in which `speculative` and `autoregressive` have the same tokens."""
    asked = [question.observation for question in questions(EvaluateConfig(Path(), None, frames=count))]
    plain = answers(settings, "autoregressive", asked)
    fast = answers(settings, "speculative", asked)
    same = sum(one == two for one, two in zip(plain, fast, strict=True))
    return Figure("same_tokens", same / count, 1.0, "at least", f"{count} answers over CURVE sockets")


def answers(settings: EdgeSettings, strategy: str, asked: list[Observation]) -> list[Tokens]:
    """Decode every observation with one strategy over the network."""
    runtime = bring_up(EdgeSettings(cloud=settings.cloud, keys=settings.keys, strategy=strategy))
    try:
        return [decode(runtime.engine, observation) for observation in asked]
    finally:
        runtime.close()


def decode(engine: Engine, observation: Observation) -> Tokens:
    """Return the tokens of one answer."""
    *_, last = engine.answer(observation)
    if last.result is None:
        raise SystemExit("an answer ended without a result")
    return last.result.tokens


@contextmanager
def robot(processes: Processes, folder: Path) -> Iterator[tuple[Go2Driver, Executor]]:
    """A simulated Go2 in an empty hall in a process of its own; driver and executor in this one."""
    dump_scene(Scene(0, 14.0, 14.0, (), Pose2D(0.0, 0.0, 0.0)), folder / "hall.yaml")
    command = ["-m", "vlm_spec_decode.cli", "sim", "--scene", str(folder / "hall.yaml"), "--json"]
    sim = processes.start("sim", [*command, "--domain", str(DDS_DOMAIN), "--start", "standing"])
    processes.wait_ready(sim, TIMEOUT_S)
    driver = Go2Driver(Go2Config(domain=DDS_DOMAIN, interface="lo"), CLOCK)
    try:
        driver.start()
        executor = Executor(driver, SafetyGate(SafetyLimits()), CLOCK)
        executor.start()
        yield driver, executor
        executor.close()
    finally:
        driver.close()
        processes.stop(["sim"])


def carry_out(executor: Executor, mission: str, text: str, heartbeat_s: float = math.inf) -> PlanStatus:
    """Command one action, with a heartbeat that may fall silent, and wait for its end."""
    begin_s = CLOCK.now()
    while CLOCK.now() < begin_s + TIMEOUT_S:
        if CLOCK.now() - begin_s < heartbeat_s:
            executor.submit(Plan(mission, 0, begin_s, 1, (parse_action(text),), final=True))
        status = executor.status()
        if status.mission == mission and status.state in TERMINAL_STATES:
            return status
        CLOCK.sleep(0.05)
    raise SystemExit(f"{text} did not end within {TIMEOUT_S:.0f} s")


def motion(driver: Go2Driver, executor: Executor, times: int) -> list[Figure]:
    """Largest errors of `forward(1.6)` and `turn(20)` against odometry."""
    distances, angles = [], []
    for index in range(times):
        before = driver.state()
        carry_out(executor, f"walk {index}", "forward(1.6)")
        after = driver.state()
        distances.append(abs(math.hypot(after.x_m - before.x_m, after.y_m - before.y_m) - 1.6))
        carry_out(executor, f"turn {index}", "turn(20)")
        turned = math.remainder(driver.state().yaw_rad - after.yaw_rad, 2 * math.pi)
        angles.append(abs(math.degrees(turned) - 20.0))
    note = f"largest of {times}, over DDS"
    return [
        Figure("forward_error_m", max(distances), 0.1, "at most", note),
        Figure("turn_error_deg", max(angles), 3.0, "at most", note),
    ]


def stops(executor: Executor, times: int) -> list[Figure]:
    """Largest reaction and standstill times of watchdog and e-stop, while the robot moves."""
    silent, called = [], []
    for index in range(times):
        carry_out(executor, f"silence {index}", "turn(170)", heartbeat_s=1.0)
        if (report := executor.last_stop) is not None:
            silent.append(report)
        executor.submit(Plan(f"stop {index}", 0, CLOCK.now(), 1, (parse_action("turn(170)"),), final=False))
        CLOCK.sleep(0.2)
        if (report := executor.estop(True)) is not None:
            called.append(report)
        executor.estop(False)
    if len(silent) != times or len(called) != times:
        raise SystemExit("a stop went unreported")
    note = f"largest of {times}, over DDS"
    return [
        Figure("watchdog_reaction_s", max(r.reaction_s for r in silent), 0.3, "at most", note),
        Figure("watchdog_standstill_s", max(r.standstill_s for r in silent), 1.0, "at most", note),
        Figure("e_stop_reaction_s", max(r.reaction_s for r in called), 0.1, "at most", note),
        Figure("e_stop_standstill_s", max(r.standstill_s for r in called), 1.0, "at most", note),
    ]


def measure(quick: bool, out: Path) -> list[Figure]:
    """Run everything, the timing first, while nothing else is loaded."""
    times = 3 if quick else 10
    with (
        tempfile.TemporaryDirectory(prefix="vsd-bench-") as name,
        Processes(out / "logs", CLOCK, {}) as processes,
    ):
        folder = Path(name)
        with robot(processes, folder) as (driver, executor):
            figures = motion(driver, executor, times) + stops(executor, times)
        with served(processes, folder) as settings:
            figures.append(equal_tokens(settings, 20 if quick else 100))
    return models(50, 40 if quick else 200, out) + figures


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under 10 minutes on 2 cores")
    parser.add_argument(
        "--out", type=Path, default=Path("out/main_job"), help="folder of logs and figures.json"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return report(measure(options.quick, options.out), options.out / "main_job.json")


if __name__ == "__main__":
    sys.exit(main())
