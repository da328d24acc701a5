"""One self-contained HTML page of a comparison: tables, and plots as inline SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"draft": "#4c78a8", "send": "#f58518", "early": "#b279a2", "commit": "#54a24b"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"""

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


def write_page(document: dict[str, Any], history: list[dict[str, Any]], path: Path) -> None:
    """Write the page of one run, with the means of the runs before it."""
    groups = _groups(document)
    parts = [_intro(document), _pairs(document), _history(history)]
    for (pair, profile, clock), cells in groups.items():
        parts.append(f"<h2>{html.escape(f'{pair}, {profile}, {clock} time')}</h2>")
        parts += [_plot_by_link(cells, name) for name in ("speed_up", "passes", "up_bytes")]
        parts += [_plot_rates(cells), _plot_timelines(cells), _reasons(cells), _table(cells)]
    body = "\n".join(parts)
    head = f"<meta charset='utf-8'><title>vsd bench</title><style>{STYLE}</style>"
    path.write_text(f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n", encoding="utf-8")


def _groups(document: dict[str, Any]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in document["cells"]:
        fields = cell["cell"]
        found.setdefault((fields["pair"], fields["profile"], fields["clock"]), []).append(cell)
    return found


def _intro(document: dict[str, Any]) -> str:
    made, settings = document["made"], document["settings"]
    text = f"{made['date']}, commit {made['commit']}, {made['machine']}; {settings['answers']} answers a cell"
    return f"<h1>Strategies compared</h1><p>{html.escape(text)}. Medians over the answers.</p>"


def _pairs(document: dict[str, Any]) -> str:
    rows = [["pair", "acceptance", "target's choice at the draft's rank 1, 2, …", "exits right", "tokens"]]
    for name, statistics in document["pairs"].items():
        exits = ", ".join(f"{layer}: {share:.2f}" for layer, share in statistics["exits"].items())
        ranks = " ".join(map(str, statistics["ranks"]))
        rows.append(
            [name, f"{statistics['acceptance']:.3f}", ranks, exits, f"{statistics['mean_tokens']:.1f}"]
        )
    return "<h2>Pairs</h2>" + _html_table(rows)


def _history(history: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for run in history for name in run["speed_up"]))
    rows = [["run", *names]]
    for run in history[-12:]:
        made = f"{run['made']['date']} {run['made']['commit']}"
        rows.append([made, *(f"{run['speed_up'].get(n, float('nan')):.2f}" for n in names)])
    return "<h2>Geometric means over the cells of each run</h2>" + _html_table(rows)


def _table(cells: list[dict[str, Any]]) -> str:
    rows = [["link, strategy", *COLUMNS.values()]]
    for cell in cells:
        fields = cell["cell"]
        name = f"{fields['link']}, {fields['strategy']}"
        rows.append([name, *(_short(cell["summary"][column]) for column in COLUMNS)])
    return _html_table(rows)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _html_table(rows: list[list[str]]) -> str:
    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(row, "td") for row in rows[1:]) + "</table>"


def _svg(draw: Callable[[Any], None], width: float, height: float) -> str:
    figure, axes = plt.subplots(figsize=(width, height), constrained_layout=True)
    try:
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg")
    finally:
        plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _plot_by_link(cells: list[dict[str, Any]], column: str) -> str:
    links = list(dict.fromkeys(c["cell"]["link"] for c in cells))
    names = list(dict.fromkeys(c["cell"]["strategy"] for c in cells))
    values = {(c["cell"]["link"], c["cell"]["strategy"]): c["summary"][column] for c in cells}

    def draw(axes: Any) -> None:
        for name in names:
            axes.plot(links, [values.get((link, name), float("nan")) for link in links], "o-", label=name)
        axes.set_ylabel(COLUMNS[column])
        axes.tick_params(axis="x", rotation=60)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=4)

    return _svg(draw, 10, 4.5)


def _plot_rates(cells: list[dict[str, Any]]) -> str:
    """Plot acceptance and hits, each strategy's over all links."""
    names = list(dict.fromkeys(c["cell"]["strategy"] for c in cells))

    def draw(axes: Any) -> None:
        for offset, column in enumerate(("accepted", "hit_rate")):
            mine = [[c["summary"][column] for c in cells if c["cell"]["strategy"] == n] for n in names]
            positions = [i + 0.4 * offset for i in range(len(names))]
            axes.bar(positions, [sum(m) / len(m) for m in mine], 0.38, label=COLUMNS[column])
        axes.set_xticks([i + 0.2 for i in range(len(names))], names)
        axes.set_ylim(0, 1)
        axes.legend(fontsize=8)

    return _svg(draw, 10, 2.8)


def _reasons(cells: list[dict[str, Any]]) -> str:
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


def _plot_timelines(cells: list[dict[str, Any]]) -> str:
    """Plot the first answer of each strategy over the first link: edge above, cloud below."""
    link = cells[0]["cell"]["link"]
    mine = [c for c in cells if c["cell"]["link"] == link and c["timeline"]]
    if not mine:
        return ""

    def draw(axes: Any) -> None:
        for row, cell in enumerate(mine):
            for what, start_s, end_s, _ in cell["timeline"]:
                y = row - 0.4 if what in {"draft", "send"} else row
                width = max(end_s - start_s, 0.004)
                axes.broken_barh(
                    [(start_s, width)], (y, 0.36), color=COLOURS[what], edgecolor="w", linewidth=0.3
                )
        axes.set_yticks(range(len(mine)), [c["cell"]["strategy"] for c in mine])
        axes.invert_yaxis()
        axes.set_xlabel("s; " + ", ".join(f"{what}: {colour}" for what, colour in COLOURS.items()))

    return f"<p>One answer over {html.escape(link)}.</p>" + _svg(draw, 10, 0.7 * len(mine) + 1)
