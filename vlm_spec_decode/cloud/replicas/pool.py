"""Copies of the target as Ray actors: one actor is one whole server with an in-process link.

Ray places the actors, monitors them and restarts lost ones, on this machine or on a cluster; this module
only carries messages. Ray is optional: it is imported only if replicas are configured. The cluster is one
trust domain: its nodes use Ray's own protocol, to which robots have no access.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeAlias, cast

from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.cloud.telemetry.metrics import gauges_and_counters
from vlm_spec_decode.core import extras
from vlm_spec_decode.core.errors import CloudError, ConfigError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.transport.in_process import InProcessLink, Message, OrderedInbox, ServerLink

COLLECT_S = 0.5
"""How long one call for a replica's messages waits."""

STALL_S = 15.0
"""A replica that has not answered for this time counts as lost until it answers again."""

RETRY_S = 0.2
PLACED_S = 30.0
"""How long a replica may take to start before a warning names the free resources of the cluster."""
LOADED_S = 300.0
"""How long a replica may take to answer first before its process is ended and Ray starts another one. Doubles
with every try, since a large target on a slow disk may need longer."""
DEATHS = 5
"""How many times in a row a replica may be found dead before it counts as failed."""

MakeServer: TypeAlias = Callable[[ServerLink], CloudServer]
"""Loads a target and makes its server on the link. Runs on the replica's node, so it must pickle."""


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """Figures that a replica sends with its messages: open sessions, dropped messages, gauges, counters."""

    sessions: int
    dropped: dict[str, int]
    gauge_values: dict[str, float]
    counter_values: dict[str, float]


class Replica:
    """The actor: a server, its thread and its in-process link. Methods run on several of its threads."""

    def __init__(self, make: MakeServer) -> None:
        self._link = InProcessLink()
        self._server = make(self._link)
        self._inbox = OrderedInbox()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve, name="vsd-replica", daemon=True)
        self._thread.start()

    def card(self) -> ModelCard:
        """Return the identity of the target, once it is loaded."""
        return self._server.protocol.card

    def deliver(self, incarnation: int, number: int, messages: list[Message]) -> None:
        """Receive batch `number` for one incarnation of this replica."""
        with self._lock:
            self._inbox.put(incarnation, number, messages)
            self._link.deliver(self._inbox.pop_ready())

    def collect(self, timeout_s: float) -> tuple[list[Message], ReplicaFigures]:
        """Return the server's outgoing messages and its figures. Raises CloudError if it has ended."""
        messages = self._link.collect(timeout_s)
        if not messages:
            if not self._thread.is_alive():
                raise CloudError("the replica's server has ended")
            with self._lock:
                self._link.deliver(self._inbox.skip_gap())
        protocol = self._server.protocol
        return messages, ReplicaFigures(
            len(protocol.requests), dict(protocol.dropped), *gauges_and_counters(protocol.stats)
        )


Kind: TypeAlias = Literal["waiting", "up", "messages", "lost", "removed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaNotice:
    """An event of one replica, for the pool's owner."""

    replica: int
    kind: Kind
    messages: tuple[Message, ...] = ()
    figures: ReplicaFigures | None = None
    card: ModelCard | None = None
    detail: str = ""


def load_ray(*, on_loopback: bool = False) -> Any:
    """Import Ray with its usage statistics turned off. Raises ConfigError if it is not installed.

    With `on_loopback` a cluster that this process starts listens on loopback, not on the machine's address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray's default gives its workers a low priority: a replica would get no CPU beside other work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if on_loopback:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"replicas need Ray, which is optional: {extras.install_command('cluster')}"
        ) from error


def join_cluster(address: str) -> Any:
    """Join the cluster at `address`, or start one on this machine's loopback. Raises CloudError."""
    ray = load_ray(on_loopback=not address)
    if ray.is_initialized():
        return ray
    where: dict[str, Any] = {"address": address} if address else {"address": "local"}
    if not address:
        where |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **where)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise CloudError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    return ray


class ReplicaPool:
    """Actors and the threads that receive from them. `notices` are the actors' events.

    `on_notice` is called after each; it may come from any thread. `loaded_s`: see `LOADED_S`.
    """

    def __init__(
        self,
        ray: Any,
        make: MakeServer,
        cpus: float,
        gpus: float,
        on_notice: Callable[[], None],
        loaded_s: float = LOADED_S,
    ) -> None:
        self.notices: SimpleQueue[ReplicaNotice] = SimpleQueue()
        self._ray = ray
        self._make = make
        self._on_notice = on_notice
        self._loaded_s = loaded_s
        # SPREAD: a node's death should take few replicas with it. -1: Ray starts them again, forever.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 4, "max_restarts": -1}
        self._actor = ray.remote(scheduling_strategy="SPREAD", **options)(Replica)
        self._actors: dict[int, Any] = {}
        self._counts: dict[int, tuple[int, int]] = {}
        self._made = 0
        self._closed = threading.Event()

    def add(self) -> int:
        """Start one more replica and return its number; a notice follows when it is up."""
        number, self._made = self._made, self._made + 1
        actor = self._actors[number] = self._actor.remote(self._make)
        self._counts[number] = (0, 0)
        name = f"vsd-ray-{number}"
        threading.Thread(target=self._listen, args=(number, actor), name=name, daemon=True).start()
        return number

    def deliver(self, replica: int, messages: list[Message]) -> None:
        """Send messages to a replica without waiting; if it is lost, a notice follows."""
        if actor := self._actors.get(replica):
            incarnation, number = self._counts[replica]
            actor.deliver.remote(incarnation, number, messages)
            self._counts[replica] = (incarnation, number + 1)

    def begin_incarnation(self, replica: int) -> None:
        """Restart the count of batches: the actor has started, for the first time or again."""
        if replica in self._counts:
            self._counts[replica] = (self._counts[replica][0] + 1, 0)

    def remove(self, replica: int) -> None:
        """End a replica at once. A notice of kind `removed` follows."""
        if actor := self._actors.pop(replica, None):
            self._ray.kill(actor)

    def close(self) -> None:
        """End all of them."""
        self._closed.set()
        for number in list(self._actors):
            self.remove(number)

    def node_of(self, replica: int) -> str:
        """Return the hex id of the Ray node that a replica runs on, "" while Ray has not placed it."""
        from ray.util.state import get_actor

        found = get_actor(self._actors[replica]._actor_id.hex())
        return str(getattr(found, "node_id", "") or "")

    def _listen(self, number: int, actor: Any) -> None:
        """Wait for a replica and receive its messages, until it is removed; if it is lost, wait again."""
        is_up, deaths, errors = False, 0, self._ray.exceptions
        patience_s = self._loaded_s
        while number in self._actors and not self._closed.is_set():
            try:
                if not is_up:
                    card = self._await_card(number, actor, patience_s)
                    self._notify(ReplicaNotice(replica=number, kind="up", card=card))
                    is_up, deaths, patience_s = True, 0, self._loaded_s
                messages, figures = self._ray.get(actor.collect.remote(COLLECT_S), timeout=STALL_S)
            except errors.RayError as error:
                if is_up:
                    self._notify(ReplicaNotice(replica=number, kind="lost", detail=_cause(error)))
                elif isinstance(error, errors.GetTimeoutError) and number in self._actors:
                    # A process that hangs while it starts is no death, so Ray does not start another one.
                    self._ray.kill(actor, no_restart=False)
                    patience_s *= 2
                is_up, deaths = False, deaths + isinstance(error, errors.ActorDiedError)
                if deaths >= DEATHS:
                    self._notify(ReplicaNotice(replica=number, kind="failed", detail=_cause(error)))
                    return
                self._closed.wait(RETRY_S)
            else:
                self._notify(
                    ReplicaNotice(replica=number, kind="messages", messages=tuple(messages), figures=figures)
                )
        self._notify(ReplicaNotice(replica=number, kind="removed"))

    def _await_card(self, number: int, actor: Any, patience_s: float) -> ModelCard:
        """Return a replica's first answer; report the cluster's free resources while it does not come.

        Raises Ray's GetTimeoutError after `patience_s` seconds, and if the replica was removed meanwhile.
        """
        card = actor.card.remote()
        while True:
            try:
                return cast("ModelCard", self._ray.get(card, timeout=min(PLACED_S, patience_s)))
            except self._ray.exceptions.GetTimeoutError:
                self._notify(ReplicaNotice(replica=number, kind="waiting", detail=room(self._ray)))
                patience_s -= PLACED_S
                if patience_s <= 0 or number not in self._actors or self._closed.is_set():
                    raise

    def _notify(self, notice: ReplicaNotice) -> None:
        if not self._closed.is_set():
            self.notices.put(notice)
            self._on_notice()

    def take_notices(self) -> list[ReplicaNotice]:
        """Return the notices since the last call."""
        found: list[ReplicaNotice] = []
        while True:
            try:
                found.append(self.notices.get_nowait())
            except Empty:
                return found


def room(ray: Any) -> str:
    """Return the nodes that live, the nodes that are dead and the processors that are free, in words."""
    alive = [node["Alive"] for node in ray.nodes()]
    free = ray.available_resources().get("CPU", 0)
    return f"{sum(alive)} nodes live, {len(alive) - sum(alive)} dead, {free:g} CPUs free"


def _cause(error: Exception) -> str:
    """Return one line about an error of Ray: its last line, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
