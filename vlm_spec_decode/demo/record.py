"""`vsd record`: what running nodes say, as the bytes that travelled, in a bag that stock tools open.

Topics are found while it runs, so nodes that start later are recorded too. A type whose Python messages are
not installed cannot be subscribed to; it is named once.
"""

from __future__ import annotations

import importlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vlm_spec_decode.bridge.own_node import OwnNode
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.demo.recording import Recording

LOOK_S = 0.5
DEPTH = 50
OURS = ("*/vlm/*", "*/camera/*", "*/odom", "*/tf", "*/tf_static", "*/diagnostics", "*/cmd_vel*")
"""What is recorded unless `--topic` says otherwise: patterns of whole names, in any namespace."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """Where to, what, and for how long (0: until interrupted)."""

    out: Path
    domain: int = 0
    topics: tuple[str, ...] = OURS
    storage: str = "mcap"
    duration_s: float = 0.0


class Recorder:
    """Subscribes to what it finds on a ROS domain and writes it, while `spin` runs."""

    def __init__(self, config: RecordConfig, note: Note) -> None:
        self.counts: Counter[str] = Counter()
        self._config, self._note = config, note
        if (config.out / "metadata.yaml").exists():
            raise ConfigError(f"{config.out} holds a walk; it is left as it is, name another folder")
        self._bag = Recording(config.out, config.storage)
        self._seen: set[str] = set()
        self._own = OwnNode("vsd_record", config.domain)
        self._node = self._own.node

    def look(self) -> None:
        """Subscribe to topics that have appeared."""
        for topic, kinds in self._node.get_topic_names_and_types():
            if topic in self._seen or not any(fnmatch(topic, pattern) for pattern in self._config.topics):
                continue
            self._seen.add(topic)
            self._subscribe(topic, kinds[0])

    def spin(self, duration_s: float) -> None:
        """Take in what arrives for about `duration_s`."""
        self._own.spin(duration_s)

    def close(self) -> None:
        """Complete the bag and leave ROS. Idempotent."""
        self._own.close()
        self._bag.close()

    def _subscribe(self, topic: str, kind: str) -> None:
        quality = self._quality(topic)
        is_reliable = quality.reliability == ReliabilityPolicy.RELIABLE
        is_latched = quality.durability == DurabilityPolicy.TRANSIENT_LOCAL
        try:
            message = message_type(kind)
            self._bag.announce(topic, kind, is_reliable, is_latched)
        except ConfigError as error:
            self._note(f"{topic} is not recorded: {error}")
            return

        def take(data: bytes) -> None:
            self._bag.write(topic, kind, data, time.time_ns())
            self.counts[topic] += 1

        self._node.create_subscription(message, topic, take, quality, raw=True)

    def _quality(self, topic: str) -> QoSProfile:
        """Ask for what all publishers offer, so that none is left out; without any, what others ask."""
        node = self._node
        ends = node.get_publishers_info_by_topic(topic) or node.get_subscriptions_info_by_topic(topic)
        found = [end.qos_profile for end in ends]
        reliable = bool(found) and all(q.reliability == ReliabilityPolicy.RELIABLE for q in found)
        kept = bool(found) and all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in found)
        return QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if kept else DurabilityPolicy.VOLATILE,
        )


def message_type(kind: str) -> Any:
    """Return the class of a type such as `sensor_msgs/msg/Image`. Raises ConfigError if there is none."""
    package, _, name = kind.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no Python messages of type {kind}") from error


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event while the block runs, so that the bag is completed."""
    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run(config: RecordConfig, note: Note, should_stop: Callable[[], bool]) -> dict[str, int]:
    """Record until `should_stop` or the duration is over; return messages per topic."""
    recorder = Recorder(config, note)
    until_s = time.monotonic() + config.duration_s if config.duration_s else float("inf")
    try:
        while not should_stop() and time.monotonic() < until_s:
            recorder.look()
            recorder.spin(LOOK_S)
    finally:
        recorder.close()
    return dict(recorder.counts)


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--topic", "topics", multiple=True, help="Name or pattern such as '*/image*'; default: ours.")
@click.option("--all", "everything", is_flag=True, help="Every topic whose messages are installed.")
@click.option("--storage", type=click.Choice(["mcap", "sqlite3"]), default="mcap", show_default=True)
@click.option(
    "--duration", "duration_s", type=click.FloatRange(0), default=0.0, help="Seconds; 0: until Ctrl-C."
)
@click.option("--domain", type=click.IntRange(0, 232), default=None, help="Default: ROS_DOMAIN_ID, else 0.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def record(
    out: Path,
    topics: tuple[str, ...],
    everything: bool,
    storage: str,
    duration_s: float,
    domain: int | None,
    as_json: bool,
) -> int:
    """Record camera, instructions, answers, plans and motion of running nodes into the new bag OUT."""
    from vlm_spec_decode.demo.console import ros_domain

    chosen = ("*",) if everything else topics or OURS
    config = RecordConfig(out, ros_domain() if domain is None else domain, chosen, storage, duration_s)
    with interruptible() as asked:
        click.echo(f"recording into {out}; Ctrl-C ends", err=True)
        counts = run(config, lambda text: click.echo(text, err=True), asked.is_set)
    if as_json:
        click.echo(json.dumps({"bag": str(out), "messages": sum(counts.values()), "topics": counts}))
    else:
        for topic, count in sorted(counts.items()):
            click.echo(f"{count:7} {topic}")
        click.echo(f"{sum(counts.values())} messages in {out}")
    return 0 if counts else 1
