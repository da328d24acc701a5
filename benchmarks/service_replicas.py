"""One of two replicas of the target is killed under load: a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from figures import Figure

from vlm_spec_decode.bench.replicas import lose_one_of_two


def replica_killed(folder: Path, answers: int) -> list[Figure]:
    """Kill one of two nodes while 8 robots ask; every answer is compared with a lone robot's.

    No figure without Ray, which is optional (pip install 'vlm_spec_decode[cluster]').
    """
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed: the case of the killed replica is left out", file=sys.stderr)
        return []
    found = lose_one_of_two(folder / "replicas", answers, model="synthetic", again=False)
    if not found["killed"] or not found["robots_moved"]:
        raise SystemExit(f"no replica was lost under load: {found}")
    lost = found["asked"] - found["right"] - found["wrong"]
    note = f"{answers} answers of 8 robots by Ray, a node of two killed, {found['resumed']} answers resumed"
    return [
        Figure("replica_killed_right", found["right"] / answers, 1.0, "at least", note),
        Figure("replica_killed_lost", lost, 0, "at most", f"{found['wrong']} wrong"),
    ]
