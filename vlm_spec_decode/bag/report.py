"""One page about a replay: figures, plots, a timeline to scrub, the worst first. One file, offline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

SHOWN = 500
"""Answers of a page at most, the worst first; the rest is in the CSV."""

FIGURES = {
    "same_actions": ("same actions as the label", "{:.0%}"),
    "same_way": ("goes the way the robot went", "{:.0%}"),
    "same_tokens": ("same tokens as recorded", "{:.0%}"),
    "failed": ("answers that failed", "{:.0%}"),
    "late": ("past the deadline", "{:.0%}"),
    "total_p50_s": ("total, median", "{:.2f} s"),
    "total_p95_s": ("total, 95th percentile", "{:.2f} s"),
    "first_action_s": ("time to first action", "{:.2f} s"),
    "target_passes": ("target passes", "{:.1f}"),
    "gpu_s": ("GPU time", "{:.2f} s"),
    "price": ("price per answer", "{:.5f}"),
    "uplink_bytes": ("bytes up", "{:.0f}"),
    "downlink_bytes": ("bytes down", "{:.0f}"),
}

STYLE = """
:root { color-scheme: light } body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem;
margin: 2rem auto; padding: 0 1rem; color: #222 } h1 { margin-bottom: 0 } .sub { color: #666 }
table { border-collapse: collapse; font-size: 14px } td, th { padding: .25rem .9rem .25rem 0;
text-align: right; border-bottom: 1px solid #eee } td:first-child, th:first-child { text-align: left }
.ci { color: #888; font-size: 12px } .bad { color: #b3261e } #now { display: grid; gap: 1rem;
grid-template-columns: 14rem 1fr; min-height: 11rem; margin: .6rem 0 }
#now img { width: 100%; border-radius: 4px }
.a { background: #d9ead3 } .t { background: #f4d9c6 } .tokens span { padding: 0 1px; margin-right: 1px;
border-radius: 2px } input[type=range] { width: 100% } .strip { display: flex; height: 18px }
.strip i { flex: 1; cursor: pointer; border-right: 1px solid #fff } .worst { display: grid; gap: .4rem 1rem;
grid-template-columns: 9rem 1fr; margin: .8rem 0; break-inside: avoid } .worst img { width: 100% }
@media print { #scrub, .strip { display: none } }
"""

SCRIPT = """
const D = JSON.parse(document.getElementById('data').textContent), $ = i => document.getElementById(i);
function words(r) { const w = r.text.split(' '); return w.map((t, i) => {
  const s = document.createElement('span'); s.textContent = t; s.className = r.fates[i] || ''; return s }) }
function show(i) { const r = D.rows[D.order[i]]; if (!r) return; $('at').value = i;
  $('pic').src = D.thumbs[r.q] ? 'data:image/jpeg;base64,' + D.thumbs[r.q] : '';
  $('what').textContent = r.bag + ', ' + r.at + ' s: “' + r.instruction + '”';
  $('done').textContent = r.history.length ? 'after ' + r.history.join(' ') : '';
  $('says').replaceChildren(...words(r));
  $('label').textContent = r.error || (r.label === null ? '' : 'label: ' + r.label);
  $('label').className = r.error ? 'bad' : '';
  $('cost').textContent = r.cell + ': ' + r.total + ' s, ' + r.passes + ' target passes, '
    + r.accepted + ' of ' + r.drafted + ' drafted tokens accepted' }
$('at').addEventListener('input', e => show(+e.target.value));
document.querySelectorAll('.strip i').forEach((e, i) => e.addEventListener('click', () => show(i)));
document.querySelectorAll('img[data-q]').forEach(e => {
  if (D.thumbs[e.dataset.q]) e.src = 'data:image/jpeg;base64,' + D.thumbs[e.dataset.q] });
document.querySelectorAll('.tokens[data-row]').forEach(
  e => e.replaceChildren(...words(D.rows[e.dataset.row])));
show(0);
"""


def write_report(
    path: Path, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], thumbs: Mapping[str, str]
) -> None:
    """Write the page."""
    ranked = sorted(range(len(rows)), key=lambda i: -badness(rows[i], document["deadline_s"]))[:SHOWN]
    kept = [rows[i] for i in sorted(ranked)]
    place = {old: new for new, old in enumerate(sorted(ranked))}
    shown = {_question(row) for row in kept}
    order = sorted(range(len(kept)), key=lambda i: (kept[i]["bag"], kept[i]["question"], kept[i]["cell"]))
    data = {
        "rows": [_plain(row) for row in kept],
        "order": order,
        "thumbs": {name: picture for name, picture in thumbs.items() if name in shown},
    }
    safe = json.dumps(data).replace("</", "<\\/")
    faults = [
        f"{bag}: {n} × {what}" for bag, found in document["faults"].items() for what, n in found.items()
    ]
    answers = f"{len(rows)} answers from {len(document['bags'])} bag(s)"
    made = f"settings {escape(document['digest'])}, schema {escape(document['schema'])}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Replay</title>",
        f"<link rel=icon href='data:,'><style>{STYLE}</style><h1>Replay</h1>",
        f'<p class="sub">{answers}, {made}</p>',
        _figures(document["cells"]),
        _compared(document),
        "<h2>Total time per answer</h2>",
        _distributions(rows, document["deadline_s"]),
        "<h2>Timeline</h2>",
        _timeline(kept, order, document["deadline_s"]),
        f"<h2>Worst first</h2>{''.join(_worst(rows[i], place[i]) for i in ranked[:12])}",
        "<h2>What the bags held back</h2>",
        f"<ul>{''.join(f'<li>{escape(fault)}' for fault in faults)}</ul>" if faults else "<p>Nothing.</p>",
        f'<script type="application/json" id="data">{safe}</script><script>{SCRIPT}</script></html>',
    ]
    path.write_text("\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def badness(row: Mapping[str, Any], deadline_s: float) -> float:
    """Return how much a row deserves to be looked at: failed, wrong, then slow."""
    wrong = 2.0 * (row["same_actions"] is False) + 1.0 * (row["same_way"] is False)
    broken = 8.0 * bool(row["error"]) + 4.0 * (row["same_tokens"] is False)
    return broken + wrong + float(row["total_s"]) / (10 * deadline_s)


def _question(row: Mapping[str, Any]) -> str:
    return f"{row['bag']}/{row['question']}"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    same = ("bag", "cell", "instruction", "history", "text", "fates", "drafted", "accepted", "error")
    label = None if row["label"] is None else " ".join(row["label"])
    timed = {"at": row["at_s"], "total": round(row["total_s"], 2), "passes": row["target_passes"]}
    return {key: row[key] for key in same} | timed | {"label": label, "q": _question(row)}


def _figures(cells: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}" for name in cells)
    lines = [f"<tr><th>{head}", "<tr><td>answers" + "".join(f"<td>{c['answers']}" for c in cells.values())]
    accepted = [c["acceptance"] for c in cells.values()]
    if any(a is not None for a in accepted):
        shares = "".join("<td>–" if a is None else f"<td>{a:.0%}" for a in accepted)
        lines.append(f"<tr><td>drafted tokens accepted{shares}")
    for key, (said, form) in FIGURES.items():
        if not any(key in cell for cell in cells.values()):
            continue
        lines.append(f"<tr><td>{said}" + "".join(_value(cell.get(key), form) for cell in cells.values()))
    how = "Wilson for shares, bootstrap for the rest"
    note = f'<p class="ci">In brackets: 95 % confidence intervals ({how}).</p>'
    return f"<table>{''.join(lines)}</table>{note}"


def _value(found: Mapping[str, float] | None, form: str) -> str:
    if found is None:
        return "<td>–"
    low, high = form.format(found["low"]), form.format(found["high"])
    return f'<td>{form.format(found["value"])} <span class="ci">[{low} – {high}]</span>'


def _compared(document: Mapping[str, Any]) -> str:
    if not document["compared"]:
        return ""
    lines = []
    for name, figures in document["compared"].items():
        for key, found in figures.items():
            if found is None:
                continue
            sure = "" if found["p"] < 0.05 else ' class="ci"'
            change = f"{found['before']:.3g} → {found['after']:.3g}"
            lines.append(
                f"<tr{sure}><td>{escape(name)}<td>{FIGURES.get(key, (key,))[0].replace('_', ' ')}<td>{change}"
                f"<td>p = {found['p']:.3f}"
            )
    head = f"<h2>Compared with {escape(document['compared_with'])}</h2>"
    note = '<p class="ci">Paired over the same questions, sign-flip test; grey: not significant at 5 %.</p>'
    return f"{head}<table>{''.join(lines)}</table>{note}"


def _distributions(rows: Sequence[Mapping[str, Any]], deadline_s: float) -> str:
    """Return a strip of points for each cell over one axis of seconds, with the median and the deadline."""
    names = list(dict.fromkeys(row["cell"] for row in rows))
    longest_s = max([deadline_s, *(row["total_s"] for row in rows)]) * 1.05

    def x(seconds: float) -> str:
        return f"{300 + 560 * seconds / longest_s:.1f}"

    bottom = 28 * len(names)
    parts = [_upright(x(deadline_s), 0, bottom, 'stroke="#b3261e" stroke-dasharray="3 3"')]
    for line, name in enumerate(names):
        times = sorted(row["total_s"] for row in rows if row["cell"] == name and not row["error"])
        y = 28 * line + 14
        parts.append(f'<text x="290" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        dot = f'cy="{y}" r="3" fill="#3572b0" fill-opacity=".35"'
        parts += [f'<circle cx="{x(t)}" {dot}/>' for t in times[:: max(1, len(times) // 300)]]
        if times:
            parts.append(_upright(x(times[len(times) // 2]), y - 9, y + 9, 'stroke="#222" stroke-width="2"'))
    for tick in range(6):
        seconds = round(longest_s * tick / 5, 1)
        place = f'x="{x(seconds)}" y="{bottom + 14}" text-anchor="middle"'
        parts.append(f'<text {place} fill="#666">{seconds:g} s</text>')
    return f'<svg width="900" height="{bottom + 22}" font-size="12" role="img">{"".join(parts)}</svg>'


def _upright(x: str, top: int, bottom: int, style: str) -> str:
    return f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" {style}/>'


def _timeline(kept: Sequence[Mapping[str, Any]], order: Sequence[int], deadline_s: float) -> str:
    colours = []
    for place in order:
        bad = badness(kept[place], deadline_s)
        colours.append("#b3261e" if bad >= 4 else "#e69138" if bad >= 1 else "#6aa84f")
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


def _worst(row: Mapping[str, Any], place: int) -> str:
    label = "" if row["label"] is None else f"<br>label: {escape(' '.join(row['label']))}"
    why = f'<br><span class="bad">{escape(row["error"])}</span>' if row["error"] else ""
    return (
        f'<div class="worst"><img data-q="{escape(_question(row))}" alt="frame"><div><b>'
        f'{escape(row["instruction"])}</b> <span class="ci">{escape(_question(row))}, {escape(row["cell"])}, '
        f"{row['total_s']:.2f} s</span><br>"
        f'<span class="tokens" data-row="{place}">{escape(row["text"])}</span>'
        f"{label}{why}</div></div>"
    )
