"""`vsd replay`: as fast as possible without ROS (`bags.cli`), or live to running nodes (`demo.live`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_spec_decode.bags.cli import SAMPLE
from vlm_spec_decode.bags.cli import replay as offline
from vlm_spec_decode.core.errors import BagError

LIVE = (
    click.Option(["--live"], is_flag=True, help="To running nodes (use_sim_time), at the bag's rate."),
    click.Option(
        ["--rate"], type=click.FloatRange(0.05, 20), default=1.0, show_default=True, help="With --live."
    ),
    click.Option(
        ["--domain"], type=click.IntRange(0, 232), help="With --live; default: ROS_DOMAIN_ID, else 0."
    ),
    click.Option(["--namespace"], default="", help="With --live: namespace of the nodes."),
)


@click.command(params=[*offline.params, *LIVE], help=offline.help)
def replay(live: bool, rate: float, domain: int | None, namespace: str, **options: Any) -> int:
    """Choose between both ways."""
    if live:
        return _live(rate, domain, namespace, options)
    if offline.callback is None:
        raise TypeError("the command has nothing to call")
    return int(offline.callback(**options))


def _live(rate: float, domain: int | None, namespace: str, options: dict[str, Any]) -> int:
    from vlm_spec_decode.bags.events import Topics
    from vlm_spec_decode.bags.questions import AskPlan, read_spoken
    from vlm_spec_decode.cli.console import ros_domain
    from vlm_spec_decode.cli.record import interruptible
    from vlm_spec_decode.demo.live import LiveConfig, LivePlayer

    bags = (*options["bags"], *((SAMPLE,) if options["sample"] else ()))
    if len(bags) != 1:
        raise BagError("--live replays one bag at a time")
    topics = Topics(*(options[f"{role}_topic"] for role in ("image", "instruction", "motion")))
    file: Path | None = options["instructions"]
    plan = AskPlan(options["instruction"], read_spoken(file) if file else ())
    on = ros_domain() if domain is None else domain
    player = LivePlayer(LiveConfig(bags[0], options["out"], topics, plan, rate, on, namespace))
    try:
        with interruptible() as asked:
            document = player.play(asked.is_set)
    finally:
        player.close()
    if options["as_json"]:
        click.echo(json.dumps(document))
    else:
        counts = ", ".join(f"{document[name]} {name}" for name in ("frames", "instructions", "answers"))
        click.echo(f"{counts}; what was said is in {document['recorded']}")
    return 0
