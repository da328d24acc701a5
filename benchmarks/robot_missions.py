"""The case of benchmarks/robot.py that times whole missions: real nodes over DDS, paced to the Go2 profile.

Each mission is carried out twice in the same room by processes of its own, once the present way (every look
at rest, nothing asked early) and once with what is on by default, in alternating order. Cloud and VLM node
keep to the profile in wall-clock time, over an emulated LTE link. A machine that cannot keep the profile's
pace says so; the note tells how often.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure

from vlm_spec_decode.bags.score import resampled
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.demo.process_stack import ProcessStack, ProcessStackConfig
from vlm_spec_decode.demo.report import is_success
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.episodes import draw_task
from vlm_spec_decode.transport.keys import generate

PROFILE, LINK = "go2_a100", "lte"
FIRST_SEED = 2_300_000
"""Rooms that no training, evaluation or other benchmark uses."""

PRESENT = {"search": "stepwise", "early_frames": "off", "replan": "standing", "start": "committed"}
WAYS: dict[str, dict[str, str]] = {"present": PRESENT, "default": {}}
LONGEST_S = 300.0
"""A mission that takes longer is stopped, and counts with this time."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Errand:
    """One mission: its room, its words, what it is about, and whether that is in view at the start."""

    seed: int
    kind: str
    text: str
    thing: str
    seen_at_start: bool


def errand(seed: int) -> Errand:
    """Draw the mission of a seed as benchmarks/continuous.py does, of all motion instructions."""
    scene = random_scene(seed)
    world = World(scene, seed=seed)
    camera = FrontCamera(world)
    try:
        task = draw_task(seed, world, camera)
    finally:
        camera.close()
    return Errand(seed, task.kind, task.goal.text, task.thing or "", task.seen_at_start)


def carry_out(one: Errand, way: str, out: Path) -> Row:
    """Carry out a mission one way, with processes of its own; return its row."""
    with tempfile.TemporaryDirectory(prefix="vsd-missions-") as folder:
        private = Path(folder)
        generate(private / "keys")
        config = ProcessStackConfig(
            ("--scene-seed", str(one.seed), "--body", "kinematic"),
            0,
            private / "keys",
            private / "truth.json",
            *("hybrid", "coupled", "latency"),
            LINK,
            out / f"{one.seed}_{way}",
            PROFILE,
            mission=WAYS[way],
        )
        with ProcessStack(config, WallClock(), random.Random(), _log) as stack:
            stack.set_up()
            log = stack.run_mission(one.text, LONGEST_S)
            truth = stack.stop()
            ended_s = log.given_s + stack.waited_s if log.ended_s is None else log.ended_s
            timeline, slower = log.times.timeline(log.given_s, ended_s, stack.link), len(stack.slower())
    distance_m = truth.distances_m.get(one.thing)
    times = {key: value for key, value in timeline.document().items() if key != "spans"}
    return times | {
        "seed": one.seed,
        "way": way,
        "kind": one.kind,
        "instruction": one.text,
        "thing": one.thing,
        "begins": ("seen" if one.seen_at_start else "search") if one.thing else "plain",
        "status": log.state or "timeout",
        "reason": log.reason,
        "reached": one.kind == "go to" and is_success(log, one.thing, distance_m, truth.collisions),
        "collisions": truth.collisions,
        "slower_than_profile": slower,
        "load": round(os.getloadavg()[0], 1),
    }


def missions(count: int, out: Path) -> list[Figure]:
    """Carry out `count` missions both ways; return the ratio of their times.

    Each is written to `out`/missions.jsonl as it ends, and one that is there already is not run again.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "missions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {(row["seed"], row["way"]): row for row in map(json.loads, lines)}
    for index in range(count):
        one = errand(FIRST_SEED + index)
        # In turn, so that a load which changes slowly falls on both alike.
        for way in list(WAYS)[:: 1 if index % 2 == 0 else -1]:
            if (one.seed, way) in known:
                continue
            try:
                row = carry_out(one, way, out)
            except VsdError as problem:
                raise SystemExit(f"mission {one.seed}, {way}: {problem}") from problem
            known[one.seed, way] = row
            with file.open("a", encoding="utf-8") as added:
                added.write(json.dumps(row) + "\n")
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    return figures([known[seed, "present"] for seed in seeds], [known[seed, "default"] for seed in seeds])


def figures(present: Sequence[Row], default: Sequence[Row]) -> list[Figure]:
    """Return the ratio of the missions' times, by the sums over all pairs."""
    pairs = len(present)
    done, reached = (
        [sum(row[key] == value for row in rows) for rows in (present, default)]
        for key, value in (("status", "done"), ("reached", True))
    )
    going = sum(row["kind"] == "go to" for row in present)
    late = sum(row["slower_than_profile"] > 0 for row in (*present, *default))
    loads = sorted(row["load"] for row in (*present, *default))
    note = (
        f"{pairs} pairs, {PROFILE}, {LINK}; done {done[0]} and {done[1]}; go to: {reached[0]} and "
        f"{reached[1]} of {going} reached; {late} of {2 * pairs} slower than the "
        f"profile at times; load {loads[len(loads) // 2]} in the median"
    )
    (before, after), (stood, stands) = (
        [np.array([row[key] for row in rows], dtype=np.float64) for rows in (present, default)]
        for key in ("total_s", "waited_s")
    )
    found = resampled(
        range(pairs), lambda drawn: after[drawn.astype(int)].sum(-1) / before[drawn.astype(int)].sum(-1)
    )
    span = f", 95 %: {found.low:.2f} to {found.high:.2f}" if found else ""
    told = (
        f"{after.sum():.0f} s of {before.sum():.0f} s{span}; waiting {stands.sum() / stood.sum():.2f}; {note}"
    )
    return [Figure("missions_time_ratio", float(after.sum() / before.sum()), 0.8, "at most", told)]


def _log(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)
