"""Request and reply over DDS: the robot's end of the Unitree RPC.

One thread waits for requests of all services and hands them on; answers may come from any thread. Requests
are kept in order, up to 64 per service, where the SDK's own Python server drops the newest beyond 10. A
service that is not wanted has no reader on the network, so that callers see 3102 as with a sport service
that is off. Knows nothing of what a service does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cyclonedds.core import InstanceState, ReadCondition, SampleState, ViewState, WaitSet
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration
from unitree_sdk2py.idl.unitree_api.msg.dds_ import (
    Request_,
    RequestHeader_,
    Response_,
    ResponseHeader_,
    ResponseStatus_,
)

from vlm_spec_decode.sim.server_dds import Dds
from vlm_spec_decode.sim.services import Reply, Service

API_VERSION_ID = 1
"""Internal api id that every service answers with its version."""
QUEUE = 64
POLL_S = 0.05


@dataclass(slots=True)
class _Desk:
    """One service's place on the network; `reader` and `condition` are there while it is open."""

    service: Service
    requests: Topic[Any]
    writer: DataWriter[Any]
    reader: DataReader[Any] | None = None
    condition: ReadCondition | None = None


class RequestServer:
    """Serves services until `stop`. `wanted` names the ones on the network now, `deaf` swallows requests."""

    def __init__(
        self,
        dds: Dds,
        services: Iterable[Service],
        wanted: Callable[[], frozenset[str]],
        deaf: Callable[[], bool],
    ) -> None:
        self._dds = dds
        self._wanted = wanted
        self._deaf = deaf
        self._waitset = WaitSet(dds.participant)
        self._desks = [self._desk(service) for service in services]
        self._stopped = threading.Event()
        self.is_open = False
        """Whether requests are heard by now."""

    def run(self) -> None:
        """Serve until `stop` is called from another thread."""
        while not self._stopped.is_set():
            wanted = self._wanted()
            for desk in self._desks:
                if (desk.service.name in wanted) != (desk.reader is not None):
                    self._close(desk) if desk.reader else self._open(desk)
            self.is_open = True
            self._waitset.wait(duration(seconds=POLL_S))
            for desk in self._desks:
                if desk.reader is not None:
                    self._serve(desk, desk.reader)
        for desk in self._desks:
            self._close(desk)

    def stop(self) -> None:
        """Let `run` return within its polling time."""
        self._stopped.set()

    def _desk(self, service: Service) -> _Desk:
        participant = self._dds.participant
        base = f"rt/api/{service.name}"
        writer: DataWriter[Any] = DataWriter(participant, Topic(participant, f"{base}/response", Response_))
        return _Desk(service, Topic(participant, f"{base}/request", Request_), writer)

    def _open(self, desk: _Desk) -> None:
        qos = Qos(Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.History.KeepLast(QUEUE))
        desk.reader = DataReader(self._dds.participant, desk.requests, qos)
        states = ViewState.Any | SampleState.NotRead | InstanceState.Alive
        desk.condition = ReadCondition(desk.reader, states)
        self._waitset.attach(desk.condition)

    def _close(self, desk: _Desk) -> None:
        if desk.condition is not None:
            self._waitset.detach(desk.condition)
        # Cyclone's Python entities leave the network when their last reference goes.
        desk.condition = None
        desk.reader = None

    def _serve(self, desk: _Desk, reader: DataReader[Any]) -> None:
        for request in reader.take(N=QUEUE):
            if isinstance(request, Request_) and not self._deaf():
                self._dispatch(desk, request)

    def _dispatch(self, desk: _Desk, request: Request_) -> None:
        header: RequestHeader_ = request.header

        def answer(reply: Reply) -> None:
            if header.policy.noreply or self._deaf():
                return
            status = ResponseStatus_(reply.code)
            ok = reply.code == 0
            binary = list(reply.binary) if ok else []
            response = Response_(ResponseHeader_(header.identity, status), reply.data if ok else "", binary)
            desk.writer.write(response)

        if header.identity.api_id == API_VERSION_ID:
            answer(Reply(data=desk.service.version))
        else:
            desk.service.handle(header.identity.api_id, request.parameter, answer)
