"""The verifier's process: load the target, listen, serve until told to stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

from vlm_spec_decode.cloud.config import CloudConfig, ServerLimits, check
from vlm_spec_decode.cloud.protocol import MessageTracer, ServerProtocol
from vlm_spec_decode.cloud.replicas.pool import ReplicaPool, join_cluster
from vlm_spec_decode.cloud.replicas.server import ReplicatedServer
from vlm_spec_decode.cloud.server import CloudServer, Server
from vlm_spec_decode.cloud.telemetry.metrics import Gauges, ServiceTelemetry, inside_of
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudError, ConfigError
from vlm_spec_decode.core.ports import Clock, Model, ModelCard
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import assert_same_vocabulary, load_model, shipped
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.in_process import ServerLink
from vlm_spec_decode.transport.keys import cloud_keys
from vlm_spec_decode.transport.router import RouterLink

FIRST_REPLICA_S = 600.0
"""How long the first replica may take: Ray must find room for it, and it must load the target."""

log = logging.getLogger(__name__)


def build(config: CloudConfig) -> tuple[Server, ServiceTelemetry]:
    """Load the target and listen, or have replicas load it. Raises ConfigError, ModelError or CloudError."""
    check(config)
    clock = WallClock()
    ray = join_cluster(config.ray_address) if config.replicas else None
    share = KeyLimits(config.key_robots, config.key_messages_per_s)
    link = RouterLink(config.bind, cloud_keys(config.keys) if config.keys else None, share)
    try:
        return _replicated(config, ray, link, clock) if config.replicas else _single(config, link, clock)
    except BaseException:
        link.close()
        raise


def _single(config: CloudConfig, link: RouterLink, clock: Clock) -> tuple[CloudServer, ServiceTelemetry]:
    target = _target(config)
    operations = ServiceTelemetry(config, target.card, clock)
    server = serve_on(config, link, target, operations.observer)
    operations.gauges = lambda: _gauges(server, link)
    return server, operations


def _replicated(
    config: CloudConfig, ray: Any, link: RouterLink, clock: Clock
) -> tuple[ReplicatedServer, ServiceTelemetry]:
    make = partial(serve_on, config)
    cpus, gpus = config.replica_cpus, config.replica_gpus
    server = ReplicatedServer(link, lambda wake: ReplicaPool(ray, make, cpus, gpus, wake), clock)
    server.scale(config.replicas)
    try:
        operations = ServiceTelemetry(config, server.wait_for_first(FIRST_REPLICA_S), clock)
    except BaseException:
        server.pool.close()
        raise
    operations.gauges = lambda: _with_guard(server.gauges(), link)
    server.trace(operations.observer)
    return server, operations


def serve_on(
    config: CloudConfig,
    link: ServerLink,
    target: LoadedModel | None = None,
    tracer: MessageTracer | None = None,
) -> CloudServer:
    """Load what the config names and put a server on the link. Raises ModelError."""
    target = target or _target(config)
    helper = _helper(config, target.card)
    limits = ServerLimits(sessions=config.max_sessions, batch=config.batch, kv_bytes=config.kv_mib << 20)
    protocol = ServerProtocol(target.card, config.language.digest, limits, tracer=tracer or MessageTracer())
    held = constrained(target, target.codec, config.language)
    return CloudServer(link, protocol, held, WallClock(), helper)


def _target(config: CloudConfig) -> LoadedModel:
    return load_model(
        config.model or shipped("target"),
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        threads=config.threads,
        engine=config.engine,
    )


def _gauges(server: CloudServer, link: RouterLink) -> Gauges:
    protocol = server.protocol
    held, counted = inside_of(protocol.stats)
    return Gauges(
        sessions=len(protocol.entries),
        peers=protocol.peers,
        unroutable=link.unroutable,
        is_ready=not server.is_stopping,
        dropped=dict(protocol.dropped),
        more=held,
        counts=counted,
    )


def _with_guard(gauges: Gauges, link: RouterLink) -> Gauges:
    return replace(gauges, dropped={**gauges.dropped, **link.guard.dropped})


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


def run(
    config: CloudConfig,
    on_ready: Callable[[dict[str, Any]], None],
    read_replicas: Callable[[], int] | None = None,
) -> None:
    """Serve until SIGTERM, which drains, or SIGINT or a second SIGTERM, which end at once.

    `on_ready` gets address and model once robots are welcome.
    At SIGHUP `read_replicas` says how many replicas there are to be from then on.
    """
    with _scaled_by_signal(read_replicas) as scaled:
        server, operations = build(config)
        scaled(server)
        _serve(config, server, operations, on_ready)


def _serve(
    config: CloudConfig,
    server: Server,
    operations: ServiceTelemetry,
    on_ready: Callable[[dict[str, Any]], None],
) -> None:
    with _ended_by_signals(server.drain, server.stop):
        try:
            with operations.around() as url:
                found = {"address": server.address, "model": operations.card.model_id}
                found |= {"revision": operations.card.revision, "http": url}
                on_ready({**found, "encrypted": config.keys is not None, "replicas": config.replicas})
                server.serve()
        except CloudError:
            # A server that is to stop serves nobody, and frees what it holds.
            server.stop()
            server.serve()
            raise


@contextmanager
def _scaled_by_signal(
    read_replicas: Callable[[], int] | None,
) -> Iterator[Callable[[Server], None]]:
    """Read the number of replicas again at SIGHUP; a file that no longer holds changes nothing.

    Gives what takes the server once it has loaded. A SIGHUP before that ends nothing and counts then.
    """
    servers: list[Server] = []
    early: list[int] = []

    def handle(signum: int, _frame: FrameType | None) -> None:
        if not servers:
            early.append(signum)
            return
        try:
            wanted = read_replicas() if read_replicas else 0
            if isinstance(servers[0], ReplicatedServer):
                servers[0].scale(max(1, wanted))
        except ConfigError as error:
            log.warning("settings not read again: %s", error)

    def scaled(server: Server) -> None:
        servers.append(server)
        if early:
            handle(early[0], None)

    if read_replicas is None or threading.current_thread() is not threading.main_thread():
        yield scaled
        return
    before = signal.signal(signal.SIGHUP, handle)
    try:
        yield scaled
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def _ended_by_signals(drain: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Call `drain` on SIGTERM and `stop` on SIGINT for as long as the block runs; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, _frame: FrameType | None) -> None:
        drain() if signum == signal.SIGTERM else stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
