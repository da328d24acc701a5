"""The fastest path from a terminal to the e-stop. Imports and creates only what a stop needs.

The stop is published on `e_stop/request`, which needs no reply, as soon as it has a subscriber, and is then
requested from the service `e_stop`, whose reply confirms standstill.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from vlm_spec_decode.core.errors import RobotUnreachable
from vlm_spec_decode.ros.middleware import COMMAND, OwnNode, first_to_find

NOTICE_S = 1.0
"""Seconds without a reply after which the user is informed."""


class EStopClient:
    """A node that engages or releases the e-stop. Close it after use."""

    def __init__(self, domain: int, namespace: str = "", *, publish_request: bool = True) -> None:
        """`publish_request`: publish the stop to the first subscriber, before the service is found."""
        self._publish_request = publish_request
        self._own = OwnNode(
            "vsd_stop", domain, namespace, start_parameter_services=False, enable_rosout=False
        )
        node = self._own.node
        self._stops = node.create_publisher(Bool, "e_stop/request", COMMAND)
        self._service = node.create_client(SetBool, "e_stop")
        self.name = str(node.resolve_service_name("e_stop"))

    def is_ready(self) -> bool:
        """Whether the service was found; meanwhile the stop is published."""
        if self._publish_request and self._stops.get_subscription_count():
            self._stops.publish(Bool(data=True))
        return bool(self._service.service_is_ready())

    def call(self, engaged: bool, timeout_s: float) -> tuple[bool, str] | None:
        """Call the service; return its success and message, None without a reply."""
        until_s = time.monotonic() + timeout_s
        future = self._service.call_async(SetBool.Request(data=engaged))
        while not future.done():
            if time.monotonic() > until_s:
                return None
            self._own.spin_once(0.02)
        response = future.result()
        return bool(response.success), str(response.message)

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        self._own.close()


def e_stop(
    domain: int,
    namespace: str,
    engaged: bool,
    timeout_s: float,
    on_progress: Callable[[str], None],
    on_reply: Callable[[bool, str], None],
) -> bool:
    """Engage or release the e-stop; return whether that succeeded.

    `on_progress` gets a sentence if that takes long. `on_reply` gets the service's success and message before
    this node shuts down, so that an error during the shutdown cannot hide them.
    Raises RobotUnreachable without an answer.
    """
    began_s = time.monotonic()
    clients: list[EStopClient] = []
    is_told = False

    def make() -> EStopClient:
        return EStopClient(domain, namespace, publish_request=engaged)

    def is_ready(client: EStopClient) -> bool:
        nonlocal is_told
        if not is_told and time.monotonic() - began_s > NOTICE_S:
            is_told = True
            on_progress(
                f"nobody answers to {client.name} on ROS domain {domain} yet; trying for {timeout_s:g} s"
            )
        return client.is_ready()

    client, is_found = first_to_find(make, is_ready, timeout_s, clients)
    try:
        left_s = max(1.0, timeout_s - (time.monotonic() - began_s))
        reply = client.call(engaged, left_s) if is_found else None
        if reply is not None:
            on_reply(*reply)
    finally:
        for each in (client, *clients):
            each.close()
    if reply is None:
        raise RobotUnreachable(f"no locomotion_node answers to {client.name} on ROS domain {domain}")
    return reply[0]
