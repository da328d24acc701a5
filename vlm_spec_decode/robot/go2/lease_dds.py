"""The lease's board on the robot's own DDS domain, beside its sport service.

ROS domains and namespaces may differ between two computers on one robot's network; the robot's own domain
does not. Uses the SDK's participant, because the number of participants on a machine is limited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cyclonedds.core import DDSException
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration
from unitree_sdk2py.core.channel import ChannelFactory
from unitree_sdk2py.idl.std_msgs.msg.dds_ import String_

from vlm_spec_decode.core.errors import RobotUnreachable
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.sdk import join

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
