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

import click

from vlm_spec_decode import __version__
from vlm_spec_decode.cli.load_line import load_lines
from vlm_spec_decode.core import environment, extras, internal_error, interrupts
from vlm_spec_decode.core.errors import InternalError, VsdError

INTERRUPTED = 130
COMMANDS = {
    "ask": ("cli.service", "Ask once, without robot or ROS."),
    "bench": ("bench.cli", "Compare strategies over profiles, links and pairs."),
    "build-msgs": ("cli.build_msgs", "Build the ROS 2 messages for rclpy from PyPI."),
    "cloud": ("cli.service", "Serve the target model to robots until interrupted."),
    "console": ("cli.web_console", "Serve a page to see and command a robot, without ROS."),
    "demo": ("cli.simulation", "Run the main job: simulator, cloud and ROS nodes."),
    "doctor": ("cli.doctor", "Check that this computer has what the other commands need."),
    "edge": ("cli.edge", "Carry out instructions on this computer, without ROS."),
    "front": ("cli.service", "Carry robots' connections for clouds behind, beside other fronts."),
    "keys": ("cli.service", "Make CURVE keys for a cloud and its robots."),
    "load": ("cli.service", "Put synthetic robots on a cloud of this machine."),
    "record": ("cli.recordings", "Record the topics of running nodes into a bag."),
    "replay": ("cli.recordings", "Ask again about the frames of recorded walks."),
    "say": ("cli.console", "Give the running nodes an instruction."),
    "serve": ("cli.serve", "Serve an OpenAI-compatible endpoint over the engine."),
    "sim": ("cli.simulation", "Simulate a Go2 that speaks the robot's own DDS API."),
    "stop": ("cli.console", "Stop the robot at once and keep it stopped (e-stop)."),
    "top": ("cli.console", "Show mission, link, decoding and robot of the running nodes."),
    "train": ("train.cli", "Make the shipped models."),
}
"""The commands: the module with the function of that name, and the line in the list of commands."""


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is used; the list of them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing its module if necessary."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        with interrupts.keep_interrupts():
            module = importlib.import_module(f"vlm_spec_decode.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands into the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in sorted(COMMANDS.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment.prepare(environment.PYTHON)
    try:
        with load_lines(), extras.translate_missing():
            code = vsd.main(arguments, prog_name="vsd", standalone_mode=False, obj=argv is None)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return _print_json_error(arguments, "UsageError", error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _print_error("interrupted")
        return _print_json_error(arguments, "Interrupted", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has closed the pipe, so nothing can be printed.
        sys.stdout = None
        return 1
    except OSError as error:
        # Such as a full disk: no fault of this program; stdout itself may be on that disk.
        return _report_error(arguments, type(error).__name__, str(error), 1)
    except VsdError as error:
        return _report_error(arguments, type(error).__name__, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last handler: no traceback reaches a terminal
        return _report_error(
            arguments, InternalError.__name__, internal_error.describe_internal_error(error), 1
        )


def _report_error(arguments: Sequence[str], name: str, text: str, code: int) -> int:
    """Print an error in one line, with `--json` once more as JSON; return its exit code."""
    line = " ".join(text.split())
    _print_error(f"{name}: {line}")
    return _print_json_error(arguments, name, line, code)


def _print_json_error(arguments: Sequence[str], name: str, text: str, code: int) -> int:
    if "--json" in arguments:
        with suppress(OSError):
            click.echo(json.dumps({"error": name, "message": text, "exit_code": code}))
    return code


def _print_error(text: str) -> None:
    """Print a line on stderr; a closed terminal does not change the exit code."""
    with suppress(OSError):
        click.echo(f"vsd: {text}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vsd")
def vsd() -> None:
    """Plain language moves a Unitree Go2: a draft VLM on the robot, a cloud VLM that verifies it."""


@vsd.command(hidden=True)
@click.pass_context
def options_page(ctx: click.Context) -> None:
    """Print docs/options.md: every option of every command."""
    from vlm_spec_decode.core.options import table

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
    """Yield the commands that are not hidden, with their full names."""
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
