"""What this package asks of ROS 2's middleware. Knows no node."""

from __future__ import annotations

import os

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"


def prefer_sockets() -> None:
    """Keep Fast DDS from shared memory, unless the environment says otherwise; call it before `rclpy.init`.

    Processes that are killed leave shared memory behind in a state that can silence whoever publishes to
    them: after some forty kills of a VLM node the camera node's frames reached nobody, and a new VLM node
    could not mend that. Frames of some 50 kB lose nothing on the loopback interface. It has no effect with
    ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, where rmw_fastrtps chooses by itself, and for other middleware.
    """
    os.environ.setdefault(TRANSPORTS, "UDPv4")
