"""The reports as pages: bytes, and what axe-core finds, in light and dark, on a phone and on a desktop.

The pages of `vsd bench` over one link and over several, and of `vsd replay --sample`, in a real Chromium
without a network.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from figures import Figure
from playwright.sync_api import sync_playwright

from vlm_spec_decode.bags.questions import AskPlan
from vlm_spec_decode.bags.replay import Cell, ReplayConfig
from vlm_spec_decode.bags.run import RunConfig, run
from vlm_spec_decode.bags.settings import SAMPLE
from vlm_spec_decode.bench.sweep import BenchConfig, run_sweep
from vlm_spec_decode.core.profiles import load_hardware, load_link

STRATEGIES = ("speculative", "colocated", "pipelined", "hybrid")
LINKS = {"one link": ("go2_paper",), "several links": ("lan", "wifi", "go2_paper", "lte")}
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
SCHEMES = ("light", "dark")
BYTES, SAMPLE_BYTES = 400_000, 2_000_000
"""Most bytes of a page; a replay's page also holds a picture of each frame."""


def pages(out: Path, *, quick: bool) -> dict[str, Path]:
    """Make the pages; return their files by name."""
    found = {}
    for name, links in LINKS.items():
        folder = out / name.replace(" ", "_")
        answers = 4 if quick else 8
        config = BenchConfig(
            strategies=STRATEGIES, links=links, pairs=("synthetic:0.8",), answers=answers, out=folder
        )
        run_sweep(config)
        found[f"bench, {name}"] = folder / "index.html"
    link, profile = load_link("go2_paper"), load_hardware("go2_a100")
    cells = tuple(Cell(name, link, profile) for name in ("autoregressive", "speculative"))
    plan = AskPlan(every_s=10.0 if quick else 2.0)
    run(RunConfig(ReplayConfig((SAMPLE,), cells, plan=plan), out=out / "replay"))
    found["replay"] = out / "replay" / "report.html"
    return found


def faults(found: dict[str, Path]) -> tuple[Counter[str], list[str]]:
    """Return the violations by scheme and size, and all that the browser complained of or asked for."""
    counts: Counter[str] = Counter({f"{scheme}, {size}": 0 for scheme in SCHEMES for size in SIZES})
    said: list[str] = []
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for scheme in SCHEMES:
            for size, (width, height) in SIZES.items():
                viewport = {"width": width, "height": height}
                context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
                context.on("console", lambda message: said.append(message.text))
                context.on("weberror", lambda error: said.append(str(error.error)))
                context.on("requestfailed", lambda request: said.append(request.url))
                for path in found.values():
                    shown = context.new_page()
                    shown.goto(path.resolve().as_uri())
                    counts[f"{scheme}, {size}"] += len(Axe().run(shown).response["violations"])
                    shown.close()
                context.close()
        browser.close()
    return counts, said


def figures(out: Path, *, quick: bool) -> list[Figure]:
    """Return bytes of each page and faults in each way of looking at it."""
    found = pages(out, quick=quick)
    rows = []
    for name, path in found.items():
        bar = SAMPLE_BYTES if name == "replay" else BYTES
        rows.append(Figure(f"page of {name}: bytes", path.stat().st_size, bar, "at most"))
    counts, said = faults(found)
    note = f"axe-core, {len(found)} pages"
    rows += [Figure(f"pages, {way}: faults", count, 0, "at most", note) for way, count in counts.items()]
    rows.append(Figure("pages: complaints, requests", len(said), 0, "at most", "; ".join(said[:3])))
    return rows
