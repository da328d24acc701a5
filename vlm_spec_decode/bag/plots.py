"""Plots of the report as SVG text: one line for each way of decoding. Knows rows and figures only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LINE_PX, LEFT_PX, WIDE_PX = 28, 300, 560
SHOWN_DOTS = 300
BLUE, RED, GREY = "#3572b0", "#b3261e", "#666"


def times(rows: Sequence[Mapping[str, Any]], deadline_s: float) -> str:
    """Return a strip of points for each cell over one axis of seconds, with the median and the deadline."""
    names = list(dict.fromkeys(row["cell"] for row in rows))
    longest_s = max([deadline_s, *(row["total_s"] for row in rows)]) * 1.05
    parts = [
        _upright(
            _x(deadline_s / longest_s), 0, LINE_PX * len(names), f'stroke="{RED}" stroke-dasharray="3 3"'
        )
    ]
    for line, name in enumerate(names):
        found = sorted(row["total_s"] for row in rows if row["cell"] == name and not row["error"])
        y = LINE_PX * line + LINE_PX // 2
        parts.append(_name(name, y))
        dot = f'cy="{y}" r="3" fill="{BLUE}" fill-opacity=".35"'
        shown = found[:: max(1, len(found) // SHOWN_DOTS)]
        parts += [f'<circle cx="{_x(t / longest_s)}" {dot}/>' for t in shown]
        if found:
            middle = _x(statistics.median(found) / longest_s)
            parts.append(_upright(middle, y - 9, y + 9, 'stroke="#222" stroke-width="2"'))
    step_s = _step(longest_s)
    ticks = [(k * step_s / longest_s, f"{k * step_s:g} s") for k in range(int(longest_s / step_s) + 1)]
    return _drawn(parts, len(names), ticks)


def shares(cells: Mapping[str, Mapping[str, Any]], figure: str) -> str:
    """Return a bar with its confidence interval for each cell, from 0 to 100 %; "" if none has the figure."""
    parts = []
    for line, (name, figures) in enumerate(cells.items()):
        y = LINE_PX * line + LINE_PX // 2
        parts.append(_name(name, y))
        if found := figures.get(figure):
            width = WIDE_PX * found["value"]
            size = f'width="{width:.1f}" height="14" fill="{BLUE}" fill-opacity=".6"'
            parts.append(f'<rect x="{LEFT_PX}" y="{y - 7}" {size}/>')
            low, high = _x(found["low"]), _x(found["high"])
            parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="#222" stroke-width="2"/>')
    if not any(figure in figures for figures in cells.values()):
        return ""
    return _drawn(parts, len(cells), [(k / 4, f"{25 * k} %") for k in range(5)])


def _x(share: float) -> str:
    return f"{LEFT_PX + WIDE_PX * share:.1f}"


def _step(longest: float) -> float:
    """Return a round distance between ticks, 4 to 9 of them."""
    rough = longest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= rough)


def _name(name: str, y: int) -> str:
    return f'<text x="{LEFT_PX - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'


def _drawn(parts: list[str], lines: int, ticks: list[tuple[float, str]]) -> str:
    bottom = LINE_PX * lines
    for share, said in ticks:
        parts.append(_upright(_x(share), bottom - 2, bottom + 2, f'stroke="{GREY}"'))
        place = f'x="{_x(share)}" y="{bottom + 16}" text-anchor="middle"'
        parts.append(f'<text {place} fill="{GREY}">{said}</text>')
    size = f'viewBox="0 0 {LEFT_PX + WIDE_PX + 40} {bottom + 22}" width="{LEFT_PX + WIDE_PX + 40}"'
    return f'<svg {size} font-size="12" role="img">{"".join(parts)}</svg>'


def _upright(x: str, top: int, bottom: int, style: str) -> str:
    return f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" {style}/>'
