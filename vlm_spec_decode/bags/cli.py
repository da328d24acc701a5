"""`vsd replay`: bags in, a report out. Readers of bags and models are imported when it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_spec_decode.bags.settings import SAMPLE, ReplaySettings
from vlm_spec_decode.core.errors import BagError
from vlm_spec_decode.core.options import FOLDER, as_json, option, options
from vlm_spec_decode.core.profiles import load_hardware, load_link

if TYPE_CHECKING:
    from vlm_spec_decode.bags.run import RunConfig

FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command()
@click.argument("bags", nargs=-1, type=click.Path(path_type=Path))
@click.option("--sample", is_flag=True, help="Replay the bag that ships with the package.")
@options(ReplaySettings, "instruction", "instructions", "image_topic", instructions=FILE)
@options(ReplaySettings, "instruction_topic", "motion_topic")
@option(ReplaySettings, "every_s", "--every")
@option(ReplaySettings, "horizon_s", "--horizon")
@option(ReplaySettings, "limit")
@option(ReplaySettings, "strategies", "--strategy")
@option(ReplaySettings, "links", "--link")
@option(ReplaySettings, "profiles", "--profile")
@options(ReplaySettings, "rule", "target", "draft")
@options(ReplaySettings, "temperature", "seed")
@option(ReplaySettings, "deadline_s", "--deadline")
@option(ReplaySettings, "price_per_gpu_s", "--price")
@options(ReplaySettings, "jobs", "ray_address", "out", "compare", out=FOLDER, compare=FOLDER)
@as_json
def replay(bags: tuple[Path, ...], sample: bool, as_json: bool, **given: Any) -> int:
    """Ask again about the frames of recorded walks, in virtual time, and report how good the answers are."""
    named = (*bags, *((SAMPLE,) if sample else ()))
    if not named:
        raise BagError("name a bag, or use --sample")
    from vlm_spec_decode.bags.run import run

    document = run(run_config(named, ReplaySettings(**given)))
    if as_json:
        click.echo(json.dumps(document))
    else:
        _print_summary(document)
    return 0


def run_config(bags: tuple[Path, ...], settings: ReplaySettings) -> RunConfig:
    """Return the run: every strategy with every link and hardware profile. Raises ConfigError."""
    from vlm_spec_decode.bags.events import Topics
    from vlm_spec_decode.bags.questions import AskPlan, read_instructions
    from vlm_spec_decode.bags.replay import Cell, ReplayChoice, ReplayConfig
    from vlm_spec_decode.bags.run import RunConfig, Workers
    from vlm_spec_decode.edge.factory import check_strategy

    for name in settings.strategies:
        check_strategy(name)
    cells = tuple(
        Cell(name, load_link(link), load_hardware(profile))
        for name in settings.strategies
        for link in settings.links
        for profile in settings.profiles
    )
    spoken = read_instructions(settings.instructions) if settings.instructions else ()
    plan = AskPlan(settings.instruction, spoken, settings.every_s, settings.horizon_s, settings.limit)
    topics = Topics(settings.image_topic, settings.instruction_topic, settings.motion_topic)
    chosen = ReplayChoice(rule=settings.rule, temperature=settings.temperature, seed=settings.seed)
    return RunConfig(
        ReplayConfig(bags, cells, topics, plan, settings.target, settings.draft, chosen),
        out=settings.out,
        workers=Workers(settings.jobs or num_workers(len(bags), settings.limit), settings.ray_address),
        deadline_s=settings.deadline_s,
        price_per_gpu_s=settings.price_per_gpu_s,
        compare=settings.compare,
    )


def num_workers(bags: int, limit: int) -> int:
    """Return the number of processes: one for each core, but only one for a few questions."""
    return len(os.sched_getaffinity(0)) if bags > 1 or not limit else 1


def _print_summary(document: dict[str, Any]) -> None:
    for name, figures in document["cells"].items():
        parts = (
            [f"{figures['answers']} answers", f"median {figures['total_p50_s']['value']:.2f} s"]
            if ("total_p50_s" in figures)
            else [f"{figures['answers']} answers"]
        )
        for key, words in (
            ("same_actions", "as the label"),
            ("same_way", "the robot's way"),
            ("failed", "failed"),
        ):
            if key in figures:
                parts.append(f"{figures[key]['value']:.0%} {words}")
        click.echo(f"{name}: {', '.join(parts)}")
    for bag, faults in document["faults"].items():
        for fault, count in faults.items():
            click.echo(f"{bag}: {count} x {fault}")
    for name, figures in document.get("compared_with_run", {}).get("cells", {}).items():
        for key, found in figures.items():
            if found:
                change = f"{found['before']:.3g} to {found['after']:.3g}"
                click.echo(f"{name}: {key.replace('_', ' ')} {change} (p = {found['p']:.3f})")
    click.echo(f"report: {document['artifacts']['report']}")
