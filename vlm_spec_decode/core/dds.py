"""How a DDS domain is opened, by the robot's driver and by the simulator alike."""

from __future__ import annotations

MAX_DOMAIN = 232
"""Above this the ports that DDS derives from a domain's number do not exist. Holds for ROS_DOMAIN_ID, too."""

MAX_PARTICIPANTS = 120
"""Participants of one domain on one computer. Without multicast, as on `lo`, Cyclone DDS looks for others by
trying so many ports; the 0.10 that a Go2 speaks tries 10, and the eleventh process cannot join."""


def domain_xml(interface: str | None) -> str:
    """Return Cyclone DDS's configuration for one network interface; None lets it choose."""
    from xml.sax.saxutils import quoteattr

    where = "autodetermine='true'" if interface is None else f"name={quoteattr(interface)}"
    return (
        f'<CycloneDDS><Domain Id="any"><General><Interfaces><NetworkInterface {where}/></Interfaces>'
        "</General>"
        f"<Discovery><MaxAutoParticipantIndex>{MAX_PARTICIPANTS - 1}</MaxAutoParticipantIndex></Discovery>"
        "</Domain></CycloneDDS>"
    )
