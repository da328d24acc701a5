"""The table of benchmarks/bodies.py: both bodies beside one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "braking_way_0.5_m": "StopMove at 0.5 m/s, the gate's top speed: way to standstill, longest, m",
    "braking_way_1_m": "the same at 1 m/s, the most that any configuration allows, m",
    "e_stop_time_ratio": "e-stop at top speed, over what the body alone needs: time to standstill",
    "e_stop_way_ratio": "the same: way",
    "forward_error_m": "`forward` of 0.2 to 3 m: largest error, m",
    "turn_error_deg": "`turn` of 5 to 180 degrees: largest error, degrees",
    "motions_done": "of these motions, carried out",
    "watchdog_reaction_s": "silence of the commander until the stop is commanded, s",
    "watchdog_standstill_s": "from that command to standstill, s",
    "expiry_standstill_s": "last Move of a process that has died, to standstill, s",
    "damp_way_m": "Damp at top speed: way until the body lies, m",
    "obstacle_contacts": "walks at a box, chair, person or cone ahead: contacts",
    "upright": "of these walks, on its feet at the end",
    "real_time_factor": "simulated seconds per second of one core (no camera, no network)",
}


def bodies_table(document: Mapping[str, Any]) -> str:
    """Return one row per figure, one column per body; a value beyond its bar is marked."""
    figures = {figure["name"]: figure for figure in document["figures"]}
    bodies = list(dict.fromkeys(name.split("_", 1)[0] for name in figures))
    rows = [f"| what | {' | '.join(bodies)} | bar |", f"| --- |{' ---: |' * len(bodies)} --- |"]
    for name, meaning in MEANINGS.items():
        found = [figures[f"{body}_{name}"] for body in bodies]
        values = " | ".join(f"{f['value']:.3g}" + ("" if f["holds"] else " **missed**") for f in found)
        rows.append(f"| {meaning} | {values} | {found[0]['sense']} {found[0]['bar']:g} |")
    return "\n".join(rows)
