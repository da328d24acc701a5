"""The verifier's process: load the target, listen, serve until told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vlm_spec_decode.cloud.config import CloudConfig, check
from vlm_spec_decode.cloud.desk import CloudDesk, DeskLimits
from vlm_spec_decode.cloud.metrics import Gauges
from vlm_spec_decode.cloud.operations import Operations
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudError
from vlm_spec_decode.core.ports import Model, ModelCard
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import assert_same_vocabulary, load_model, shipped
from vlm_spec_decode.transport.keys import cloud_keys
from vlm_spec_decode.transport.router import RouterLink


def build(config: CloudConfig) -> tuple[CloudServer, Operations]:
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
    operations = Operations(config, target.card, link, clock)
    server = CloudServer(operations.link, desk, held, clock, helper)
    operations.gauges = lambda: _gauges(server, link)
    return server, operations


def _gauges(server: CloudServer, link: RouterLink) -> Gauges:
    desk = server.desk
    return Gauges(len(desk.entries), desk.peers, link.unroutable, not server.is_stopping, dict(desk.dropped))


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
    server, operations = build(config)
    card = server.desk.card
    ready = {"address": server.address, "model": card.model_id, "revision": card.revision}
    with _stopped_by_signals(server.stop):
        try:
            with operations.around() as url:
                on_ready({**ready, "encrypted": config.keys is not None, "http": url})
                server.serve()
        except CloudError:
            # A server that is to stop serves nobody, and frees what it holds.
            server.stop()
            server.serve()
            raise


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
