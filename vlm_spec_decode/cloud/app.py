"""The verifier's process: load the target, listen, serve until a signal stops it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, TypeAlias

from vlm_spec_decode.cloud.config import CloudConfig, ServerLimits, check
from vlm_spec_decode.cloud.own_draft import load_target, own_draft
from vlm_spec_decode.cloud.protocol import MessageTracer, ServerProtocol
from vlm_spec_decode.cloud.replicas.pool import ReplicaPool, join_cluster
from vlm_spec_decode.cloud.replicas.server import ReplicatedServer
from vlm_spec_decode.cloud.server import CloudServer, Server, ended_by_signals
from vlm_spec_decode.cloud.telemetry.logs import logging_to_stderr
from vlm_spec_decode.cloud.telemetry.metrics import Gauges, ServiceTelemetry, gauges_and_counters
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudError, ConfigError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.profiles import load_hardware
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.paced import paced_copy, paced_target
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.in_process import ServerLink
from vlm_spec_decode.transport.keys import cloud_keys
from vlm_spec_decode.transport.router import RouterLink
from vlm_spec_decode.transport.trunk import TrunkLink

FIRST_REPLICA_S = 600.0
"""How long the first replica may take to start: Ray must place it, and it must load the target."""

RobotsLink: TypeAlias = RouterLink | TrunkLink
"""Where robots come from: directly, or by fronts."""

log = logging.getLogger(__name__)


def build(config: CloudConfig) -> tuple[Server, ServiceTelemetry]:
    """Load the target and listen, or have replicas load it. Raises ConfigError, ModelError or CloudError."""
    check(config)
    clock = WallClock()
    ray = join_cluster(config.ray_address) if config.replicas else None
    keys = cloud_keys(config.keys) if config.keys else None
    key_limits = KeyLimits(config.key_robots, config.key_messages_per_s)
    link = TrunkLink(config.bind, keys) if config.fronts else RouterLink(config.bind, keys, key_limits)
    try:
        return _replicated(config, ray, link, clock) if config.replicas else _single(config, link, clock)
    except BaseException:
        link.close()
        raise


def _single(config: CloudConfig, link: RobotsLink, clock: Clock) -> tuple[CloudServer, ServiceTelemetry]:
    models = load_target(config)
    telemetry = ServiceTelemetry(config, models[0].card, clock)
    server = serve_on(config, link, models, telemetry.observer)
    telemetry.gauges = lambda: _gauges(server, link, models[0].is_ready)
    server.protocol.owner_of = link.owner_of
    return server, telemetry


def _replicated(
    config: CloudConfig, ray: Any, link: RobotsLink, clock: Clock
) -> tuple[ReplicatedServer, ServiceTelemetry]:
    make = partial(serve_on, config)
    cpus, gpus = config.replica_cpus, config.replica_gpus
    server = ReplicatedServer(link, lambda wake: ReplicaPool(ray, make, cpus, gpus, wake), clock)
    server.scale(config.replicas)
    try:
        telemetry = ServiceTelemetry(config, server.wait_for_first(FIRST_REPLICA_S), clock)
    except BaseException:
        server.pool.close()
        raise
    telemetry.gauges = lambda: _with_access_drops(server.gauges(), link)
    server.trace(telemetry.observer)
    return server, telemetry


def serve_on(
    config: CloudConfig,
    link: ServerLink,
    models: tuple[LoadedModel, LoadedModel | None] | None = None,
    tracer: MessageTracer | None = None,
) -> CloudServer:
    """Make a server on the link of the config's models, which are loaded unless given. Raises ModelError."""
    target, named = models or load_target(config)
    own = own_draft(config, target, named)
    limits = ServerLimits(
        sessions=config.max_sessions,
        sessions_per_peer=config.robot_answers,
        batch=config.batch,
        kv_bytes=config.kv_mib << 20,
        prices=config.prices,
    )
    protocol = ServerProtocol(target.card, config.language.digest, limits, tracer=tracer or MessageTracer())
    if config.free_drafts == "off":
        protocol.memories = None
    clock, copy = WallClock(), own.model
    served = constrained(target, target.codec, config.language, chats=True)
    if config.profile:
        hardware = load_hardware(config.profile)
        served = paced_target(served, hardware, clock)
        copy = paced_copy(copy, hardware, clock) if copy else None
    return CloudServer(link, protocol, served, clock, copy, own.costs)


def _gauges(server: CloudServer, link: RobotsLink, is_ready: bool) -> Gauges:
    protocol = server.protocol
    gauge_values, counter_values = gauges_and_counters(protocol.stats)
    return Gauges(
        sessions=len(protocol.requests),
        peers=protocol.peers,
        unroutable=link.unroutable,
        is_ready=is_ready and not server.is_stopping,
        dropped=dict(protocol.dropped),
        more=gauge_values,
        counts=counter_values,
    )


def _with_access_drops(gauges: Gauges, link: RobotsLink) -> Gauges:
    return replace(gauges, dropped={**gauges.dropped, **link.dropped})


def run(
    config: CloudConfig,
    on_ready: Callable[[dict[str, Any]], None],
    read_replicas: Callable[[], int] | None = None,
) -> None:
    """Serve until SIGTERM, which drains, or SIGINT or a second SIGTERM, which end at once.

    `on_ready` gets address and model once the server accepts robots.
    At SIGHUP `read_replicas` returns the new number of replicas.
    """
    # The log begins before the models are loaded: it says how far that is, and which draft is kept and why.
    with (
        logging_to_stderr(config.log_format, config.log_level),
        _scaled_by_signal(read_replicas) as set_server,
    ):
        server, telemetry = build(config)
        set_server(server)
        _serve(config, server, telemetry, on_ready)


def _serve(
    config: CloudConfig,
    server: Server,
    telemetry: ServiceTelemetry,
    on_ready: Callable[[dict[str, Any]], None],
) -> None:
    with ended_by_signals(server.drain, server.stop):
        try:
            with telemetry.running() as url:
                found = {"address": server.address, "model": telemetry.card.model_id}
                found |= {"revision": telemetry.card.revision, "http": url}
                on_ready({**found, "encrypted": config.keys is not None, "replicas": config.replicas})
                server.serve()
        except CloudError:
            # A stopped server serves no robot; `serve` frees what it holds.
            server.stop()
            server.serve()
            raise


@contextmanager
def _scaled_by_signal(
    read_replicas: Callable[[], int] | None,
) -> Iterator[Callable[[Server], None]]:
    """Read the number of replicas again at SIGHUP; a file that is no longer valid changes nothing.

    Yields a function that gets the server once it has loaded. An earlier SIGHUP takes effect then.
    """
    servers: list[Server] = []
    early: list[int] = []

    def handle(signum: int, _frame: FrameType | None) -> None:
        if not servers:
            early.append(signum)
            return
        try:
            wanted_replicas = read_replicas() if read_replicas else 0
            if isinstance(servers[0], ReplicatedServer):
                servers[0].scale(max(1, wanted_replicas))
        except ConfigError as error:
            log.warning("settings not read again: %s", error)

    def set_server(server: Server) -> None:
        servers.append(server)
        if early:
            handle(early[0], None)

    if read_replicas is None or threading.current_thread() is not threading.main_thread():
        yield set_server
        return
    before = signal.signal(signal.SIGHUP, handle)
    try:
        yield set_server
    finally:
        signal.signal(signal.SIGHUP, before)
