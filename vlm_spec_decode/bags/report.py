"""The report of a replay: figures, plots, a timeline, the worst answers first. One HTML file, offline.

Plots are SVG with one line per combination of strategy, link and profile; style sheet and script are inline.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

LINE_PX, LEFT_PX, WIDE_PX = 28, 300, 560
SHOWN_DOTS = 300
BLUE, RED, GREY = "#3572b0", "#b3261e", "#666"


def times(rows: Sequence[Mapping[str, Any]], deadline_s: float) -> str:
    """Return a strip of points for each cell over one axis of seconds, with the median and the deadline."""
    names = list(dict.fromkeys(row["cell"] for row in rows))
    longest_s = max([deadline_s, *(row["total_s"] for row in rows)]) * 1.05
    parts = [
        _vertical_line(
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
            parts.append(_vertical_line(middle, y - 9, y + 9, 'stroke="#222" stroke-width="2"'))
    step_s = _step(longest_s)
    ticks = [(k * step_s / longest_s, f"{k * step_s:g} s") for k in range(int(longest_s / step_s) + 1)]
    return _svg(parts, len(names), ticks)


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
    return _svg(parts, len(cells), [(k / 4, f"{25 * k} %") for k in range(5)])


def _x(share: float) -> str:
    return f"{LEFT_PX + WIDE_PX * share:.1f}"


def _step(longest: float) -> float:
    """Return a round distance between ticks, 4 to 9 of them."""
    rough = longest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= rough)


def _name(name: str, y: int) -> str:
    return f'<text x="{LEFT_PX - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'


def _svg(parts: list[str], lines: int, ticks: list[tuple[float, str]]) -> str:
    bottom = LINE_PX * lines
    for share, label in ticks:
        parts.append(_vertical_line(_x(share), bottom - 2, bottom + 2, f'stroke="{GREY}"'))
        place = f'x="{_x(share)}" y="{bottom + 16}" text-anchor="middle"'
        parts.append(f'<text {place} fill="{GREY}">{label}</text>')
    size = f'viewBox="0 0 {LEFT_PX + WIDE_PX + 40} {bottom + 22}" width="{LEFT_PX + WIDE_PX + 40}"'
    return f'<svg {size} font-size="12" role="img">{"".join(parts)}</svg>'


def _vertical_line(x: str, top: int, bottom: int, style: str) -> str:
    return f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" {style}/>'


STYLE = """
:root { color-scheme: light } body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem;
margin: 2rem auto; padding: 0 1rem; color: #222 } h1 { margin-bottom: 0 } .sub { color: #666 }
table { border-collapse: collapse; font-size: 14px } td, th { padding: .25rem .9rem .25rem 0;
text-align: right; border-bottom: 1px solid #eee } td:first-child, th:first-child { text-align: left }
.ci { color: #888; font-size: 12px } .bad { color: #b3261e } #now { display: grid; gap: 1rem;
grid-template-columns: 14rem 1fr; min-height: 11rem; margin: .6rem 0 }
#now img { width: 100%; border-radius: 4px }
.a { background: #d9ead3 } .t { background: #f4d9c6 } .tokens span { padding: 0 2px; border-radius: 2px }
.lead { font-size: 16px } .wide { overflow-x: auto } svg { min-width: 38rem; max-width: 100%; height: auto }
#now div, .worst div { min-width: 0 }
input[type=range] { width: 100% } .strip { display: flex; height: 18px }
.strip i.here { outline: 3px solid #222; z-index: 1 }
.strip i { flex: 1; cursor: pointer; border-right: 1px solid #fff } .worst { display: grid; gap: .4rem 1rem;
grid-template-columns: 9rem 1fr; margin: .8rem 0; break-inside: avoid } .worst img { width: 100% }
@media (max-width: 40rem) { #now, .worst { grid-template-columns: 1fr } .worst img { width: 14rem } }
@media print { #scrub, .strip { display: none } svg { min-width: 0 } h2, svg { break-after: avoid }
* { print-color-adjust: exact } }
"""

SCRIPT = """
const D = JSON.parse(document.getElementById('data').textContent), $ = i => document.getElementById(i);
function words(r) { return r.text.split(' ').flatMap((t, i) => {
  const s = document.createElement('span'); s.textContent = t; s.className = r.fates[i] || '';
  return [s, ' '] }) }
function show(i) { const r = D.rows[D.order[i]]; if (!r) return; $('at').value = i;
  $('pic').src = D.thumbs[r.q] ? 'data:image/jpeg;base64,' + D.thumbs[r.q] : '';
  $('what').textContent = r.bag + ', ' + r.at + ' s: “' + r.instruction + '”';
  $('done').textContent = r.history.length ? 'after ' + r.history.join(' ') : '';
  $('says').replaceChildren(...words(r));
  $('label').textContent = r.error || r.known;
  $('label').className = r.error ? 'bad' : '';
  document.querySelectorAll('.strip i').forEach((e, k) => e.classList.toggle('here', k === i));
  $('cost').textContent = r.cell + ': ' + r.total + ' s, ' + r.passes + ' target passes, '
    + r.accepted + ' of ' + r.drafted + ' drafted tokens accepted' }
$('at').addEventListener('input', e => show(+e.target.value));
document.querySelectorAll('.strip i').forEach((e, i) => e.addEventListener('click', () => show(i)));
document.querySelectorAll('img[data-q]').forEach(e => {
  if (D.thumbs[e.dataset.q]) e.src = 'data:image/jpeg;base64,' + D.thumbs[e.dataset.q] });
document.querySelectorAll('.tokens[data-row]').forEach(
  e => e.replaceChildren(...words(D.rows[e.dataset.row])));
show(D.first);
"""


SHOWN = 500
"""Answers of a page at most, the worst first; the rest is in the CSV."""

WORST = 12
"""Different answers listed one below the other."""

RIGHT, WRONG, FAILED = "#6aa84f", "#e69138", "#b3261e"
SQUARE = '<span style="color:{}">■</span>'
KEY = (
    f'<p class="ci">{SQUARE.format(RIGHT)} as the label and the robot\'s way, where there are any; '
    f"{SQUARE.format(WRONG)} not so; {SQUARE.format(FAILED)} failed, or not the recorded tokens. "
    "Click, drag, or use the arrow keys.</p>"
)
PROFILES = ("link", "profile")

FIGURES = {
    "same_actions": ("same actions as the label", "{:.0%}"),
    "same_way": ("goes the way the robot went", "{:.0%}"),
    "same_tokens": ("same tokens as recorded", "{:.0%}"),
    "off_m": ("metres off how the robot went", "{:.2f} m"),
    "off_deg": ("degrees off", "{:.0f}°"),
    "declines": ("does nothing at the first look", "{:.0%}"),
    "failed": ("answers that failed", "{:.0%}"),
    "late": ("past the deadline", "{:.0%}"),
    "total_p50_s": ("total, median", "{:.2f} s"),
    "total_p95_s": ("total, 95th percentile", "{:.2f} s"),
    "first_action_s": ("time to first action", "{:.2f} s"),
    "target_passes": ("target passes", "{:.1f}"),
    "gpu_s": ("GPU time", "{:.2f} s"),
    "price": ("price per answer", "{:.5f}"),
    "image_bytes": ("bytes of the picture", "{:.0f}"),
    "uplink_bytes": ("bytes up besides", "{:.0f}"),
    "downlink_bytes": ("bytes down", "{:.0f}"),
}


def write_report(
    path: Path, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], thumbs: Mapping[str, str]
) -> None:
    """Write the page."""
    ranked = sorted(range(len(rows)), key=lambda i: -badness(rows[i], document["deadline_s"]))[:SHOWN]
    shown_rows = [rows[i] for i in sorted(ranked)]
    place = {old: new for new, old in enumerate(sorted(ranked))}
    worst = "".join(_worst(rows, same, place) for same in _group_alike(rows, ranked)[:WORST])
    shown = {_question(row) for row in shown_rows}
    order = sorted(
        range(len(shown_rows)),
        key=lambda i: (shown_rows[i]["bag"], shown_rows[i]["question"], shown_rows[i]["cell"]),
    )
    data = {
        "rows": [_plain(row) for row in shown_rows],
        "order": order,
        "first": order.index(place[ranked[0]]) if ranked else 0,
        "thumbs": {name: picture for name, picture in thumbs.items() if name in shown},
    }
    safe = json.dumps(data).replace("</", "<\\/")
    faults = [
        f"{bag}: {n} × {what}" for bag, found in document["faults"].items() for what, n in found.items()
    ]
    earlier = document.get("compared_with_run")
    answers = f"{len(rows)} answers from {len(document['bags'])} bag(s)"
    made = f"settings {escape(document['digest'])}, schema {escape(document['schema'])}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Replay</title>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<link rel=icon href='data:,'><style>{STYLE}</style><h1>Replay</h1>",
        f'<p class="sub">{answers}, {made}</p><p class="lead">{_headline(document)}</p>',
        _figures(document["cells"]),
        _compared(document["compared_with"], document["compared"]),
        _compared(earlier["folder"], earlier["cells"]) if earlier else "",
        _titled("Same actions as the label", shares(document["cells"], "same_actions")),
        _titled("Goes the way the robot went", shares(document["cells"], "same_way")),
        _titled("Total time per answer", times(rows, document["deadline_s"])),
        f'<p class="ci">Upright: median; dashed: the deadline of {document["deadline_s"]:g} s.</p>',
        "<h2>Timeline</h2>",
        KEY,
        _timeline(shown_rows, order, document["deadline_s"]),
        f"<h2>Worst first</h2>{worst}",
        "<h2>What the bags held back</h2>",
        f"<ul>{''.join(f'<li>{escape(fault)}' for fault in faults)}</ul>" if faults else "<p>Nothing.</p>",
        f"<h2>Settings</h2><ul>{''.join(f'<li>{escape(line)}' for line in _settings(document, rows))}</ul>",
        f'<script type="application/json" id="data">{safe}</script><script>{SCRIPT}</script></html>',
    ]
    path.write_text("\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _headline(document: Mapping[str, Any]) -> str:
    """Return a sentence: the fastest cell, its significance, and how often it is right."""
    timed = {name: cell for name, cell in document["cells"].items() if "total_p50_s" in cell}
    if not timed:
        return "No answer could be decoded."
    best = min(timed, key=lambda name: float(timed[name]["total_p50_s"]["value"]))
    text = f"Fastest: <b>{escape(best)}</b>, median {timed[best]['total_p50_s']['value']:.2f} s"
    against = (document["compared"].get(best) or {}).get("total_s")
    if against:
        times = against["before"] / max(1e-9, against["after"])
        text += f", {times:.1f} times as fast as {escape(document['compared_with'])} ({_p(against['p'])})"
    for key, words in (("same_actions", "the label's actions"), ("same_way", "the robot's way")):
        if key in timed[best]:
            text += f"; {timed[best][key]['value']:.0%} {words}"
    return text + "."


def _p(p: float) -> str:
    return "p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}"


def _titled(title: str, plot: str) -> str:
    return f'<h2>{title}</h2><div class="wide">{plot}</div>' if plot else ""


def _settings(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings that are needed to reproduce the answers."""
    keys = ("target", "draft", "rule", "temperature", "seed")
    lines = [", ".join(f"{key} {row[key]}" for key in keys) for row in rows]
    for cell in document["settings"]["cells"]:
        lines += [", ".join(f"{key} {value}" for key, value in cell[part].items()) for part in PROFILES]
    plan = document["settings"]["plan"]
    asked = f"a frame every {plan['every_s']:g} s, motion over {plan['horizon_s']:g} s"
    return [*dict.fromkeys(lines), asked, f"{document['price_per_gpu_s']:g} per GPU-second"]


def _reference_text(row: Mapping[str, Any]) -> str:
    """Return the reference of a row: the label, the robot's motion, and what it had begun on the draft."""
    label = "" if row["label"] is None else f"label: {' '.join(row['label'])}"
    moved = f"the robot then: {_motion_text(row['executed'])}" if row["executed"] else ""
    start = f"begun on the draft: {row['start']}" if row.get("start") else ""
    return "; ".join(part for part in (label, moved, start) if part)


def _motion_text(executed: Mapping[str, float]) -> str:
    ways = (
        ("forward_m", 0.05, "{:.1f} m", "ahead", "back"),
        ("left_m", 0.05, "{:.1f} m", "to the left", "to the right"),
        ("turn_deg", 2.0, "{:.0f}°", "turned left", "turned right"),
    )
    parts = [
        f"{form.format(abs(executed[key]))} {more if executed[key] > 0 else less}"
        for key, least, form, more, less in ways
        if abs(executed[key]) >= least
    ]
    return ", ".join(parts) or "stood"


def _group_alike(rows: Sequence[Mapping[str, Any]], ranked: Sequence[int]) -> list[list[int]]:
    """Group equal answers to the same question from different cells, in the order of badness."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for i in ranked:
        found.setdefault((_question(rows[i]), rows[i]["text"], rows[i]["error"]), []).append(i)
    return list(found.values())


def badness(row: Mapping[str, Any], deadline_s: float) -> float:
    """Return the rank of a row in the list of the worst: failed, wrong, then slow."""
    wrong = 2.0 * (row["same_actions"] is False) + 1.0 * (row["same_way"] is False)
    broken = 8.0 * bool(row["error"]) + 4.0 * (row["same_tokens"] is False)
    return broken + wrong + float(row["total_s"]) / (10 * deadline_s)


def _question(row: Mapping[str, Any]) -> str:
    return f"{row['bag']}/{row['question']}"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    same = ("bag", "cell", "instruction", "history", "text", "fates", "drafted", "accepted", "error")
    timed = {"at": round(row["at_s"], 1), "total": round(row["total_s"], 2), "passes": row["target_passes"]}
    return {key: row[key] for key in same} | timed | {"known": _reference_text(row), "q": _question(row)}


def _figures(cells: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}" for name in cells)
    lines = [f"<tr><th>{head}", "<tr><td>answers" + "".join(f"<td>{c['answers']}" for c in cells.values())]
    accepted = [c["acceptance"] for c in cells.values()]
    if any(a is not None for a in accepted):
        shares = "".join("<td>–" if a is None else f"<td>{a:.0%}" for a in accepted)
        lines.append(f"<tr><td>drafted tokens accepted{shares}")
    for key, (title, form) in FIGURES.items():
        if not any(key in cell for cell in cells.values()):
            continue
        lines.append(f"<tr><td>{title}" + "".join(_value(cell.get(key), form) for cell in cells.values()))
    how = "Wilson for shares, bootstrap for the rest"
    note = f'<p class="ci">In brackets: 95 % confidence intervals ({how}).</p>'
    return f'<div class="wide"><table>{"".join(lines)}</table></div>{note}'


def _value(found: Mapping[str, float] | None, form: str) -> str:
    if found is None:
        return "<td>–"
    low, high = form.format(found["low"]), form.format(found["high"])
    return f'<td>{form.format(found["value"])} <span class="ci">[{low} – {high}]</span>'


def _compared(what: str, cells: Mapping[str, Mapping[str, Any]]) -> str:
    if not cells:
        return ""
    lines = []
    for name, figures in cells.items():
        for key, found in figures.items():
            if found is None:
                continue
            form = FIGURES.get(key, ("", "{:.2f} s"))[1]
            sure = "" if found["p"] < 0.05 else ' class="ci"'
            change = f"{form.format(found['before'])} → {form.format(found['after'])}"
            lines.append(
                f"<tr{sure}><td>{escape(name)}<td>{FIGURES.get(key, ('total, mean',))[0]}<td>{change}"
                f"<td>{_p(found['p'])}"
            )
    head = f"<h2>Compared with {escape(what)}</h2>"
    note = '<p class="ci">Paired over the same questions, sign-flip test; grey: not significant at 5 %.</p>'
    return f'{head}<div class="wide"><table>{"".join(lines)}</table></div>{note}'


def _timeline(shown_rows: Sequence[Mapping[str, Any]], order: Sequence[int], deadline_s: float) -> str:
    colours = []
    for place in order:
        bad = badness(shown_rows[place], deadline_s)
        colours.append(FAILED if bad >= 4 else WRONG if bad >= 1 else RIGHT)
    strip = "".join(f'<i style="background:{colour}"></i>' for colour in colours)
    return (
        f'<div class="strip">{strip}</div><div id="scrub"><input type="range" id="at" min="0" '
        f'max="{max(0, len(order) - 1)}" value="0" aria-label="answer"></div><div id="now"><div>'
        '<img id="pic" alt="frame"></div><div><b id="what"></b> <span id="done" class="ci"></span>'
        '<p class="tokens" id="says"></p><p id="label"></p><p id="cost" class="ci"></p>'
        '<p class="ci"><span class="a">drafted and accepted</span> '
        '<span class="t">the target\'s own</span></p>'
        "</div></div>"
    )


def _worst(rows: Sequence[Mapping[str, Any]], same: Sequence[int], place: Mapping[int, int]) -> str:
    row = rows[same[0]]
    why = f'<br><span class="bad">{escape(row["error"])}</span>' if row["error"] else ""
    ways = ", ".join(f"{escape(rows[i]['cell'])} {rows[i]['total_s']:.2f} s" for i in same)
    return (
        f'<div class="worst"><img data-q="{escape(_question(row))}" alt="frame"><div><b>'
        f'{escape(row["instruction"])}</b> <span class="ci">{escape(_question(row))}; {ways}</span><br>'
        f'<span class="tokens" data-row="{place[same[0]]}">{escape(row["text"])}</span>'
        f"<br>{escape(_reference_text(row))}{why}</div></div>"
    )
