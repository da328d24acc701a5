"""A person's end of the topics, for terminals: hears what the nodes say, asks, answers, cancels and stops.

Lives on a ROS context of its own; nothing happens but while `spin` is called. Knows nothing of terminals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from vlm_spec_decode.bridge.own_node import OwnNode
from vlm_spec_decode.bridge.qos import COMMAND, LATCHED
from vlm_spec_decode.bridge.requests import Request
from vlm_spec_decode.core.errors import RobotUnreachable

TEXTS = ("vlm/answer", "vlm/answer/partial", "vlm/plan/status", "vlm/trace")
STATUS = "vlm/status"
SPIN_S = 0.05

Hear = Callable[[str, str], None]
"""Called with the topic's name below the namespace and the text."""


class Operator:
    """A node beside the running ones, in the same namespace. Close it."""

    def __init__(self, domain: int, namespace: str = "", hear: Hear | None = None) -> None:
        self.odometry: Odometry | None = None
        self.diagnostics: dict[str, Any] = {}
        self._hear = hear or (lambda _topic, _text: None)
        self._domain = domain
        self._own = OwnNode("vsd_operator", domain, namespace, start_parameter_services=False)
        self._node = node = self._own.node
        self._requests = node.create_publisher(String, "vlm/request", COMMAND)
        self._withdrawals = node.create_publisher(String, "vlm/withdraw", COMMAND)
        self._stops = node.create_publisher(Bool, "e_stop/request", COMMAND)
        self._verdict = node.create_client(SetBool, "vlm/approve")
        self._cancel = node.create_client(Trigger, "vlm/cancel")
        self._e_stop = node.create_client(SetBool, "e_stop")

    def listen(self) -> None:
        """Subscribe to everything that is said; `hear` then gets it."""
        node = self._node
        for topic in TEXTS:
            node.create_subscription(String, topic, self._hearer(topic), COMMAND)
        node.create_subscription(String, STATUS, self._hearer(STATUS), LATCHED)
        node.create_subscription(Odometry, "odom", self._on_odometry, 5)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def spin(self, duration_s: float = SPIN_S) -> None:
        """Take in what arrives for about `duration_s`."""
        self._own.spin(duration_s)

    def find(self, timeout_s: float) -> None:
        """Wait for a node that takes requests. Raises RobotUnreachable."""
        until_s = time.monotonic() + timeout_s
        while not (self._requests.get_subscription_count() and self._withdrawals.get_subscription_count()):
            if time.monotonic() > until_s:
                raise RobotUnreachable(
                    f"no vlm_node listens on ROS domain {self._domain} in namespace {self._namespace()}"
                )
            self.spin()

    def ask(self, request: Request) -> None:
        """Publish a request."""
        self._requests.publish(String(data=request.to_json()))

    def withdraw(self, mission: str) -> None:
        """Ask for the end of one mission."""
        self._withdrawals.publish(String(data=mission))

    def cancel(self, timeout_s: float) -> bool:
        """Let the locomotion node drop what it does; whether it has answered."""
        return self._call(self._cancel, Trigger.Request(), timeout_s) is not None

    def answer(self, yes: bool, timeout_s: float) -> str:
        """Say yes or no to the plan that is shown; return what the node says if it wanted no answer."""
        response = self._call(self._verdict, SetBool.Request(data=yes), timeout_s)
        if response is None:
            raise RobotUnreachable("vlm_node does not take the answer")
        return "" if response.success else str(response.message)

    def e_stop(self, engaged: bool, timeout_s: float) -> tuple[bool, str]:
        """Engage or release the e-stop; return whether it did as asked, and what it said.

        Engaging goes out as a message too, which needs no reply. Raises RobotUnreachable without an answer.
        """
        if engaged:
            self._stops.publish(Bool(data=True))
        response = self._call(self._e_stop, SetBool.Request(data=engaged), timeout_s, urge=engaged)
        if response is None:
            name = self._node.resolve_service_name("e_stop")
            raise RobotUnreachable(f"no locomotion_node answers to {name} on ROS domain {self._domain}")
        return bool(response.success), str(response.message)

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        self._own.close()

    def _call(self, client: Any, request: Any, timeout_s: float, urge: bool = False) -> Any | None:
        until_s = time.monotonic() + timeout_s
        while not client.service_is_ready():
            if time.monotonic() > until_s:
                return None
            self.spin(0.01)
            if urge:
                self._stops.publish(Bool(data=True))
        future = client.call_async(request)
        while not future.done():
            if time.monotonic() > until_s:
                return None
            self.spin(0.01)
        return future.result()

    def _namespace(self) -> str:
        return str(self._node.get_namespace())

    def _hearer(self, topic: str) -> Callable[[String], None]:
        return lambda message: self._hear(topic, message.data)

    def _on_odometry(self, message: Odometry) -> None:
        self.odometry = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        below = self._namespace().strip("/")
        for status in message.status:
            if not below or status.name.startswith(f"{below}/"):
                self.diagnostics[status.name.removeprefix(f"{below}/")] = status
