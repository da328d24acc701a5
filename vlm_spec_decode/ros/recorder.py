"""The recorder of `vsd record`: subscribes to the topics of a ROS domain and writes the received bytes.

Topics are discovered while it runs, so nodes that start later are recorded too. A type whose Python
messages are not installed cannot be subscribed to; it is named once.

One subscription cannot receive from every publisher without loss: a latched one does not match a publisher
that is not latched, a best-effort one loses messages that a reliable one would get again. So a topic has
one subscription for each kind of publisher, and duplicates are written once.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, TypeAlias

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from vlm_spec_decode.bags.recording import Recording
from vlm_spec_decode.bags.settings import Note, RecordConfig
from vlm_spec_decode.core.errors import ActionParseError, ConfigError
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.middleware import OwnNode

DEPTH = {True: 1000, False: 100}
"""Messages that may wait while one is written: reliable ones, best-effort ones (images, which are large)."""

SETTLE_S = 3.0
"""Seconds after the start until all earlier publishers have been discovered."""

WORDS = ("/vlm/request", "/vlm/instruction", "/vlm/withdraw", "/vlm/answer", "/vlm/answer/typed")
"""Suffixes of the topics of which every message counts, also the first of a publisher."""

MAX_REMEMBERED = 4096
"""How many messages of a topic are remembered, to drop duplicates from another subscription."""

ACKNOWLEDGED, REQUESTED = "/vlm/ack", "/vlm/request"
"""Suffixes of the topics that are also read: acknowledgements and requests."""

ACK, MISSION = (typed.type_name(typed.TOPICS[topic]) for topic in ("vlm/ack", "vlm/request"))
"""The types of those."""

Mode: TypeAlias = tuple[bool, bool]
"""(reliable, latched), as a subscription requests or a publisher offers."""

LIKELY: set[Mode] = {(True, True), (True, False)}
"""Used for requests before a publisher exists: clients are short-lived and latch their requests."""


def mode_of(quality: QoSProfile) -> Mode:
    """Return the mode of an endpoint's QoS."""
    return (
        quality.reliability == ReliabilityPolicy.RELIABLE,
        quality.durability == DurabilityPolicy.TRANSIENT_LOCAL,
    )


def profile(mode: Mode) -> QoSProfile:
    """Return the profile of a subscription."""
    reliable, latched = mode
    return QoSProfile(
        depth=DEPTH[reliable],
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def modes_for(publishers: list[Mode], subscribers: list[Mode]) -> set[Mode]:
    """Return the subscriptions that receive from all of these publishers and from likely later ones.

    Without a publisher they follow the other subscribers.
    """
    return set(publishers or subscribers or [(True, False)])


@dataclass(slots=True)
class Arrivals:
    """The sequence numbers of one topic's publishers, so that repeats are dropped and gaps are counted.

    `from_one` also counts messages of a later publisher from before the first one that was received: right
    for texts, which are few, and not for streams, whose first messages nobody needs.
    """

    from_one: bool
    known: set[bytes] = field(default_factory=set)
    """Publishers that existed before the recorder: their first number is unknown."""
    gaps: int = 0
    _newest: dict[bytes, int] = field(default_factory=dict)
    _missing: set[tuple[bytes, int]] = field(default_factory=set)
    _seen: OrderedDict[tuple[Any, ...], None] = field(default_factory=OrderedDict)

    def is_new(self, info: dict[str, Any], data: bytes) -> bool:
        """Record a message's number; return whether the message is new."""
        publisher = bytes((info.get("publisher_gid") or {}).get("data") or b"")
        number = info.get("publication_sequence_number")
        # A middleware without sequence numbers (rmw_cyclonedds) still gives the time of sending.
        key = (publisher, number or info.get("source_timestamp"), 0 if number else hash(data))
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        if number and publisher:
            self._count(publisher, number)
        return True

    def _count(self, publisher: bytes, number: int) -> None:
        newest = self._newest.get(publisher)
        if newest is None:
            newest = 0 if self.from_one and publisher not in self.known else number - 1
        if number > newest:
            new = {
                (publisher, missing) for missing in range(max(newest + 1, number - MAX_REMEMBERED), number)
            }
            self._missing |= new
            self.gaps += number - newest - 1
            self._newest[publisher] = number
        elif (publisher, number) in self._missing:
            # Late, by another subscription or sent again: not missed.
            self._missing.discard((publisher, number))
            self.gaps -= 1


class Recorder:
    """Subscribes to the topics of a ROS domain and writes their messages, while `spin` runs."""

    def __init__(self, config: RecordConfig, note: Note) -> None:
        self.counts: Counter[str] = Counter()
        self._config, self._note = config, note
        if (config.out / "metadata.yaml").exists():
            raise ConfigError(f"{config.out} holds a walk; it is left as it is, name another folder")
        self._bag = Recording(config.out, config.storage)
        self._refused: set[str] = set()
        self._modes: dict[str, set[Mode]] = {}
        self._arrivals: dict[str, Arrivals] = {}
        self._acknowledged: dict[str, set[str]] = {}
        self._requested: dict[str, set[str]] = {}
        self._own = OwnNode("vsd_record", config.domain)
        self._node = self._own.node
        self._began_s = time.monotonic()

    def subscribe_new(self) -> None:
        """Subscribe to new topics, and to new kinds of publishers."""
        for topic, kinds in self._node.get_topic_names_and_types():
            if topic in self._refused or not any(fnmatch(topic, pattern) for pattern in self._config.topics):
                continue
            publishers = self._node.get_publishers_info_by_topic(topic)
            offered = [mode_of(end.qos_profile) for end in publishers]
            asked = [
                mode_of(end.qos_profile)
                for end in self._node.get_subscriptions_info_by_topic(topic)
                if end.node_name != self._node.get_name()
            ]
            arrivals = self._arrivals.setdefault(topic, Arrivals(topic.endswith(WORDS)))
            if time.monotonic() - self._began_s < SETTLE_S:
                arrivals.known |= {bytes(end.endpoint_gid) for end in publishers}
            wanted = modes_for(offered, asked) | (LIKELY if topic.endswith(REQUESTED) else set())
            for mode in wanted - self._modes.setdefault(topic, set()):
                self._subscribe(topic, kinds[0], mode)

    def spin(self, duration_s: float) -> None:
        """Process callbacks for about `duration_s`."""
        self._own.spin(duration_s)

    def missed(self) -> dict[str, int]:
        """Return how many messages are known to be missing, by topic.

        A gap in a publisher's numbers counts; so does an instruction that the VLM node has acknowledged and
        that is not in the bag.
        """
        found = Counter({topic: arrivals.gaps for topic, arrivals in self._arrivals.items()})
        for topic, taken in self._acknowledged.items():
            asked = self._requested.get(topic)
            lost = len(taken) - self.counts[topic] if asked is None else len(taken - asked)
            found[topic] = max(found[topic], lost)
        return {topic: count for topic, count in found.items() if count > 0}

    def close(self) -> None:
        """Complete the bag and leave ROS. Idempotent."""
        self._own.close()
        self._bag.close()

    def _subscribe(self, topic: str, kind: str, mode: Mode) -> None:
        self._modes[topic].add(mode)
        try:
            message = message_type(kind)
            self._bag.check(kind)
        except ConfigError as error:
            self._refused.add(topic)
            self._note(f"{topic} is not recorded: {error}")
            return
        self._node.create_subscription(message, topic, self._callback(topic, kind), profile(mode), raw=True)

    def _callback(self, topic: str, kind: str) -> Callable[[bytes, dict[str, Any]], None]:
        def take(data: bytes, info: dict[str, Any]) -> None:
            if not self._arrivals[topic].is_new(info, data):
                return
            if topic not in self.counts:
                self._announce(topic, kind)
            self._bag.write(topic, kind, data, time.time_ns())
            self.counts[topic] += 1
            if kind in (ACK, MISSION):
                self._note_mission(topic, data)

        return take

    def _announce(self, topic: str, kind: str) -> None:
        """Add the topic to the bag, with the QoS of its publishers at the first message."""
        offered = [mode_of(end.qos_profile) for end in self._node.get_publishers_info_by_topic(topic)]
        offered = offered or sorted(self._modes[topic])
        reliable, latched = (all(mode[i] for mode in offered) for i in (0, 1))
        self._bag.announce(topic, kind, reliable, latched)

    def _note_mission(self, topic: str, data: bytes) -> None:
        """Record the requested missions, and those that the VLM node has acknowledged."""
        if topic.endswith(REQUESTED):
            request = deserialize_message(data, typed.TOPICS["vlm/request"])
            self._requested.setdefault(topic, set()).add(str(request.mission))
        elif topic.endswith(ACKNOWLEDGED):
            with suppress(ActionParseError):
                ack = typed.ack_from_message(deserialize_message(data, typed.TOPICS["vlm/ack"]))
                if not ack.mission or ack.state != "taken" or ack.reply:
                    return
                asked_on = f"{topic.removesuffix(ACKNOWLEDGED)}/{ack.topic}"
                self._acknowledged.setdefault(asked_on, set()).add(ack.mission)
                if asked_on.endswith(REQUESTED):
                    self._requested.setdefault(asked_on, set())


def message_type(kind: str) -> Any:
    """Return the class of a type such as `sensor_msgs/msg/Image`. Raises ConfigError if there is none."""
    package, _, name = kind.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no Python messages of type {kind}") from error
