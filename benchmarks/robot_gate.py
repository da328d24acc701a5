"""Figures of benchmarks/robot.py that need no process: plans through the gate, obstacles in virtual time."""

from __future__ import annotations

import json
import math
import random
from dataclasses import fields

from figures import Figure

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import (
    ACTION_TYPES,
    Action,
    Forward,
    Look,
    Strafe,
    Turn,
    Wait,
    action_numbers,
)
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ActionError, ActionRefused
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.fake import HULL_HALF_M, Disc, FakeRobot

FENCE = ((-2.0, -2.0), (2.0, -2.0), (2.0, 2.0), (-2.0, 2.0))
EDGES = (
    0.0,
    -0.0,
    1e-9,
    3.0,
    3.0001,
    180.0,
    180.0001,
    20.0,
    25.0,
    10.0,
    9999.0,
    math.inf,
    -math.inf,
    math.nan,
    1e308,
)
MOVED_EVERY = 200
"""Every so many-th plan also drives a robot in virtual time, whose every Move is looked at."""


def action(rng: random.Random, wild: float) -> Action:
    """Return any action with numbers from harmless to absurd; `wild` is the share of the absurd ones."""
    kind = rng.choice(list(ACTION_TYPES.values()))
    numbers = []
    for _ in fields(kind):
        if rng.random() < wild:
            numbers.append(rng.choice(EDGES) * rng.choice((1, -1)))
        else:
            numbers.append(
                rng.uniform(-1.0, 1.0) * rng.choice((0.5, 3.2, 3.2, 26.0 if wild else 3.2, 190.0 * wild))
            )
    return kind(*numbers)


def state(rng: random.Random) -> RobotState:
    """Return any state, also one that cannot be."""

    def odd(value: float) -> float:
        return rng.choice((math.nan, math.inf, -math.inf)) if rng.random() < 0.02 else value

    ranges = [odd(rng.choice((math.inf, rng.uniform(0.0, 3.0)))) for _ in range(4)]
    return RobotState(
        stamp_s=0.0,
        received_s=0.0,
        x_m=odd(rng.uniform(-3.0, 3.0)),
        y_m=odd(rng.uniform(-3.0, 3.0)),
        yaw_rad=odd(rng.uniform(-math.pi, math.pi)),
        vx_mps=0.0,
        vy_mps=0.0,
        vyaw_radps=0.0,
        roll_rad=rng.uniform(-0.8, 0.8),
        posture=rng.choice(("walk", "damp", "lock", "lie", "sit", "stand", "unknown")),
        battery_soc=odd(rng.random()),
        range_obstacle_m=(ranges[0], ranges[1], ranges[2], ranges[3]),
    )


def exceeds(one: Action, where: RobotState, frame_age_s: float, limits: SafetyLimits) -> bool:
    """Return whether an accepted action exceeds a limit, computed independently of the gate."""
    numbers = action_numbers(one)
    if not all(map(math.isfinite, numbers)):
        return True
    size = max(map(abs, numbers), default=0.0)
    if isinstance(one, Wait):
        return not 0 <= numbers[0] <= limits.max_wait_s
    if isinstance(one, Look):
        return abs(numbers[0]) > limits.max_look_pitch_deg or abs(numbers[1]) > limits.max_look_yaw_deg
    if not isinstance(one, Forward | Strafe | Turn):
        return False
    blind = frame_age_s > limits.max_frame_age_s or where.posture not in ("walk", "stand")
    weak = not where.battery_soc >= limits.min_battery_soc
    if isinstance(one, Turn):
        return blind or weak or size > limits.max_angle_deg
    side = (0 if numbers[0] > 0 else 2) if isinstance(one, Forward) else (1 if numbers[0] > 0 else 3)
    free_m = where.range_obstacle_m[side]
    heading = where.yaw_rad + (math.pi / 2 if isinstance(one, Strafe) else 0.0)
    x, y = where.x_m + numbers[0] * math.cos(heading), where.y_m + numbers[0] * math.sin(heading)
    now_outside = max(abs(where.x_m), abs(where.y_m)) > 2.0
    outside = not now_outside and max(abs(x), abs(y)) > 2.0 + 1e-9
    bumps = bool(numbers[0]) and not free_m > limits.obstacle_stop_m
    return blind or weak or size > limits.max_distance_m or outside or bumps


def plans(count: int, seed: int) -> Figure:
    """Send random and adversarial plans through parser, gate and executor; count what goes beyond a limit."""
    rng, limits = random.Random(seed), SafetyLimits(geofence=FENCE)
    gates = {True: SafetyGate(limits), False: SafetyGate(limits.unverified())}
    beyond = passed = moved = 0
    for index in range(count):
        verified, wild = rng.random() < 0.7, rng.choice((0.0, 0.0, 0.05, 0.5))
        acts = [action(rng, wild) for _ in range(rng.choice((1, 2, 3, 4, 5, 16, 21)))]
        gate = gates[verified]
        try:
            text = Plan("m", index, 0.0, 0, tuple(acts), True, verified).to_json()
            plan = Plan.from_json(garbled(text, rng))
            gate = gates[plan.verified]
            gate.check_plan(plan.actions)
        except (ActionError, ActionRefused):
            continue
        beyond += len(plan.actions) > gate.limits.max_actions
        for one in plan.actions:
            where, age_s = state(rng), rng.choice((0.1, 1.0, 4.9, 5.1, 60.0))
            try:
                gate.check(one, where, age_s, 0.01)
            except ActionRefused:
                continue
            passed += 1
            beyond += exceeds(one, where, age_s, gate.limits)
        if index % MOVED_EVERY == 0:
            moved += 1
            beyond += moves_beyond(plan, limits)
    note = f"{count} plans; {passed} actions passed; {moved} plans driven in virtual time"
    return Figure("gate_beyond_limits", beyond, 0, "at most", note)


def garbled(text: str, rng: random.Random) -> str:
    """Return the plan's text as it is, or damaged as an attacker might write it."""
    choice = rng.random()
    if choice < 0.8:
        return text
    data = json.loads(text)
    if choice < 0.85:
        return text.replace("{", '{"final": true, ', 1)
    if choice < 0.9:
        return json.dumps(data | {"max_speed_mps": 9.0})
    if choice < 0.95:
        return json.dumps(data | {"actions": [*data["actions"], "ignore all limits forward(9)"]})
    return text[: rng.randrange(len(text))]


def moves_beyond(plan: Plan, limits: SafetyLimits) -> int:
    """Carry a plan out in virtual time; count Moves beyond speed limits and positions outside the fence."""
    clock = VirtualClock(100.0)
    robot = FakeRobot(clock)
    robot.start()
    executor = Executor(robot, SafetyGate(limits), clock, runner=InlineCallRunner())
    sent = Plan(plan.mission, plan.answer, clock.now(), 0, plan.actions, True, plan.verified)
    until_s = clock.now() + 40.0
    while clock.now() < until_s and not executor.status().is_terminal:
        executor.submit(sent)
        executor.tick()
        clock.sleep(executor.period_s)
    limits_in_force = limits if plan.verified else limits.unverified()
    found = 0
    for _, call in robot.calls:
        if call.startswith("move("):
            vx, vy, vyaw = map(float, call[5:-1].split(","))
            found += (
                math.hypot(vx, vy) > limits_in_force.max_speed_mps + 1e-3
                or abs(vyaw) > limits_in_force.max_turn_radps + 1e-3
            )
    x, y, _ = robot.true_pose
    return found + (max(abs(x), abs(y)) > 2.1)


def obstacles(count: int, seed: int) -> Figure:
    """Put something in the way while the robot walks, in virtual time; count contacts."""
    rng, contacts, nearest_m = random.Random(seed), 0, math.inf
    for index in range(count):
        clock = VirtualClock(100.0)
        robot = FakeRobot(clock)
        robot.start()
        executor = Executor(robot, SafetyGate(SafetyLimits()), clock, runner=InlineCallRunner())
        plan = Plan(f"m{index}", 0, clock.now(), 0, (Forward(3.0),), True)
        at_s, gap_m = clock.now() + rng.uniform(0.2, 4.0), rng.uniform(0.3, 1.0)
        off_m, radius_m = rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.3)
        put: Disc | None = None
        for _ in range(400):
            executor.submit(plan)
            executor.tick()
            clock.sleep(executor.period_s)
            x, y, yaw = robot.true_pose
            if put is None and clock.now() >= at_s:
                reach_m = HULL_HALF_M[0] + gap_m + radius_m
                put = Disc(x + reach_m * math.cos(yaw), y + reach_m * math.sin(yaw) + off_m, radius_m)
                robot.set_discs(put)
            if put is not None:
                gap = gap_to_disc(robot.true_pose, put)
                nearest_m = min(nearest_m, gap)
                if gap <= 0.0:
                    contacts += 1
                    break
    note = f"{count} walks in virtual time, something 0.3 to 1 m ahead; nearest {nearest_m:.3f} m"
    return Figure("obstacle_contacts", contacts, 0, "at most", note)


def gap_to_disc(pose: tuple[float, float, float], disc: Disc) -> float:
    """Return the gap between the body's box and a disc, in metres."""
    x, y, yaw = pose
    dx, dy = disc.x_m - x, disc.y_m - y
    along, across = dx * math.cos(yaw) + dy * math.sin(yaw), -dx * math.sin(yaw) + dy * math.cos(yaw)
    off = (max(0.0, abs(along) - HULL_HALF_M[0]), max(0.0, abs(across) - HULL_HALF_M[1]))
    return math.hypot(*off) - disc.radius_m
