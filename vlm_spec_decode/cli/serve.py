"""`vsd serve`: the OpenAI-compatible endpoint of this computer's engine."""

from __future__ import annotations

import atexit
import gc
import json
from typing import TYPE_CHECKING, Any

import click

from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.load_progress import importing
from vlm_spec_decode.core.options import FILE, FOLDER, as_json, finish, options
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.serve.openai_api.settings import ServeSettings

if TYPE_CHECKING:
    from vlm_spec_decode.mission.state import MissionStatus


@click.command()
@click.argument("cloud", default="")
@click.option("--local", "is_local", is_flag=True, help="Both models here, without a cloud.")
@options(ServeSettings, api_keys=FILE, tls_cert=FILE, tls_key=FILE)
@options(
    EdgeSettings, "cloud_choice", "keys", "draft", "target", "strategy", "rule", "objective", keys=FOLDER
)
@options(
    EdgeSettings, "temperature", "seed", "max_tokens", "draft_length", "draft_budget", "threads", "grammar"
)
@options(EdgeSettings, "image_budget_s", "answer_timeout_s")
@as_json
def serve(as_json: bool, cloud: str, is_local: bool, **given: Any) -> None:
    """Serve an OpenAI-compatible endpoint: draft here, target in the CLOUD (tcp://HOST:PORT), or --local.

    A cloud that is away is tried again; meanwhile requests get 503, or by --fallback draft answers of the
    draft alone.
    """
    if bool(cloud) == is_local:
        raise ConfigError("name a cloud (tcp://HOST:PORT), or --local for both models here; one of both")
    own = {name: given.pop(name) for name in settings_of(ServeSettings)}
    with importing():
        from vlm_spec_decode.serve.openai_api.server import OpenAiServer, edge_timing

    settings = ServeSettings(**own)
    timing = edge_timing(settings.link_silence_s, settings_of(EdgeSettings)["connect_timeout_s"].default)
    edge = EdgeSettings(cloud=cloud, timing=timing, **given)

    def report(status: MissionStatus) -> None:
        if status.state == "unavailable":
            click.echo(f"the cloud: {status.detail}", err=True)

    server = OpenAiServer(settings, edge, report)
    names = [name for name in server.endpoint.names.known if name]
    found = {"event": "ready", "url": server.url, "models": names, "cloud": cloud}
    shown = ", ".join(names) or "a model that the cloud will name"
    click.echo(json.dumps(found) if as_json else f"serving {shown} on {server.url}/v1")
    # Everything is freed by then, so skip the garbage collection of torch's objects, which takes seconds.
    atexit.register(gc.freeze)
    server.serve()
    finish(as_json, {"event": "ended"}, "ended")
