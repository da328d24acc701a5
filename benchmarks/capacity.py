"""Writes docs/capacity.md: how many robots a GPU holds, by simulation from the profiles (lib/capacity.py).

python benchmarks/capacity.py          simulate (a minute), write docs/results/capacity.json and the page
python benchmarks/capacity.py --check  exit with 1 if the page is not what the file says
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from lib.capacity import AnswerShape, Demand, most_robots, serve

from vlm_spec_decode.core.config import from_mapping
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, load_link

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "capacity.json"
PAGE = ROOT / "docs" / "capacity.md"
THINK_S = 10.0
STRETCHES = (2.0, 3.5)
PROFILES = ("go2_a100", "agx_orin_qwen32b", "agx_orin_llama70b")
LINKS = ("wifi", "lte")
CURVE_ROBOTS = (1, 2, 4, 8, 16, 32, 64, 128)
FLEETS = (100, 1000, 5000)
NODES = {"autoregressive": (0, 0), "speculative": (6, 6), "hybrid": (11, 0)}
"""Nodes of a pass, and tokens that the edge drafts between two: hybrid's cloud goes on by itself."""


def shapes() -> list[AnswerShape]:
    """Return the answers of the shipped pair as the decoding benchmark has measured them."""
    cells = json.loads((ROOT / "docs" / "results" / "decoding.json").read_text())["cells"]
    passes = {cell["strategy"]: cell["passes"] for cell in cells if cell["pair"] == "shipped"}
    return [AnswerShape(name, round(passes[name]), *NODES[name]) for name in NODES]


def hardware(name: str) -> HardwareProfile:
    """Return a profile of config/profiles."""
    text = (ROOT / "config" / "profiles" / f"{name}.yaml").read_text()
    return from_mapping(HardwareProfile, yaml.safe_load(text))


def row(shape: AnswerShape, profile: HardwareProfile, link: LinkProfile) -> dict[str, Any]:
    """Return one row: a robot alone, and the most robots at each stretch of its time."""
    found: dict[str, Any] = {"profile": profile.name, "link": link.name, **asdict(shape)}
    found["alone_s"] = shape.alone_s(profile, link)
    for stretch in STRETCHES:
        robots, served = most_robots(shape, profile, link, THINK_S, stretch)
        found[f"at_{stretch}"] = {"robots": robots, **asdict(served)}
    return found


def measure() -> dict[str, Any]:
    """Simulate everything."""
    links = [load_link(name) for name in LINKS]
    rows = [row(s, hardware(p), link) for p in PROFILES for link in links for s in shapes()]
    hybrid, profile = shapes()[-1], hardware("agx_orin_qwen32b")
    curve = [
        {"robots": robots, **asdict(serve(hybrid, profile, links[0], Demand(robots=robots, think_s=THINK_S)))}
        for robots in CURVE_ROBOTS
    ]
    return {"think_s": THINK_S, "rows": rows, "curve": curve, "curve_profile": profile.name}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def limit(served: Mapping[str, Any]) -> str:
    """Return a cell: how many robots, what they wait, and what they get."""
    return f"{served['robots']}: p99 {served['p99_s']:.1f} s, {served['answers_per_s']:.2f}/s"


def page(found: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = [
        (
            r["profile"],
            r["link"],
            r["strategy"],
            f"{r['alone_s']:.2f} s",
            *(limit(r[f"at_{stretch}"]) for stretch in STRETCHES),
        )
        for r in found["rows"]
    ]
    curve = [
        (
            str(c["robots"]),
            f"{c['p50_s']:.2f} s",
            f"{c['p99_s']:.2f} s",
            f"{c['answers_per_s']:.2f}",
            f"{100 * c['busy']:.0f} %",
            f"{c['mean_batch']:.1f}",
        )
        for c in found["curve"]
    ]
    fleets = []
    for r in found["rows"]:
        if r["strategy"] in {"autoregressive", "hybrid"} and r["link"] == LINKS[0]:
            held = r["at_3.5"]["robots"]
            gpus = [str(math.ceil(n / held)) if held else "none hold it" for n in FLEETS]
            fleets.append((r["profile"], r["strategy"], *gpus))
    return TEXT.format(
        think=found["think_s"],
        rows=table(("profile", "link", "strategy", "one alone", "within 2x", "within 3.5x"), rows),
        profile=found["curve_profile"],
        curve=table(("robots", "p50", "p99", "answers/s", "GPU busy", "answers in a pass"), curve),
        fleets=table(("profile", "strategy", *(f"{n} robots" for n in FLEETS)), fleets),
    )


TEXT = """# How many robots a GPU holds

Simulated, not measured: written by `python benchmarks/capacity.py` from `config/profiles`, `config/links`
and the passes per answer that the decoding benchmark has measured for the shipped pair. A robot asks,
waits, and asks again after {think:.0f} s on average. 32 answers in one pass take 5 times as long as one
(arXiv 2505.21594, Table 9; between 1 and 32 linear); a pass takes those who have waited longest, at most 8
of them new. Images are on the GPU's side before the clock starts, memory holds all sessions, and no message
is lost.

## Most robots of one GPU

So many robots that 99 % of the answers come within 2 or 3.5 times the time of one robot alone; what they
wait then and how many answers a second they get. A fast strategy is held to a short time:

{rows}

`hybrid` costs the GPU fewest passes, and its cloud goes on by itself between them, so its robots are told
apart by the GPU alone. `speculative` waits for link and draft between passes: alone it is slower, but a GPU
does other robots' passes meanwhile.

## One GPU as robots come

`hybrid`, {profile}, Wi-Fi:

{curve}

## Fleets

GPUs, one replica each (`vsd cloud --replicas`), for fleets whose robots stick to their replica and are
spread evenly over them, 99 % of the answers within 3.5 times one robot's alone, Wi-Fi:

{fleets}

## The price of a loaded GPU

The tables above are a queue of answers of fixed work: they know neither deadlines nor what follows. What an
answer adds to a pass holds up all who wait for the GPU. With `vsd cloud --prices` the scheduler tells every
session, before each of its passes, what a node and a pass cost now, and `hybrid` weighs its decisions by it
(`vlm_spec_decode/decoding/price.py`). A pass of n answers over N nodes takes T = b + a (n - 1) + s N
seconds, learned from every pass. Let a second be worth u to an answer, more the less time it has to spare
until its deadline (u = work left / time left, 0.2 to 1; 1 without a deadline), and k = Σ u_j / u_i over the
others that are ready. With E tokens in a pass

- a token is worth c = own seconds per token + k a / E;
- a node is verified, and a token drafted by the cloud's copy, if its probability times c is at least (1 + k)
  times its seconds; as k grows that is the same threshold s E / a for every robot, expected tokens per GPU
  second, which is how draft lengths are allotted across robots;
- a second of waiting for the edge's drafts counts 1 / (1 + k a / T);
- with more than 8 others no early exits are asked for;
- the edge is told the threshold with each commit, and drafts and sends nothing below its square.

With nobody else k is 0, and everything is as if there were no price. No token of an answer depends on it.

Passes take the answers with the earliest deadline first (`deadline_s`, an option of the edge), and no more of
them than can all be in time. What will be late whatever is done has an eighth of a pass, who has waited
longest first, until its edge's patience is over: then it is taken in its turn. So nobody starves.

`hybrid` over the best other strategy, answers in time, real scheduler and edges in virtual time; the 32B
profile, acceptance 0.9, a question every 10 s a robot:

| robots | 1 to 8 | 16 | 32 | 64 | 128 | 256 |
| --- | --- | --- | --- | --- | --- | --- |
| Wi-Fi, 3 s | 1.00 to 1.02 | 1.02 | 1.03 | 1.34 | 0.80 (12 against 15 of 167) | 0.82 (9 against 11) |
| Wi-Fi, 1.5 s | 1.08 to 1.18 | 1.37 | 1.89 | 3.67 | 7 against 1 | 4 against 1 |
| LTE, 3 s | 1.01 to 1.03 | 1.06 | 1.11 | 1.37 | 0.80 (12 against 15) | 0.42 (5 against 12) |
| LTE, 1.5 s | 1.51 to 1.65 | 1.77 | 2.37 | 10 against 4 | 3 against 1 | |
| GPU's seconds an answer over `speculative`, Wi-Fi, 3 s | 1.10 to 1.36 | 1.08 | 1.01 | 0.90 | 2.03 | 1.42 |

From 128 robots on the GPU is asked for far more than it can do: a tenth of the answers is in time whatever
decodes them. On the `go2_a100` profile a pass takes too long for any but one or two robots to be in time.

Prices are off because they do not pay as measured: in time without and with prices 104 and 105 for 32 robots
(Wi-Fi, 3 s), 78 and 63 for 64, 12 and 7 for 128. A pass with prompts takes long whatever its nodes, so fewer
nodes only mean more passes; and with so many robots reading prompts takes most of the GPU.

`python benchmarks/capacity_deadlines.py` runs the real scheduler, policies and edges of up to 512 robots in
virtual time, every profile, link and strategy, against deadlines of 3 and 1.5 s; `--quick` a few cells.

The front that carries their messages is one process. What it carries is small (an answer is some 20
messages of some 50 bytes, and an image once); past what one core can pass on, run several
fronts at one address (`vsd front`, docs/operations.md).
"""


def main() -> int:
    """Simulate, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return int(page(json.loads(RESULT.read_text())) != PAGE.read_text(encoding="utf-8"))
    found = measure()
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found), encoding="utf-8")
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
