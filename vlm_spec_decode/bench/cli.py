"""The command `vsd bench`: options in, one config out; the modules that do the work are imported late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_spec_decode.bench.settings import BenchConfig
from vlm_spec_decode.core.load_progress import importing
from vlm_spec_decode.core.options import FOLDER, as_json, names, options


@click.group(invoke_without_command=True)
@options(
    BenchConfig,
    strategies=names(BenchConfig, "strategies"),
    profiles=names(BenchConfig, "profiles"),
    links=names(BenchConfig, "links"),
    pairs=names(BenchConfig, "pairs"),
    clocks=names(BenchConfig, "clocks"),
    out=FOLDER,
)
@as_json
@click.pass_context
def bench(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Compare strategies over profiles, links and pairs; writes JSON, a history and a page."""
    if ctx.invoked_subcommand:
        return
    with importing():
        from vlm_spec_decode.bench.sweep import mean_speed_ups, run_sweep

    document = run_sweep(BenchConfig(**given), lambda text: click.echo(text, err=True))
    means = mean_speed_ups(document)
    if as_json:
        document_line = {"out": str(given["out"]), "cells": len(document["cells"])}
        click.echo(json.dumps(document_line | {"speed_up": means, "made": document["made"]}))
        return
    for name, value in sorted(means.items(), key=lambda item: -item[1]):
        click.echo(f"{name:16} {value:.2f}x of autoregressive (geometric mean over cells)")


@bench.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@as_json
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare the results A and B, cell by cell, with significance."""
    from vlm_spec_decode.bench.compare import as_rows, compare_runs, report

    differences = compare_runs(a, b)
    click.echo(report(differences))
    if as_json:
        click.echo(json.dumps({"cells": as_rows(differences)}))
