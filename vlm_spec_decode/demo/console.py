"""`vsd say` and `vsd stop`: a word to nodes that run already, on the ROS domain of the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import click

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import RobotUnreachable, VsdError
from vlm_spec_decode.demo.story import Story

SPIN_S = 0.05
FIND_S = 10.0


@click.command()
@click.argument("text")
@click.option(
    "--timeout", "timeout_s", type=float, default=180.0, show_default=True, help="Seconds to listen."
)
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def say(text: str, timeout_s: float, as_json: bool) -> int:
    """Give the running nodes an instruction and tell what happens until it ends."""
    story = follow(text, timeout_s, lambda line: click.echo(line, err=as_json))
    document = {"instruction": text, "status": story.state, "reason": story.reason, "steps": len(story.steps)}
    if as_json:
        click.echo(json.dumps(document))
    return 0 if story.state == "done" else 1


@click.command()
@click.option("--release", is_flag=True, help="Release the latched stop instead.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def stop(release: bool, as_json: bool) -> int:
    """Stop the robot at once and keep it stopped (e-stop), or release it."""
    from vlm_spec_decode.demo.listen import call_e_stop

    done, message = call_e_stop(ros_domain(), engaged=not release, timeout_s=FIND_S)
    click.echo(json.dumps({"ok": done, "message": message}) if as_json else message)
    return 0 if done else 1


def ros_domain() -> int:
    """Return ROS_DOMAIN_ID. Raises VsdError if it is no number."""
    text = os.environ.get("ROS_DOMAIN_ID") or "0"
    if not text.isdigit():
        raise VsdError(f"ROS_DOMAIN_ID is {text!r}, which is no number")
    return int(text)


def follow(text: str, timeout_s: float, tell: Callable[[str], None]) -> Story:
    """Publish an instruction and return the mission's story. Raises RobotUnreachable if no node listens."""
    from vlm_spec_decode.demo.listen import Listener

    clock, story = WallClock(), Story()

    def said(topic: str, message: str) -> None:
        for line in story.hear(topic, message, clock.now()):
            tell(line)

    listener = Listener(ros_domain(), lambda *_: None, said)
    try:
        until_s = clock.now() + FIND_S
        while not listener.is_heard():
            if clock.now() > until_s:
                raise RobotUnreachable(f"no vlm_node listens on ROS domain {ros_domain()}")
            listener.spin(SPIN_S)
        story.give(clock.now())
        listener.instruct(text)
        until_s = clock.now() + timeout_s
        while not story.has_ended and clock.now() < until_s:
            listener.spin(SPIN_S)
        return story
    finally:
        listener.close()
