"""The cases of benchmarks/robot.py that need processes: each returns its figures."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable

from figures import Figure
from robot_bench import DDS_DOMAIN, SCAN, START_S, Bench
from robot_gate import gap_to_disc
from robot_idle import INSTRUCTION, idle
from robot_nodes import overlay
from robot_rig import freeze, until

from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.robot.fake import HULL_HALF_M, Disc
from vlm_spec_decode.sim.go2.robot import FaultSchedule, SimulatedRobot
from vlm_spec_decode.sim.go2.state_machine import StateCode
from vlm_spec_decode.sim.physics.physical_world import make_world
from vlm_spec_decode.sim.scene import Scene

TOP_MPS = 0.45
EXPIRY_S = 1.0
"""How long the robot holds the last Move of a driver that has died."""

LOAD = """
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
engine = bring_up(EdgeSettings()).engine
while True:
    for _ in engine.answer(Observation(None, "walk to the red box")):
        pass
"""


def own_braking(body: str) -> tuple[float, float]:
    """Return time and distance from top speed that the body itself needs, in virtual time: means."""
    times, distances = [], []
    for phase in range(20):
        clock = VirtualClock(10.0)
        world = make_world(Scene(0, 16.0, 16.0, (), Pose2D(-5.0, 0.0, 0.0)), body=body)
        robot = SimulatedRobot(world, clock, FaultSchedule((), clock.now()), code=StateCode.BALANCE_STAND)
        began_s = clock.now()
        while clock.now() < began_s + 2.0 + phase / 1000:
            robot.move(0.5, 0.0, 0.0)
            clock.sleep(0.02)
            robot.tick()
        clock.sleep(phase / 1000)
        robot.stop()
        stop_s, x = clock.now(), robot.odometry().x_m
        while math.hypot(*robot.snapshot().velocity[:2]) >= 0.03:
            clock.sleep(0.02)
            robot.tick()
        times.append(clock.now() - stop_s)
        distances.append(robot.odometry().x_m - x)
    return statistics.mean(times), statistics.mean(distances)


def e_stop(bench: Bench, count: int) -> list[Figure]:
    """E-stop at top speed while another process decodes as fast as it can."""
    bench.running["load"] = bench.processes.start("load", ["-c", LOAD])
    delays, times, distances = [], [], []
    for index in range(count):
        bench.rush(TOP_MPS, 2.5 if index % 2 == 0 else -2.5)
        called_s = bench.operator.estop(True)
        bench.operator.plan = None
        heard_s = until(lambda since=called_s: bench.tap.first_stop(since), 5, "StopMove")
        delays.append(heard_s - called_s)
        until(lambda: bench.tap.is_still, 10, "standstill")
        time.sleep(0.2)
        spent_s, way_m = bench.tap.braking(heard_s)
        times.append(spent_s)
        distances.append(way_m)
        bench.operator.estop(False)
    bench.processes.stop(["load"])
    bench.home()
    own_s, own_m = own_braking(bench.body)
    p99 = sorted(delays)[max(0, math.ceil(0.99 * count) - 1)]
    note = (
        f"{count} stops at top speed beside a process that decodes; median {statistics.median(delays):.4f} s"
    )
    time_note = f"median {statistics.median(times):.3f} s, the body alone {own_s:.3f} s"
    way_note = f"median {statistics.median(distances):.3f} m, the body alone {own_m:.3f} m"
    return [
        Figure("e_stop_p99_s", p99, 0.05, "at most", note),
        Figure("e_stop_time_ratio", statistics.median(times) / own_s, 1.1, "at most", time_note),
        Figure("e_stop_way_ratio", statistics.median(distances) / own_m, 1.1, "at most", way_note),
    ]


def vlm(bench: Bench, count: int) -> list[Figure]:
    """Kill the VLM node while its mission walks the robot."""
    delays = []
    for _ in range(count):
        bench.vlm()
        bench.home()
        mission = bench.name()
        bench.operator.ask(INSTRUCTION, mission)
        until(lambda: bench.tap.speed_mps > 0.3, 60, "a walking mission")
        killed_s = bench.kill("vlm_node")
        heard_s = until(lambda since=killed_s: bench.tap.first_stop(since), 5, "StopMove")
        delays.append(heard_s - killed_s)
    bench.home()
    return [Figure("vlm_killed_s", max(delays), 0.35, "at most", f"largest of {count} kills while walking")]


def locomotion(bench: Bench, count: int) -> list[Figure]:
    """Kill the locomotion node at top speed: only the robot's own expiry of the last Move stops it."""
    own_s, _ = own_braking(bench.body)
    passed, spent = 0, []
    for _ in range(count):
        bench.home()
        bench.rush(TOP_MPS, 2.5)
        killed_s = bench.kill("locomotion_node")
        bench.operator.plan = None
        until(lambda: bench.tap.is_still, 10, "standstill")
        time.sleep(0.2)
        spent.append(bench.tap.braking(killed_s)[0])
        passed += spent[-1] <= EXPIRY_S + 1.1 * own_s
        before = len(bench.operator.statuses)
        bench.node("locomotion_node", interface="lo", domain=DDS_DOMAIN, **SCAN)
        until(lambda n=before: len(bench.operator.statuses) > n + 3, START_S, "locomotion_node")
    note = (
        f"{passed} of {count} at rest in {EXPIRY_S:g} s and the body's own braking; "
        f"longest {max(spent):.2f} s"
    )
    return [Figure("locomotion_killed_kept", passed / count, 1.0, "at least", note)]


def camera(bench: Bench, count: int) -> list[Figure]:
    """Freeze the camera: no action on a frame that is too old, neither by a mission nor by an old plan."""
    bench.vlm(frame_timeout_s=1.5)
    passed = 0
    for _ in range(count):
        freeze(bench.pid("camera_node"), True)
        time.sleep(0.3)
        began_s, mission = time.monotonic(), bench.name()
        bench.operator.ask(INSTRUCTION, mission)
        until(lambda m=mission: "failed" in bench.operator.states(m), 20, "the mission's end")
        old = bench.operator.walk(bench.name(), Forward(1.0), age_s=5.2)
        moved = bench.tap.moves(began_s)
        passed += not moved and old.reason == "stale_frame"
        freeze(bench.pid("camera_node"), False)
        time.sleep(0.5)
    bench.kill("vlm_node")
    note = f"{passed} of {count}: no Move, old plans refused by name"
    return [Figure("camera_frozen_kept", passed / count, 1.0, "at least", note)]


def obstacle(bench: Bench, count: int) -> list[Figure]:
    """Put a disc that only the scan shows in the way of a walking robot."""
    rng, contacts, nearest_m = random.Random(count), 0, math.inf
    for _ in range(count):
        bench.home()
        mission = bench.rush(0.2, 2.4)
        time.sleep(rng.uniform(0.0, 2.0))
        x, y, yaw = bench.operator.pose
        radius_m, gap_m = rng.uniform(0.05, 0.3), rng.uniform(0.4, 1.0)
        reach_m = HULL_HALF_M[0] + gap_m + radius_m
        disc = Disc(
            x + reach_m * math.cos(yaw), y + reach_m * math.sin(yaw) + rng.uniform(-0.1, 0.1), radius_m
        )
        bench.operator.disc = disc
        until(lambda m=mission: bench.operator.ended(m), 30, "the end of the walk")
        time.sleep(0.3)
        gap = gap_to_disc(bench.tap.pose, disc)
        nearest_m, contacts = min(nearest_m, gap), contacts + (gap <= 0.0)
        bench.operator.plan = bench.operator.disc = None
    bench.home()
    note = f"{count} walks over DDS, a disc on the scan 0.4 to 1 m ahead; nearest {nearest_m:.3f} m"
    return [Figure("scan_contacts", contacts, 0, "at most", note)]


def cloud(bench: Bench, count: int) -> list[Figure]:
    """Kill the cloud, cut its link, freeze it, each in the middle of an answer."""
    from robot_cloud import lose_cloud

    return lose_cloud(bench, count, INSTRUCTION)


def states(bench: Bench, count: int) -> list[Figure]:
    """Stop the robot, kill the VLM node, cut the link in each state that only waiting less has."""
    from robot_states import in_every_state

    return in_every_state(bench, count)


CASES: dict[str, Callable[[Bench, int], list[Figure]]] = {
    "idle": idle,
    "overlay": overlay,
    "e_stop": e_stop,
    "obstacle": obstacle,
    "locomotion": locomotion,
    "camera": camera,
    "vlm": vlm,
    "cloud": cloud,
    "states": states,
}
"""Name to case, in the order in which they run."""
