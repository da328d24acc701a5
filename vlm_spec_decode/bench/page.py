"""One self-contained HTML page of a comparison: what was found in plain words, then charts and tables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.bench.cells import BASELINE
from vlm_spec_decode.bench.significance import LEVEL, mean_ratio, p_value
from vlm_spec_decode.core import charts
from vlm_spec_decode.core.charts import Bar, Span
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.page import Row, figure, page, table, terms
from vlm_spec_decode.core.profiles import load_link

COLUMNS = {
    "speed_up": "over autoregressive",
    "speed_up_first_action": "the same, first action",
    "total_s": "total, s",
    "first_action_s": "first action, s",
    "passes": "target passes",
    "gpu_ratio": "GPU time over autoregressive",
    "accepted": "drafted and accepted",
    "hit_rate": "hits",
    "up_bytes": "bytes up",
    "down_bytes": "bytes down",
}
LANES = {"draft": "edge drafts", "send": "edge sends", "early": "cloud, early", "commit": "cloud commits"}
"""What the timeline shows, one lane each, by the recorder's words."""

MEANINGS = (
    ("link", "The network between robot and cloud: its rates and its delay."),
    ("draft", "A small model on the robot, fast and sometimes wrong. It guesses the next words."),
    ("target", "The large model in the cloud. Its answer is the one that counts, whoever drafts."),
    ("pass", "One run of the target. It checks several guessed words at once; fewer passes, less waiting."),
    (BASELINE, "The cloud alone, a word at a time: what all others are measured against."),
    ("hit", "A guess that was ready when the verdict on the one before it came."),
)

Group = tuple[str, str, str]
"""Pair, profile and clock of cells that can be compared."""


@dataclass(frozen=True, slots=True)
class Result:
    """A strategy's speed-up over the baseline: of all its answers, the geometric mean with its interval.

    `ratios` [n] are the logs of the baseline's time over its own, answer by answer, over all links.
    """

    strategy: str
    ratios: npt.NDArray[np.float64]

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean, low and high of 95 %."""
        return mean_ratio(self.ratios)


def write_page(document: dict[str, Any], history: list[dict[str, Any]], path: Path) -> None:
    """Write the page of one run, with the means of the runs before it."""
    groups = _groups(document)
    parts = [_intro(document), _summary(document, groups)]
    for name, cells in groups.items():
        parts.append(f"<h2>{html.escape(_title(name))}</h2>")
        parts += [_by_link(cells, column) for column in ("speed_up", "passes", "up_bytes")]
        parts += [_rates(cells), _timelines(cells), _reasons(cells), _table(cells)]
    parts += ["<h2>Beyond this run</h2>", _pairs(document), _history(history)]
    path.write_text(page("vsd bench", parts), encoding="utf-8")


def _groups(document: dict[str, Any]) -> dict[Group, list[dict[str, Any]]]:
    found: dict[Group, list[dict[str, Any]]] = {}
    for cell in document["cells"]:
        fields = cell["cell"]
        found.setdefault((fields["pair"], fields["profile"], fields["clock"]), []).append(cell)
    return found


def _title(group: Group) -> str:
    pair, profile, clock = group
    return f"Models {pair}, {profile}" if clock == "virtual" else f"Models {pair}, measured on this machine"


def _unique(cells: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(cell["cell"][key] for cell in cells))


# The summary -------------------------------------------------------------------------------------


def _intro(document: dict[str, Any]) -> str:
    made, settings = document["made"], document["settings"]
    text = (
        f"{made['date']}, commit {made['commit']}, {made['machine']}; {settings['answers']} answers a cell."
    )
    return f'<h1>How long a robot waits for its answer</h1><p class="muted">{html.escape(text)}</p>'


def results_of(cells: Sequence[Mapping[str, Any]]) -> list[Result]:
    """Return every strategy's result but the baseline's, the fastest first."""
    plain = {c["cell"]["link"]: c["answers"] for c in cells if c["cell"]["strategy"] == BASELINE}
    logs: dict[str, list[float]] = {}
    for cell in cells:
        if cell["cell"]["strategy"] != BASELINE:
            pairs = zip(plain[cell["cell"]["link"]], cell["answers"], strict=True)
            mine = logs.setdefault(cell["cell"]["strategy"], [])
            mine += [math.log(a["total_s"] / b["total_s"]) for a, b in pairs]
    found = [Result(name, np.array(values)) for name, values in logs.items()]
    return sorted(found, key=lambda result: -float(result.ratios.mean()))


def _summary(document: dict[str, Any], groups: Mapping[Group, Sequence[Mapping[str, Any]]]) -> str:
    """Return what was measured, who is fastest, by how much, and how sure that is."""
    cells = document["cells"]
    strategies, links = _unique(cells, "strategy"), _unique(cells, "link")
    ways = f"{len(strategies)} ways to decode the same answers ({', '.join(strategies)})"
    over = f"over {len(links)} links" if len(links) > 1 else f"over the link {links[0]}"
    same = "Every way gives the same answer, word for word; what differs is the time."
    is_virtual = all(clock == "virtual" for _, _, clock in groups)
    how = (
        "Times are computed from the profiles of hardware and link, so they do not depend on this machine."
        if is_virtual
        else "Times are measured where the page says so, and computed from profiles elsewhere."
    )
    parts = [f"<p>Measured: {html.escape(ways)}, {html.escape(over)}. {same if is_virtual else ''} {how}</p>"]
    for name, found in groups.items():
        parts.append(f'<p class="lead">{_verdict(name, found, len(groups) > 1)}</p>')
    links_known = [(link, _link_words(link)) for link in links]
    more = terms([*MEANINGS, *((name, words) for name, words in links_known if words)])
    parts.append(f"<details><summary>What the words mean</summary>{more}</details>")
    return f'<section class="panel" aria-label="Summary">{"".join(parts)}</section>'


def _verdict(group: Group, cells: Sequence[Mapping[str, Any]], is_named: bool) -> str:
    results = results_of(cells)
    where = f"{html.escape(_title(group))}: " if is_named else ""
    if not results:
        return f"{where}only {BASELINE} was measured; there is nothing to compare it with."
    best = results[0]
    mean, low, high = best.interval
    waits = {
        name: np.exp(
            np.mean(
                [np.log(a["total_s"]) for c in cells if c["cell"]["strategy"] == name for a in c["answers"]]
            )
        )
        for name in (BASELINE, best.strategy)
    }
    name = f"<strong>{html.escape(best.strategy)}</strong>"
    if mean <= 1.0:
        return f"{where}Nothing is faster than {BASELINE}; the next is {name}, at {mean:.2f} times its speed."
    p = p_value(best.ratios)
    text = (
        f"{where}{name} is the fastest: <strong>{mean:.2f} times as fast</strong> as {BASELINE}, a typical "
        f"answer after {_seconds(waits[best.strategy])} instead of {_seconds(waits[BASELINE])}. "
        f"How sure: {len(best.ratios)} answers, 95 % interval {low:.2f} to {high:.2f} times, {_chance(p)}."
    )
    if len(results) > 1:
        text += f" {_second(best, results[1])}"
    return text


def _second(best: Result, second: Result) -> str:
    """Say by how much the second lies behind, and whether that is more than chance."""
    behind = mean_ratio(best.ratios - second.ratios)
    name, p = html.escape(second.strategy), p_value(best.ratios - second.ratios)
    if p >= LEVEL:
        at = f"{second.interval[0]:.2f} times"
        return f"The next, {name} at {at}, is about as fast: the difference may be chance (p = {p:.3f})."
    return f"The next, {name}, takes {100 * (behind[0] - 1):.0f} % longer, {_chance(p)}."


def _chance(p: float) -> str:
    shown = "p &lt; 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{'unlikely by chance' if p < LEVEL else 'which may be chance'} ({shown})"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def _link_words(link: str) -> str:
    """Return a link's rates and delay; "" for one whose file is not there any more."""
    try:
        found = load_link(link)
    except ConfigError:
        return ""
    return f"{found.up_mbps:g} Mbit/s up, {found.down_mbps:g} down, {found.rtt_ms:g} ms there and back."


# Charts ------------------------------------------------------------------------------------------


def _by_link(cells: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return lines over the links, or bars where there is one link."""
    links, names = _unique(cells, "link"), _unique(cells, "strategy")
    is_speed = column == "speed_up"
    values = {(c["cell"]["link"], c["cell"]["strategy"]): c["summary"][column] for c in cells}
    if is_speed:
        # The mean that the summary names, so that who is fastest there is on top here.
        values = {
            (link, result.strategy): result.interval[0]
            for link in links
            for result in results_of([c for c in cells if c["cell"]["link"] == link])
        }
        values |= {(link, BASELINE): 1.0 for link in links}
    what = {"speed_up": "Speed-up", "passes": "Passes of the target", "up_bytes": "Bytes sent to the cloud"}[
        column
    ]
    note = (
        "times as fast as autoregressive, geometric mean; more is better"
        if is_speed
        else "for an answer, median; fewer is better"
    )
    mark = 1.0 if is_speed else None
    if len(links) == 1:
        found = _bars(names, {name: values[links[0], name] for name in names}, cells, is_speed)
        about = "; ".join(f"{bar.name} {bar.words}" for bar in found)
        if is_speed:
            note += ", with its 95 % interval"
        return figure(f"{what} over {links[0]}", note, charts.bars(what, about, found, mark=mark))
    series = {name: [values.get((link, name)) for link in links] for name in names}
    about = "; ".join(
        f"{name}: " + ", ".join("none" if v is None else f"{v:.3g}" for v in row)
        for name, row in series.items()
    )
    about = f"Over {', '.join(links)}. {about}"
    return figure(f"{what} by link", note, charts.lines(what, about, links, series, mark=mark))


def _bars(
    names: Sequence[str], values: Mapping[str, float], cells: Sequence[Mapping[str, Any]], is_speed: bool
) -> list[Bar]:
    """Return a bar for each strategy, the best first; a speed-up is the mean that the summary names."""
    if not is_speed:
        least = min(values.values())
        found = [Bar(n, values[n], _count(values[n]), is_best=values[n] == least) for n in names]
        return sorted(found, key=lambda bar: bar.value)
    intervals = {result.strategy: result.interval for result in results_of(cells)}
    found = []
    for name in names:
        mean, low, high = intervals.get(name, (1.0, None, None))
        is_best = mean == max(1.0, *(each[0] for each in intervals.values()))
        found.append(Bar(name, mean, f"{mean:.2f} times", low, high, is_best=is_best))
    return sorted(found, key=lambda bar: -bar.value)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _rates(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return a bar of each strategy's accepted drafts, over all links."""
    found = []
    for name in _unique(cells, "strategy"):
        shares = [c["summary"]["accepted"] for c in cells if c["cell"]["strategy"] == name]
        hits = [c["summary"]["hit_rate"] for c in cells if c["cell"]["strategy"] == name]
        share, hit = sum(shares) / len(shares), sum(hits) / len(hits)
        if any(
            c["answers"] and sum(a["drafted"] for a in c["answers"])
            for c in cells
            if c["cell"]["strategy"] == name
        ):
            found.append(Bar(name, 100 * share, f"{share:.0%}" + (f", hits {hit:.0%}" if hit else "")))
    about = "; ".join(f"{bar.name} {bar.words}" for bar in found)
    svg = charts.bars("Guesses that the target confirmed", about, found, top=100.0, unit="%")
    return figure("Guesses that the target confirmed", "share of drafted tokens, all links", svg)


def _timelines(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the first answer of each strategy over the first link, in lanes of edge and cloud."""
    link = cells[0]["cell"]["link"]
    spans = [
        Span(cell["cell"]["strategy"], LANES[what], start_s, end_s)
        for cell in cells
        if cell["cell"]["link"] == link
        for what, start_s, end_s, _ in cell["timeline"]
    ]
    ends = {span.group: max(s.end for s in spans if s.group == span.group) for span in spans}
    about = "; ".join(f"{name} ends after {end:.2f} s" for name, end in ends.items())
    svg = charts.timeline("One answer, round by round", about, spans, tuple(LANES.values()))
    note = f"the first answer over {link}: what edge and cloud did, and when"
    return figure("One answer, round by round", note, svg)


def _reasons(cells: Sequence[Mapping[str, Any]]) -> str:
    """Say, round by round, why a controller did what it did in the answer that the timelines show."""
    link, parts = cells[0]["cell"]["link"], list[str]()
    for cell in cells:
        if cell["cell"]["link"] == link and any(cell.get("why", ())):
            name = html.escape(cell["cell"]["strategy"])
            items = "".join(f"<li>{html.escape(why) or 'nothing decided'}</li>" for why in cell["why"])
            parts.append(
                f"<details><summary>Why {name} did so, by rounds</summary><ol>{items}</ol></details>"
            )
    return "".join(parts)


# Tables ------------------------------------------------------------------------------------------


def _table(cells: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for cell in cells:
        fields = cell["cell"]
        name = f"{fields['link']}, {fields['strategy']}"
        rows.append(Row([name, *(_short(cell["summary"][column]) for column in COLUMNS)]))
    return table("All figures, medians over the answers", ["link, strategy", *COLUMNS.values()], rows)


def _pairs(document: dict[str, Any]) -> str:
    head = ["pair", "acceptance", "target's choice at the draft's rank 1, 2, …", "exits right", "tokens"]
    rows = []
    for name, statistics in document["pairs"].items():
        exits = ", ".join(f"{layer}: {share:.2f}" for layer, share in statistics["exits"].items())
        ranks = " ".join(map(str, statistics["ranks"]))
        means = f"{statistics['mean_tokens']:.1f}"
        rows.append(Row([name, f"{statistics['acceptance']:.3f}", ranks, exits, means]))
    return table("The pairs of models by themselves", head, rows, words=(2, 3))


def _history(history: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for run in history for name in run["speed_up"]))
    rows = []
    for run in history[-12:]:
        made = f"{run['made']['date']} {run['made']['commit']}"
        rows.append(Row([made, *(_short(run["speed_up"].get(n)) for n in names)]))
    return table("Runs of this folder: speed-up, geometric mean over the cells", ["run", *names], rows)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
