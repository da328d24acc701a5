"""`vsd replay`: bags in, a report out. What reads bags and asks models is imported when it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import click

from vlm_spec_decode.core.assets import ASSETS
from vlm_spec_decode.core.errors import BagError, ConfigError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, from_mapping
from vlm_spec_decode.core.yaml_file import read_yaml
from vlm_spec_decode.edge.options import strategy_option

Settings = TypeVar("Settings")

WIFI = LinkProfile("wifi", 12.0, 40.0, 80.0, 4.0, 0.01)
GO2_A100 = HardwareProfile("go2_a100", 72.0, 620.0, 620.0, 620.0, 62.0, source="arXiv 2505.21594, Table 8(a)")
SAMPLE = ASSETS / "sample_bag"
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


def _profile(kind: type[Settings], path: Path) -> Settings:
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not a mapping")
    return from_mapping(kind, found, str(path))


@click.command()
@click.argument("bags", nargs=-1, type=click.Path(path_type=Path))
@click.option("--sample", is_flag=True, help="Replay the bag that ships with the package.")
@click.option("--instruction", default="", help="Ask this about every frame, whatever was said in the bag.")
@click.option(
    "--instructions", type=FILE, help="CSV (time_s,instruction[,actions]) or YAML list of the same."
)
@click.option("--image-topic", default="", help="Default: the first camera topic found by type.")
@click.option("--instruction-topic", default="", help="Default: one whose name ends in vlm/instruction.")
@click.option("--motion-topic", default="", help="Default: the first Odometry, TwistStamped or Twist.")
@click.option(
    "--every", "every_s", type=click.FloatRange(0), default=1.0, show_default=True, help="s between frames."
)
@click.option(
    "--horizon", "horizon_s", type=float, default=2.0, show_default=True, help="s of motion to compare with."
)
@click.option("--limit", type=click.IntRange(0), default=0, help="Questions per bag; 0: all.")
@strategy_option("strategies", multiple=True)
@click.option("--link", "links", type=FILE, multiple=True, help="YAML of a link profile; default: Wi-Fi.")
@click.option(
    "--profile", "profiles", type=FILE, multiple=True, help="YAML of a hardware profile; default: Go2, A100."
)
@click.option("--rule", type=click.Choice(["coupled", "rejection"]), help="Default: as recorded, or coupled.")
@click.option("--target", default="", help="Target: DIR or ID[,…]; default: the shipped one.")
@click.option("--draft", default="", help="Draft: DIR or ID[,…]; default: the shipped one.")
@click.option("--temperature", type=click.FloatRange(0), help="Default: as recorded, or 0, which is greedy.")
@click.option("--seed", type=int, help="Default: as recorded, or 0.")
@click.option(
    "--deadline",
    "deadline_s",
    type=float,
    default=3.0,
    show_default=True,
    help="s after which an answer is late.",
)
@click.option(
    "--price", "price_per_gpu_s", type=float, default=0.001, show_default=True, help="Price of a GPU-second."
)
@click.option("--jobs", type=click.IntRange(0), default=0, help="Processes; default: one for each core.")
@click.option("--ray-address", default="", help="Work on this Ray cluster: HOST:PORT, or auto for one here.")
@click.option("--out", type=FOLDER, default=Path("out/replay"), show_default=True, help="Folder of results.")
@click.option("--compare", type=FOLDER, help="Results of an earlier replay to compare this one with.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def replay(
    bags: tuple[Path, ...],
    sample: bool,
    instruction: str,
    instructions: Path | None,
    image_topic: str,
    instruction_topic: str,
    motion_topic: str,
    every_s: float,
    horizon_s: float,
    limit: int,
    strategies: tuple[str, ...],
    links: tuple[Path, ...],
    profiles: tuple[Path, ...],
    deadline_s: float,
    price_per_gpu_s: float,
    jobs: int,
    ray_address: str,
    out: Path,
    compare: Path | None,
    as_json: bool,
    target: str,
    draft: str,
    **chosen: Any,
) -> int:
    """Ask again about the frames of recorded walks, in virtual time, and report how good the answers are."""
    named = (*bags, *((SAMPLE,) if sample else ()))
    if not named:
        raise BagError("name a bag, or use --sample")
    from vlm_spec_decode.bags.events import Topics
    from vlm_spec_decode.bags.questions import AskPlan, read_spoken
    from vlm_spec_decode.bags.replay import Cell, ReplayChoice, ReplayConfig
    from vlm_spec_decode.bags.run import RunConfig, Workers, run
    from vlm_spec_decode.edge.factory import check_strategy

    for name in strategies:
        check_strategy(name)
    cells = tuple(
        Cell(name, link, profile)
        for name in strategies
        for link in [_profile(LinkProfile, path) for path in links] or [WIFI]
        for profile in [_profile(HardwareProfile, path) for path in profiles] or [GO2_A100]
    )
    plan = AskPlan(instruction, read_spoken(instructions) if instructions else (), every_s, horizon_s, limit)
    topics = Topics(image_topic, instruction_topic, motion_topic)
    config = ReplayConfig(named, cells, topics, plan, target, draft, ReplayChoice(**chosen))
    workers = Workers(jobs or cores(len(named), limit), ray_address)
    document = run(RunConfig(config, out, workers, deadline_s, price_per_gpu_s, compare))
    if as_json:
        click.echo(json.dumps(document))
    else:
        _tell(document)
    return 0


def cores(bags: int, limit: int) -> int:
    """Return how many processes are worth starting: one for each core, but one for a few questions."""
    return len(os.sched_getaffinity(0)) if bags > 1 or not limit else 1


def _tell(document: dict[str, Any]) -> None:
    for name, figures in document["cells"].items():
        said = (
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
                said.append(f"{figures[key]['value']:.0%} {words}")
        click.echo(f"{name}: {', '.join(said)}")
    for bag, faults in document["faults"].items():
        for fault, count in faults.items():
            click.echo(f"{bag}: {count} x {fault}")
    for name, figures in document.get("compared_with_run", {}).get("cells", {}).items():
        for key, found in figures.items():
            if found:
                change = f"{found['before']:.3g} to {found['after']:.3g}"
                click.echo(f"{name}: {key.replace('_', ' ')} {change} (p = {found['p']:.3f})")
    click.echo(f"report: {document['artifacts']['report']}")
