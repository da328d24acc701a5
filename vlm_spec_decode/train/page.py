"""One page about an evaluation: figures, bars by kind of instruction, exits, and every failure with its path.

Plain HTML with inline SVG, so that it opens anywhere and needs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_spec_decode.train.judging import Episode

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; color: #222 }
table { border-collapse: collapse } td { padding: .2rem .8rem .2rem 0; vertical-align: top }
.failure { display: grid; grid-template-columns: 16rem 1fr; gap: 1rem; margin: 1.5rem 0 } img { width: 100% }
ol { margin: .3rem 0; padding-left: 1.3rem; font-size: 13px } .why { color: #a33 }
"""


def write_page(figures: Mapping[str, Any], episodes: Sequence[Episode], folder: Path) -> Path:
    """Write `index.html` beside the pictures of failed episodes; return its path."""
    failed = [e for e in episodes if not e.success]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>",
        "<h1>Evaluation in held-out rooms</h1>",
        _table({k: v for k, v in figures.items() if isinstance(v, (int, float))}),
    ]
    for title, key in (("Success by kind", "success_by_kind"), ("Declined, by kind", "declined_by_kind")):
        if key in figures:
            parts += [f"<h2>{title}</h2>", _bars({k: _share(v) for k, v in figures[key].items()})]
    for mark, said in (("t0", "greedy"), ("t1", "temperature 1")):
        if rows := figures.get(f"acceptance_by_token_{mark}"):
            parts += [f"<h2>Draft acceptance by token, {said}</h2>", _bars(rows)]
    if exits := figures.get("exits"):
        agrees = {f"layer {layer}": row["agrees"] for layer, row in exits.items()}
        parts += ["<h2>Exits: first choice is the final one</h2>", _bars(agrees)]
    parts += [f"<h2>{len(failed)} failures of {len(episodes)}</h2>", *(_failure(e, folder) for e in failed)]
    path = folder / "index.html"
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _share(text: str) -> float:
    good, count = (int(n) for n in text.split("/"))
    return good / count


def _table(figures: Mapping[str, float]) -> str:
    rows = (f"<tr><td>{escape(k.replace('_', ' '))}<td>{v:.4g}" for k, v in figures.items())
    return f"<table>{''.join(rows)}</table>"


def _bars(shares: Mapping[str, float]) -> str:
    """Return a bar for each share in [0, 1]."""
    lines = []
    for row, (name, share) in enumerate(shares.items()):
        y = 24 * row
        lines.append(
            f'<text x="160" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="170" y="{y + 3}" width="400" height="16" fill="#eee"/>'
            f'<rect x="170" y="{y + 3}" width="{400 * share:.0f}" height="16" fill="#3572b0"/>'
            f'<text x="580" y="{y + 15}">{share:.0%}</text>'
        )
    return f'<svg width="640" height="{24 * len(shares)}" font-size="13">{"".join(lines)}</svg>'


def _failure(episode: Episode, folder: Path) -> str:
    task, name = episode.task, f"failed_{episode.task.seed}.png"
    picture = f'<img src="{name}" alt="path from above">' if (folder / name).exists() else ""
    answers = "".join(f"<li>{escape(text)}" for text in episode.answers)
    why = episode.reason or f"{episode.status}, {episode.collisions} collisions"
    where = "" if episode.item is None else f", {episode.distance_m:.2f} m from the {escape(task.thing)}"
    return (
        f'<div class="failure"><div>{picture}</div><div><b>{escape(task.goal.text)}</b> '
        f'({escape(task.kind)}, room {task.seed})<div class="why">{escape(why)}{where}</div>'
        f"<ol>{answers}</ol></div></div>"
    )
