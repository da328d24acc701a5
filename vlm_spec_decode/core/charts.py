"""Charts as inline SVG: bars, lines, points, and spans of time. Colours come from the page's style sheet.

Every chart has a title and a description for those who do not see it, and says nothing by colour alone: a
line has its own marker and dashes and its name at its end, a bar its value, a span its own lane. Sizes are
units of the view box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from zlib import crc32

WIDTH, RIGHT = 720, 96
LETTER = 7.2
"""Width of a letter, about; names left of a chart get as much room as the longest needs."""

BAR, LINE, TOP, BOTTOM = 30, 300, 12, 28
SERIES = 6
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2")
MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4h8v8h-8z",
    "M0-5l5 9h-10z",
    "M0-5.5l5 5.5-5 5.5-5-5.5z",
    "M0 5l5-9h-10z",
    "M-5-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with its words, and the interval that its value lies in."""

    name: str
    value: float
    words: str
    low: float | None = None
    high: float | None = None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from `start` to `end`, in one of the lanes of its group."""

    group: str
    lane: str
    start: float
    end: float


def bars(
    title: str,
    about: str,
    found: Sequence[Bar],
    *,
    mark: float | None = None,
    top: float = 0.0,
    unit: str = "",
) -> str:
    """Return a bar for each value, from 0; `mark` is a dashed line, `top` the least end of the scale."""
    if not found:
        return ""
    longest = max([top, mark or 0.0, *(bar.value for bar in found), *(bar.high or 0.0 for bar in found)])
    left = _left(bar.name for bar in found)
    axis = _Axis(0.0, longest * (1.0 if top else 1.05) or 1.0, left, WIDTH - RIGHT)
    parts, bottom = [], TOP + BAR * len(found)
    parts += axis.ticks(bottom, unit)
    if mark is not None:
        parts.append(_upright(axis.at(mark), TOP - 6, bottom, "mark"))
    for row, bar in enumerate(found):
        y = TOP + BAR * row
        parts.append(_text(left - 10, y + 19, bar.name, "", "end"))
        width = max(1.0, axis.at(bar.value) - left)
        best = " best" if bar.is_best else ""
        parts.append(
            f'<rect class="bar{best}" x="{left:.1f}" y="{y + 5}" width="{width:.1f}" height="18" rx="2"/>'
        )
        end = axis.at(max(bar.value, bar.high or 0.0))
        if bar.low is not None and bar.high is not None:
            low, high, middle = axis.at(bar.low), axis.at(bar.high), y + 14
            path = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10"
            parts.append(f'<path class="whisker" d="{path}"/>')
        parts.append(_text(end + 8, y + 19, bar.words))
    return _svg(title, about, parts, bottom + BOTTOM)


def lines(
    title: str,
    about: str,
    places: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    mark: float | None = None,
) -> str:
    """Return a line for each series over the places, each with its name at its end; None leaves a gap."""
    values = [v for row in series.values() for v in row if v is not None]
    if not values:
        return ""
    x = _Axis(0.0, max(1, len(places) - 1), 60, WIDTH - 150)
    y = _Axis(0.0, max([*values, mark or 0.0]) * 1.08, TOP + LINE, TOP)
    parts = []
    for value, words in y.steps():
        parts.append(
            f'<line class="axis" x1="60" x2="{WIDTH - 150}" y1="{y.at(value):.1f}" y2="{y.at(value):.1f}"/>'
        )
        parts.append(_text(52, y.at(value) + 4, words, "quiet", "end"))
    if mark is not None:
        parts.append(
            f'<line class="mark" x1="60" x2="{WIDTH - 150}" y1="{y.at(mark):.1f}" y2="{y.at(mark):.1f}"/>'
        )
    for index, place in enumerate(places):
        # Names alternate between two lines, so that neighbours do not touch.
        height = TOP + LINE + 18 + 16 * (index % 2 if len(places) > 6 else 0)
        parts.append(_text(x.at(index), height, place, "quiet", "middle"))
    labels = []
    for number, (name, row) in enumerate(series.items()):
        points = [(x.at(i), y.at(v)) for i, v in enumerate(row) if v is not None]
        look = number % SERIES
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        dash = f' stroke-dasharray="{DASHES[look]}"' if DASHES[look] else ""
        marks = "".join(
            f'<path class="point" d="{MARKERS[look]}" transform="translate({px:.1f} {py:.1f})"/>'
            for px, py in points
        )
        parts.append(f'<g class="s{look + 1}"><path class="line"{dash} d="{path}"/>{marks}</g>')
        if points:
            labels.append((points[-1][1], look, name))
    parts += _end_labels(labels, WIDTH - 150)
    return _svg(title, about, parts, TOP + LINE + 48)


def _end_labels(labels: list[tuple[float, int, str]], x: float) -> list[str]:
    """Return the series' names beside their last points, pushed apart where they would touch."""
    parts, lowest = [], -math.inf
    for y, look, name in sorted(labels):
        lowest = max(y, lowest + 16)
        place = f"translate({x + 14} {lowest:.1f})"
        marker = f'<path class="point" d="{MARKERS[look]}" transform="{place}"/>'
        words = f'<text class="label" x="{x + 24}" y="{lowest + 4:.1f}">{escape(name)}</text>'
        parts.append(f'<g class="s{look + 1}">{marker}{words}</g>')
    return parts


def points(
    title: str,
    about: str,
    found: Mapping[str, Sequence[float]],
    *,
    limit: float,
    unit: str = "s",
    most: int = 300,
) -> str:
    """Return a strip of points for each name with the median as a bar, and a dashed limit over all."""
    longest = max([limit, *(value for row in found.values() for value in row)]) * 1.05
    left = _left(found)
    axis = _Axis(0.0, longest, left, WIDTH - RIGHT)
    bottom = TOP + BAR * len(found)
    parts = [*axis.ticks(bottom, unit), _upright(axis.at(limit), TOP - 6, bottom, "limit")]
    for row, (name, values) in enumerate(found.items()):
        middle = TOP + BAR * row + BAR // 2
        parts.append(_text(left - 10, middle + 4, name, "", "end"))
        ordered = sorted(values)
        shown = ordered[:: max(1, len(ordered) // most)]
        parts += [f'<circle class="dot" cx="{axis.at(v):.1f}" cy="{middle}" r="3.5"/>' for v in shown]
        if ordered:
            half = len(ordered) // 2
            median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
            parts.append(f'<path class="whisker" d="M{axis.at(median):.1f} {middle - 10}v20"/>')
            parts.append(_text(WIDTH - RIGHT + 8, middle + 4, f"{median:.2f} {unit}"))
    return _svg(title, about, parts, bottom + BOTTOM)


def timeline(title: str, about: str, spans: Sequence[Span], lanes: Sequence[str]) -> str:
    """Return spans of seconds over one axis: a block of lanes for each group, a colour for each lane."""
    if not spans:
        return ""
    groups = list(dict.fromkeys(span.group for span in spans))
    used = {
        group: [lane for lane in lanes if any(s.group == group and s.lane == lane for s in spans)]
        for group in groups
    }
    left = _left(f"{group}  {lane}" for group in groups for lane in used[group])
    axis = _Axis(0.0, max(span.end for span in spans) or 1.0, left, WIDTH - 20)
    parts, y = [], TOP
    for group in groups:
        parts.append(_text(8, y + 14, group, "strong"))
        for lane in used[group]:
            parts.append(_text(left - 10, y + 14, lane, "quiet", "end"))
            look = lanes.index(lane) % SERIES
            mine = [span for span in spans if span.group == group and span.lane == lane]
            blocks = "".join(
                f'<rect class="span" x="{axis.at(s.start):.1f}" y="{y + 3}" '
                f'width="{max(2.0, axis.at(s.end) - axis.at(s.start) - 0.5):.1f}" height="14" rx="1"/>'
                for s in mine
            )
            parts.append(f'<g class="s{look + 1}">{blocks}</g>')
            y += 20
        y += 8
        parts.append(f'<line class="axis" x1="8" x2="{WIDTH - 20}" y1="{y - 4}" y2="{y - 4}"/>')
    return _svg(title, about, [*axis.ticks(y, "s"), *parts], y + BOTTOM)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear scale from values to units of the view box."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def steps(self) -> list[tuple[float, str]]:
        """Return 4 to 9 round values with their words."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
        values = [self.low + k * step for k in range(int((self.high - self.low) / step + 1e-9) + 1)]
        return [(value, f"{value:,.0f}" if value >= 1000 else f"{value:.6g}") for value in values]

    def ticks(self, bottom: float, unit: str = "") -> list[str]:
        """Return upright lines with their values below."""
        parts = []
        for value, words in self.steps():
            parts.append(_upright(self.at(value), TOP - 6, bottom, "axis"))
            parts.append(_text(self.at(value), bottom + 18, f"{words} {unit}".strip(), "quiet", "middle"))
        return parts


def _left(names: Iterable[str]) -> float:
    return 24 + LETTER * max(map(len, names), default=0)


def _upright(x: float, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(title: str, about: str, parts: Sequence[str], height: float) -> str:
    """Return the chart with its title and description, whose ids follow from what the chart holds."""
    body = "".join(parts)
    number = f"{crc32((title + about + body).encode()):08x}"
    ids = f"chart-{number}-title", f"chart-{number}-about"
    head = f'<title id="{ids[0]}">{escape(title)}</title><desc id="{ids[1]}">{escape(about)}</desc>'
    box = f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-labelledby="{ids[0]} {ids[1]}"'
    return f"<svg {box}>{head}{body}</svg>"
