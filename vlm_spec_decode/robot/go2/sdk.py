"""The boundary to Unitree's SDK: joining the network, reading states, making clients.

Object lifetimes: cyclonedds frees the callbacks of a reader or writer that Python's cyclic collector takes,
but not the reader itself (`Entity.__del__` looks its own weak reference up, which the collector has cleared
by then): the next sample, or the next writer that leaves, calls freed memory and the process dies. The
SDK's clients are such cycles and cannot be closed. So a client, once made, lives as long as the process and
is reused; a subscriber lives until it is closed explicitly.

Closing in cyclonedds 0.10: while a callback runs it holds its reader, so a reader released meanwhile is
deleted by the callback's own thread, which then waits for the callback, that is for itself, and no thread
receives any more. So the callback is removed first, which waits for one under way.

The SDK's conventions are translated here: a network joined once per process, return codes without names,
messages in place of states. `Go2Camera` is the front camera, `DdsBoard` carries the lease on the robot's own
domain. Independent of how the driver uses them.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

from cyclonedds.core import DDSException
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration
from PIL import Image as PilImage
from PIL import UnidentifiedImageError
from unitree_sdk2py.core import channel
from unitree_sdk2py.core.channel import ChannelFactory, ChannelSubscriber
from unitree_sdk2py.go2.sport.sport_client import SportClient
from unitree_sdk2py.go2.video.video_client import VideoClient
from unitree_sdk2py.idl.std_msgs.msg.dds_ import String_
from unitree_sdk2py.idl.unitree_go.msg.dds_ import LowState_, SportModeState_
from unitree_sdk2py.rpc import client_stub

from vlm_spec_decode.core import environment, environment_checks
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.dds import MAX_PARTICIPANTS, domain_xml
from vlm_spec_decode.core.errors import DomainBusy, ImageError, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2.codes import StateTable
from vlm_spec_decode.robot.go2.config import Go2Config, check_network, middleware_clash
from vlm_spec_decode.robot.go2.link import RobotLink, StateMonitor

Client = TypeVar("Client")

_ATTRIBUTE = "vsd_kept"
_LOCK = threading.Lock()


class _KeptAlive:
    """All of it, hung on the SDK's own singleton, whose participant it belongs to."""

    def __init__(self) -> None:
        self.idle: dict[type, list[Any]] = {}
        self.lent: list[Any] = []
        self.subscribers: list[ChannelSubscriber] = []


def borrow(kind: type[Client], timeout_s: float) -> Client:
    """Return a client of the SDK that nobody uses; a new one takes 0.7 s, nearly all of it sleep.

    `ChannelFactory` must have joined a network.
    """
    with _LOCK:
        idle = _kept().idle.get(kind)
        client: Any = idle.pop() if idle else None
    is_new = client is None
    if is_new:
        client = kind()
    client.SetTimeout(timeout_s)
    if is_new:
        client.Init()
    with _LOCK:
        _kept().lent.append(client)
    lent: Client = client
    return lent


def give_back(client: Any) -> None:
    """Let others use a client of `borrow`; one that is not lent is ignored."""
    with _LOCK:
        kept = _kept()
        others = [one for one in kept.lent if one is not client]
        if len(others) < len(kept.lent):
            kept.lent = others
            kept.idle.setdefault(type(client), []).append(client)


def keep(subscriber: ChannelSubscriber) -> None:
    """Hold a subscriber until `close`."""
    with _LOCK:
        _kept().subscribers.append(subscriber)


def close(subscriber: ChannelSubscriber) -> None:
    """Close a subscriber of `keep`, which frees reader and callbacks in the right order."""
    reader = _reader(subscriber)
    # Held until no callback runs any more: `set_listener` lets go of it first.
    listener = getattr(reader, "_listener", None)
    if reader is not None and listener is not None:
        reader.set_listener(None)
    subscriber.Close()
    del reader, listener
    with _LOCK:
        kept = _kept()
        kept.subscribers = [one for one in kept.subscribers if one is not subscriber]


def _reader(subscriber: ChannelSubscriber) -> Any:
    """Return the DDS reader inside a subscriber, or None before `Init` and after `Close`."""
    channel = getattr(subscriber, "_ChannelSubscriber__channel", None)
    return getattr(getattr(channel, "_Channel__reader", None), "_Reader__reader", None)


def _kept() -> _KeptAlive:
    factory = ChannelFactory()
    kept: _KeptAlive | None = getattr(factory, _ATTRIBUTE, None)
    if kept is None:
        kept = _KeptAlive()
        setattr(factory, _ATTRIBUTE, kept)
    return kept


# The SDK prints a line of its own for every request that it cannot send. The code that the call returns says
# the same, and what follows from it is said in our words.
setattr(client_stub, "print", lambda *_values, **_options: None)  # noqa: B010

_JOINED = "vsd_joined"
"""Attribute of the SDK's singleton that remembers what it was joined with; the SDK itself forgets."""


def join(domain: int, interface: str | None) -> None:
    """Join the robot's network, once per process; again with the same values is fine.

    The SDK silently ignores a second call with other values; here that is DomainBusy. Raises RobotUnreachable
    if interface or domain cannot be used, RobotError if this DDS must not meet a real robot.
    """
    check_network(domain, interface)
    factory = ChannelFactory()
    joined = getattr(factory, _JOINED, None)
    if joined == (domain, interface):
        return
    if joined is not None:
        raise DomainBusy(
            f"this process has joined DDS domain {joined[0]} on {joined[1]!r} already and cannot join domain "
            f"{domain} on {interface!r} as well; use another process"
        )
    if getattr(ChannelFactory, "_ChannelFactory__initialized", False):
        raise DomainBusy(
            "other code of this process has joined a DDS domain; use `robot.go2.sdk.join` there, too"
        )
    reason = _init(factory, domain, interface)
    if reason is not None:
        raise RobotUnreachable(f"DDS cannot open domain {domain} on {interface!r}: {_cause(domain, reason)}")
    setattr(factory, _JOINED, (domain, interface))


def _init(factory: ChannelFactory, domain: int, interface: str | None) -> str | None:
    """Join by the SDK, with our configuration; return what it says if it fails.

    The SDK's own lets ten processes join where there is no multicast, and traces into a file in /tmp that
    only one user can write. What went wrong it prints.
    """
    channel.ChannelConfigHasInterface = channel.ChannelConfigAutoDetermine = domain_xml(interface)
    said = io.StringIO()
    with redirect_stdout(said):
        joined = factory.Init(domain, interface)
    return None if joined else said.getvalue()


def _cause(domain: int, reason: str) -> str:
    """Return the likeliest reason for a domain that does not open."""
    rmw = environment.rmw_in_use() if "rclpy" in sys.modules else ""
    ros = environment_checks.ros_domain(os.environ) if rmw else 0
    likely = middleware_clash(rmw, ros, domain, "sdk")
    words = " ".join(reason.replace("[ChannelFactory]", "").split())
    return likely or (
        f"{words or 'no reason given'}; is the interface up, has other code opened it in this process, or "
        f"are there {MAX_PARTICIPANTS} processes in it?"
    )


def make_sport_clients(*timeouts_s: float) -> list[SportClient]:
    """Return one SportClient per timeout, idle ones first; `go2_keep.give_back` each.

    The first is made alone, because the DDS library describes message types at their first use and fails
    when threads do that together; the others side by side.
    """
    first, *others = timeouts_s
    clients = [borrow(SportClient, first)]
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        return clients + list(pool.map(lambda timeout_s: borrow(SportClient, timeout_s), others))


class StateFeed(StateMonitor):
    """The newest state that the SDK's subscribers received."""

    def __init__(
        self,
        clock: Clock,
        sport_topic: str,
        low_topic: str,
        stale_after_s: float,
        states: StateTable | None = None,
    ) -> None:
        """Subscribe. `join` must have been called."""
        super().__init__(clock, sport_topic, stale_after_s, states)
        self._subscribers: list[Any] = [
            ChannelSubscriber(sport_topic, SportModeState_),
            ChannelSubscriber(low_topic, LowState_),
        ]
        for subscriber in self._subscribers:
            keep(subscriber)
        # Queue length 0: the handlers run in the listener and only keep the newest sample.
        self._subscribers[0].Init(self.take_sport, 0)
        self._subscribers[1].Init(self.take_low, 0)

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        while self._subscribers:
            close(self._subscribers.pop())


@dataclass(frozen=True, slots=True)
class SdkCalls:
    """`robot.go2.link.SportClient` through one client of the SDK."""

    client: SportClient

    def call(self, name: str, *arguments: float) -> int:
        """Make one call and return its code."""
        return int(getattr(self.client, name)(*arguments))


def connect(config: Go2Config, clock: Clock) -> RobotLink:
    """Join the network and make what a driver needs. Raises as `join`; a missing robot shows later."""
    join(config.domain, config.interface)
    feed = StateFeed(clock, config.state_topic, config.low_topic, config.stale_after_s, config.states)
    # A Move has no reply; its timeout only bounds the wait for a service that is not there.
    clients = make_sport_clients(config.call_timeout_s, config.stop_timeout_s, config.stop_timeout_s)
    posture, move, stop = (SdkCalls(client) for client in clients)

    def leave() -> None:
        feed.close()
        for client in clients:
            give_back(client)

    return RobotLink(feed, posture, move, stop, leave)


def to_image(jpeg: bytes) -> Image:
    """Read the size of a JPEG. Raises ImageError if these bytes are none."""
    try:
        with PilImage.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            return Image(jpeg, picture.width, picture.height)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"the camera sent {len(jpeg)} bytes that are no JPEG") from error


class Go2Camera:
    """A `Camera`. Use it from one thread; frames are made when they are asked for."""

    def __init__(self, config: Go2Config, clock: Clock | None = None) -> None:
        """Join the network, raising as `Go2Driver.start` does; only a frame shows if a camera answers."""
        self._config = config
        self._clock = clock or WallClock()
        join(config.domain, config.interface)
        self._client: VideoClient | None = borrow(VideoClient, config.call_timeout_s)

    def frame(self) -> tuple[Image, float]:
        """Return a new frame and its capture time by this machine's clock.

        The robot sends no stamp; the time is that of the request, the earliest at which the frame can have
        been taken, so that it never looks fresher than it is. Sporadic 3104 are asked again. Raises
        RobotUnreachable after `frame_s` without an answer, RobotRefused, or ImageError.
        """
        if self._client is None:
            raise RobotUnreachable("the camera has been closed")
        deadline_s = self._clock.now() + self._config.frame_s
        while True:
            asked_s = self._clock.now()
            code, data = self._client.GetImageSample()
            if code == codes.OK:
                # The SDK hands over a list of integers.
                return to_image(bytes(data)), asked_s
            if code not in codes.UNCERTAIN:
                raise codes.refused("GetImageSample", code)
            if self._clock.now() >= deadline_s:
                raise RobotUnreachable(f"camera: GetImageSample returned {code} ({codes.meaning(code)})")

    def close(self) -> None:
        """Leave. Idempotent."""
        client, self._client = self._client, None
        give_back(client)


TOPIC = "rt/vsd/executor"
DEPTH = 16
_ENDS = "vsd_lease_ends"
"""Attribute of the SDK's singleton: writer and reader live as long as its participant, and are used again."""


class DdsBoard:
    """`robot.lease.Board` over the SDK's participant. Read by polling: no callback of the DDS library."""

    def __init__(self, config: Go2Config) -> None:
        self._config = config
        self._hear: Callable[[str], None] | None = None
        self._writer: Any = None
        self._reader: Any = None

    def open(self, hear: Callable[[str], None]) -> None:
        """Join the robot's network. Raises as `go2_sdk.join`, or RobotUnreachable."""
        join(self._config.domain, self._config.interface)
        factory = ChannelFactory()
        ends = getattr(factory, _ENDS, None)
        if ends is None:
            ends = _make_ends(factory)
            setattr(factory, _ENDS, ends)
        self._writer, self._reader = ends
        # What came while nobody held this board is of no interest.
        self._reader.take(N=DEPTH)
        self._hear = hear

    def write(self, text: str) -> None:
        """See `robot.lease.Board`."""
        if self._writer is not None:
            try:
                self._writer.write(String_(text))
            except DDSException:
                return  # as if it were lost; the next beat says it again

    def poll(self) -> None:
        """See `robot.lease.Board`."""
        if self._reader is None or self._hear is None:
            return
        try:
            samples = self._reader.take(N=DEPTH)
        except DDSException:
            return
        # Samples without data say that a writer has left.
        for sample in samples:
            if isinstance(sample, String_):
                self._hear(sample.data)

    def close(self) -> None:
        """See `robot.lease.Board`."""
        self._hear = self._writer = self._reader = None


def _make_ends(factory: ChannelFactory) -> tuple[Any, Any]:
    participant = getattr(factory, "_ChannelFactory__participant")  # noqa: B009  # no other way to it
    qos = Qos(Policy.Reliability.Reliable(duration(milliseconds=50)), Policy.History.KeepLast(DEPTH))
    try:
        topic: Topic[Any] = Topic(participant, TOPIC, String_)
        return DataWriter(participant, topic, qos), DataReader(participant, topic, qos)
    except DDSException as error:
        raise RobotUnreachable(f"cannot write or read {TOPIC}: {error.msg}") from error
