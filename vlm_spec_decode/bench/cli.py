"""The command `vsd bench`: options in, one config out; the work is elsewhere and imported when wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_spec_decode.edge.options import strategies_metavar


class Names(click.ParamType):  # type: ignore[type-arg]
    """A list of names with commas between them."""

    name = "NAME[,NAME…]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Return the names."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())


class StrategyNames(Names):
    """Names of strategies, which help shows; `hybrid+` is `hybrid` with a copy of the draft in the cloud."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Return the names that are registered."""
        return strategies_metavar("hybrid+")


NAMES = Names()
FILE = click.Path(path_type=Path)


@click.group(invoke_without_command=True)
@click.option(
    "--strategies", type=StrategyNames(), default=None, help="Default: all; hybrid+: draft in the cloud."
)
@click.option("--profiles", type=NAMES, default="go2_a100", show_default=True, help="Of config/profiles.")
@click.option("--links", type=NAMES, default="go2_paper", show_default=True, help="Of config/links.")
@click.option(
    "--pairs",
    type=NAMES,
    default="shipped,early47",
    show_default=True,
    help="shipped, earlyNN, oracle, synthetic:A or DRAFT+TARGET.",
)
@click.option("--answers", type=click.IntRange(1), default=8, show_default=True, help="In each cell.")
@click.option("--clock", "clocks", type=NAMES, default="virtual", show_default=True, help="virtual, wall.")
@click.option("--objective", default="latency", show_default=True, help="latency, balanced or cost.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--draft-length", type=click.IntRange(1), default=4, show_default=True)
@click.option("--out", type=FILE, default=Path("out/bench"), show_default=True, help="Folder; resumed.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.pass_context
def bench(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Compare strategies over profiles, links and pairs; writes JSON, a history and a page."""
    if ctx.invoked_subcommand:
        return
    from vlm_spec_decode.bench.sweep import ALL, BenchConfig, mean_speed_ups, run_sweep

    options["strategies"] = options["strategies"] or ALL
    document = run_sweep(BenchConfig(**options), lambda text: click.echo(text, err=True))
    means = mean_speed_ups(document)
    if as_json:
        place = {"out": str(options["out"]), "cells": len(document["cells"])}
        click.echo(json.dumps(place | {"speed_up": means, "made": document["made"]}))
        return
    for name, value in sorted(means.items(), key=lambda item: -item[1]):
        click.echo(f"{name:16} {value:.2f}x of autoregressive (geometric mean over cells)")


@bench.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare the results A and B, cell by cell, with significance."""
    from vlm_spec_decode.bench.compare import as_rows, compare_runs, report

    differences = compare_runs(a, b)
    click.echo(report(differences))
    if as_json:
        click.echo(json.dumps({"cells": as_rows(differences)}))
