"""One of two replicas is killed while robots ask: a local Ray cluster of two nodes, the shipped target.

All on this machine's loopback. The node is killed as a power cut would (its Ray processes get SIGKILL), the
replica's sessions are rebuilt on the other one, and every answer is compared with what one robot alone is
told. Then a node joins, and Ray starts the lost replica there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.bench.load import LoadConfig, Speech, load, shipped_speech
from vlm_spec_decode.bench.load_robots import Fleet, Manner, Question
from vlm_spec_decode.bench.run import Silent
from vlm_spec_decode.bench.synthetic import PairSpec, SyntheticFamily
from vlm_spec_decode.cloud.config import CloudConfig
from vlm_spec_decode.cloud.desk import CloudDesk
from vlm_spec_decode.cloud.link import ServerLink
from vlm_spec_decode.cloud.replicas import MakeServer, Pool, load_ray
from vlm_spec_decode.cloud.replicated import ReplicatedServer
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudTimeout, ConfigError
from vlm_spec_decode.core.ports import ExitHook, Logits, ModelCard, ModelContext
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.protocol.messages import Hello
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

START_S = 300.0
NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024, "node_ip_address": "127.0.0.1"}
"""Each node: one core, so that a replica fills it, and the smallest object store that Ray takes."""

SPEC = PairSpec(0.8)
TOKENS = 40
PASS_S = 0.005


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
    """Calls `kill` once so many questions have come to their end."""

    kill: Callable[[], None]
    after: int
    is_done: bool = False

    def __call__(self, fleet: Fleet) -> None:
        """Look at the fleet after a turn of its loop."""
        if not self.is_done and len(fleet.asked) >= self.after:
            self.is_done = True
            self.kill()


@dataclass(frozen=True, slots=True)
class Setting:
    """What the replicas serve and what robots ask of them."""

    make: MakeServer
    speech: Speech
    questions: Sequence[Question]


def setting_of(model: str) -> Setting:
    """Return the setting of the `shipped` target, or of a `synthetic` one that needs no checkpoint."""
    if model == "shipped":
        from vlm_spec_decode.cloud.app import serve_on

        make: MakeServer = partial(serve_on, CloudConfig(language(), threads=1))
        return Setting(make, *shipped_speech())
    if model != "synthetic":
        raise ConfigError(f"model {model!r}; known: shipped, synthetic")
    card = SyntheticFamily.pair(SPEC)[1].card
    hello = Hello("load", card.tokenizer_digest, card.prompt_digest, "none", card.vocab_size)
    params = SamplingParams(max_tokens=TOKENS)
    questions = [Question(Observation(None, "go", frame_id=str(n)), params) for n in range(8)]
    return Setting(synthetic_server, Speech(hello, Silent()), questions)


def synthetic_server(link: ServerLink) -> CloudServer:
    """Put a server of the synthetic target on the link; a pass takes `PASS_S`."""
    target = SlowTarget(SyntheticFamily.pair(SPEC)[1])
    return CloudServer(link, CloudDesk(target.card, "none"), target, WallClock())


@dataclass(frozen=True, slots=True)
class SlowTarget:
    """A target whose contexts take their time, so that answers are open when a fault comes."""

    inner: SyntheticFamily

    @property
    def card(self) -> ModelCard:
        """Identity."""
        return self.inner.card

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer."""
        return _SlowContext(self.inner.open(observation))


@dataclass(frozen=True, slots=True)
class _SlowContext:
    inner: ModelContext

    def prefill(self) -> None:
        self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        WallClock().sleep(PASS_S)
        return self.inner.score(prefix, tokens, parents, on_exit=on_exit)

    def forced(self, prefix: Tokens) -> Tokens:
        return self.inner.forced(prefix)

    def close(self) -> None:
        self.inner.close()


def lose_one_of_two(
    folder: Path, answers: int = 100, robots: int = 8, model: str = "shipped", *, again: bool = True
) -> dict[str, Any]:
    """Ask `answers` questions of two replicas, kill one's node on the way, and return what came of it.

    `folder` takes the keys. With `again` a node joins in the end, and Ray starts the lost replica there.
    Raises ConfigError without Ray.
    """
    with two_nodes() as cluster, _served(folder, model, 2) as (server, setting):
        until(lambda: live(server) == 2, "the second replica")
        before = server.front.moved
        killer = Killer(partial(_kill_second_node, cluster), answers // 3)
        report = _ask(server, setting, folder, answers, robots, killer)
        report |= {"killed": killer.is_done, "robots_moved": server.front.moved - before}
        if again:
            cluster.add_node(**NODE)
            until(lambda: live(server) == 2, "the replica that Ray starts again")
        return report | {"replicas_in_the_end": live(server)}


def scale_under_load(
    folder: Path, answers: int = 100, robots: int = 6, model: str = "shipped"
) -> dict[str, Any]:
    """Begin with one replica, add one and take one away while robots ask; return what came of it."""
    steps: list[tuple[int, int]] = []
    with two_nodes(), _served(folder, model, 1) as (server, setting):

        def rescale(fleet: Fleet) -> None:
            done = len(fleet.asked)
            if not steps and done >= 5:
                server.scale(2)
                steps.append((done, 2))
            elif len(steps) == 1 and live(server) == 2 and done >= answers // 2:
                server.scale(1)
                steps.append((done, 1))

        report = _ask(server, setting, folder, answers, robots, rescale)
        until(lambda: live(server) == 1, "the end of the replica that was taken away", 60)
        return report | {"steps": steps, "robots_moved": server.front.moved}


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
    on_turn: Callable[[Fleet], None],
) -> dict[str, Any]:
    config = LoadConfig(server.address, robots=robots, seconds=3600, keys=folder, questions=answers)
    config = replace(config, manner=Manner(deadline_s=300, busy_s=300), give_up_s=60)
    return load(config, setting.questions, setting.speech, WallClock(), on_turn).report()


def _kill_second_node(cluster: Any) -> None:
    """Kill the node that is not the head, as a power cut would."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
