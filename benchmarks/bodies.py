"""What each body of the simulated robot can do, and how safe it stays: braking, accuracy, stops, obstacles.

    python benchmarks/bodies.py [--body kinematic,physical] [--times N] [--out FILE]

In virtual time on one core, without DDS: executor, gate and state machine are the real ones, and reaction
times are those of the control loop alone (benchmarks/robot.py has the network's, too, with its own `--body`).
Prints a table; the last line is one JSON document. The exit code is 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from figures import Figure, report

from vlm_spec_decode.actions.limits import MAX_SPEED_MPS, SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor, run_plan
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.objects import SceneObject
from vlm_spec_decode.sim.physics.physical_world import BODIES, make_world
from vlm_spec_decode.sim.scene import Scene, random_scene
from vlm_spec_decode.sim.views import WorldViews, save_png

HALL = Scene(0, 24.0, 24.0, (), Pose2D(0.0, 0.0, 0.0))
SEED = 20263
HOLD_S = 1.0
"""How long the robot holds a Move."""
RESEND_S = 0.025
PANEL_PX = (480, 320)


class Rig:
    """A standing robot with its executor in virtual time, in a hall or a room of its own."""

    def __init__(self, body: str, scene: Scene = HALL) -> None:
        self.scene, self.clock, self.missions = scene, VirtualClock(), 0
        self.world = make_world(scene, body=body)
        self.robot = HeadlessGo2(self.world, self.clock)
        self.robot.start()
        gate = SafetyGate(SafetyLimits())
        self.executor = Executor(self.robot, gate, self.clock, runner=InlineCallRunner())

    def plan(self, text: str) -> Plan:
        """Return a plan of its own."""
        self.missions += 1
        return Plan(f"m{self.missions}", 0, self.clock.now(), 1, parse_answer(text), final=True)

    def beat(self, plan: Plan, for_s: float) -> None:
        """Command it for so long."""
        until_s = self.clock.now() + for_s
        while self.clock.now() < until_s:
            self.executor.submit(plan)
            self.tick()

    def tick(self) -> None:
        """Let one control period pass."""
        self.executor.tick()
        self.clock.sleep(self.executor.period_s)

    def rush(self, velocity: tuple[float, float, float], for_s: float) -> None:
        """Send Moves straight to the robot."""
        until_s = self.clock.now() + for_s
        while self.clock.now() < until_s:
            self.robot.move(*velocity)
            self.clock.sleep(RESEND_S)

    def to_rest(self, from_s: float, start: RobotState) -> tuple[float, float]:
        """Wait for the standstill; return time and way since a moment and the state then."""
        while not self.robot.state().is_still:
            if self.clock.now() > from_s + 6.0:
                return math.inf, math.inf
            self.clock.sleep(0.01)
        return self.clock.now() - from_s, travelled(start, self.robot.state())

    def home(self) -> None:
        """Be put back where the robot has begun, standing."""
        self.world.teleport(self.scene.start)
        self.robot.attach(self.world)
        self.robot.start()


def travelled(one: RobotState, other: RobotState) -> float:
    """Return the distance between two positions."""
    return math.hypot(other.x_m - one.x_m, other.y_m - one.y_m)


def braking(body: str, times: int, mps: float, rng: random.Random) -> tuple[float, float, float]:
    """Return median time and way, and the longest way, from a speed to standstill after StopMove."""
    rig, spent, ways = Rig(body), [], []
    for _ in range(times):
        rig.home()
        rig.rush((mps, 0.0, 0.0), rng.uniform(2.5, 3.1))
        began_s, start = rig.clock.now(), rig.robot.state()
        rig.robot.stop()
        time_s, way_m = rig.to_rest(began_s, start)
        spent.append(time_s)
        ways.append(way_m)
    return statistics.median(spent), statistics.median(ways), max(ways)


def braking_figures(body: str, times: int, rng: random.Random) -> list[Figure]:
    """Braking of the body alone, and of the e-stop through the executor held against it."""
    out = []
    limits = SafetyLimits()
    for mps in (limits.max_speed_mps, MAX_SPEED_MPS):
        time_s, way_m, far_m = braking(body, times, mps, rng)
        # v x delay + v^2 / 2a with the delay and the deceleration that the safety page reckons with.
        bar_m = mps * 0.1 + mps * mps / 2.0
        note = f"median {way_m:.3f} m in {time_s:.2f} s, {times} StopMoves at {mps:g} m/s"
        out.append(Figure(f"{body}_braking_way_{mps:g}_m", far_m, bar_m, "at most", note))
        if mps == limits.max_speed_mps:
            own = (time_s, way_m)
    rig, spent, ways = Rig(body), [], []
    for _ in range(times):
        rig.home()
        rig.beat(rig.plan("forward(3)"), rng.uniform(2.5, 3.1))
        began_s, start = rig.clock.now(), rig.robot.state()
        rig.executor.estop(True)
        time_s, way_m = rig.to_rest(began_s, start)
        spent.append(time_s)
        ways.append(way_m)
        rig.executor.estop(False)
    for name, values, alone in (("time", spent, own[0]), ("way", ways, own[1])):
        middle = statistics.median(values)
        note = f"median {middle:.3f}, the body alone {alone:.3f}, {times} e-stops at top speed"
        out.append(Figure(f"{body}_e_stop_{name}_ratio", middle / alone, 1.1, "at most", note))
    return out


def accuracy(body: str, times: int, rng: random.Random) -> list[Figure]:
    """Largest error of walking a way and of turning an angle, against the true pose."""
    rig, distances, angles, ended = Rig(body), [], [], 0
    for _ in range(times):
        rig.home()
        metres = rng.choice((-1.0, 1.0)) * round(rng.uniform(0.2, 3.0 if rng.random() < 0.7 else 0.5), 2)
        degrees = rng.choice((-1.0, 1.0)) * round(rng.uniform(5.0, 180.0))
        before = rig.robot.state()
        ended += run_plan(rig.executor, rig.plan(f"forward({metres})"), rig.clock).state == "done"
        middle = rig.robot.state()
        distances.append(abs(travelled(before, middle) - abs(metres)))
        ended += run_plan(rig.executor, rig.plan(f"turn({degrees})"), rig.clock).state == "done"
        turned = math.degrees(rig.robot.state().yaw_rad - middle.yaw_rad)
        angles.append(abs(math.remainder(turned - degrees, 360.0)))
    metre_note = f"median {statistics.median(distances):.3f} m, largest of {times}, 0.2 to 3 m"
    angle_note = f"median {statistics.median(angles):.2f} deg, largest of {times}, 5 to 180 deg"
    return [
        Figure(f"{body}_forward_error_m", max(distances), 0.1, "at most", metre_note),
        Figure(f"{body}_turn_error_deg", max(angles), 3.0, "at most", angle_note),
        Figure(f"{body}_motions_done", ended / (2 * times), 1.0, "at least", f"of {2 * times}"),
    ]


def stops(body: str, times: int, rng: random.Random) -> list[Figure]:
    """Silence of the commander, and death of the process that sends Moves."""
    rig, reaction, still, expired, sunk = Rig(body), [], [], [], []
    for index in range(times):
        rig.home()
        rig.beat(rig.plan("forward(3)" if index % 2 else "turn(170)"), rng.uniform(1.2, 1.8))
        while rig.executor.status().state == "moving":
            rig.tick()
        stop = rig.executor.last_stop
        if stop is None or stop.cause != "watchdog":
            raise SystemExit(f"{body}: the watchdog did not bite")
        reaction.append(stop.reaction_s)
        still.append(stop.standstill_s)
        rig.home()
        rig.rush((SafetyLimits().max_speed_mps, 0.0, 0.0), rng.uniform(1.5, 2.1))
        expired.append(rig.to_rest(rig.clock.now(), rig.robot.state())[0])
        rig.home()
        rig.rush((SafetyLimits().max_speed_mps, 0.0, 0.0), rng.uniform(1.5, 2.1))
        start = rig.robot.state()
        rig.robot.posture("damp")
        rig.clock.sleep(1.0)
        sunk.append(travelled(start, rig.robot.state()))
    return [
        Figure(f"{body}_watchdog_reaction_s", max(reaction), 0.3, "at most", f"largest of {times}"),
        Figure(f"{body}_watchdog_standstill_s", max(still), 1.0, "at most", f"largest of {times}"),
        Figure(f"{body}_expiry_standstill_s", max(expired), HOLD_S + 1.0, "at most",
               f"largest of {times}: last Move to standstill, nobody stops it"),
        Figure(f"{body}_damp_way_m", max(sunk), 0.6, "at most",
               f"largest of {times}: Damp at {SafetyLimits().max_speed_mps:g} m/s, until it lies"),
    ]  # fmt: skip


def obstacles(body: str, times: int, rng: random.Random) -> list[Figure]:
    """Walk towards a box of any kind ahead; the robot's own ranges must stop it."""
    contacts, nearest_m, upright = 0, math.inf, 0
    for index in range(times):
        kind, colour = rng.choice(("box", "chair", "person", "cone")), rng.choice(("red", "blue"))
        item = SceneObject(
            f"{colour} {kind}",
            kind,
            colour,
            rng.uniform(1.3, 2.6),
            rng.uniform(-0.2, 0.2),
            rng.uniform(-3.0, 3.0),
        )
        rig = Rig(body, Scene(index, 10.0, 10.0, (item,), Pose2D(0.0, 0.0, 0.0)))
        run_plan(rig.executor, rig.plan("forward(3)"), rig.clock)
        rig.clock.sleep(1.0)
        rig.robot.state()
        contacts += rig.world.collisions
        nearest_m = min(nearest_m, rig.world.range_obstacle()[0])
        upright += not rig.world.has_fallen
    note = f"{times} walks at a box, chair, person or cone; nearest {nearest_m:.3f} m"
    return [
        Figure(f"{body}_obstacle_contacts", contacts, 0, "at most", note),
        Figure(f"{body}_upright", upright / times, 1.0, "at least", f"of {times} walks"),
    ]


def speed(body: str) -> Figure:
    """Return how much faster than real time the body walks on one core, camera and network aside."""
    rig = Rig(body)
    rig.home()
    began_s, spent_s = rig.clock.now(), time.process_time()
    rig.rush((0.5, 0.0, 0.3), 20.0)
    factor = (rig.clock.now() - began_s) / (time.process_time() - spent_s)
    return Figure(
        f"{body}_real_time_factor", factor, 5.0, "at least", "simulated seconds per second of one core"
    )


def picture(file: Path) -> None:
    """Write four moments of a physical walk, a quarter of a stride apart."""
    scene = random_scene(8)
    rig = Rig("physical", scene)
    rig.rush((0.6, 0.0, 0.15), 1.4)
    views = WorldViews(rig.world, width_px=PANEL_PX[0], height_px=PANEL_PX[1])
    panels = []
    try:
        for _ in range(4):
            rig.rush((0.6, 0.0, 0.15), 0.1)
            panels.append(views.third_person(rig.world, width_px=PANEL_PX[0], height_px=PANEL_PX[1],
                                             distance_m=1.5, turn_deg=60.0, elevation_deg=12.0))  # fmt: skip
    finally:
        views.close()
    save_png(np.vstack([np.hstack(panels[:2]), np.hstack(panels[2:])]), file)


def measure(bodies: list[str], times: int) -> list[Figure]:
    """Return the figures of each body; the same seed for each."""
    out = []
    for body in bodies:
        rng = random.Random(SEED)
        out += braking_figures(body, times, rng) + accuracy(body, times, rng)
        out += stops(body, times, rng) + obstacles(body, times, rng)
        out.append(speed(body))
        print(f"… {body} measured", file=sys.stderr, flush=True)
    return out


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--body", default=",".join(BODIES), help=f"of: {', '.join(BODIES)}")
    parser.add_argument("--times", type=int, default=50, help="repetitions of each case")
    parser.add_argument("--picture", type=Path, help="only write this PNG of the physical body walking")
    parser.add_argument("--out", type=Path, default=Path("out/bodies/bodies.json"))
    options = parser.parse_args()
    if options.picture:
        picture(options.picture)
        return 0
    bodies = options.body.split(",")
    if not set(bodies) <= set(BODIES):
        parser.error(f"--body: choose of {', '.join(BODIES)}")
    return report(measure(bodies, options.times), options.out, times=options.times)


if __name__ == "__main__":
    sys.exit(main())
