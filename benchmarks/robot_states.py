"""The case of benchmarks/robot.py in which something ends the mission in a state that only waiting less has.

Over DDS with the real nodes: an e-stop, the death of the VLM node, the loss of the cloud, each while the
robot searches with several looks open, while an early answer is out and the body settles, while it walks with
the next question open, and while it moves on what the draft says. The bars are those of the cases `e_stop`,
`vlm` and `cloud`. The state is seen on the nodes' topics, so an event falls a message's time after it began.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from figures import Figure
from robot_cloud import mend_cloud
from robot_rig import until

from vlm_spec_decode.mission.state import END_STATES

if TYPE_CHECKING:
    from robot_bench import Bench

BEHIND = "walk to the cyan chair"
AHEAD = "walk to the red box"
EVENTS = ("e-stop", "killed", "cloud lost")
TRIES = 4
"""A mission may end without being in the state that is wanted: so often it is given again."""

LOOK_S = 25.0
"""How long the state is waited for in one mission."""

CONTINUOUS = {"early_frames": "on", "search": "turning", "search_looks": 2}
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "searching": (BEHIND, CONTINUOUS),
    "settling": (AHEAD, CONTINUOUS),
    "replanning": (AHEAD, {**CONTINUOUS, "replan": "walking"}),
    "started": (AHEAD, {**CONTINUOUS, "start": "draft"}),
}
"""What is asked for in each state, and the VLM node's parameters."""


def is_in(state: str, bench: Bench, mission: str) -> bool:
    """Whether the robot is in a state now, by what the nodes have published."""
    operator = bench.operator
    details = [detail for _, _, detail in operator.told(mission)]
    status = operator.statuses[-1][1] if operator.statuses else None
    if not details or status is None or status.mission != mission or bench.tap.is_still:
        return False
    if state == "searching":
        return sum(detail.startswith("searching") for detail in details) > 1
    if state == "settling":
        return status.settling
    if state == "replanning":
        return details[-1].startswith("looking while")
    return status.start == "begun"


def reach(bench: Bench, state: str) -> str | None:
    """Give missions until the robot is in a state; return the mission's name, None if it never was."""
    instruction, _ = STATES[state]
    for _ in range(TRIES):
        bench.home()
        mission = bench.name()
        bench.operator.ask(instruction, mission)
        give_up_s = time.monotonic() + LOOK_S
        while time.monotonic() < give_up_s and not END_STATES & set(bench.operator.states(mission)):
            if is_in(state, bench, mission):
                return mission
            time.sleep(0.002)
        if not END_STATES & set(bench.operator.states(mission)):
            bench.operator.withdraw(mission)
    return None


def e_stop(bench: Bench, mission: str) -> float:
    """Engage the e-stop; return the time until the robot's service hears the stop."""
    called_s = bench.operator.estop(True)
    heard_s: float = until(lambda: bench.tap.first_stop(called_s), 5, "StopMove")
    until(lambda: bench.tap.is_still, 10, "standstill")
    bench.operator.estop(False)
    until(lambda: END_STATES & set(bench.operator.states(mission)), 20, "the mission's end")
    return heard_s - called_s


def killed(bench: Bench, mission: str) -> float:  # noqa: ARG001
    """Kill the VLM node; return the time until the robot's service hears the stop."""
    killed_s = bench.kill("vlm_node")
    heard_s: float = until(lambda: bench.tap.first_stop(killed_s), 5, "StopMove")
    return heard_s - killed_s


def cloud_lost(bench: Bench, mission: str) -> float:
    """Cut the link; return the time until the fallback, from the loss or, later, from the next question.

    What was under way when the link was cut may still end an answer, which is then carried out.
    """
    lost_s = time.monotonic()
    bench.wire.is_cut.set()
    ends = END_STATES | {"holding"}
    until(lambda: ends & set(bench.operator.states(mission)), 30, "the fallback")
    told = bench.operator.told(mission)
    fell_s = next(at for at, state, _ in told if state in ends)
    asked_s = max((at for at, state, _ in told if state == "answering" and at < fell_s), default=lost_s)
    held = any(state == "holding" for _, state, _ in told)
    mend_cloud(bench, "cut")
    if held:
        bench.operator.withdraw(mission)
    return fell_s - max(lost_s, asked_s) if held else 0.0


HAPPEN: dict[str, Callable[[Bench, str], float]] = {
    "e-stop": e_stop,
    "killed": killed,
    "cloud lost": cloud_lost,
}
FIGURES = {
    "e-stop": ("states_nodes_e_stop_s", 0.05),
    "killed": ("states_nodes_vlm_killed_s", 0.35),
    "cloud lost": ("states_nodes_cloud_lost_s", 1.0),
}


def in_every_state(bench: Bench, count: int) -> list[Figure]:
    """Let each event fall into each state `count` times; return the slowest stop of each event."""
    took: dict[str, dict[str, list[float]]] = {event: {state: [] for state in STATES} for event in EVENTS}
    for state, (_, parameters) in STATES.items():
        is_up = False
        for event in EVENTS:
            for _ in range(count):
                if not is_up:
                    bench.vlm(link_file=str(bench.link), fallback="hold", hold_timeout_s=60.0, **parameters)
                    is_up = True
                if (mission := reach(bench, state)) is None:
                    continue
                took[event][state].append(HAPPEN[event](bench, mission))
                print(f"  {event}, {state}: {took[event][state][-1]:.3f} s", file=sys.stderr, flush=True)
                is_up = event != "killed"
        if is_up:
            bench.kill("vlm_node")
    bench.home()
    out = []
    for event in EVENTS:
        name, bar = FIGURES[event]
        # What was never reached was not measured, and holds no bar.
        slowest_s = max(max(each, default=1e9) for each in took[event].values())
        told = ", ".join(
            f"{state} {max(each):.3f} s of {len(each)}" if each else f"{state} not reached"
            for state, each in took[event].items()
        )
        out.append(Figure(name, slowest_s, bar, "at most", f"slowest; {told}"))
    return out
