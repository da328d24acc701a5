"""One of two replicas is killed while robots ask: a local Ray cluster of two nodes, the shipped target.

All on this machine's loopback. The node is killed as a power cut would (its Ray processes get SIGKILL), the
replica's sessions are rebuilt on the other one, and every answer is compared with what one robot alone is
told. Then a node joins, and Ray starts the lost replica there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.load import LoadConfig, load, shipped_speech
from vlm_spec_decode.bench.robots import Fleet, Manner
from vlm_spec_decode.cloud.app import serve_on
from vlm_spec_decode.cloud.config import CloudConfig
from vlm_spec_decode.cloud.link import ServerLink
from vlm_spec_decode.cloud.replicas import MakeServer, Pool, load_ray
from vlm_spec_decode.cloud.replicated import ReplicatedServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudTimeout
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

START_S = 300.0
STORE_BYTES = 80 * 1024 * 1024
"""Of each node's object store; the least that Ray takes."""


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Run a Ray cluster of a head and one more node on this machine, one core each, and join it."""
    ray = load_ray()
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def replicated(make: MakeServer, replicas: int, link: ServerLink) -> Iterator[ReplicatedServer]:
    """Serve with replicas on a thread of this process until the block ends."""
    clock = WallClock()
    server = ReplicatedServer(link, lambda wake: Pool(load_ray(), make, 1, 0, wake), clock)
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
    """Wait for a condition. Raises CloudTimeout that says `what` did not come."""
    clock = WallClock()
    until_s = clock.now() + patience_s
    while not condition():
        if clock.now() > until_s:
            raise CloudTimeout(f"{what} did not come within {patience_s:.0f} s")
        clock.sleep(0.05)


def live(server: ReplicatedServer) -> int:
    """Return how many replicas serve."""
    return int(server.gauges().replicas["live"])


@dataclass(slots=True)
class Killer:
    """Kills a node once a share of the answers is there and robots of its replica have answers open."""

    kill: Callable[[], None]
    after: int
    moved_before: int = 0
    is_done: bool = False
    at_s: list[float] = field(default_factory=list)

    def __call__(self, fleet: Fleet) -> None:
        """Look at the fleet after a turn of its loop."""
        if not self.is_done and len(fleet.asked) >= self.after:
            self.is_done = True
            self.at_s.append(WallClock().now())
            self.kill()


def lose_one_of_two(
    folder: Path, answers: int = 100, robots: int = 8, make: MakeServer | None = None
) -> dict[str, Any]:
    """Ask `answers` questions of two replicas, kill one's node on the way, and return what came of it.

    `folder` takes the keys. Raises ConfigError without Ray.
    """
    keys.generate(folder, overwrite=True)
    speech, questions = shipped_speech()
    make = make or partial(serve_on, CloudConfig(language(), threads=1))
    with two_nodes() as cluster:
        link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder))
        with replicated(make, 2, link) as server:
            until(lambda: live(server) == 2, "the second replica")
            before = server.front.moved
            killer = Killer(partial(_kill_second_node, cluster), answers // 3)
            config = LoadConfig(server.address, robots=robots, seconds=3600, keys=folder, questions=answers)
            config = replace(config, manner=Manner(deadline_s=300), give_up_s=60)
            report = load(config, questions, speech, WallClock(), killer).report()
            moved = server.front.moved - before
            cluster.add_node(
                num_cpus=1, object_store_memory=STORE_BYTES, node_ip_address="127.0.0.1", wait=True
            )
            until(lambda: live(server) == 2, "the replica that Ray starts again")
            return report | {"killed": killer.is_done, "robots_moved": moved, "replicas_again": live(server)}


def scale_under_load(
    folder: Path, answers: int = 60, robots: int = 6, make: MakeServer | None = None
) -> dict[str, Any]:
    """Begin with one replica, add one and take one away while robots ask; return what came of it."""
    keys.generate(folder, overwrite=True)
    speech, questions = shipped_speech()
    make = make or partial(serve_on, CloudConfig(language(), threads=1))
    steps: list[tuple[int, int]] = []
    with two_nodes():
        link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder))
        with replicated(make, 1, link) as server:

            def rescale(fleet: Fleet) -> None:
                done = len(fleet.asked)
                if not steps and done >= answers // 4:
                    server.scale(2)
                    steps.append((done, 2))
                elif len(steps) == 1 and live(server) == 2 and done >= answers // 2:
                    server.scale(1)
                    steps.append((done, 1))

            config = LoadConfig(server.address, robots=robots, seconds=3600, keys=folder, questions=answers)
            config = replace(config, manner=Manner(deadline_s=300), give_up_s=60)
            report = load(config, questions, speech, WallClock(), rescale).report()
            until(lambda: live(server) == 1, "the end of the replica that was taken away", 60)
            return report | {"steps": steps, "robots_moved": server.front.moved}


def _kill_second_node(cluster: Any) -> None:
    """Kill the node that is not the head, as a power cut would."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
