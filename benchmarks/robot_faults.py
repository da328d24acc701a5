"""Figures of benchmarks/robot.py about the ways to wait less: faults, and what ends them, in each of them.

In virtual time, with the real mission runner, executor and gate (`robot_world`). Answers come late and out of
order, earlier plans come again, the odometry jumps, the camera is slow; and an e-stop, the death of the VLM
node or the loss of the cloud falls into each state that only these ways have.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from figures import Figure
from robot_world import Counts, Faults, World

from vlm_spec_decode.mission.state import RunnerConfig

MODES = {
    "turning": RunnerConfig(search="turning", early_frames="off"),
    "early": RunnerConfig(search="stepwise", early_frames="on"),
    "walking": RunnerConfig(search="stepwise", early_frames="off", replan="walking"),
    "draft": RunnerConfig(search="stepwise", early_frames="off", start="draft"),
    "default": RunnerConfig(),
    "all": RunnerConfig(replan="walking", start="draft"),
}

FAULTS = {
    "late": Faults(late_share=0.4),
    "out of order": Faults(answer_s=(0.2, 6.0), old_share=0.1),
    "jumps": Faults(jump_share=0.004),
    "camera 0.5 s": Faults(camera_s=0.5),
    "camera 2 s": Faults(camera_s=2.0),
    "wild": Faults(wild_share=0.2, old_share=0.05),
    "all": Faults(
        answer_s=(0.2, 5.0), late_share=0.2, camera_s=1.0, jump_share=0.003, old_share=0.05, wild_share=0.1
    ),
}

GAP_M = 0.35
"""Bar of where a plan told anew ends: what steps carry a turning body aside counts as nothing up to 0.3 m."""


def faults(count: int, seed: int) -> list[Figure]:
    """Run `count` missions of each mode with each fault; return what must not have happened."""
    counted = {mode: Counts() for mode in MODES}
    for mode, config in MODES.items():
        for name, fault in FAULTS.items():
            for index in range(count):
                world = World(random.Random(f"{seed} {mode} {name} {index}"), config, fault)
                world.run()
                counted[mode].add(world.counts)
    total = Counts()
    for each in counted.values():
        total.add(each)
    runs = count * len(MODES) * len(FAULTS)
    gaps = sorted(total.late_gap_m) or [0.0]
    note = (
        f"{runs} missions in virtual time, {len(MODES)} modes x {len(FAULTS)} faults; {total.jumps} jumps of "
        f"the odometry, {total.out_of_order} commits out of order, {total.reprojected} plans told anew, "
        f"{total.early} early answers, {total.starts} starts on the draft"
    )
    return [
        Figure("faults_beyond_limits", total.beyond, 0, "at most", note),
        Figure("faults_too_old", total.too_old, 0, "at most", note),
        Figure("faults_uncommitted", total.uncommitted, 0, "at most", "of all but starts on the draft"),
        Figure("faults_outdated", total.outdated + total.after_end, 0, "at most", "or moves after the end"),
        Figure(
            "faults_late_gap_m",
            gaps[math.ceil(0.99 * len(gaps)) - 1],
            GAP_M,
            "at most",
            f"99 % of {len(gaps)}; largest {gaps[-1]:.3f} m",
        ),
    ]


# What ends a mission, in each state -----------------------------------------------------------------------


class Dead(BaseException):
    """The VLM node was killed: nothing of the mission runs any more."""


def is_searching(world: World) -> bool:
    """Whether it turns on with several looks open."""
    plan = world.plan
    return len(world.open) > 1 and plan is not None and plan.origin in ("answer", "search") and moves(world)


def is_settling(world: World) -> bool:
    """Whether an early answer is out while the body settles."""
    return bool(world.early) and world.executor.status().settling and moves(world)


def is_replanning(world: World) -> bool:
    """Whether it walks with the next question open."""
    plan = world.plan
    return bool(world.open) and plan is not None and plan.final and world.robot.state().vx_mps > 0.1


def is_started(world: World) -> bool:
    """Whether it moves by what the draft says."""
    return world.executor.status().start == "begun" and moves(world)


def moves(world: World) -> bool:
    """Whether the body moves."""
    return not world.robot.state().is_still


STATES: dict[str, tuple[Callable[[World], bool], RunnerConfig, Faults]] = {
    "searching": (is_searching, RunnerConfig(early_frames="off"), Faults(answer_s=(1.5, 3.0))),
    "settling": (is_settling, RunnerConfig(search="stepwise"), Faults(answer_s=(1.0, 3.0))),
    "replanning": (
        is_replanning,
        RunnerConfig(replan="walking", early_frames="off"),
        Faults(answer_s=(0.5, 1.2)),
    ),
    "started": (is_started, RunnerConfig(start="draft"), Faults(answer_s=(1.5, 3.0), wrong_share=0.0)),
}

EVENTS = ("e-stop", "killed", "cloud lost")
BARS = {"e-stop": 0.05, "killed": 0.35, "cloud lost": 1.0}
NAMES = {"e-stop": "states_e_stop_s", "killed": "states_vlm_killed_s", "cloud lost": "states_cloud_lost_s"}
TRIES = 60
"""A mission may end without ever being in the state that is wanted: so often another one is tried."""


def happens(world: World, event: str) -> float:
    """Let an event happen now; return its time."""
    if event == "e-stop":
        world.executor.estop(True)
    elif event == "cloud lost":
        world.lost_s = world.clock.now()
    else:
        world.is_dead = True
        raise Dead
    return world.clock.now()


def stopped_s(world: World, state: str, event: str) -> float | None:
    """Run a mission in which an event falls into a state; return the time until the stop is commanded.

    None if the mission ended without being in that state. Infinite if the robot did not come to rest, or was
    moved again.
    """
    is_there, happened_s = STATES[state][0], [math.inf]
    waits_s = world.rng.uniform(0.0, 0.3)
    entered_s = [math.inf]

    def watch(at: World) -> None:
        if not is_there(at):
            entered_s[0] = math.inf
            return
        entered_s[0] = min(entered_s[0], at.clock.now())
        if happened_s[0] == math.inf and at.clock.now() - entered_s[0] >= min(waits_s, 0.1):
            happened_s[0] = at.clock.now()
            happens(at, event)

    world.on_tick = watch
    with suppress(Dead):
        world.run()
    if happened_s[0] == math.inf:
        return None
    world.on_tick = lambda _: None
    world.rest()
    stops = [at_s for at_s, call in world.robot.calls if call == "stop" and at_s >= happened_s[0]]
    if not stops or world.counts.after_end:
        return math.inf
    moves = [at_s for at_s, call in world.robot.calls if call.startswith("move(") and at_s > stops[0]]
    return math.inf if moves else stops[0] - happened_s[0]


def states(count: int, seed: int) -> list[Figure]:
    """Let each event fall into each state `count` times; return the slowest stop of each event."""
    slowest = dict.fromkeys(EVENTS, 0.0)
    seen = dict.fromkeys(STATES, 0)
    for event in EVENTS:
        for state, (_, config, fault) in STATES.items():
            found = 0
            for attempt in range(TRIES * count):
                if found == count:
                    break
                rng = random.Random(f"{seed} {state} {event} {attempt}")
                took_s = stopped_s(World(rng, replace(config, fallback="stop"), fault), state, event)
                if took_s is not None:
                    found += 1
                    seen[state] += 1
                    slowest[event] = max(slowest[event], took_s)
            if found < count:
                slowest[event] = math.inf
    note = "in virtual time; " + ", ".join(f"{number} {state}" for state, number in seen.items())
    return [Figure(NAMES[event], slowest[event], BARS[event], "at most", note) for event in EVENTS]
