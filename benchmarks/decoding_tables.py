"""The tables of docs/decoding.md and docs/reproduction.md, from the result files of their benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "hybrid_over_autoregressive": "`hybrid` over `autoregressive`",
    "default_over_autoregressive": "the default, `hybrid` with a copy in the cloud, over `autoregressive`",
    "default_over_autoregressive_simulated": "the same with a pair whose acceptance is exactly 0.47",
    "hybrid_over_best_other": "`hybrid` over the best other strategy",
    "speed_at_200_ms_over_5_ms": "`hybrid`: speed at a round trip of 200 ms over that at 5 ms",
    "gpu_over_autoregressive": "`hybrid`: GPU time per answer over `autoregressive`",
    "shipped_over_autoregressive": "shipped pair: `hybrid` over `autoregressive`, total",
    "shipped_total_over_oracle": "shipped pair: `hybrid`'s total over the limit",
    "shipped_first_action_over_oracle": "shipped pair: its first action over the limit",
    "shipped_gpu_over_autoregressive": "shipped pair: GPU time per answer over `autoregressive`",
    "repeated_over_one_pass": "an answer that was given before, over upload, round trip and one pass",
    "speed_at_25_kbit_weak": "speed at 25 kbit/s up over 100 Mbit/s, weak draft",
    "speed_at_25_kbit_shipped": "the same, shipped pair",
    "passes_at_cost_weak": "`objective: cost`: target passes over `autoregressive`, weak draft",
    "passes_at_cost_shipped": "the same, shipped pair",
    "multi_branch_hit_rate": "hits of `multi_branch`'s cache",
    "worst_cell_over_best_other": "worst cell: `hybrid+` over the best other, `colocated` included",
    "worst_cell_without_copies": "worst cell: `hybrid` over the best other without a copy in the cloud",
    "mean_over_best_single_other": "geometric mean over the cells, over the best single other strategy",
    "worst_cell_over_autoregressive": "worst cell: `hybrid` and `hybrid+` over `autoregressive`",
    "uplink_ids": "bytes up per round, γ = 4, vocabulary 32,000, ids only",
    "uplink_q": "the same under `rejection`, q and corrections included",
    "overhead_ms": "our own time per round, stub models over loopback, ms",
    "colocated_over_assisted": "`colocated` over Transformers' assisted generation",
}
"""What each figure of benchmarks/decoding.py is."""

TITLES = {"early47": "draft early in training", "shipped": "shipped pair", "oracle": "an oracle's drafts"}


def home_table(document: Mapping[str, Any]) -> str:
    """Return all strategies on the Go2 profile, pair by pair."""
    head = ("speed-up", "first action", "passes", "GPU time", "accepted", "hits", "bytes up", "bytes down")
    rows = []
    for pair in dict.fromkeys(row["pair"] for row in document["cells"]):
        statistics = document["pairs"][pair]
        rows += [f"**{TITLES[pair]}**, acceptance {statistics['acceptance']:.2f}", ""]
        rows += ["| strategy | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|"]
        for row in document["cells"]:
            if row["pair"] == pair:
                rows.append(f"| `{row['strategy']}` | " + " | ".join(_cells(row)) + " |")
        rows.append("")
    return "\n".join(rows).rstrip()


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['speed_up']:.2f}",
        f"{row['speed_up_first_action']:.2f}",
        f"{row['passes']:g}",
        f"{row['gpu_ratio']:.2f}",
        f"{row['accepted']:.0%}" if row["accepted"] else "",
        f"{row['hit_rate']:.0%}" if row["hit_rate"] and not row["strategy"].startswith("hybrid") else "",
        f"{row['up_bytes']:.0f}",
        f"{row['down_bytes']:.0f}",
    ]


def headline_table(document: Mapping[str, Any]) -> str:
    """Return the speed-ups alone, a row for each pair."""
    cells = [row for row in document["cells"] if row["strategy"] != "autoregressive"]
    names = list(dict.fromkeys(row["strategy"] for row in cells))
    rows = ["| over `autoregressive` | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for pair in dict.fromkeys(row["pair"] for row in cells):
        found = [f"{row['speed_up']:.2f}" for row in cells if row["pair"] == pair]
        title = f"{TITLES[pair]}, acceptance {document['pairs'][pair]['acceptance']:.2f}"
        rows.append(f"| {title} | " + " | ".join(found) + " |")
    return "\n".join(rows)


def grid_table(document: Mapping[str, Any]) -> str:
    """Return each profile's geometric mean over the links, and in brackets the worst link."""
    grid = document["grid"]
    names = list(grid[0]["speed_up"])
    rows = ["| pair, profile | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for pair, profile in dict.fromkeys((row["pair"], row["profile"]) for row in grid):
        mine = [r["speed_up"] for r in grid if (r["pair"], r["profile"]) == (pair, profile)]
        found = []
        for name in names:
            values = [m[name] for m in mine]
            mean = math.exp(sum(math.log(v) for v in values) / len(values))
            found.append(f"{mean:.2f} ({min(values):.2f})")
        rows.append(f"| {pair}, {profile} | " + " | ".join(found) + " |")
    links = ", ".join(dict.fromkeys(row["link"] for row in grid))
    answers = document["size"][1]
    return (
        "\n".join(rows) + f"\n\nLinks: {links}. {len(grid)} cells, {answers} answers each, without the image."
    )


def pairs_table(document: Mapping[str, Any]) -> str:
    """Return what each pair is worth."""
    rows = [
        "| pair | acceptance | target's choice at the draft's rank 1 … 12, behind | exits right, by layer |"
    ]
    rows.append("| --- | --- | --- | --- |")
    for name, statistics in document["pairs"].items():
        exits = ", ".join(f"{layer}: {share:.2f}" for layer, share in statistics["exits"].items())
        ranks = " ".join(map(str, statistics["ranks"]))
        rows.append(
            f"| `{name}` | {statistics['acceptance']:.3f} of {statistics['tokens']} | {ranks} | {exits} |"
        )
    return "\n".join(rows)


WHO = {"nobody": "nobody", "edge": "edge", "cloud": "copy"}
"""Names of the drafters in docs/regimes.md."""

LEVEL = 0.03
"""Drafters within this share of the best one are named beside it."""


def regimes_table(document: Mapping[str, Any]) -> str:
    """Return who should draft in each cell, its speed-up, and that of the default."""
    rows = document["rows"]
    columns = list(dict.fromkeys((row["rtt_ms"], row["acceptance"]) for row in rows))
    head = " | ".join(f"RTT {rtt:g} ms, a = {acceptance:g}" for rtt, acceptance in columns)
    lines = [f"| target's token, edge's step | {head} |", "| --- " * (len(columns) + 1) + "|"]
    for place in dict.fromkeys((row["token_ms"], row["draft_ms"]) for row in rows):
        here = [row for row in rows if (row["token_ms"], row["draft_ms"]) == place]
        found = {(row["rtt_ms"], row["acceptance"]): _drafters(row["speed_up"]) for row in here}
        cells = " | ".join(found[column] for column in columns)
        lines.append(f"| {place[0]:g} ms, {place[1]:g} ms | {cells} |")
    worst = min(row["speed_up"]["default"] / max(row["speed_up"].values()) for row in rows)
    told = (
        f"{len(rows)} cells, medians of {document['answers']} answers. Worst cell of the default: {worst:.2f}"
    )
    return "\n".join(lines) + f"\n\n{told} of the best drafter's speed."


def _drafters(speed_up: Mapping[str, float]) -> str:
    best = max(speed_up[who] for who in WHO)
    level = [name for who, name in WHO.items() if speed_up[who] >= (1 - LEVEL) * best]
    return f"{', '.join(level)} {best:.2f} (**{speed_up['default']:.2f}**)"


def places_table(document: Mapping[str, Any], profile: str = "") -> str:
    """Return the speed-ups of real pairs on every profile, or on one."""
    places = [row for row in document["places"] if profile in ("", row["profile"])]
    names = list(places[0]["speed_up"])
    lines = ["| pair, profile | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for row in places:
        values = " | ".join(f"{row['speed_up'][name]:.2f}" for name in names)
        lines.append(f"| {row['pair']}, {row['profile']} | {values} |")
    told = f"Link {document['link']}, {document['place_answers']} answers each, without the image."
    return "\n".join(lines) + f"\n\n{told}"


def reproduction_table(document: Mapping[str, Any]) -> str:
    """Return each paper's figures beside ours; where they differ by more than 15 %, why."""
    rows = ["| paper | setting | a | what | reported | ours | `hybrid` there | why it differs |"]
    rows.append("| --- " * 8 + "|")
    for row in document["rows"]:
        share = row["ours"] / row["reported"] - 1
        why = "" if abs(share) <= 0.15 else f"{share:+.0%}: {row['why'] or 'not explained'}"
        what = f"`{row['system']}`" if row["how"] != "reckoned" else f"{row['system']}, reckoned"
        over = f" over `{row['baseline']}`" if row["baseline"] else ""
        values = f"{row['reported']:.2f} | {row['ours']:.2f} | {row['hybrid']:.2f}"
        rows.append(
            f"| {row['paper']} | {row['setting']} | {row['acceptance']} | {what}{over} | {values} | {why} |"
        )
    return "\n".join(rows)
