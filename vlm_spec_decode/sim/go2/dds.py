"""The simulator's end of DDS: the domain, request and reply, and the state topics.

The simulator has its own participant instead of the SDK's `ChannelFactory`, which hides why it failed, writes
a trace file into the system's temp folder and cannot remove a service from the network again. Topic names,
types and quality of service are the SDK's.

Requests: one thread waits for requests of all services and passes them on; answers may come from any
thread. Requests are kept in order, up to 64 per service, where the SDK's own Python server drops the newest
beyond 10. A disabled service has no reader on the network, so that callers see 3102 as with a sport service
that is off.

State topics: `SportModeState_` and `LowState_`, at full and at low rate. Python needs some 145 and 370 µs
to encode the two, so a topic is written only while it has readers. Fields that a robot does not fill either
(feet, since firmware 1.1.7) stay zero. Uses snapshots of the robot, not its world.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cyclonedds.core import (
    DDSException,
    InstanceState,
    Listener,
    ReadCondition,
    SampleState,
    ViewState,
    WaitSet,
)
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration
from unitree_sdk2py.idl.default import unitree_go_msg_dds__LowState_, unitree_go_msg_dds__SportModeState_
from unitree_sdk2py.idl.unitree_api.msg.dds_ import (
    Request_,
    RequestHeader_,
    Response_,
    ResponseHeader_,
    ResponseStatus_,
)
from unitree_sdk2py.idl.unitree_go.msg.dds_ import LowState_, SportModeState_

from vlm_spec_decode.core.dds import MAX_DOMAIN, domain_xml
from vlm_spec_decode.core.errors import ConfigError, DomainBusy
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.sim.go2.robot import Snapshot
from vlm_spec_decode.sim.go2.services import Reply, Service

PROBE_S = 0.6


@dataclass(frozen=True, slots=True)
class DdsDomain:
    """An open domain. It stays open as long as both fields are referenced."""

    domain: Domain
    participant: DomainParticipant


class ReaderCount(Listener):  # type: ignore[misc]
    """Counts the readers of a writer. Pass it to the writer, and keep a reference as long as the writer's.

    This is the only way that works in both cyclonedds 0.10 and 11.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers = 0

    def on_publication_matched(self, writer: Any, status: Any) -> None:
        """Store the reader count; called on the DDS library's thread."""
        del writer
        self.readers = status.current_count

    def detach(self, writer: DataWriter[Any]) -> None:
        """Remove the writer's callback. Call it before the last reference to the writer is dropped.

        A running callback references its writer: if it held the last reference, it would delete it and
        deadlock.
        """
        writer.set_listener(None)


def open_domain(domain_id: int, interface: str) -> DdsDomain:
    """Join a domain on one network interface. Raises ConfigError if that is not possible."""
    if not 0 <= domain_id <= MAX_DOMAIN:
        raise ConfigError(f"DDS domain {domain_id} does not exist; use 0 to {MAX_DOMAIN}")
    known = [name for _, name in socket.if_nameindex()]
    if interface not in known:
        raise ConfigError(f"no network interface {interface!r} here; there are: {', '.join(known)}")
    try:
        return DdsDomain(Domain(domain_id, domain_xml(interface)), DomainParticipant(domain_id))
    except DDSException as error:
        raise ConfigError(
            f"cannot open DDS domain {domain_id} on interface {interface!r}: {error.msg}"
        ) from error


def refuse_second_robot(dds: DdsDomain, clock: Clock, service: str = "sport") -> None:
    """Make sure that no other robot serves this domain. Raises DomainBusy."""
    topic: Topic[Any] = Topic(dds.participant, f"rt/api/{service}/request", Request_)
    audience = ReaderCount()
    writer: DataWriter[Any] = DataWriter(dds.participant, topic, listener=audience)
    deadline_s = clock.now() + PROBE_S
    while clock.now() < deadline_s and not audience.readers:
        clock.sleep(0.05)
    audience.detach(writer)
    if audience.readers:
        raise DomainBusy(
            f"a robot already serves {service!r} on DDS domain {dds.participant.get_domain_id()}; "
            "stop it or choose another domain"
        )


API_VERSION_ID = 1
"""Internal api id that every service answers with its version."""
QUEUE = 64
POLL_S = 0.05


@dataclass(slots=True)
class _ServiceEndpoint:
    """One service's writer and reader; `reader` and `condition` are set while it is open."""

    service: Service
    requests: Topic[Any]
    writer: DataWriter[Any]
    reader: DataReader[Any] | None = None
    condition: ReadCondition | None = None


class RequestServer:
    """Serves services until `stop`.

    `wanted` returns those to be on the network; `drops_requests`: none is answered.
    """

    def __init__(
        self,
        dds: DdsDomain,
        services: Iterable[Service],
        wanted: Callable[[], frozenset[str]],
        drops_requests: Callable[[], bool],
    ) -> None:
        self._dds = dds
        self._wanted = wanted
        self._drops_requests = drops_requests
        self._waitset = WaitSet(dds.participant)
        self._endpoints = [self._endpoint(service) for service in services]
        self._stopped = threading.Event()
        self.is_open = False
        """Whether requests are received by now."""

    def run(self) -> None:
        """Serve until `stop` is called from another thread."""
        while not self._stopped.is_set():
            wanted = self._wanted()
            for endpoint in self._endpoints:
                if (endpoint.service.name in wanted) != (endpoint.reader is not None):
                    self._close(endpoint) if endpoint.reader else self._open(endpoint)
            self.is_open = True
            self._waitset.wait(duration(seconds=POLL_S))
            for endpoint in self._endpoints:
                if endpoint.reader is not None:
                    self._serve(endpoint, endpoint.reader)
        for endpoint in self._endpoints:
            self._close(endpoint)

    def stop(self) -> None:
        """Let `run` return within its polling time."""
        self._stopped.set()

    def _endpoint(self, service: Service) -> _ServiceEndpoint:
        participant = self._dds.participant
        base = f"rt/api/{service.name}"
        writer: DataWriter[Any] = DataWriter(participant, Topic(participant, f"{base}/response", Response_))
        return _ServiceEndpoint(service, Topic(participant, f"{base}/request", Request_), writer)

    def _open(self, endpoint: _ServiceEndpoint) -> None:
        qos = Qos(Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.History.KeepLast(QUEUE))
        endpoint.reader = DataReader(self._dds.participant, endpoint.requests, qos)
        states = ViewState.Any | SampleState.NotRead | InstanceState.Alive
        endpoint.condition = ReadCondition(endpoint.reader, states)
        self._waitset.attach(endpoint.condition)

    def _close(self, endpoint: _ServiceEndpoint) -> None:
        if endpoint.condition is not None:
            self._waitset.detach(endpoint.condition)
        # Cyclone's Python entities leave the network with their last reference.
        endpoint.condition = None
        endpoint.reader = None

    def _serve(self, endpoint: _ServiceEndpoint, reader: DataReader[Any]) -> None:
        for request in reader.take(N=QUEUE):
            if isinstance(request, Request_) and not self._drops_requests():
                self._dispatch(endpoint, request)

    def _dispatch(self, endpoint: _ServiceEndpoint, request: Request_) -> None:
        header: RequestHeader_ = request.header

        def answer(reply: Reply) -> None:
            if header.policy.noreply or self._drops_requests():
                return
            status = ResponseStatus_(reply.code)
            ok = reply.code == 0
            binary = list(reply.binary) if ok else []
            response = Response_(ResponseHeader_(header.identity, status), reply.data if ok else "", binary)
            endpoint.writer.write(response)

        if header.identity.api_id == API_VERSION_ID:
            answer(Reply(data=endpoint.service.version))
        else:
            endpoint.service.handle(header.identity.api_id, request.parameter, answer)


CELLS = 8
FAR_M = 8.0
"""Value of the range fields without an obstacle; a real robot's message has no infinity."""


def quaternion(roll_rad: float, pitch_rad: float, yaw_rad: float) -> list[float]:
    """Return w, x, y, z of the z-y-x rotation."""
    cr, sr = math.cos(roll_rad / 2), math.sin(roll_rad / 2)
    cp, sp = math.cos(pitch_rad / 2), math.sin(pitch_rad / 2)
    cy, sy = math.cos(yaw_rad / 2), math.sin(yaw_rad / 2)
    return [
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    ]


class StateMessages:
    """The two state messages, made once and refilled; `epoch_s` is the robot's clock at its start."""

    def __init__(self, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._sport = unitree_go_msg_dds__SportModeState_()
        self._low = unitree_go_msg_dds__LowState_()

    def sport(self, state: Snapshot) -> SportModeState_:
        """Return the high-level state; the next call reuses the object."""
        message = self._sport
        stamp_s = self._epoch_s + state.time_s
        message.stamp.sec = int(stamp_s)
        message.stamp.nanosec = int((stamp_s - int(stamp_s)) * 1e9)
        message.error_code = state.code
        message.mode = state.mode
        message.progress = state.progress
        message.gait_type = state.gait
        self._imu(message.imu_state, state)
        message.position = [state.odometry.x_m, state.odometry.y_m, state.body_height_m]
        message.body_height = state.body_height_m
        vx, vy, vyaw = state.velocity
        message.velocity = [vx, vy, 0.0]
        message.yaw_speed = vyaw
        message.range_obstacle = [min(range_m, FAR_M) for range_m in state.range_obstacle_m]
        return message

    def low(self, state: Snapshot) -> LowState_:
        """Return the low-level state; the next call reuses the object."""
        message = self._low
        self._imu(message.imu_state, state)
        message.tick = int(state.time_s * 1000) & 0xFFFFFFFF
        for motor, angle in zip(message.motor_state, state.joints_rad, strict=False):
            motor.q = angle
        volts = 24.0 + 8.0 * state.battery_soc
        bms = message.bms_state
        bms.soc = round(100 * state.battery_soc)
        bms.current = -1500
        bms.cell_vol = [round(1000 * volts / CELLS)] * CELLS + [0] * (15 - CELLS)
        message.power_v = volts
        message.power_a = 1.5
        return message

    @staticmethod
    def _imu(imu: Any, state: Snapshot) -> None:
        imu.rpy = [state.roll_rad, state.pitch_rad, state.yaw_rad]
        imu.quaternion = quaternion(state.roll_rad, state.pitch_rad, state.yaw_rad)
        imu.gyroscope = list(state.imu.turning_radps)
        imu.accelerometer = list(state.imu.acceleration_mps2)


@dataclass(slots=True)
class _StateTopic:
    """One topic, its rate and when it is due."""

    writer: DataWriter[Any]
    reader_count: ReaderCount
    fill: Callable[[Snapshot], Any]
    period_s: float
    is_sport: bool
    due_s: float = 0.0


class StatePublisher:
    """Writes the topics that are due and have readers. Rates in Hz; 0 disables a pair of topics."""

    def __init__(self, dds: DdsDomain, epoch_s: float, *, rate_hz: float, lf_rate_hz: float) -> None:
        messages = StateMessages(epoch_s)
        self._topics = [
            self._state_topic(dds, f"rt/{prefix}{name}", kind, fill, hz, is_sport)
            for prefix, hz in (("", rate_hz), ("lf/", lf_rate_hz))
            if hz > 0
            for name, kind, fill, is_sport in (
                ("sportmodestate", SportModeState_, messages.sport, True),
                ("lowstate", LowState_, messages.low, False),
            )
        ]

    def publish(self, now_s: float, snapshot: Callable[[], Snapshot], *, sport_on: bool) -> None:
        """Write the topics that are due at `now_s`; without the sport service its state is not written."""
        due = [topic for topic in self._topics if now_s >= topic.due_s and (sport_on or not topic.is_sport)]
        listened = [topic for topic in due if topic.reader_count.readers]
        for topic in due:
            # Keep the schedule; after a stall start a new one instead of catching up.
            topic.due_s = max(topic.due_s + topic.period_s, now_s)
        state = snapshot() if listened else None
        for topic in listened:
            if state is not None:
                topic.writer.write(topic.fill(state))

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        while self._topics:
            topic = self._topics.pop()
            topic.reader_count.detach(topic.writer)

    @staticmethod
    def _state_topic(
        dds: DdsDomain,
        topic: str,
        kind: type,
        fill: Callable[[Snapshot], Any],
        rate_hz: float,
        is_sport: bool,
    ) -> _StateTopic:
        audience = ReaderCount()
        described: Topic[Any] = Topic(dds.participant, topic, kind)
        writer: DataWriter[Any] = DataWriter(dds.participant, described, listener=audience)
        return _StateTopic(writer, audience, fill, 1.0 / rate_hz, is_sport)
