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
import math
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
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2.codes import StateTable
from vlm_spec_decode.robot.go2.config import Go2Config, check_network, middleware_clash
from vlm_spec_decode.robot.go2.link import RobotLink, StateMonitor

Client = TypeVar("Client")

_ATTRIBUTE = "vsd_kept"
_LOCK = threading.Lock()


class _KeptObjects:
    """The objects that must stay alive, stored on the SDK's singleton, which owns their participant."""

    def __init__(self) -> None:
        self.idle: dict[type, list[Any]] = {}
        self.in_use: list[Any] = []
        self.subscribers: list[ChannelSubscriber] = []


def acquire_client(kind: type[Client], timeout_s: float) -> Client:
    """Return an unused client of the SDK; a new one takes 0.7 s, nearly all of it sleep.

    `ChannelFactory` must have joined a network.
    """
    with _LOCK:
        idle = _kept_objects().idle.get(kind)
        client: Any = idle.pop() if idle else None
    is_new = client is None
    if is_new:
        client = kind()
    client.SetTimeout(timeout_s)
    if is_new:
        client.Init()
    with _LOCK:
        _kept_objects().in_use.append(client)
    lent: Client = client
    return lent


def release_client(client: Any) -> None:
    """Return a client of `acquire_client` for reuse; one that is not in use is ignored."""
    with _LOCK:
        objects = _kept_objects()
        others = [one for one in objects.in_use if one is not client]
        if len(others) < len(objects.in_use):
            objects.in_use = others
            objects.idle.setdefault(type(client), []).append(client)


def hold_subscriber(subscriber: ChannelSubscriber) -> None:
    """Keep a subscriber alive until `close_subscriber`."""
    with _LOCK:
        _kept_objects().subscribers.append(subscriber)


def close_subscriber(subscriber: ChannelSubscriber) -> None:
    """Close a subscriber of `hold_subscriber`, which frees reader and callbacks in the right order."""
    reader = _reader(subscriber)
    # The reference keeps it until no callback runs: `set_listener` releases its own first.
    listener = getattr(reader, "_listener", None)
    if reader is not None and listener is not None:
        reader.set_listener(None)
    subscriber.Close()
    del reader, listener
    with _LOCK:
        objects = _kept_objects()
        objects.subscribers = [one for one in objects.subscribers if one is not subscriber]


def _reader(subscriber: ChannelSubscriber) -> Any:
    """Return the DDS reader inside a subscriber, or None before `Init` and after `Close`."""
    channel = getattr(subscriber, "_ChannelSubscriber__channel", None)
    return getattr(getattr(channel, "_Channel__reader", None), "_Reader__reader", None)


def _kept_objects() -> _KeptObjects:
    factory = ChannelFactory()
    objects: _KeptObjects | None = getattr(factory, _ATTRIBUTE, None)
    if objects is None:
        objects = _KeptObjects()
        setattr(factory, _ATTRIBUTE, objects)
    return objects


# The SDK prints a line of its own for every request that it cannot send. The code that the call returns says
# the same, and our own messages explain it.
setattr(client_stub, "print", lambda *_values, **_options: None)  # noqa: B010

_JOINED = "vsd_joined"
"""Attribute of the SDK's singleton that stores the domain and interface; the SDK itself does not."""


def join(domain: int, interface: str | None) -> None:
    """Join the robot's network, once per process. Joining again with the same values does nothing.

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
    """Join through the SDK, with our configuration; return its message if it fails.

    The SDK's own lets ten processes join where there is no multicast, and traces into a file in /tmp that
    only one user can write. What went wrong it prints.
    """
    channel.ChannelConfigHasInterface = channel.ChannelConfigAutoDetermine = domain_xml(interface)
    output = io.StringIO()
    with redirect_stdout(output):
        joined = factory.Init(domain, interface)
    return None if joined else output.getvalue()


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
    """Return one SportClient per timeout, unused ones first; give each back with `release_client`.

    The first is made alone, because the DDS library describes message types at their first use and fails
    when threads do that together; the others side by side.
    """
    first, *others = timeouts_s
    clients = [acquire_client(SportClient, first)]
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        return clients + list(pool.map(lambda timeout_s: acquire_client(SportClient, timeout_s), others))


REST_LOW_S = 0.5
"""Period of reading the low state of a body at rest."""
REST_AFTER_S = 2.0
"""A body that has not changed for so long is at rest."""
REST_M, REST_RAD = 0.01, 0.02
"""Changes of position, height and attitude that are the noise of a standing robot."""


class StateFeed(StateMonitor):
    """The newest state that the SDK's subscribers received.

    Python takes half a millisecond to read a low state, so it is read only with a state, and while the body
    is at rest (its joints are, too) twice a second.
    """

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
        low, sport = ChannelSubscriber(low_topic, LowState_), ChannelSubscriber(sport_topic, SportModeState_)
        # In this order: the callback of the states, which is closed first, reads the low state.
        self._subscribers: list[Any] = [low, sport]
        for subscriber in self._subscribers:
            hold_subscriber(subscriber)
        self._place: RobotState | None = None
        self._changed_s = self._low_s = -math.inf
        low.Init()
        self._low_reader = _reader(low)
        # Queue length 0: the handler runs in the listener and only keeps the newest sample.
        sport.Init(self.on_sport_state, 0)

    def on_sport_state(self, message: Any) -> None:
        """Store a SportModeState, with the battery and the joints of a low state."""
        now_s = self._clock.now()
        period_s = REST_LOW_S if now_s - self._changed_s > REST_AFTER_S else 0.0
        if now_s - self._low_s >= period_s:
            self._read_low(now_s)
        super().on_sport_state(message)
        state = self._state
        if state is not None and (self._place is None or _is_elsewhere(state, self._place)):
            self._place, self._changed_s = state, now_s

    def _read_low(self, now_s: float) -> None:
        try:
            samples = self._low_reader.take(1)
        except DDSException:
            return
        # A sample without data means that the writer has left.
        for sample in samples:
            if isinstance(sample, LowState_):
                self._low_s = now_s
                self.on_low_state(sample)

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        while self._subscribers:
            close_subscriber(self._subscribers.pop())
            self._low_reader = None


def _is_elsewhere(state: RobotState, before: RobotState) -> bool:
    """Return whether the body has changed its place, attitude or posture beyond the noise of standing."""
    moved_m = (state.x_m - before.x_m, state.y_m - before.y_m, state.body_height_m - before.body_height_m)
    turned = (
        state.yaw_rad - before.yaw_rad,
        state.roll_rad - before.roll_rad,
        state.pitch_rad - before.pitch_rad,
    )
    return (
        not state.is_still
        or state.code != before.code
        or any(abs(each) > REST_M for each in moved_m)
        or any(abs(math.remainder(each, 2 * math.pi)) > REST_RAD for each in turned)
    )


@dataclass(frozen=True, slots=True)
class SdkCalls:
    """Calls of the sport service through one client of the SDK."""

    client: SportClient

    def call(self, name: str, *arguments: float) -> int:
        """Make one call and return its code."""
        return int(getattr(self.client, name)(*arguments))


def connect(config: Go2Config, clock: Clock) -> RobotLink:
    """Join the network and make a driver's link. Raises as `join`. A missing robot is noticed later."""
    join(config.domain, config.interface)
    feed = StateFeed(clock, config.state_topic, config.low_topic, config.stale_after_s, config.states)
    # A Move has no reply; its timeout only bounds the wait for a service that is not there.
    clients = make_sport_clients(config.call_timeout_s, config.stop_timeout_s, config.stop_timeout_s)
    posture, move, stop = (SdkCalls(client) for client in clients)

    def leave() -> None:
        feed.close()
        for client in clients:
            release_client(client)

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
        """Join the network; raises as `Go2Driver.start` does. Only `frame` shows whether a camera answers."""
        self._config = config
        self._clock = clock or WallClock()
        join(config.domain, config.interface)
        self._client: VideoClient | None = acquire_client(VideoClient, config.call_timeout_s)

    def frame(self) -> tuple[Image, float]:
        """Return a new frame and its capture time by this machine's clock.

        The robot sends no stamp; the time is that of the request, the earliest at which the frame can have
        been taken, so that it never seems newer than it is. After a sporadic 3104 the request is repeated.
        Raises RobotUnreachable after `frame_s` without an answer, RobotRefused, or ImageError.
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
                raise codes.refusal("GetImageSample", code)
            if self._clock.now() >= deadline_s:
                raise RobotUnreachable(f"camera: GetImageSample returned {code} ({codes.meaning(code)})")

    def close(self) -> None:
        """Disconnect. Idempotent."""
        client, self._client = self._client, None
        release_client(client)


TOPIC = "rt/vsd/executor"
DEPTH = 16
_ENDPOINTS = "vsd_lease_ends"
"""Attribute of the SDK's singleton: writer and reader live as long as its participant and are reused."""


class DdsBoard:
    """`robot.lease.Board` over the SDK's participant. Read by polling: no callback of the DDS library."""

    def __init__(self, config: Go2Config) -> None:
        self._config = config
        self._on_text: Callable[[str], None] | None = None
        self._writer: Any = None
        self._reader: Any = None

    def open(self, on_text: Callable[[str], None]) -> None:
        """Join the robot's network. Raises as `join`, or RobotUnreachable."""
        join(self._config.domain, self._config.interface)
        factory = ChannelFactory()
        ends = getattr(factory, _ENDPOINTS, None)
        if ends is None:
            ends = _make_endpoints(factory)
            setattr(factory, _ENDPOINTS, ends)
        self._writer, self._reader = ends
        # Claims that arrived before this board was opened are dropped.
        self._reader.take(N=DEPTH)
        self._on_text = on_text

    def write(self, text: str) -> None:
        """See `robot.lease.Board`."""
        if self._writer is not None:
            try:
                self._writer.write(String_(text))
            except DDSException:
                return  # as if the message were lost; the next period repeats it

    def poll(self) -> None:
        """See `robot.lease.Board`."""
        if self._reader is None or self._on_text is None:
            return
        try:
            samples = self._reader.take(N=DEPTH)
        except DDSException:
            return
        # Samples without data mean that a writer has left.
        for sample in samples:
            if isinstance(sample, String_):
                self._on_text(sample.data)

    def close(self) -> None:
        """See `robot.lease.Board`."""
        self._on_text = self._writer = self._reader = None


def _make_endpoints(factory: ChannelFactory) -> tuple[Any, Any]:
    participant = getattr(factory, "_ChannelFactory__participant")  # noqa: B009  # no other way to it
    qos = Qos(Policy.Reliability.Reliable(duration(milliseconds=50)), Policy.History.KeepLast(DEPTH))
    try:
        topic: Topic[Any] = Topic(participant, TOPIC, String_)
        return DataWriter(participant, topic, qos), DataReader(participant, topic, qos)
    except DDSException as error:
        raise RobotUnreachable(f"cannot write or read {TOPIC}: {error.msg}") from error
