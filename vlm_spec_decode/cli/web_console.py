"""`vsd console`: the console in a browser, with robot and missions in this process, without ROS."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import click

from vlm_spec_decode.cli.console import interrupted_by_signals
from vlm_spec_decode.cli.edge import EdgeOptions, connected, mission_settings, robot_options, robot_settings
from vlm_spec_decode.cli.edge import start_timeout as start_timeout_option
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.options import FILE, as_json, options
from vlm_spec_decode.serve.console.settings import ConsoleSettings, serving

CONSOLE_NAMES = tuple(settings_of(ConsoleSettings))


@click.command()
@options(ConsoleSettings, tokens=FILE, tls_certificate=FILE, tls_key=FILE)
@robot_options
@click.option("--approve", is_flag=True, help="Show every plan on the page and ask before the robot moves.")
@start_timeout_option
@as_json
def console(as_json: bool, **given: Any) -> int:
    """Serve the console: a page on which people see and command a robot, without ROS.

    It does what `vsd edge` does, and is commanded from the page whose link it prints. Ctrl-C stops the robot
    and ends it.
    """
    served = ConsoleSettings(**{name: given.pop(name) for name in CONSOLE_NAMES})
    given["settings"] = robot_settings(given.pop("pairs"))
    chosen = EdgeOptions(instructions=(), timeout_s=0.0, **given)

    def write(text: str) -> None:
        click.echo(text, nl=False, err=as_json)

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("vlm_spec_decode.serve.console").setLevel(logging.INFO)
    with interrupted_by_signals(), connected(chosen, write) as (robot, make_source):
        from vlm_spec_decode.serve.console.edge_robot import EdgeRobot

        edge = EdgeRobot(robot, make_source, mission_settings(chosen))
        try:
            with serving([edge], served) as links:
                edge.start()
                write("\n".join([*links.lines, ""]))
                if as_json:
                    found = {"url": links.url, "command": links.command, "view": links.view}
                    click.echo(json.dumps({"ready": "console", **found}))
                try:
                    threading.Event().wait()
                finally:
                    edge.halt()  # before the server, which waits for its pages
        finally:
            edge.close()
    return 0
