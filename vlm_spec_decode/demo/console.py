"""`vsd say`, `vsd stop` and `vsd top`: a terminal's view of running nodes, on the environment's domain."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from vlm_spec_decode.core import environment_checks
from vlm_spec_decode.core.clock import WallClock

if TYPE_CHECKING:
    from vlm_spec_decode.bridge.operator import Operator
    from vlm_spec_decode.bridge.requests import Request
    from vlm_spec_decode.bridge.teller import Teller

FIND_S = 10.0
CANCEL_S = 2.0
NAMESPACE = click.option(
    "--namespace", default="", help="Namespace of the nodes, such as /go2_a; default: none."
)


@click.command()
@click.argument("text")
@click.option("--approve", is_flag=True, help="Show every plan and ask before the robot moves.")
@click.option("--yes", is_flag=True, help="With --approve: show the plans and say yes to all.")
@click.option("--dry-run", is_flag=True, help="Show the first plan and send nothing to the robot.")
@click.option("--queue", is_flag=True, help="Wait for the mission under way instead of superseding it.")
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=180.0,
    show_default=True,
    help="Seconds until it is cancelled.",
)
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def say(
    text: str,
    approve: bool,
    yes: bool,
    dry_run: bool,
    queue: bool,
    timeout_s: float,
    namespace: str,
    as_json: bool,
) -> int:
    """Give the running nodes an instruction, show answer and progress until its end; Ctrl-C cancels it."""
    from vlm_spec_decode.bridge.requests import Request

    request = Request(text, f"say-{uuid.uuid4().hex[:12]}", approve or yes, dry_run, queue)

    def ask(plan: str) -> bool:
        return yes or click.confirm(f"carry out {plan}?", err=True)

    teller = follow(
        request, namespace, timeout_s, lambda piece: click.echo(piece, nl=False, err=as_json), ask
    )
    document = {"instruction": text, "status": teller.state, "reason": teller.reason, "detail": teller.detail,
                "steps": teller.steps, "actions": teller.actions}  # fmt: skip
    if as_json:
        click.echo(json.dumps(document | {"exit_code": teller.exit_code}))
    return teller.exit_code


@click.command()
@click.option("--release", is_flag=True, help="Release the latched stop instead.")
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def stop(release: bool, namespace: str, as_json: bool) -> int:
    """Stop the robot at once and keep it stopped (e-stop), or release it."""
    from vlm_spec_decode.bridge.operator import Operator

    operator = Operator(ros_domain(), namespace)
    try:
        done, message = operator.e_stop(not release, FIND_S)
    finally:
        operator.close()
    click.echo(json.dumps({"ok": done, "message": message}) if as_json else message)
    return 0 if done else 1


@click.command()
@click.option(
    "--seconds", type=float, default=None, help="End by itself after this long; default: at Ctrl-C."
)
@click.option("--once", is_flag=True, help="Print one view after two seconds and end.")
@click.option(
    "--cloud",
    "cloud",
    is_flag=False,
    flag_value="http://127.0.0.1:9464",
    default=None,
    help="Show a cloud's figures instead, at http://127.0.0.1:9464 or another URL of `vsd cloud --http`.",
)
@NAMESPACE
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def top(seconds: float | None, once: bool, cloud: str | None, namespace: str, as_json: bool) -> int:
    """Show mission, link, decoding and robot of the running nodes, until interrupted."""
    if cloud:
        from vlm_spec_decode.demo import top_cloud

        found = top_cloud.show(cloud, WallClock(), seconds, quiet=as_json, once=once)
        if as_json:
            click.echo(json.dumps(found))
        return 0
    from vlm_spec_decode.bridge.operator import Operator
    from vlm_spec_decode.bridge.top import Board, show

    board = Board()
    operator = Operator(ros_domain(), namespace, board.hear)
    operator.listen()
    try:
        show(operator, board, WallClock(), 2.0 if once else seconds, quiet=as_json, once=once)
    finally:
        operator.close()
    if as_json:
        click.echo(json.dumps(board.document()))
    return 0 if board.is_live else 4


def ros_domain() -> int:
    """Return ROS_DOMAIN_ID. Raises ConfigError if it is no domain."""
    return environment_checks.ros_domain(os.environ)


def follow(
    request: Request,
    namespace: str,
    timeout_s: float,
    tell: Callable[[str], None],
    ask: Callable[[str], bool],
) -> Teller:
    """Publish a request and return what became of it; whatever ends this call early cancels the mission.

    Raises RobotUnreachable if no node listens, KeyboardInterrupt after an interrupt.
    """
    from vlm_spec_decode.bridge.operator import Operator
    from vlm_spec_decode.bridge.teller import Teller

    clock, teller = WallClock(), Teller(request.mission)
    operator = Operator(ros_domain(), namespace, lambda topic, text: tell(teller.hear(topic, text)))
    operator.listen()
    try:
        operator.find(FIND_S)
        operator.ask(request)
        until_s = clock.now() + timeout_s
        while not teller.has_ended and clock.now() < until_s:
            operator.spin()
            if teller.proposed:
                plan, teller.proposed = teller.proposed, ""
                operator.answer(ask(plan), FIND_S)
        return teller
    finally:
        if not teller.has_ended:
            _call_off(operator, teller, clock)
        operator.close()


def _call_off(operator: Operator, teller: Teller, clock: WallClock) -> None:
    """Withdraw the mission and listen until it is over; then let the executor itself drop it."""
    operator.withdraw(teller.mission)
    until_s = clock.now() + CANCEL_S
    while not teller.has_ended and clock.now() < until_s:
        operator.spin()
    if not teller.has_ended and teller.steps:
        operator.cancel(CANCEL_S)
