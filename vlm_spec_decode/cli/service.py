"""The service and its clients: `vsd cloud`, `front`, `ask`, `load`, `keys`. Options in, a call, lines out."""

from __future__ import annotations

import atexit
import gc
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vlm_spec_decode.bench.settings import LoadConfig, RobotBehaviour
from vlm_spec_decode.cloud.config import CloudConfig, FrontConfig
from vlm_spec_decode.core.config import digest, effective
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.load_progress import importing
from vlm_spec_decode.core.options import FILE, FOLDER, as_json, finish, option, options
from vlm_spec_decode.edge.settings import EdgeSettings


@click.command()
@click.option("--instruction", required=True, help="What to do.")
@click.option("--image", type=FILE, default=None, help="What the robot sees; none: a language-only pair.")
@click.option("--scene-text", default="", help="What there is to see, told to a language-only pair.")
@click.option("--history", multiple=True, help="An action already carried out; may be repeated.")
@options(
    EdgeSettings,
    "cloud",
    "cloud_choice",
    "draft",
    "target",
    "keys",
    "strategy",
    "rule",
    "objective",
    keys=FOLDER,
)
@options(EdgeSettings, "temperature", "seed", "max_tokens", "draft_length", "threads", "grammar")
@options(EdgeSettings, "image_budget_s")
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
    with importing():
        from vlm_spec_decode.edge.ask import AskConfig, run, why_not_actionable

    config = AskConfig(
        instruction=instruction,
        image=image,
        scene_text=scene_text,
        history=history,
        settings=EdgeSettings(**given),
    )
    found = run(config, None if as_json else lambda piece: click.echo(piece, nl=False))
    text = f"\n{len(found['token_ids'])} tokens, {found['target_passes']} target passes"
    if found["drafted"]:  # a copy's drafts in the cloud are not counted here
        text += f", {found['accepted']} of {found['drafted']} drafted tokens accepted"
    error, code = why_not_actionable(found), ActionParseError.exit_code
    if error:
        found |= {"error": "ActionParseError", "message": error, "exit_code": code}
    finish(as_json, found, text)
    if error:
        click.echo(f"vsd: ActionParseError: {error}", err=True)
    return code if error else 0


class EngineName(click.ParamType):  # type: ignore[type-arg]
    """Name of an engine. Help shows the registered names; the code that uses a name checks it."""

    name = "engine"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Return the names, as help shows a choice."""
        from vlm_spec_decode.models.registry import ENGINES

        return f"[{'|'.join(ENGINES)}]"


@click.command()
@click.option("--config", "file", type=FILE, default=None, help="YAML of settings; options here win over it.")
@options(CloudConfig, keys=FOLDER)
@click.option(
    "--check-config", is_flag=True, help="Say whether the settings hold, and a named draft fits, then end."
)
@as_json
@click.pass_context
def cloud(ctx: click.Context, /, as_json: bool, check_config: bool, file: Path | None, **given: Any) -> None:
    """Serve the target model to robots until interrupted."""
    from vlm_spec_decode.actions.grammar import language
    from vlm_spec_decode.cloud.config import DRAFT_AUTO, DRAFT_NONE, check, read_file

    settings = _explicit_options(ctx, given)
    if file:
        settings = read_file(file) | settings
    config = CloudConfig(language=language(settings.get("grammar", True)), **settings)
    check(config)
    if check_config:
        if config.draft not in (DRAFT_AUTO, DRAFT_NONE):
            with importing():
                from vlm_spec_decode.cloud.own_draft import check_draft
            check_draft(config)
        _show_config(as_json, config)
        return
    from vlm_spec_decode.cloud.telemetry.logs import logging_to_stderr

    with logging_to_stderr(config.log_format, config.log_level), importing():
        from vlm_spec_decode.cloud.app import run
        from vlm_spec_decode.models.registry import ENGINES

        if not config.replicas and config.engine in ENGINES:
            ENGINES.find(config.engine)

    def ready(found: dict[str, Any]) -> None:
        _show_ready(as_json, f"serving {found['model']} on {found['address']}", found)

    def read_replicas() -> int:
        return int(read_file(file).get("replicas", config.replicas)) if file else config.replicas

    # Everything is freed by then, so skip the garbage collection of torch's objects, which takes seconds.
    atexit.register(gc.freeze)
    run(config, ready, read_replicas if file else None)
    finish(as_json, {"event": "ended"}, "ended")


@click.command()
@click.option("--config", "file", type=FILE, default=None, help="YAML of settings; options here win over it.")
@options(FrontConfig, keys=FOLDER)
@click.option("--check-config", is_flag=True, help="Say whether the settings hold, then end.")
@as_json
@click.pass_context
def front(ctx: click.Context, /, as_json: bool, check_config: bool, file: Path | None, **given: Any) -> None:
    """Carry robots' connections for clouds behind, beside other fronts at the same address."""
    from vlm_spec_decode.cloud.config import check_front, read_file

    settings = _explicit_options(ctx, given)
    config = FrontConfig(**((read_file(file, FrontConfig) if file else {}) | settings))
    check_front(config)
    if check_config:
        _show_config(as_json, config)
        return
    from vlm_spec_decode.cloud.front import run
    from vlm_spec_decode.cloud.telemetry.logs import logging_to_stderr

    def ready(found: dict[str, Any]) -> None:
        _show_ready(as_json, f"a front of {', '.join(found['clouds'])} on {found['address']}", found)

    with logging_to_stderr(config.log_format, config.log_level):
        run(config, ready)
    finish(as_json, {"event": "ended"}, "ended")


@click.command()
@option(LoadConfig, "cloud", required=True)
@options(LoadConfig, "robots", "seconds", "questions", "keys", keys=FOLDER)
@click.option("--draft", default="", help="Whose tokenizer the robots have; default: the shipped draft.")
@options(RobotBehaviour, "strategy", "acceptance")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Longest answer.")
@option(LoadConfig, "seed")
@click.option("--json", "as_json", is_flag=True, help="Nothing but the line of JSON.")
def load(as_json: bool, draft: str, strategy: str, acceptance: float, max_tokens: int, **given: Any) -> int:
    """Put synthetic robots on a cloud of this machine; ends with one line of JSON."""
    from vlm_spec_decode.bench import load as loads
    from vlm_spec_decode.core.clock import WallClock

    config = LoadConfig(behaviour=RobotBehaviour(strategy=strategy, acceptance=acceptance), **given)
    identity, questions = loads.shipped_identity(draft, max_tokens)
    found = loads.load(config, questions, identity, WallClock()).report()
    if not as_json:
        click.echo(loads.format_report(found))
    click.echo(json.dumps(found))
    return 0 if found["right"] and not found["wrong"] else 1


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--robot", default="", help="Name of one more robot to make keys for, in FOLDER/robots/NAME.")
@click.option("--overwrite", is_flag=True, help="Replace keys that are there; robots need the new ones.")
@as_json
def keys(as_json: bool, folder: Path, robot: str, overwrite: bool) -> None:
    """Make CURVE keys for a cloud and a robot in FOLDER, or for one more robot of a cloud that runs."""
    from vlm_spec_decode.transport.keys import add_robot, generate

    made = add_robot(folder, robot) if robot else generate(folder, overwrite)
    files = [str(file) for file in made]
    finish(as_json, {"folder": str(folder), "files": files}, "\n".join(files))


def _explicit_options(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options given on the command line, without defaults."""
    left = ParameterSource.DEFAULT
    return {name: value for name, value in options.items() if ctx.get_parameter_source(name) is not left}


def _show_ready(as_json: bool, text: str, found: dict[str, Any]) -> None:
    """Say that robots are let in, where health is told, and all of `found` as JSON."""
    lock = "CURVE" if found["encrypted"] else "plaintext"
    health = f", health and metrics on {found['http']}" if found["http"] else ""
    click.echo(json.dumps({"event": "ready"} | found) if as_json else f"{text} ({lock}){health}")


def _show_config(as_json: bool, config: CloudConfig | FrontConfig) -> None:
    """Print the valid settings, after file, options and defaults."""
    found = effective(config)
    lines = [f"{name}: {'' if value is None else value}" for name, value in found.items()]
    document = {"bind": config.bind, "ok": True, "digest": digest(found), "config": found}
    finish(as_json, document, "\n".join([*lines, f"the settings hold; their digest is {digest(found)}"]))
