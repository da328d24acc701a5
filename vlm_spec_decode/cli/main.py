"""The `vsd` command: options in, one call, one JSON line or a few lines of text out. No logic lives here.

Every command imports what it runs when it runs, so that `vsd --help` is quick and a part that is not
installed fails only the command that needs it. Exit codes: 0 done, 1 the task failed, 2 wrong usage, 3 cloud
unreachable or refused, 4 robot unreachable, 130 interrupted. Errors are one line on stderr.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vlm_spec_decode import __version__
from vlm_spec_decode.core import environment, internal_error
from vlm_spec_decode.core.errors import ActionParseError, InternalError, VsdError
from vlm_spec_decode.core.options import FILE, FOLDER, as_json, finish, option, options, table
from vlm_spec_decode.edge.settings import EdgeSettings

INTERRUPTED = 130
ELSEWHERE = {
    "bench": ("vlm_spec_decode.bench.cli", "bench"),
    "cloud": ("vlm_spec_decode.cli.service", "cloud"),
    "demo": ("vlm_spec_decode.cli.simulation", "demo"),
    "doctor": ("vlm_spec_decode.cli.doctor", "doctor"),
    "keys": ("vlm_spec_decode.cli.service", "keys"),
    "load": ("vlm_spec_decode.cli.service", "load"),
    "record": ("vlm_spec_decode.cli.recordings", "record"),
    "replay": ("vlm_spec_decode.cli.recordings", "replay"),
    "say": ("vlm_spec_decode.cli.console", "say"),
    "sim": ("vlm_spec_decode.cli.simulation", "sim"),
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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vsd")
def vsd() -> None:
    """Plain language moves a Unitree Go2: a draft VLM on the robot, a cloud VLM that verifies it."""


@vsd.command()
@click.option("--instruction", required=True, help="What to do.")
@click.option("--image", type=FILE, default=None, help="What the robot sees; none: a language-only pair.")
@click.option("--scene-text", default="", help="What there is to see, told to a language-only pair.")
@click.option("--history", multiple=True, help="An action already carried out; may be repeated.")
@options(EdgeSettings, "cloud", "draft", "target", "keys", "strategy", "rule", "objective", keys=FOLDER)
@options(EdgeSettings, "temperature", "seed", "max_tokens", "draft_length", "threads", "grammar")
@option(EdgeSettings, "refused_s", "--patience")
@as_json
def ask(
    as_json: bool,
    instruction: str,
    image: Path | None,
    scene_text: str,
    history: tuple[str, ...],
    **given: Any,
) -> int:
    """Ask once, without robot or ROS; an answer without any action ends with code 1."""
    from vlm_spec_decode.edge.ask import AskConfig, run, trouble

    config = AskConfig(
        instruction=instruction,
        image=image,
        scene_text=scene_text,
        history=history,
        settings=EdgeSettings(**given),
    )
    found = run(config, None if as_json else lambda piece: click.echo(piece, nl=False))
    drafted = f"{found['accepted']} of {found['drafted']} drafted tokens accepted"
    text = f"\n{len(found['token_ids'])} tokens, {found['target_passes']} target passes, {drafted}"
    error, code = trouble(found), ActionParseError.exit_code
    if error:
        found |= {"error": "ActionParseError", "message": error, "exit_code": code}
    finish(as_json, found, text)
    if error:
        click.echo(f"vsd: ActionParseError: {error}", err=True)
    return code if error else 0


@vsd.command(hidden=True)
@click.pass_context
def options_page(ctx: click.Context) -> None:
    """Print docs/options.md: every option of every command."""
    lines = [
        "# Options of the commands",
        "",
        "Written by `vsd options-page` from the settings themselves. `--json`, which most commands take,",
        "makes the last line one JSON document.",
        "",
        "The keys of the file of `vsd cloud --config` are its options with _ for -, and `grammar: false` for",
        "`--no-grammar`. `vsd cloud --check-config` shows what holds, and its digest.",
    ]
    for name, command in _leaves(vsd, "vsd", ctx):
        lines += table(command, name)
    click.echo("\n".join(lines))


def _leaves(group: click.Group, name: str, ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands that people see, with their full names."""
    for each in group.list_commands(ctx):
        command = group.get_command(ctx, each)
        if command is None or command.hidden:
            continue
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{name} {each}", command
        if isinstance(command, click.Group):
            yield from _leaves(command, f"{name} {each}", ctx)


if __name__ == "__main__":
    sys.exit(main())
