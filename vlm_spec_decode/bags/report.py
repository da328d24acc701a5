"""The report of a replay: a summary, figures, charts, a timeline, the worst answers first. One HTML file.

It is offline and in the pages' one visual language (`core.page`); a line is a combination of strategy, link
and profile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_spec_decode.core import charts
from vlm_spec_decode.core.charts import Bar
from vlm_spec_decode.core.page import Html, Row, figure, page, table

STYLE = """
#now { display: grid; gap: 1rem; grid-template-columns: 14rem 1fr; min-height: 11rem; margin: .6rem 0 }
#now img { width: 100%; border-radius: 4px } #now div, .worst div { min-width: 0 }
.tokens span { padding: 0 2px; border-radius: 2px }
.a { background: var(--accepted-ground); color: var(--accepted); text-decoration: underline solid }
.t { background: var(--corrected-ground); color: var(--corrected); text-decoration: underline wavy }
input[type=range] { width: 100% }
.strip { display: flex; align-items: flex-end; height: 26px; border-bottom: 1px solid var(--strong-line) }
.strip i { flex: 1; cursor: pointer; background: var(--c); height: var(--h) }
.strip { overflow: hidden }
.strip i { min-width: 0; box-shadow: inset -1px 0 var(--panel) }
.strip i.here { outline: 3px solid var(--text); z-index: 1 }
.key { display: inline-block; width: 10px; background: var(--c); height: calc(.6 * var(--h)) }
.worst { display: grid; gap: .4rem 1rem; grid-template-columns: 9rem 1fr; margin: .8rem 0 }
.worst { break-inside: avoid }
.worst img { width: 100% }
@media (max-width: 40rem) { #now, .worst { grid-template-columns: 1fr } .worst img { width: 14rem } }
@media print { #scrub { display: none } }
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


SURE = 0.05
"""Level of significance below which a difference is called sure."""

SHOWN = 500
"""Answers of a page at most, the worst first; the rest is in the CSV."""

WORST = 12
"""Different answers listed one below the other."""

RIGHT, WRONG, FAILED = (
    "--c:var(--green);--h:9px",
    "--c:var(--orange);--h:17px",
    "--c:var(--red);--h:26px",
)
"""Colour and height of an answer in the timeline: the worse, the higher."""

SQUARE = '<i class="key" style="{}"></i>'
KEY = (
    f'<p class="small muted">{SQUARE.format(RIGHT)} low: as the label and the robot\'s way, where there are '
    f"any; {SQUARE.format(WRONG)} middle: not so; {SQUARE.format(FAILED)} high: failed, or not the recorded "
    "tokens. Click, drag, or use the arrow keys.</p>"
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
    cells = document["cells"]
    times_s: dict[str, list[float]] = {name: [] for name in cells}
    for row in rows:
        if not row["error"]:
            times_s[row["cell"]].append(float(row["total_s"]))
    parts = [
        f'<h1>Replay</h1><p class="muted">{answers}, {made}</p>',
        _summary(document, rows),
        _figures(cells),
        _compared(document["compared_with"], document["compared"]),
        _compared(earlier["folder"], earlier["cells"]) if earlier else "",
        _shares("Same actions as the label", cells, "same_actions"),
        _shares("Goes the way the robot went", cells, "same_way"),
        _times(times_s, document["deadline_s"]),
        "<h2>Timeline</h2>",
        KEY,
        _timeline(shown_rows, order, document["deadline_s"]),
        f"<h2>Worst first</h2>{worst}",
        "<h2>What the bags held back</h2>",
        _list(faults) if faults else "<p>Nothing.</p>",
        f"<h2>Settings</h2>{_list(_settings(document, rows))}",
    ]
    end = f'<script type="application/json" id="data">{safe}</script><script>{SCRIPT}</script>'
    path.write_text(page("Replay", parts, css=STYLE, end=end), encoding="utf-8")


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _summary(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was asked, and what came out, in plain words."""
    questions, ways = len({_question(row) for row in rows}), len(document["cells"])
    asked = (
        f"Measured: {questions} questions about frames of {len(document['bags'])} recordings, each answered "
        f"in {ways} way{'s' if ways > 1 else ''} of decoding. Times are computed from the profiles of "
        "hardware and link, not taken from this machine."
    )
    return (
        f'<section class="panel" aria-label="Summary"><p>{asked}</p><p class="lead">{_headline(document)}</p>'
        f"<p>{_slowness(document)}</p></section>"
    )


def _slowness(document: Mapping[str, Any]) -> str:
    """Say how many answers were late, and how many failed."""
    late = {name: cell["late"]["value"] for name, cell in document["cells"].items() if "late" in cell}
    if not late:
        return ""
    least, most = min(late, key=lambda name: late[name]), max(late, key=lambda name: late[name])
    deadline = f"the deadline of {document['deadline_s']:g} s"
    if late[least] == late[most]:
        return f"{late[most]:.0%} of the answers came after {deadline}."
    best, worst = f"{late[least]:.0%} with {escape(least)}", f"{late[most]:.0%} with {escape(most)}"
    return f"After {deadline} came {best} and {worst}."


def _shares(title: str, cells: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Return a bar with its confidence interval for each cell; "" if none has the figure."""
    found = {name: cell[key] for name, cell in cells.items() if cell.get(key)}
    drawn = [
        Bar(name, 100 * each["value"], f"{each['value']:.0%}", 100 * each["low"], 100 * each["high"])
        for name, each in found.items()
    ]
    about = "; ".join(f"{bar.name} {bar.words}" for bar in drawn)
    return figure(
        title, "share of answers, with 95 % intervals", charts.bars(title, about, drawn, top=100.0, unit="%")
    )


def _times(found: Mapping[str, Sequence[float]], deadline_s: float) -> str:
    """Return a strip of points for each cell over one axis of seconds."""
    about = "; ".join(
        f"{name}: {len(times)} answers, up to {max(times, default=0):.2f} s" for name, times in found.items()
    )
    title, note = "Total time per answer", f"upright: median; dashed: the deadline of {deadline_s:g} s"
    return figure(title, note, charts.points(title, about, found, limit=deadline_s))


def _headline(document: Mapping[str, Any]) -> str:
    """Return a sentence: the fastest cell, its significance, and how often it is right."""
    timed = {name: cell for name, cell in document["cells"].items() if "total_p50_s" in cell}
    if not timed:
        return "No answer could be decoded."
    best = min(timed, key=lambda name: float(timed[name]["total_p50_s"]["value"]))
    text = f"Fastest: <strong>{escape(best)}</strong>, median {timed[best]['total_p50_s']['value']:.2f} s"
    against = (document["compared"].get(best) or {}).get("total_s")
    if against:
        times = against["before"] / max(1e-9, against["after"])
        chance = "unlikely by chance" if against["p"] < SURE else "which may be chance"
        text += f", {times:.1f} times as fast as {escape(document['compared_with'])}"
        text += f", {chance} ({_p(against['p'])})"
    for key, words in (("same_actions", "the label's actions"), ("same_way", "the robot's way")):
        if key in timed[best]:
            text += f"; {timed[best][key]['value']:.0%} {words}"
    return text + "."


def _p(p: float) -> str:
    return "p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}"


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
    rows = [Row(["answers", *(str(cell["answers"]) for cell in cells.values())])]
    accepted = [cell["acceptance"] for cell in cells.values()]
    if any(share is not None for share in accepted):
        shares = ("–" if share is None else f"{share:.0%}" for share in accepted)
        rows.append(Row(["drafted tokens accepted", *shares]))
    for key, (title, form) in FIGURES.items():
        if any(key in cell for cell in cells.values()):
            rows.append(Row([title, *(_value(cell.get(key), form) for cell in cells.values())]))
    how = "Wilson for shares, bootstrap for the rest"
    note = f'<p class="small muted">In brackets: 95 % confidence intervals ({how}).</p>'
    return table("All figures", ["figure", *cells], rows) + note


def _value(found: Mapping[str, float] | None, form: str) -> Html:
    if found is None:
        return Html("–")
    low, high = form.format(found["low"]), form.format(found["high"])
    return Html(f'{form.format(found["value"])} <span class="interval">[{low} – {high}]</span>')


def _compared(what: str, cells: Mapping[str, Mapping[str, Any]]) -> str:
    if not cells:
        return ""
    rows = []
    for name, figures in cells.items():
        for key, found in figures.items():
            if found is None:
                continue
            title, form = FIGURES.get(key, ("total, mean", "{:.2f} s"))
            change = f"{form.format(found['before'])} → {form.format(found['after'])}"
            is_sure = found["p"] < SURE
            words = f"{'' if is_sure else 'not sure, '}{_p(found['p'])}"
            rows.append(Row([name, title, change, Html(words)], is_unsure=not is_sure))
    head = ["way of decoding", "figure", "before → after", "chance"]
    note = "Paired over the same questions, sign-flip test; not sure: not significant at 5 %."
    return f'{table(f"Compared with {what}", head, rows)}<p class="small muted">{note}</p>'


def _timeline(shown_rows: Sequence[Mapping[str, Any]], order: Sequence[int], deadline_s: float) -> str:
    colours = []
    for place in order:
        bad = badness(shown_rows[place], deadline_s)
        colours.append(FAILED if bad >= 4 else WRONG if bad >= 1 else RIGHT)
    strip = "".join(f'<i style="{colour}"></i>' for colour in colours)
    return (
        f'<div class="strip" aria-hidden="true">{strip}</div><div id="scrub"><input type="range" id="at" '
        f'min="0" max="{max(0, len(order) - 1)}" value="0" aria-label="answer that is shown"></div>'
        '<div id="now"><div><img id="pic" alt="frame of the camera"></div><div><b id="what"></b> '
        '<span id="done" class="small muted"></span><p class="tokens" id="says"></p><p id="label"></p>'
        '<p id="cost" class="small muted"></p>'
        '<p class="small"><span class="a">drafted and accepted</span> '
        '<span class="t">the target\'s own</span></p></div></div>'
    )


def _worst(rows: Sequence[Mapping[str, Any]], same: Sequence[int], place: Mapping[int, int]) -> str:
    row = rows[same[0]]
    why = f'<br><span class="bad">{escape(row["error"])}</span>' if row["error"] else ""
    ways = ", ".join(f"{escape(rows[i]['cell'])} {rows[i]['total_s']:.2f} s" for i in same)
    return (
        f'<div class="worst"><img data-q="{escape(_question(row))}" alt="frame of the camera"><div><b>'
        f"{escape(row['instruction'])}</b> "
        f'<span class="small muted">{escape(_question(row))}; {ways}</span><br>'
        f'<span class="tokens" data-row="{place[same[0]]}">{escape(row["text"])}</span>'
        f"<br>{escape(_reference_text(row))}{why}</div></div>"
    )
