"""The `vsd` command: options in, one call, one JSON line or a few lines of text out. No logic lives here.

Every command imports what it runs when it runs, so that `vsd --help` is quick and a part that is not
installed fails only the command that needs it. Exit codes: 0 done, 1 the task failed, 2 wrong usage, 3 cloud
unreachable or refused, 4 robot unreachable, 130 interrupted. Errors are one line on stderr.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from vlm_spec_decode import __version__
from vlm_spec_decode.core import environment, internal_error
from vlm_spec_decode.core.errors import ActionParseError, InternalError, VsdError
from vlm_spec_decode.edge.options import strategy_option

Function = TypeVar("Function", bound=Callable[..., Any])

INTERRUPTED = 130
FOLDER = click.Path(file_okay=False, path_type=Path)
RULE = click.Choice(["coupled", "rejection"])
OBJECTIVE = click.Choice(["latency", "balanced", "cost"])
BODY = click.Choice(["kinematic", "physical"])
FILE = click.Path(dir_okay=False, path_type=Path)
ELSEWHERE = {
    "bench": ("vlm_spec_decode.bench.cli", "bench"),
    "cloud": ("vlm_spec_decode.cli.service", "cloud"),
    "edge": ("vlm_spec_decode.cli.edge", "edge"),
    "keys": ("vlm_spec_decode.cli.service", "keys"),
    "load": ("vlm_spec_decode.cli.service", "load"),
    "record": ("vlm_spec_decode.cli.record", "record"),
    "replay": ("vlm_spec_decode.cli.replay", "replay"),
    "say": ("vlm_spec_decode.cli.console", "say"),
    "stop": ("vlm_spec_decode.cli.console", "stop"),
    "top": ("vlm_spec_decode.cli.console", "top"),
    "train": ("vlm_spec_decode.train.cli", "train"),
}
"""Commands that live beside their implementation: name to module and attribute."""


class Commands(click.Group):
    """The commands below, and those of `ELSEWHERE`, which are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing its module if need be."""
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, attribute = ELSEWHERE[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment.prepare(environment.PYTHON)
    try:
        code = vsd.main(arguments, prog_name="vsd", standalone_mode=False, obj=argv is None)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return _failed(arguments, "UsageError", error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return _failed(arguments, "Interrupted", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left; there is nobody to tell.
        sys.stdout = None
        return 1
    except OSError as error:
        # Such as a full disk: nothing of ours is wrong, and it may be standard output that is full.
        return _named(arguments, type(error).__name__, str(error), 1)
    except VsdError as error:
        return _named(arguments, type(error).__name__, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the net under everything: no traceback reaches a terminal
        return _named(arguments, InternalError.__name__, internal_error.told(error), 1)


def _named(arguments: Sequence[str], name: str, text: str, code: int) -> int:
    """Say an error in one line, and once more as JSON; return its code."""
    line = " ".join(text.split())
    _complain(f"{name}: {line}")
    return _failed(arguments, name, line, code)


def _failed(arguments: Sequence[str], name: str, text: str, code: int) -> int:
    if "--json" in arguments:
        with suppress(OSError):
            click.echo(json.dumps({"error": name, "message": text, "exit_code": code}))
    return code


def _complain(text: str) -> None:
    """Print a line on stderr; a terminal that is gone changes no exit code."""
    with suppress(OSError):
        click.echo(f"vsd: {text}", err=True)


def as_json(function: Function) -> Function:
    """Give a command `--json`: its last line is then one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")(function)


def _finish(as_json: bool, document: Mapping[str, Any], text: str = "") -> None:
    if text and not as_json:
        click.echo(text)
    if as_json:
        click.echo(json.dumps(document))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vsd")
def vsd() -> None:
    """Plain language moves a Unitree Go2: a draft VLM on the robot, a cloud VLM that verifies it."""


@vsd.command()
@click.option("--instruction", default=None, help="What to do; default: walk to what stands ahead.")
@click.option("--scene-seed", type=int, default=None, help="Seed of a random room.")
@click.option("--scene", type=FILE, default=None, help="YAML file of a room.")
@click.option("--body", type=BODY, default="kinematic", show_default=True, help="How the robot moves.")
@strategy_option()
@click.option("--rule", type=RULE, default="coupled", show_default=True, help="How drafts are verified.")
@click.option(
    "--objective",
    type=OBJECTIVE,
    default="latency",
    show_default=True,
    help="What the cloud saves.",
)
@click.option(
    "--link", type=FILE, default=None, help="YAML of a link profile to emulate between robot and cloud."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of sampling and of the robot's noise."
)
@click.option(
    "--out", type=FOLDER, default=Path("out/demo"), show_default=True, help="Folder of pictures and bag."
)
@as_json
def demo(as_json: bool, **options: Any) -> int:
    """Run the main job: simulator, cloud and ROS nodes; an instruction moves the robot."""
    from vlm_spec_decode.demo.main import DemoConfig, run

    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    outcome = run(DemoConfig(**options), say)
    click.echo(json.dumps(outcome))
    return 0 if outcome["success"] else 1


@vsd.command()
@click.option("--instruction", required=True, help="What to do.")
@click.option("--image", type=FILE, default=None, help="What the robot sees; none: a language-only pair.")
@click.option("--scene-text", default="", help="What there is to see, told to a language-only pair.")
@click.option("--history", multiple=True, help="An action already carried out; may be repeated.")
@click.option("--cloud", default="", help="tcp://HOST:PORT; default: both models in this process.")
@click.option("--draft", default="", help="Draft: DIR or ID[@REV][,dtype=…,…]; default: the shipped one.")
@click.option("--target", default="", help="The same for the target, without --cloud.")
@click.option("--keys", type=FOLDER, default=None, help="Folder made by `vsd keys`.")
@strategy_option()
@click.option("--rule", type=RULE, default="coupled", show_default=True, help="How drafts are verified.")
@click.option(
    "--objective",
    type=OBJECTIVE,
    default="latency",
    show_default=True,
    help="What the cloud saves.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-tokens", type=int, default=96, show_default=True)
@click.option("--no-grammar", is_flag=True, help="Do not hold answers to the action language.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(0, 600),
    default=2.0,
    show_default=True,
    help="Seconds that a cloud where nobody listens is waited for.",
)
@as_json
def ask(
    as_json: bool,
    instruction: str,
    image: Path | None,
    scene_text: str,
    history: tuple[str, ...],
    no_grammar: bool,
    patience_s: float,
    **options: Any,
) -> int:
    """Ask once, without robot or ROS; an answer without any action ends with code 1."""
    from vlm_spec_decode.edge.ask import AskConfig, run, trouble
    from vlm_spec_decode.edge.factory import EdgeSettings

    settings = EdgeSettings(grammar=not no_grammar, **options)
    config = AskConfig(
        instruction=instruction,
        image=image,
        scene_text=scene_text,
        history=history,
        settings=settings,
        patience_s=patience_s,
    )
    found = run(config, None if as_json else lambda piece: click.echo(piece, nl=False))
    drafted = f"{found['accepted']} of {found['drafted']} drafted tokens accepted"
    text = f"\n{len(found['token_ids'])} tokens, {found['target_passes']} target passes, {drafted}"
    error, code = trouble(found), ActionParseError.exit_code
    if not error:
        _finish(as_json, found, text)
        return 0
    _finish(as_json, found | {"error": "ActionParseError", "message": error, "exit_code": code}, text)
    click.echo(f"vsd: ActionParseError: {error}", err=True)
    return code


@vsd.command()
@click.option("--scene-seed", type=int, default=0, show_default=True, help="Seed of a random room.")
@click.option("--scene", type=FILE, default=None, help="YAML file of a room.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the robot's noise.")
@click.option("--interface", default="lo", show_default=True, help="Network interface of the DDS services.")
@click.option("--domain", type=click.IntRange(0, 232), default=1, show_default=True, help="DDS domain.")
@click.option("--body", type=BODY, default="kinematic", show_default=True, help="How the robot moves.")
@click.option("--start", default="damping", show_default=True, help="lying, damping, locked or standing.")
@click.option("--fault", "faults", multiple=True, help="NAME or NAME@SECONDS…; may be repeated.")
@click.option(
    "--firmware",
    default="documented",
    show_default=True,
    help="documented, classic or renumbered state codes.",
)
@click.option("--view", type=FILE, default=None, help="PNG or GIF to save at the end.")
@click.option("--ground-truth", "truth", type=FILE, default=None, help="JSON of path and collisions.")
@click.option("--linger", "linger_s", type=float, default=0.0, help="Seconds that it stays after Ctrl-C.")
@click.option("--headless", is_flag=True, help="No DDS, virtual time: carry out --actions and end.")
@click.option("--actions", default="", help='With --headless, such as "turn(20) forward(1.6)".')
@as_json
def sim(as_json: bool, headless: bool, actions: str, **options: Any) -> int:
    """Simulate a Go2 that speaks the robot's own DDS API, until interrupted."""
    from vlm_spec_decode.sim.app import SimConfig, run, stop_signals

    config = SimConfig(**options)
    if headless:
        from vlm_spec_decode.demo.headless import carry_out

        document = carry_out(config, actions)
        _finish(as_json, document, f"{document['state']} after {document['time_s']:.1f} s of virtual time")
        return 0 if document["state"] == "done" else 1
    place = {"event": "ready", "interface": config.interface, "domain": config.domain}
    line = json.dumps(place) if as_json else f"a Go2 on {config.interface}, domain {config.domain}"
    with stop_signals() as asked:
        truth = run(config, asked, on_ready=lambda: click.echo(line))
    ended = {"event": "ended", "collisions": truth.collisions, "distances_m": truth.distances_m}
    _finish(as_json, ended, f"ended after {truth.collisions} collisions")
    return 0


@vsd.command()
@click.option("--interface", default="", help="Also look for a robot on this network interface.")
@click.option("--domain", type=click.IntRange(0, 232), default=0, show_default=True, help="Its DDS domain.")
@click.option("--cloud", "address", default="", help="Also shake hands with the cloud at tcp://HOST:PORT.")
@click.option("--keys", type=FOLDER, default=None, help="Folder made by `vsd keys`.")
@as_json
def doctor(as_json: bool, **where: Any) -> int:
    """Check that this computer has what the other commands need, and say what to do where it has not."""
    from vlm_spec_decode.cli.doctor import examine, report

    findings = examine(**where)
    lines = report(findings, bool(where["interface"]), bool(where["address"]))
    good = all(f.is_ok for f in findings)
    checks = [{"name": f.name, "ok": f.is_ok, "level": f.level, "detail": f.detail, "advice": f.advice}
              for f in findings]  # fmt: skip
    _finish(as_json, {"ok": good, "checks": checks}, "\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
