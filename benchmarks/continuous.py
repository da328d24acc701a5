"""How long the robot waits on a mission: look, upload, answer and motion in virtual time.

    python benchmarks/continuous.py [--quick] [--way present,whole] [--episodes N] [--body B] [--out FOLDER]

Real engine, mission runner, gate and executor on the headless simulator; durations are those of a hardware
and a link profile. Every profile, strategy and way gets the same missions (paired). Prints each one's figures
and what each way changes against `present`, with 95 % bootstrap intervals; the last line is one JSON
document. The exit code is 1 if a bar is missed; bars are for the way `--held`. Each mission is written to
FOLDER/missions.jsonl at once, and a run of the same commit with the same folder goes on where it stopped.

Time in which the robot carries out no action counts as waiting, so a planned `wait` does not. "go-to" are
missions to a thing in view at the start, "search first" all whose thing is not; looks are those of both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from continuous_rig import PacedEngine, VirtualRobot
from continuous_ways import ON_THE_DRAFT, WAYS, Way
from figures import Figure, commit, report

from vlm_spec_decode.actions.grammar import answer_pattern
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.bags.score import Interval, mean, resampled
from vlm_spec_decode.core.profiles import BODIES, load_hardware, load_link
from vlm_spec_decode.core.types import Language
from vlm_spec_decode.edge.engine import WITHOUT_DRAFTS
from vlm_spec_decode.edge.factory import ModelPair, engine_config, load_pair, virtual_engine
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.state import RunnerConfig
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.headless import HeadlessGo2
from vlm_spec_decode.sim.physics.physical_world import make_world
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.strategies.registry import DEFAULT
from vlm_spec_decode.train.episodes import APPROACHES, FOLLOW_STEPS, Episode, close_episode, draw_task

FIRST_SEED = 2_100_000
"""Rooms that no training, evaluation or other benchmark uses."""

PROFILES = {"go2": "go2_a100", "2026": "orin_nano_sparkx4_32b"}
LINK = "lte"
WAIT_LIMITS = {WITHOUT_DRAFTS: SafetyLimits(max_frame_age_s=60.0)}
"""The gate's default refuses what such a slow strategy decides, whose answers are older than 5 s."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """What all missions of one column have in common."""

    profile: str
    strategy: str
    way: str
    body: str = "kinematic"

    @property
    def name(self) -> str:
        """A name for tables and files."""
        return f"{self.profile}/{self.strategy}/{self.way}/{self.body}"


class Bench:
    """The models, and the one camera that all rooms share."""

    def __init__(self) -> None:
        self._pairs: dict[str | None, ModelPair] = {}
        self._camera: FrontCamera | None = None

    def pair(self, way: Way) -> ModelPair:
        """Return the shipped pair, held to the way's form of an answer."""
        if way.words not in self._pairs:
            form = None
            if way.words is not None:
                pattern = answer_pattern(way.words)
                form = Language(hashlib.sha256(pattern.encode()).hexdigest(), pattern)
            self._pairs[way.words] = load_pair(form=form)
        return self._pairs[way.words]

    def run(self, cell: Cell, seed: int) -> Row:
        """Run one mission and return its figures."""
        world = make_world(random_scene(seed), body=cell.body, seed=seed)
        way = WAYS[cell.way]
        pair = self.pair(way)
        self._camera = self._camera or FrontCamera(world)
        self._camera.attach(world)
        task = draw_task(seed, world, self._camera)
        first_m = world.distance_to(task.thing) if task.thing else float("nan")
        config = engine_config(EdgeSettings(strategy=cell.strategy, link=load_link(LINK)), pair.stop_ids)
        config = replace(config, hint_branches=way.branches)
        hardware = load_hardware(PROFILES[cell.profile])
        engine, verifier = virtual_engine(pair, load_link(LINK), hardware, config, seed)
        robot = VirtualRobot(
            HeadlessGo2(world, camera=self._camera), WAIT_LIMITS.get(cell.strategy, SafetyLimits())
        )
        steps = RunnerConfig(max_steps=FOLLOW_STEPS if task.kind == "follow" else RunnerConfig().max_steps)
        ending = way.run(robot, PacedEngine(engine, verifier.clock, robot), task.goal.text, steps)
        timeline = robot.timeline
        episode = Episode(
            task,
            answers=timeline.answers,
            executed=timeline.executed,
            path=timeline.path,
            reason=f"{ending.reason}: {ending.detail}" if ending.reason else "",
            first_distance_m=first_m,
        )
        close_episode(episode, world, ending.status)
        return timeline.summary() | episode.summary() | {"begins": begins(task.thing, task.seen_at_start)}


def begins(thing: str, seen_at_start: bool) -> str:
    """Return how a mission begins: "seen", "search" (its thing is not in view), "plain" without a thing."""
    return ("seen" if seen_at_start else "search") if thing else "plain"


# What is read from the rows ------------------------------------------------------------------------------


def is_go_to(row: Row) -> bool:
    """Whether a mission goes to a thing, in view at the start or not."""
    return row["kind"] in APPROACHES


GROUPS: dict[str, Callable[[Row], bool]] = {
    "all": lambda row: True,  # noqa: ARG005
    "go-to": lambda row: is_go_to(row) and row["begins"] == "seen",
    "search first": lambda row: row["begins"] == "search",
}


def ratio(rows: Sequence[Row], others: Sequence[Row], key: str) -> Interval | None:
    """Return the sum of `key` over that of the same missions in `others`, with its bootstrap interval."""
    ours, theirs = (np.array([row[key] for row in each], dtype=np.float64) for each in (rows, others))
    return resampled(
        range(len(ours)),
        lambda drawn: ours[drawn.astype(int)].sum(axis=-1) / theirs[drawn.astype(int)].sum(axis=-1),
    )


def difference(rows: Sequence[Row], others: Sequence[Row], key: str) -> Interval | None:
    """Return the mean of the paired differences, with its bootstrap interval."""
    return mean([float(a[key]) - float(b[key]) for a, b in zip(rows, others, strict=True)])


def columns(rows: Sequence[Row]) -> dict[str, float]:
    """Return the figures of one cell's missions."""
    total_s = sum(row["mission_s"] for row in rows)
    looks = [look for row in rows for look in row["looks"] if look["end_s"] is not None]
    acting = [look for look in looks if look["first_action_s"] is not None]
    go_to = [row for row in rows if is_go_to(row)]
    ways = [row["way_over_straight"] for row in rows if row["success"] and row["way_over_straight"]]
    return {
        "missions": len(rows),
        "mission_s": total_s / len(rows),
        "waiting_s": _mean(row["waiting_s"] for row in rows),
        "waiting_share": sum(row["waiting_s"] for row in rows) / total_s,
        "looks_go_to": _mean(len(row["looks"]) for row in go_to),
        "answer_s": _mean(look["end_s"] - look["frame_s"] for look in looks),
        "first_action_s": _mean(look["first_action_s"] - look["frame_s"] for look in acting),
        "after_first_action_s": _mean(look["end_s"] - look["first_action_s"] for look in acting),
        "overlap_s": _mean(row["overlap_s"] for row in rows),
        "success": _mean(row["success"] for row in rows),
        "collisions_per_100": 100 * _mean(row["collisions"] > 0 for row in rows),
        "way_over_straight_p90": float(np.quantile(ways, 0.9)) if ways else float("nan"),
        "stops": _mean(row["stops"] for row in rows),
        "oldest_frame_s": max(row["oldest_frame_s"] for row in rows),
        "uncommitted": sum(row["uncommitted"] for row in rows),
        "too_old": sum(row["too_old"] for row in rows),
    }


def _mean(values: Iterator[float] | Iterator[bool]) -> float:
    found = [float(value) for value in values]
    return float(np.mean(found)) if found else float("nan")


Found = dict[Cell, list[Row]]


def compare(found: Found) -> list[Row]:
    """Return each way against `present`, and `present` against `autoregressive`, by group."""
    out = []
    for cell, rows in found.items():
        base = Cell(cell.profile, cell.strategy, "present", cell.body)
        if cell.way == "present":
            base = Cell(cell.profile, WITHOUT_DRAFTS, "present", cell.body)
        if base == cell or base not in found:
            continue
        for group, belongs in GROUPS.items():
            pairs = [(a, b) for a, b in zip(rows, found[base], strict=True) if belongs(a)]
            ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
            out.append(
                {
                    "cell": cell.name,
                    "over": base.name,
                    "group": group,
                    "pairs": len(pairs),
                    "mission_s": _numbers(ratio(ours, theirs, "mission_s")),
                    "waiting_s": _numbers(ratio(ours, theirs, "waiting_s")),
                    "success": _numbers(difference(ours, theirs, "success")),
                }
            )
    return out


def _numbers(interval: Interval | None) -> list[float]:
    return [] if interval is None else [round(x, 3) for x in (interval.value, interval.low, interval.high)]


def figures(found: Found, compared: list[Row], held: str) -> list[Figure]:
    """Return the figures that have a bar, of the way `held`, with the default strategy."""
    out = []
    for profile, body in dict.fromkeys((cell.profile, cell.body) for cell in found):
        cell = Cell(profile, DEFAULT, held, body)
        mark = profile if body == "kinematic" else f"{profile}_{body}"
        now, note = columns(found[cell]), f"{len(found[cell])} missions, {held}, {body}"
        for name, bar in (("looks_go_to", 4.5), ("collisions_per_100", 0.7), ("stops", 1.0),
                          ("uncommitted", 0.0), ("too_old", 0.0)):  # fmt: skip
            out.append(Figure(f"{mark}_{name}", now[name], bar, "at most", note))
        bars = {"go2": {"go-to": (0.75, 0.55), "search first": (0.55, 0.40)}, "2026": {"all": (0.85, 0.5)}}
        if held in ON_THE_DRAFT:
            bars = {each: {"all": (0.65, 0.35)} for each in PROFILES}
        for row in compared:
            if row["cell"] != cell.name or not row["pairs"]:
                continue
            if held == "present" and row["group"] == "all" and profile == "go2":
                out.append(_held(f"{mark}_time_over_autoregressive", row["mission_s"], 0.25))
            elif held != "present" and row["group"] in bars[profile]:
                time_bar, wait_bar = bars[profile][row["group"]]
                name = f"{mark}_{row['group'].replace(' ', '_')}"
                out.append(_held(f"{name}_time", row["mission_s"], time_bar))
                out.append(_held(f"{name}_waiting", row["waiting_s"], wait_bar))
            if held != "present" and row["group"] == "all":
                value, low, high = row["success"]
                note = f"95 % of {row['pairs']} pairs: {low:+.3f} to {high:+.3f}"
                out.append(Figure(f"{mark}_success_change", value, -0.01, "at least", note))
                path = now["way_over_straight_p90"]
                before = columns(found[Cell(profile, DEFAULT, "present", body)])["way_over_straight_p90"]
                out.append(Figure(f"{mark}_path_p90_ratio", path / before, 1.05, "at most", note))
    return out


def _held(name: str, interval: list[float], bar: float) -> Figure:
    value, low, high = interval
    return Figure(name, value, bar, "at most", f"95 %: {low:.3f} to {high:.3f}")


def show(found: Found, compared: list[Row]) -> None:
    """Print each cell's figures by group, then the comparisons."""
    for cell, rows in found.items():
        for group, belongs in GROUPS.items():
            if chosen := [row for row in rows if belongs(row)]:
                numbers = "  ".join(f"{k} {v:.4g}" for k, v in columns(chosen).items())
                print(f"{cell.name} [{group}]: {numbers}")
    for row in compared:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def measure(cells: list[Cell], seeds: range, file: Path) -> Found:
    """Run what `file` does not hold yet; return every cell's missions in the order of the seeds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known, code = {}, commit()
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["commit"] == code:
                known[row["cell"], row["seed"]] = row
    bench = Bench()
    with file.open("a", encoding="utf-8") as out:
        for seed, cell in product(seeds, cells):
            if (cell.name, seed) in known:
                continue
            row = bench.run(cell, seed) | {"cell": cell.name, "commit": code}
            known[cell.name, seed] = json.loads(json.dumps(row))
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"… {cell.name} {seed}: {row['status']}, {row['mission_s']:.1f} s", file=sys.stderr)
    return {cell: [known[cell.name, seed] for seed in seeds] for cell in cells}


def main() -> int:
    """Measure, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few missions: under 10 minutes on one core")
    parser.add_argument("--way", default="present,whole", help=f"of: {', '.join(WAYS)}")
    parser.add_argument("--held", default="present", help="the way that the bars are for")
    parser.add_argument("--strategy", default=f"{WITHOUT_DRAFTS},{DEFAULT}", help="how answers are decoded")
    parser.add_argument("--profile", default=",".join(PROFILES), help=f"of: {', '.join(PROFILES)}")
    parser.add_argument("--body", default="kinematic", help=f"of: {', '.join(BODIES)}")
    parser.add_argument(
        "--episodes", type=int, default=0, help="missions of each cell; default: 2000, quick 24"
    )
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, default=Path("out/continuous"))
    options = parser.parse_args()
    ways, profiles, bodies = (getattr(options, n).split(",") for n in ("way", "profile", "body"))
    for name, chosen, known in (
        ("way", ways, WAYS),
        ("profile", profiles, PROFILES),
        ("body", bodies, BODIES),
    ):
        if not set(chosen) <= set(known):
            parser.error(f"--{name}: choose of {', '.join(known)}")
    if not {options.held, "present"} <= set(ways) or DEFAULT not in options.strategy.split(","):
        parser.error(f"present, the way held and the strategy {DEFAULT} must be among those measured")
    cells = [Cell(*each) for each in product(profiles, options.strategy.split(","), ways, bodies)]
    # Without drafts only `present` is compared: the ways differ in what they do with the default strategy.
    cells = [cell for cell in cells if cell.strategy == DEFAULT or cell.way == "present"]
    count = options.episodes or (24 if options.quick else 2000)
    seeds = range(options.first_seed, options.first_seed + count)
    found = measure(cells, seeds, options.out / "missions.jsonl")
    compared = compare(found)
    show(found, compared)
    # A figure without missions is none: JSON has no NaN.
    numbers = {
        cell.name: {name: value for name, value in columns(rows).items() if not math.isnan(value)}
        for cell, rows in found.items()
    }
    more = {"cells": numbers, "compared": compared}
    return report(figures(found, compared, options.held), options.out / "continuous.json", **more)


if __name__ == "__main__":
    sys.exit(main())
