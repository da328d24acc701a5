"""Copies of the target as Ray actors: one actor is one whole server with an in-process link.

Ray places the actors, monitors them and starts lost ones again, on this machine or on a cluster; this
module only carries messages. Ray is optional: it is imported only if replicas are configured. The cluster
is one trust domain: its nodes speak Ray's own protocol with one another, which robots never reach.
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
from vlm_spec_decode.cloud.telemetry.metrics import inside_of
from vlm_spec_decode.core import extras
from vlm_spec_decode.core.errors import CloudError, ConfigError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.transport.in_process import InProcessLink, Message, OrderedInbox, ServerLink

COLLECT_S = 0.5
"""How long a replica is asked for messages before it is asked again."""

STALL_S = 15.0
"""A replica that has not answered for so long counts as lost until it answers again."""

RETRY_S = 0.2
PLACED_S = 30.0
"""How long a replica may take to come up before a warning says what room the cluster has for it."""
DEATHS = 5
"""Times that a replica may be found dead in a row before it counts as failed."""

MakeServer: TypeAlias = Callable[[ServerLink], CloudServer]
"""Loads a target and puts a server on the link. Runs on the replica's node, so it must pickle."""


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """A replica's report with every message: open sessions, and whether its loop runs."""

    sessions: int
    dropped: dict[str, int]
    held: dict[str, float]
    counted: dict[str, float]


class Replica:
    """The actor: a server, its thread and its in-process link. Methods run on several of its threads."""

    def __init__(self, make: MakeServer) -> None:
        self._mail = InProcessLink()
        self._server = make(self._mail)
        self._inbox = OrderedInbox()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve, name="vsd-replica", daemon=True)
        self._thread.start()

    def card(self) -> ModelCard:
        """Return the identity of the target; answers once it is loaded."""
        return self._server.protocol.card

    def deliver(self, incarnation: int, number: int, messages: list[Message]) -> None:
        """Take batch `number` of a life of this replica."""
        with self._lock:
            self._inbox.put(incarnation, number, messages)
            self._mail.deliver(self._inbox.pop_ready())

    def collect(self, timeout_s: float) -> tuple[list[Message], ReplicaFigures]:
        """Return what the server says. Raises CloudError if it has ended."""
        said = self._mail.collect(timeout_s)
        if not said:
            if not self._thread.is_alive():
                raise CloudError("the replica's server has ended")
            with self._lock:
                self._mail.deliver(self._inbox.skip_gap())
        protocol = self._server.protocol
        return said, ReplicaFigures(len(protocol.entries), dict(protocol.dropped), *inside_of(protocol.stats))


Kind: TypeAlias = Literal["waiting", "up", "said", "lost", "gone", "failed"]


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
    """Return the module, told to send no usage statistics anywhere. Raises ConfigError without it.

    `on_loopback` keeps what this process starts off the network: Ray else listens on the machine's address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray else gives its workers a low priority: a replica would starve beside anything that computes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if on_loopback:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"replicas need Ray, which is optional: {extras.command('cluster')}") from error


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

    `on_notice` is called after each; it may come from any thread.
    """

    def __init__(
        self, ray: Any, make: MakeServer, cpus: float, gpus: float, on_notice: Callable[[], None]
    ) -> None:
        self.notices: SimpleQueue[ReplicaNotice] = SimpleQueue()
        self._ray = ray
        self._make = make
        self._on_notice = on_notice
        # SPREAD: a node's death should take few replicas with it. -1: Ray starts them again, forever.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 4, "max_restarts": -1}
        self._actor = ray.remote(scheduling_strategy="SPREAD", **options)(Replica)
        self._actors: dict[int, Any] = {}
        self._counts: dict[int, tuple[int, int]] = {}
        self._made = 0
        self._closed = threading.Event()

    def add(self) -> int:
        """Ask Ray for one more replica and return its number; a notice says when it is up."""
        number, self._made = self._made, self._made + 1
        actor = self._actors[number] = self._actor.remote(self._make)
        self._counts[number] = (0, 0)
        name = f"vsd-ray-{number}"
        threading.Thread(target=self._listen, args=(number, actor), name=name, daemon=True).start()
        return number

    def deliver(self, replica: int, messages: list[Message]) -> None:
        """Send messages to a replica without waiting; if it is lost, a notice says so."""
        if actor := self._actors.get(replica):
            incarnation, number = self._counts[replica]
            actor.deliver.remote(incarnation, number, messages)
            self._counts[replica] = (incarnation, number + 1)

    def begin_incarnation(self, replica: int) -> None:
        """Count batches anew: the actor is up, for the first time or again."""
        if replica in self._counts:
            self._counts[replica] = (self._counts[replica][0] + 1, 0)

    def remove(self, replica: int) -> None:
        """End a replica at once. Its listener says that it is gone."""
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
        """Wait for a replica, listen to it, and when it is lost wait for it again, until it is removed."""
        is_up, deaths, errors = False, 0, self._ray.exceptions
        while number in self._actors and not self._closed.is_set():
            try:
                if not is_up:
                    self._tell(ReplicaNotice(replica=number, kind="up", card=self._await_card(number, actor)))
                    is_up, deaths = True, 0
                said, figures = self._ray.get(actor.collect.remote(COLLECT_S), timeout=STALL_S)
            except errors.RayError as error:
                if is_up:
                    self._tell(ReplicaNotice(replica=number, kind="lost", detail=_cause(error)))
                is_up, deaths = False, deaths + isinstance(error, errors.ActorDiedError)
                if deaths >= DEATHS:
                    self._tell(ReplicaNotice(replica=number, kind="failed", detail=_cause(error)))
                    return
                self._closed.wait(RETRY_S)
            else:
                self._tell(ReplicaNotice(replica=number, kind="said", messages=tuple(said), figures=figures))
        self._tell(ReplicaNotice(replica=number, kind="gone"))

    def _await_card(self, number: int, actor: Any) -> ModelCard:
        """Wait for a replica's first answer, and say what the cluster has while it does not come."""
        card = actor.card.remote()
        while True:
            try:
                return cast("ModelCard", self._ray.get(card, timeout=PLACED_S))
            except self._ray.exceptions.GetTimeoutError:
                self._tell(ReplicaNotice(replica=number, kind="waiting", detail=room(self._ray)))
                if number not in self._actors or self._closed.is_set():
                    raise

    def _tell(self, notice: ReplicaNotice) -> None:
        if not self._closed.is_set():
            self.notices.put(notice)
            self._on_notice()

    def taken(self) -> list[ReplicaNotice]:
        """Return the notices since."""
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
    """Return an error of Ray's in one line: the last is the one that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
