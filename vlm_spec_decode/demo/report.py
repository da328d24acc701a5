"""The end of a demo: one JSON document for programs, one table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_spec_decode.demo.outcome import Figures
from vlm_spec_decode.demo.story import Step

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


def answers(steps: Sequence[Step]) -> list[dict[str, Any]]:
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
