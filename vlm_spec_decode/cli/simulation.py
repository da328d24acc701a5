"""`vsd demo` and `vsd sim`: the commands that simulate a robot."""

from __future__ import annotations

import json
from typing import Any

import click

from vlm_spec_decode.core.options import FOLDER, as_json, finish, option, options
from vlm_spec_decode.demo.settings import DemoConfig
from vlm_spec_decode.sim.settings import SimConfig


@click.command()
@options(DemoConfig, "instruction", "scene_seed", "scene", "body", "strategy", "rule")
@options(DemoConfig, "objective", "link", "profile", "compare", "seed", "out", out=FOLDER)
@as_json
def demo(as_json: bool, **given: Any) -> int:
    """Run the main job: simulator, cloud and ROS nodes; an instruction moves the robot."""
    from vlm_spec_decode.demo.main import run

    print_line = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    outcome = run(DemoConfig(**given), print_line)
    click.echo(json.dumps(outcome))
    return 0 if outcome["success"] else 1


@click.command()
@options(SimConfig, "scene_seed", "scene", "seed", "interface", "domain", "body", "start")
@option(SimConfig, "faults", "--fault")
@options(SimConfig, "firmware", "view")
@option(SimConfig, "truth", "--ground-truth")
@option(SimConfig, "linger_s", "--linger")
@click.option("--headless", is_flag=True, help="No DDS, virtual time: carry out --actions and end.")
@click.option("--actions", default="", help='With --headless, such as "turn(20) forward(1.6)".')
@as_json
def sim(as_json: bool, headless: bool, actions: str, **given: Any) -> int:
    """Simulate a Go2 that speaks the robot's own DDS API, until interrupted."""
    from vlm_spec_decode.sim.app import run, stop_signals

    config = SimConfig(**given)
    if headless:
        from vlm_spec_decode.demo.main import carry_out

        document = carry_out(config, actions)
        finish(as_json, document, f"{document['state']} after {document['time_s']:.1f} s of virtual time")
        return 0 if document["state"] == "done" else 1
    ready_document = {"event": "ready", "interface": config.interface, "domain": config.domain}
    line = json.dumps(ready_document) if as_json else f"a Go2 on {config.interface}, domain {config.domain}"
    with stop_signals() as asked:
        truth = run(config, asked, on_ready=lambda: click.echo(line))
    ended = {"event": "ended", "collisions": truth.collisions, "distances_m": truth.distances_m}
    finish(as_json, ended, f"ended after {truth.collisions} collisions")
    return 0
