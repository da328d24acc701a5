"""One of two replicas is killed while robots ask: a local Ray cluster of two nodes, the shipped target.

All on this machine's loopback. The node is killed as a power cut would (its Ray processes get SIGKILL), the
replica's sessions are rebuilt on the other one, and every answer is compared with what one robot alone is
told. Then a node joins, and Ray starts the lost replica there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm_spec_decode.bench.load import LoadFleet, load
from vlm_spec_decode.bench.settings import LoadConfig, RobotBehaviour
from vlm_spec_decode.cloud.replicas.pool import MakeServer, ReplicaPool, load_ray, room
from vlm_spec_decode.cloud.replicas.server import ReplicatedServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudTimeout
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.in_process import ServerLink
from vlm_spec_decode.transport.router import RouterLink

from .replica_setting import Setting, setting_of

START_S = 300.0
LOADED_S = 60.0
"""These targets are small: one that has not loaded by then hangs."""
NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024, "node_ip_address": "127.0.0.1"}
"""Each node: one core, so that a replica fills it, and the smallest object store that Ray takes."""


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Run a Ray cluster of a head and one more node on this machine, one core each, and join it."""
    ray = load_ray(on_loopback=True)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def replicated(make: MakeServer, replicas: int, link: ServerLink) -> Iterator[ReplicatedServer]:
    """Serve with replicas on a thread of this process until the block ends."""
    clock = WallClock()
    server = ReplicatedServer(link, lambda wake: ReplicaPool(load_ray(), make, 1, 0, wake, LOADED_S), clock)
    server.scale(replicas)
    thread = threading.Thread(target=server.serve)
    try:
        server.wait_for_first(START_S)
    except BaseException:
        server.stop()
        server.serve()
        raise
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(timeout=30)


def until(condition: Callable[[], bool], what: str, patience_s: float = START_S) -> None:
    """Wait for a condition. Raises CloudTimeout with `what`."""
    clock = WallClock()
    until_s = clock.now() + patience_s
    while not condition():
        if clock.now() > until_s:
            raise CloudTimeout(f"{what} did not come within {patience_s:.0f} s")
        clock.sleep(0.05)


def _await_two(cluster: Any, server: ReplicatedServer, what: str) -> None:
    """Wait until two replicas serve.

    A node of Ray's ends by itself if one of its own helper processes does not start in time. On a busy
    machine that happens, and then nothing but a new node gives its replica a place.
    """
    ray = load_ray()

    def both_live() -> bool:
        if live(server) < 2 and sum(node["Alive"] for node in ray.nodes()) < 2:
            cluster.add_node(**NODE)
        return live(server) == 2

    try:
        until(both_live, what)
    except CloudTimeout as error:
        raise CloudTimeout(f"{error}: {room(ray)}, replicas {server.router.replicas}") from error


def live(server: ReplicatedServer) -> int:
    """Return how many replicas serve."""
    return int(server.gauges().replicas["live"])


@dataclass(slots=True)
class ReplicaKiller:
    """Calls `kill` once after a number of finished questions."""

    kill: Callable[[], None]
    after: int
    is_done: bool = False

    def __call__(self, fleet: LoadFleet) -> None:
        """Look at the fleet after a turn of its loop."""
        if not self.is_done and len(fleet.asked) >= self.after:
            self.is_done = True
            self.kill()


def lose_one_of_two(
    folder: Path, answers: int = 100, robots: int = 8, model: str = "shipped", *, again: bool = True
) -> dict[str, Any]:
    """Ask `answers` questions of two replicas, kill one's node during that, and return the figures.

    `folder` takes the keys. With `again` a node joins in the end, Ray starts the lost replica there, and
    half as many questions follow: `again` in the report says what came of those, and `passes` how much each
    replica worked on them, `lost` among them. Raises ConfigError without Ray.
    """
    with two_nodes() as cluster, _served(folder, model, 2) as (server, setting):
        _await_two(cluster, server, "the second replica")
        before = server.router.moved
        killer = ReplicaKiller(partial(_kill_second_node, cluster), answers // 3)
        report = _ask(server, setting, folder, answers, robots, killer)
        report |= {"killed": killer.is_done, "robots_moved": server.router.moved - before}
        if again:
            report["lost"] = next(n for n, state in server.router.replicas.items() if state == "starting")
            cluster.add_node(**NODE)
            _await_two(cluster, server, "the replica that Ray starts again")
            passes = PassCounter(server)
            report["again"] = _ask(server, setting, folder, answers // 2, robots, passes)
            report["passes"] = passes.total()
        return report | {"replicas_in_the_end": live(server)}


def scale_under_load(
    folder: Path, answers: int = 100, robots: int = 6, model: str = "shipped"
) -> dict[str, Any]:
    """Start with one replica, add one and remove one while robots ask; return the figures.

    They ask at least `answers` questions, and on until the added replica has worked.
    `passes` in the report says how much each replica has worked; number 1 is the one that was added.
    """
    steps: list[tuple[int, int]] = []
    with two_nodes(), _served(folder, model, 1) as (server, setting):
        passes = PassCounter(server)

        def rescale(fleet: LoadFleet) -> None:
            passes(fleet)
            done = len(fleet.asked)
            if not steps and done >= 5:
                server.scale(2)
                steps.append((done, 2))
            elif len(steps) == 1 and not passes.total().get(1):
                fleet.limit = max(answers, fleet.assigned + robots)
            elif len(steps) == 1 and done >= answers // 2:
                server.scale(1)
                steps.append((done, 1))

        report = _ask(server, setting, folder, answers, robots, rescale)
        wanted = steps[-1][1] if steps else 1
        until(lambda: live(server) == wanted, "the end of the replica that was taken away", 60)
        return report | {"steps": steps, "passes": passes.total(), "robots_moved": server.router.moved}


class PassCounter:
    """Adds up the passes that each replica reports, from now on."""

    def __init__(self, server: ReplicatedServer) -> None:
        self._server = server
        self._before = self._reported()
        self._most: dict[int, float] = {}

    def __call__(self, fleet: LoadFleet) -> None:  # noqa: ARG002
        """Look at the replicas after a turn of the fleet's loop."""
        self._most |= self._reported()

    def total(self) -> dict[int, int]:
        """Return passes by replica; of a removed one the last that it reported."""
        return {number: int(count - self._before.get(number, 0)) for number, count in self._most.items()}

    def _reported(self) -> dict[int, float]:
        return {
            number: found.counter_values["passes"] for number, found in dict(self._server.figures).items()
        }


@contextmanager
def _served(folder: Path, model: str, replicas: int) -> Iterator[tuple[ReplicatedServer, Setting]]:
    setting = setting_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    keys.generate(folder, overwrite=True)
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder))
    with replicated(setting.make, replicas, link) as server:
        yield server, setting


def _ask(
    server: ReplicatedServer,
    setting: Setting,
    folder: Path,
    answers: int,
    robots: int,
    on_turn: Callable[[LoadFleet], None],
) -> dict[str, Any]:
    config = LoadConfig(cloud=server.address, robots=robots, seconds=3600, keys=folder, questions=answers)
    config = replace(config, behaviour=RobotBehaviour(deadline_s=300, busy_s=300), give_up_s=60)
    return load(config, setting.questions, setting.identity, WallClock(), on_turn).report()


def _kill_second_node(cluster: Any) -> None:
    """Kill the node that is not the head, as a power cut would."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
