"""The commands of the service: `vsd cloud`, `vsd load`, `vsd keys`. Options in, one call, lines out."""

from __future__ import annotations

import atexit
import gc
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vlm_spec_decode.edge.options import strategy_option

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


class EngineName(click.ParamType):  # type: ignore[type-arg]
    """Name of an engine. Help shows those that are registered; whoever uses a name checks it."""

    name = "engine"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Return the names, as help shows a choice."""
        from vlm_spec_decode.models.registry import ENGINES

        return f"[{'|'.join(ENGINES)}]"


@click.command()
@click.option("--config", "file", type=FILE, default=None, help="YAML of settings; options here win over it.")
@click.option(
    "--bind", default="tcp://127.0.0.1:5557", show_default=True, help="tcp://HOST:PORT to listen on."
)
@click.option(
    "--model", default="", help="Target: DIR or ID[@REV][,dtype=…,device=…,quantize=…,exits=25/50/75]."
)
@click.option("--draft", default="", help="Copy of the draft beside it: a folder, a hub id or `shipped`.")
@click.option("--revision", default=None, help="Revision of a hub id.")
@click.option("--keys", type=FOLDER, default=None, help="Folder made by `vsd keys`.")
@click.option("--insecure", is_flag=True, help="Plaintext, on a loopback address only.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--engine", type=EngineName(), default="torch_loop", show_default=True, help="Runs the target.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--max-sessions", type=click.IntRange(1), default=64, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Answers in one pass.")
@click.option("--kv-mib", type=click.IntRange(1), default=4096, show_default=True, help="Memory of caches.")
@click.option("--no-grammar", is_flag=True, help="Do not hold answers to the action language.")
@click.option(
    "--http",
    default="auto",
    show_default=True,
    help="Health and metrics: loopback HOST:PORT, `off`, or `auto`: 127.0.0.1:9464, else a free port.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
)
@click.option("--log-content", is_flag=True, help="Put instructions into the log; images never are.")
@click.option("--replicas", type=click.IntRange(0), default=0, show_default=True, help="Copies, by Ray.")
@click.option("--replica-cpus", type=float, default=1.0, show_default=True, help="Cores of each.")
@click.option("--replica-gpus", type=float, default=0.0, show_default=True, help="GPUs of each.")
@click.option("--ray-address", default="", help="Of a Ray cluster; default: one on this machine.")
@click.option("--check-config", is_flag=True, help="Say whether the settings hold, then end.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.pass_context
def cloud(
    ctx: click.Context, /, as_json: bool, check_config: bool, file: Path | None, **options: Any
) -> None:
    """Serve the target model to robots until interrupted."""
    from vlm_spec_decode.actions.grammar import language
    from vlm_spec_decode.cloud.config import CloudConfig, check, read_file

    settings = _given(ctx, options)
    if file:
        settings = read_file(file) | settings
    config = CloudConfig(language=language(settings.pop("grammar", True)), **settings)
    check(config)
    if check_config:
        _say(as_json, {"bind": config.bind, "ok": True}, "the settings hold")
        return
    from vlm_spec_decode.cloud.app import run

    def ready(found: dict[str, Any]) -> None:
        lock = "CURVE" if found["encrypted"] else "plaintext"
        health = f", health and metrics on {found['http']}" if found["http"] else ""
        text = f"serving {found['model']} on {found['address']} ({lock}){health}"
        click.echo(json.dumps({"event": "ready"} | found) if as_json else text)

    def read_replicas() -> int:
        return int(read_file(file).get("replicas", config.replicas)) if file else config.replicas

    # All has been freed by then: torch's objects need not be searched for garbage, which takes seconds.
    atexit.register(gc.freeze)
    run(config, ready, read_replicas if file else None)
    _say(as_json, {"event": "ended"}, "ended")


@click.command()
@click.option("--cloud", "address", required=True, help="tcp://127.0.0.1:PORT; loopback only.")
@click.option("--robots", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True)
@click.option("--questions", type=click.IntRange(1), default=None, help="End after so many in all.")
@click.option("--keys", type=FOLDER, default=None, help="Folder made by `vsd keys`.")
@click.option("--draft", default="", help="Whose tokenizer the robots have; default: the shipped draft.")
@strategy_option(default="speculative")
@click.option("--acceptance", type=float, default=0.8, show_default=True, help="Share of right drafts.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Nothing but the line of JSON.")
def load(
    as_json: bool, address: str, draft: str, strategy: str, acceptance: float, max_tokens: int, **options: Any
) -> int:
    """Put synthetic robots on a cloud of this machine; ends with one line of JSON."""
    from vlm_spec_decode.bench import load as loads
    from vlm_spec_decode.bench.load import told
    from vlm_spec_decode.bench.load_robots import RobotBehaviour
    from vlm_spec_decode.core.clock import WallClock

    config = loads.LoadConfig(
        cloud=address, manner=RobotBehaviour(strategy=strategy, acceptance=acceptance), **options
    )
    speech, questions = loads.shipped_speech(draft, max_tokens)
    found = loads.load(config, questions, speech, WallClock()).report()
    if not as_json:
        click.echo(told(found))
    click.echo(json.dumps(found))
    return 0 if found["right"] and not found["wrong"] else 1


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--robot", default="", help="Name of one more robot to make keys for, in FOLDER/robots/NAME.")
@click.option("--overwrite", is_flag=True, help="Replace keys that are there; robots need the new ones.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def keys(as_json: bool, folder: Path, robot: str, overwrite: bool) -> None:
    """Make CURVE keys for a cloud and a robot in FOLDER, or for one more robot of a cloud that runs."""
    from vlm_spec_decode.transport.keys import add_robot, generate

    made = add_robot(folder, robot) if robot else generate(folder, overwrite)
    files = [str(file) for file in made]
    _say(as_json, {"folder": str(folder), "files": files}, "\n".join(files))


def _given(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return what the command line says, without what it leaves to defaults or a file."""
    left = ParameterSource.DEFAULT
    settings = {name: value for name, value in options.items() if ctx.get_parameter_source(name) is not left}
    if settings.pop("no_grammar", False):
        settings["grammar"] = False
    return settings


def _say(as_json: bool, document: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(document) if as_json else text)
