"""Opening a DDS domain for the simulator.

The simulator has a participant of its own instead of the SDK's `ChannelFactory`: that one hides why it
failed, writes a trace file into the system's temp folder and cannot take a service off the network again.
Topic names, types and quality of service are the SDK's.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from cyclonedds.core import DDSException, Listener
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.topic import Topic
from unitree_sdk2py.idl.unitree_api.msg.dds_ import Request_

from vlm_spec_decode.core.dds import domain_xml
from vlm_spec_decode.core.errors import ConfigError, DomainBusy
from vlm_spec_decode.core.ports import Clock

MAX_DOMAIN = 232
"""Above this the ports that DDS derives from the domain id do not exist."""
PROBE_S = 0.6


@dataclass(frozen=True, slots=True)
class Dds:
    """An open domain; lives as long as its two parts."""

    domain: Domain
    participant: DomainParticipant


class Audience(Listener):  # type: ignore[misc]
    """Counts the readers that a writer has; give it to the writer and keep it as long.

    Of the ways to ask, the only one that cyclonedds 0.10 and 11 share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers = 0

    def on_publication_matched(self, writer: Any, status: Any) -> None:
        """Take what the DDS library tells on its own thread."""
        del writer
        self.readers = status.current_count

    def leave(self, writer: DataWriter[Any]) -> None:
        """Hear nothing of the writer any more; to be called before it is let go.

        A callback holds its writer: one that ran while everybody else lets go would delete it, and deadlock.
        """
        writer.set_listener(None)


def open_domain(domain_id: int, interface: str) -> Dds:
    """Join a domain on one network interface. Raises ConfigError if that is not possible."""
    if not 0 <= domain_id <= MAX_DOMAIN:
        raise ConfigError(f"DDS domain {domain_id} does not exist; use 0 to {MAX_DOMAIN}")
    known = [name for _, name in socket.if_nameindex()]
    if interface not in known:
        raise ConfigError(f"no network interface {interface!r} here; there are: {', '.join(known)}")
    try:
        return Dds(Domain(domain_id, domain_xml(interface)), DomainParticipant(domain_id))
    except DDSException as error:
        raise ConfigError(
            f"cannot open DDS domain {domain_id} on interface {interface!r}: {error.msg}"
        ) from error


def refuse_second_robot(dds: Dds, clock: Clock, service: str = "sport") -> None:
    """Make sure that no other robot serves this domain. Raises DomainBusy."""
    topic: Topic[Any] = Topic(dds.participant, f"rt/api/{service}/request", Request_)
    audience = Audience()
    writer: DataWriter[Any] = DataWriter(dds.participant, topic, listener=audience)
    deadline_s = clock.now() + PROBE_S
    while clock.now() < deadline_s and not audience.readers:
        clock.sleep(0.05)
    audience.leave(writer)
    if audience.readers:
        raise DomainBusy(
            f"a robot already serves {service!r} on DDS domain {dds.participant.get_domain_id()}; "
            "stop it or choose another domain"
        )
