"""The reports as people get them: true words, charts without colour, pages without a fetch or a fault."""

from __future__ import annotations

import base64
import json
import re
import shutil
import xml.etree.ElementTree as Xml
from dataclasses import asdict

import numpy as np
import pytest

from test.bags.test_report import rows as replay_rows
from test.bags.walks import jpeg, picture
from vlm_spec_decode.bags.report import write_report
from vlm_spec_decode.bags.score import compared, summary
from vlm_spec_decode.bench import page as bench_page
from vlm_spec_decode.bench.cells import Cell
from vlm_spec_decode.bench.sweep import BenchConfig, document_of, run_sweep
from vlm_spec_decode.core import charts
from vlm_spec_decode.core.charts import Bar, Span
from vlm_spec_decode.core.page import Html, Row, page, style, table

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STRATEGIES = ("speculative", "colocated", "pipelined")
LOOKS = {"light": (1280, 900), "dark": (390, 844)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the pages of a run over one link, of one over several, and of a replay."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, links in (("one link", ("go2_paper",)), ("several links", ("lan", "wifi", "go2_paper"))):
        out = folder / name.replace(" ", "_")
        run_sweep(
            BenchConfig(strategies=STRATEGIES, links=links, pairs=("synthetic:0.8",), answers=5, out=out)
        )
        found[name] = out / "index.html"
    answers = list(replay_rows(40))
    cells = {
        n: [row for row in answers if row["cell"] == n] for n in dict.fromkeys(r["cell"] for r in answers)
    }
    first, second = cells
    document = {
        "schema": "vsd.replay/1", "digest": "0", "bags": ["walk"], "faults": {"walk": {}}, "deadline_s": 1.5,
        "cells": {name: summary(part, 1.5, 0.001) for name, part in cells.items()}, "compared_with": first,
        "compared": {second: {"total_s": compared(cells[first], cells[second], "total_s")}},
        "settings": {"cells": [], "plan": {"every_s": 1.0, "horizon_s": 2.0}}, "price_per_gpu_s": 0.001,
    }  # fmt: skip
    frame = base64.b64encode(jpeg(picture(200, 112))).decode()
    found["replay"] = folder / "report.html"
    write_report(found["replay"], document, answers, {f"walk/{n}": frame for n in range(1, 21)})
    return found


def test_a_page_loads_nothing_and_its_charts_speak(pages):
    for name, path in pages.items():
        text = path.read_text()
        assert path.stat().st_size < 800_000, name
        outside = re.findall(
            r'(?:src|href|url\()=?["\']?((?!data:)[a-z/.][^"\'>]*)', text.split("<script")[0]
        )
        assert not outside, name
        assert not re.search(r"@import|https?://", style()), name
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(set(ids)) == len(ids), name
        drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        assert drawn, name
        for svg in drawn:
            chart = Xml.fromstring(svg)
            title, about = chart.find("title"), chart.find("desc")
            assert chart.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
            assert len(about.text) > 8, title.text


def test_one_link_has_bars_and_several_have_lines(pages):
    kinds = {name: path.read_text() for name, path in pages.items()}
    assert 'class="bar best"' in kinds["one link"]
    assert 'class="line"' not in kinds["one link"].split("</style>")[1]
    assert kinds["several links"].split("</style>")[1].count('class="line"') == 3 * (1 + len(STRATEGIES))
    assert "Speed-up by link" in kinds["several links"]


def documents(ratio, noise, answers=8):
    """Return the document of a run in which `fast` is `ratio` times as fast, up to noise."""
    rng = np.random.default_rng(3)

    def row(strategy, total_s):
        cell = asdict(Cell(pair="synthetic:0.8", profile="go2_a100", link="lan", strategy=strategy))
        fields = dict.fromkeys(("first_action_s", "first_token_s", "up_bytes", "down_bytes", "gpu_s"), 1.0)
        fields |= dict.fromkeys(("passes", "drafted", "accepted", "lookups", "hits", "tokens"), 1)
        rows = [fields | {"total_s": float(value), "said": "x"} for value in total_s]
        return {"cell": cell, "answers": rows, "timeline": [["commit", 0.0, 1.0, 1]], "why": []}

    plain = np.full(answers, 2.0)
    rows = [
        row("autoregressive", plain),
        row("speculative", plain / ratio * np.exp(rng.normal(0, noise, answers))),
    ]
    return document_of(rows, {}, {"answers": answers})


@pytest.mark.parametrize(
    ("ratio", "noise", "says"),
    [
        (2.0, 0.02, "2.0. times as fast</strong> as autoregressive.*unlikely by chance \\(p = 0.008"),
        (1.03, 0.3, "as fast</strong> as autoregressive.*which may be chance"),
        (0.5, 0.02, "Nothing is faster than autoregressive"),
    ],
)
def test_the_summary_says_who_is_fastest_and_how_sure_that_is(tmp_path, ratio, noise, says):
    document = json.loads(json.dumps(documents(ratio, noise)))
    bench_page.write_page(document, [], tmp_path / "index.html")
    told = (tmp_path / "index.html").read_text()
    assert re.search(says, told.split('class="lead">')[1].split("</p>")[0]), told.split('class="lead">')[1][
        :400
    ]


def test_the_interval_of_the_summary_holds_the_ratio_it_was_drawn_from():
    (found,) = bench_page.results_of(documents(1.7, 0.2, 40)["cells"])
    mean, low, high = found.interval
    assert low < mean < high
    assert low < 1.7 < high


def test_what_is_written_into_a_page_is_escaped():
    text = page("<t>", [table("<c>", ["<h>"], [Row(["<r>", Html("<b>x</b>")])])])
    assert "<title>&lt;t&gt;</title>" in text
    assert all(f"&lt;{each}&gt;" in text for each in "chr")
    assert "<b>x</b>" in text
    svg = charts.bars("<t>", "<a>", [Bar("<n>", 1.0, "<w>")])
    assert all(f"&lt;{each}&gt;" in svg for each in "tanw")


def test_charts_say_nothing_by_colour_alone():
    series = {f"way {n}": [float(n), None, 2.0 * n] for n in range(1, 7)}
    svg = Xml.fromstring(charts.lines("t", "about", ["a", "b", "c"], series))
    looks = [group for group in svg.iter("g") if group.find("path").get("class") == "line"]
    markers = {group.findall("path")[1].get("d") for group in looks}
    dashes = {group.find("path").get("stroke-dasharray") for group in looks}
    assert len(looks) == len(markers) == len(dashes) == 6
    names = [text for text in svg.iter("text") if text.get("class") == "label"]
    assert {text.text for text in names} == set(series)
    heights = sorted(float(text.get("y")) for text in names)
    assert min(np.diff(heights)) >= 15.9, "no name lies on another"
    lanes = charts.timeline("t", "about", [Span("g", "a", 0.0, 1.0), Span("g", "b", 0.0, 2.0)], ("a", "b"))
    tops = {float(block.get("y")) for block in Xml.fromstring(lanes).iter("rect")}
    assert len(tops) == 2, "a lane each"


@pytest.mark.parametrize("values", [[0.004, 0.009], [3.0], [1234.0, 7.5], [0.0]])
def test_axes_hold_every_value(values):
    found = [Bar(f"n{i}", value, "w", value * 0.5, value * 1.5) for i, value in enumerate(values)]
    svg = Xml.fromstring(charts.bars("t", "about", found, mark=1.0))
    width = float(svg.get("viewBox").split()[2])
    rights = [float(each.get("x")) + float(each.get("width")) for each in svg.iter("rect")]
    ticks = [each for each in svg.iter("line") if each.get("class") == "axis"]
    assert len(rights) == len(values)
    assert max(rights) <= width
    assert 2 <= len(ticks) <= 12
    assert charts.bars("t", "about", []) == charts.timeline("t", "about", [], ()) == ""


@pytest.mark.timeout(300)
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_no_fault_of_accessibility_in_light_and_dark_on_phone_and_desktop(pages):
    """Each scheme on one size; `benchmarks/faces.py --only page` has all four."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    grounds: dict[str, str] = {}
    faults: list[tuple[str, ...]] = []

    def hear(name):
        return lambda said: faults.append((name, str(said)))

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        context = browser.new_context(offline=True)
        for name, path in pages.items():
            shown = context.new_page()
            for event in ("console", "pageerror", "requestfailed"):
                shown.on(event, hear(name))
            shown.goto(path.as_uri())
            for scheme, (width, height) in LOOKS.items():
                shown.emulate_media(color_scheme=scheme)
                shown.set_viewport_size({"width": width, "height": height})
                found = Axe().run(shown).response["violations"]
                faults += [(name, scheme, each["id"], each["nodes"][0]["html"][:200]) for each in found]
                wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert shown.evaluate(wide) <= 0, (name, width, "the page itself must not scroll sideways")
                grounds[scheme] = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            shown.close()
        browser.close()
    assert faults == []
    assert len(set(grounds.values())) == 2, "dark is dark"
