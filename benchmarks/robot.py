"""The executor over real DDS: how exactly it moves and how fast it stops. No models, no ROS."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from vlm_spec_decode.actions.executor import Executor
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.plan import TERMINAL_STATES, Plan, PlanStatus
from vlm_spec_decode.actions.safety import SafetyGate
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import RobotUnreachable
from vlm_spec_decode.demo.processes import Processes
from vlm_spec_decode.robot.go2 import Go2Config, Go2Driver
from vlm_spec_decode.sim.scene import Pose2D, Scene, dump_scene

HEARTBEAT_S = 0.05


@dataclass
class RobotFigures:
    """One value per repeat."""

    forward_errors_m: list[float] = field(default_factory=list)
    turn_errors_deg: list[float] = field(default_factory=list)
    watchdog_s: list[float] = field(default_factory=list)
    watchdog_standstill_s: list[float] = field(default_factory=list)
    estop_s: list[float] = field(default_factory=list)
    estop_standstill_s: list[float] = field(default_factory=list)
    estop_distance_m: list[float] = field(default_factory=list)


def measure_robot(processes: Processes, folder: Path, repeats: int) -> RobotFigures:
    """Drive a simulated Go2 in an empty hall through the SDK, each measure `repeats` times."""
    folder.mkdir(parents=True, exist_ok=True)
    hall = folder / "hall.yaml"
    dump_scene(Scene(0, 40.0, 40.0, (), Pose2D(0.0, 0.0, 0.0)), hall)
    domain = random.randrange(165, 200)
    options = ["--scene", str(hall), "--interface", "lo", "--domain", str(domain), "--json"]
    sim = processes.start("sim", ["-m", "vlm_spec_decode.cli", "sim", *options])
    processes.wait_ready(sim, 60)
    driver = Go2Driver(Go2Config(interface="lo", domain=domain))
    driver.start()
    executor = Executor(driver, SafetyGate(SafetyLimits()), WallClock())
    executor.start()
    figures = RobotFigures()
    try:
        for number in range(repeats):
            _move(driver, executor, figures, number)
            _silence(executor, figures, number)
            _estop(executor, figures, number)
    finally:
        executor.close()
        driver.close()
    return figures


def _move(driver: Go2Driver, executor: Executor, figures: RobotFigures, number: int) -> None:
    before = driver.state()
    _carry_out(executor, f"f{number}", "forward(1.6)")
    after = driver.state()
    walked = math.hypot(after.x_m - before.x_m, after.y_m - before.y_m)
    figures.forward_errors_m.append(abs(walked - 1.6))
    _carry_out(executor, f"t{number}", "turn(20)")
    turned = math.degrees(math.remainder(driver.state().yaw_rad - after.yaw_rad, 2 * math.pi))
    figures.turn_errors_deg.append(abs(turned - 20.0))


def _silence(executor: Executor, figures: RobotFigures, number: int) -> None:
    _carry_out(executor, f"s{number}", "turn(170)", silent_after_s=0.8)
    report = executor.last_stop
    if report is None or report.cause != "watchdog":
        raise RobotUnreachable("the watchdog did not stop the robot")
    figures.watchdog_s.append(report.reaction_s)
    figures.watchdog_standstill_s.append(report.standstill_s or math.inf)


def _estop(executor: Executor, figures: RobotFigures, number: int) -> None:
    """Call at full speed. The time to standstill holds the SDK's round trip, which confirms the receipt."""
    begin_s = time.monotonic()
    while time.monotonic() < begin_s + 1.5:
        executor.submit(Plan(f"e{number}", 0, begin_s, 1, (parse_action("turn(170)"),), True))
        time.sleep(HEARTBEAT_S)
    called_s = time.monotonic()
    report = executor.estop(True)
    if report is None or report.confirmed_s is None:
        raise RobotUnreachable("the e-stop was not confirmed")
    figures.estop_s.append(report.commanded_s - called_s)
    figures.estop_standstill_s.append(report.confirmed_s - report.commanded_s)
    figures.estop_distance_m.append(report.distance_m or 0.0)
    executor.estop(False)


def _carry_out(executor: Executor, name: str, text: str, silent_after_s: float = math.inf) -> PlanStatus:
    begin_s = time.monotonic()
    while (passed_s := time.monotonic() - begin_s) < 30:
        if passed_s < silent_after_s:
            executor.submit(Plan(name, 0, begin_s, 1, (parse_action(text),), True))
        status = executor.status()
        if status.mission == name and status.state in TERMINAL_STATES:
            return status
        time.sleep(HEARTBEAT_S)
    raise RobotUnreachable(f"{text} did not end within 30 s: {executor.status()}")
