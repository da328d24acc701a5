"""The result of a demo, from its mission log and the ground truth: a JSON document and a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_spec_decode.demo.mission_log import MissionLog, MissionStep
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.sim.scene import Scene

REACHED_M = 0.7
"""A go-to mission ends well at most this far from the object's nearest surface."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over a mission's answers."""

    tokens: int
    target_passes: int
    drafted: int
    accepted: int
    answer_s: float
    uplink_bytes: int
    downlink_bytes: int
    image_bytes: int

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


def figures(traces: Iterable[Mapping[str, Any]]) -> Figures:
    """Add up traces as `/vlm/trace` has them."""
    told = [trace for trace in traces if trace]

    def total(key: str) -> int:
        return sum(int(trace[key]) for trace in told)

    return Figures(
        tokens=total("tokens"),
        target_passes=total("target_passes"),
        drafted=total("drafted"),
        accepted=total("accepted"),
        answer_s=sum(float(trace["total_s"]) for trace in told),
        uplink_bytes=total("uplink_bytes"),
        downlink_bytes=total("downlink_bytes"),
        image_bytes=total("image_bytes"),
    )


def named_object(instruction: str, scene: Scene) -> str | None:
    """Return the object that is named by colour and kind, or by a kind that is there only once."""
    words = re.sub(r"[^a-z]+", " ", instruction.lower())
    for colour, kind in re.findall(rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(KINDS)})\b", words):
        fits = [item.name for item in scene.objects if item.kind == kind and colour in ("", item.colour)]
        if len(fits) == 1:
            return fits[0]
    return None


def object_ahead(scene: Scene) -> str:
    """Return the object that stands nearest to where the robot looks at the start."""
    start = scene.start

    def off_axis_rad(x_m: float, y_m: float) -> float:
        bearing = math.atan2(y_m - start.y_m, x_m - start.x_m) - start.yaw_rad
        return abs(math.atan2(math.sin(bearing), math.cos(bearing)))

    return min(scene.objects, key=lambda item: off_axis_rad(item.x_m, item.y_m)).name


def is_success(story: MissionLog, target: str | None, distance_m: float | None, collisions: int) -> bool:
    """Whether the models said `done()`, nothing was touched, and a named object was reached."""
    reached = target is None or (distance_m is not None and distance_m <= REACHED_M)
    return story.state == "done" and collisions == 0 and reached


def same_tokens(steps: Iterable[MissionStep], again: Mapping[int, Mapping[str, Any]]) -> bool | None:
    """Compare answers with those decoded again, by step; None if there was nothing to compare."""
    compared = [
        step.token_ids == tuple(again[step.number]["token_ids"]) for step in steps if step.number in again
    ]
    return all(compared) if compared else None


WIDTH = 100


def table(document: Mapping[str, Any]) -> str:
    """Return the table of a run's document."""
    console = Console(
        width=WIDTH, record=True, file=None, quiet=False, color_system=None, force_terminal=False
    )
    with console.capture() as captured:
        console.print(_mission(document))
        console.print(_decoding(document))
    return captured.get().rstrip()


def _mission(document: Mapping[str, Any]) -> Table:
    out = Table(title=f'"{document["instruction"]}"', title_justify="left", show_header=False)
    out.add_column(style="bold")
    out.add_column()
    distance = document["final_distance_m"]
    rows = {
        "outcome": ("success" if document["success"] else "no success") + f" (mission {document['status']})",
        "object": document["target_object"] or "none that is in this room",
        "distance at the end": "-" if distance is None else f"{distance:.2f} m (reached: at most 0.70 m)",
        "collisions": str(document["collisions"]),
        "answers": str(len(document["answers"])),
        "first action after": _seconds(document["time_to_first_action_s"]),
        "mission took": _seconds(document["total_s"]),
    }
    for name, value in rows.items():
        out.add_row(name, value)
    return out


def _decoding(document: Mapping[str, Any]) -> Table:
    out = Table(title="the same answers, decoded both ways", title_justify="left")
    out.add_column("")
    baseline = document["autoregressive"]
    out.add_column(document["strategy"], justify="right")
    out.add_column("autoregressive", justify="right")
    names = {
        "tokens": "tokens",
        "target_passes": "target passes",
        "answer_s": "time for all answers",
        "uplink_bytes": "bytes up, without images",
        "image_bytes": "bytes up, images",
        "downlink_bytes": "bytes down",
    }
    for key, title in names.items():
        show = _seconds if key == "answer_s" else str
        out.add_row(title, show(document[key]), show(baseline[key]) if baseline else "-")
    out.add_row("draft tokens accepted", f"{document['acceptance_rate']:.1%}", "-")
    same = document["same_tokens_as_autoregressive"]
    out.add_row("same tokens", "-" if same is None else "yes" if same else "NO", "")
    return out


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def answers(steps: Sequence[MissionStep]) -> list[dict[str, Any]]:
    """Return the answers as the document lists them."""
    return [
        {
            "step": step.number,
            "text": step.text,
            "actions": list(step.actions),
            "executed": list(step.executed),
            "tokens": len(step.token_ids),
            "total_s": step.trace.get("total_s"),
        }
        for step in steps
        if step.text
    ]


def sums(figures: Figures) -> dict[str, Any]:
    """Return the sums under the document's names."""
    return {**asdict(figures), "acceptance_rate": round(figures.acceptance_rate, 4)}
