"""Replicas of the target are killed, come back, are added and taken away under load: two Ray nodes here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import Figure
from lib.replicas import lose_one_of_two, scale_under_load

ADDED = 1
"""Number of the replica that `scale_under_load` adds."""


def replicas(folder: Path, answers: int) -> list[Figure]:
    """Kill one of two nodes while 8 robots ask, let one join, then add and take away a replica.

    Every answer is compared with a lone robot's. No figure without Ray, which is optional
    (pip install 'vlm_spec_decode[cluster]').
    """
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed: the replicas are left out", file=sys.stderr)
        return []
    return [*_killed(folder / "killed", answers), _added(folder / "added", answers)]


def _killed(folder: Path, answers: int) -> list[Figure]:
    found = lose_one_of_two(folder, answers, model="synthetic")
    if not found["killed"] or not found["robots_moved"]:
        raise SystemExit(f"no replica was lost under load: {found}")
    lost = found["asked"] - found["right"] - found["wrong"]
    note = f"{answers} answers of 8 robots by Ray, a node of two killed, {found['resumed']} answers resumed"
    passes, again = found["passes"], found["again"]
    shared = f"{again['asked']} answers more; passes by replica: {_passes_text(passes)}"
    is_back = passes.get(found["lost"], 0) > 0
    return [
        Figure("replica_killed_right", found["right"] / answers, 1.0, "at least", note),
        Figure("replica_killed_lost", lost, 0, "at most", f"{found['wrong']} wrong"),
        _right_if(is_back, "replica_rejoined_right", again, shared),
    ]


def _added(folder: Path, answers: int) -> Figure:
    found = scale_under_load(folder, answers, model="synthetic")
    passes, moved = found["passes"], found["robots_moved"]
    note = f"{found['asked']} answers of 6 robots, {moved} moves; passes by replica: {_passes_text(passes)}"
    return _right_if(passes.get(ADDED, 0) > 0, "replica_added_right", found, note)


def _right_if(served: bool, name: str, found: Mapping[str, Any], note: str) -> Figure:
    """Return the share of right answers, 0 if the replica under test has served none of them."""
    return Figure(name, found["right"] / found["asked"] if served else 0.0, 1.0, "at least", note)


def _passes_text(passes: Mapping[int, int]) -> str:
    return ", ".join(str(count) for _, count in sorted(passes.items()))
