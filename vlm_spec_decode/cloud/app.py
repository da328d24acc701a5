"""The verifier's process: load the target, listen, serve until told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vlm_spec_decode.cloud.desk import CloudDesk, DeskLimits
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Model, ModelCard
from vlm_spec_decode.core.types import Language
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import assert_same_vocabulary, load_model, shipped
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.keys import cloud_keys
from vlm_spec_decode.transport.router import RouterLink


@dataclass(frozen=True, slots=True)
class CloudConfig:
    """Where to listen and what to serve.

    `model` is a folder or Hub id, by default the shipped target; `draft` names a copy of the draft to run
    beside it ("shipped" for the shipped one). Without `keys` only `insecure` on a
    loopback address is served. `language` is what answers are held to; robots must share it.
    """

    language: Language
    bind: str = "tcp://127.0.0.1:5557"
    model: str = ""
    draft: str = ""
    keys: Path | None = None
    insecure: bool = False
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    max_sessions: int = 64


def check(config: CloudConfig) -> None:
    """Find what is wrong with a config before anything is loaded. Raises ConfigError."""
    addresses.split(config.bind)
    if config.keys:
        cloud_keys(config.keys)
    elif not config.insecure:
        raise ConfigError("no keys: give --keys DIR (`vsd keys DIR` makes them), or --insecure on loopback")
    else:
        addresses.require_loopback(config.bind)


def build(config: CloudConfig) -> CloudServer:
    """Load the target and listen. Raises ConfigError, ModelError or CloudError."""
    check(config)
    clock = WallClock()
    keys = cloud_keys(config.keys) if config.keys else None
    link = RouterLink(config.bind, keys)
    try:
        target = load_model(
            config.model or shipped("target"),
            revision=config.revision,
            dtype=config.dtype,
            device=config.device,
            threads=config.threads,
        )
        held = constrained(target, target.codec, config.language)
        helper = _helper(config, target.card)
    except BaseException:
        link.close()
        raise
    desk = CloudDesk(target.card, config.language.digest, DeskLimits(sessions=config.max_sessions))
    return CloudServer(link, desk, held, clock, helper)


def _helper(config: CloudConfig, card: ModelCard) -> Model | None:
    if not config.draft:
        return None
    draft = load_model(
        shipped("draft") if config.draft == "shipped" else config.draft,
        dtype=config.dtype,
        device=config.device,
        threads=config.threads,
    )
    assert_same_vocabulary(draft.card, card)
    return constrained(draft, draft.codec, config.language)


def run(config: CloudConfig, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` gets address and model once robots are welcome."""
    server = build(config)
    card = server.desk.card
    ready = {"address": server.address, "model": card.model_id, "revision": card.revision}
    with _stopped_by_signals(server.stop):
        on_ready({**ready, "encrypted": config.keys is not None})
        server.serve()


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM for as long as the block runs; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signum: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
