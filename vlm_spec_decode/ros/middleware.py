"""This package's settings of the middleware: a node in a ROS context of its own, and quality of service by
purpose.

For programs that are no node process: terminals, recorder, player, demo. `OwnNode` uses no arguments of the
process, holds Ctrl-C while rclpy works, and its callbacks run only while it is spun.

The QoS profiles are in one place, so that both ends of a topic agree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import rclpy
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.validate_namespace import validate_namespace

from vlm_spec_decode.core import environment
from vlm_spec_decode.core.errors import ConfigError, MiddlewareError
from vlm_spec_decode.core.interrupts import hold_interrupts
from vlm_spec_decode.core.types import is_text

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
NO_LOG_FILE = ("--ros-args", "--disable-external-lib-logs")
"""Arguments for a process that writes no log file, or cannot."""


def prefer_sockets() -> None:
    """Disable Fast DDS's shared memory, unless the environment sets it; call it before `rclpy.init`.

    A killed process leaves shared memory in a state that can block its publishers: after some forty kills of
    a VLM node the camera node's frames reached no subscriber, and a new VLM node did not help. Frames of
    some 50 kB are as fast on the loopback interface. It has no effect with
    ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, where rmw_fastrtps chooses by itself, and for other middleware.
    """
    os.environ.setdefault(TRANSPORTS, "UDPv4")


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn errors of starting ROS 2 into one line. Raises MiddlewareError, or ConfigError for arguments."""
    from rclpy.exceptions import ROSInterruptException
    from rclpy.impl.implementation_singleton import rclpy_implementation

    try:
        yield
    except (rclpy_implementation.RCLInvalidROSArgsError, rclpy_implementation.UnknownROSArgsError) as error:
        raise ConfigError(f"ROS arguments: {_reason(error)}") from error
    except (rclpy_implementation.RCLError, rclpy_implementation.RMWError, RuntimeError) as error:
        if isinstance(error, ROSInterruptException):
            raise
        rmw = environment.rmw_in_use() or "its middleware"
        raise MiddlewareError(
            f"ROS 2 does not start with {rmw}: {_reason(error)}; `vsd doctor` looks at what it reads"
        ) from error


def _reason(error: Exception) -> str:
    """Return rcl's message without its source location."""
    return " ".join(str(error).split()).split(", at /")[0]


INTERRUPT_S = 0.1
"""The longest wait of `OwnNode.spin` within which Ctrl-C is not seen."""

ATTEMPTS, GAP_S = 6, 0.15
"""How many nodes search for a peer, and the time between their starts."""

POLL_S = 0.005


class OwnNode:
    """`node` is rclpy's. Spin it and close it on one thread."""

    def __init__(self, name: str, domain: int, namespace: str = "", **options: Any) -> None:
        """Join a ROS domain; `options` go to the node.

        Raises ConfigError for an invalid namespace or environment variable, and MiddlewareError.
        """
        if namespace:
            try:
                if not is_text(namespace):
                    raise InvalidNamespaceException(namespace, "no text", 0)
                validate_namespace("/" + namespace.lstrip("/"))
            except InvalidNamespaceException as error:
                raise ConfigError(f"{namespace!r} is no ROS namespace; /go2_a is one") from error
        environment.raise_for_refused(os.environ, environment.ROS)
        prefer_sockets()
        signals = SignalHandlerOptions.NO
        with hold_interrupts(), named_errors():
            context = self._context = rclpy.Context()
            # No log file and no process arguments: neither a full or missing log folder nor an argument
            # that is no text may prevent the e-stop.
            args = list(NO_LOG_FILE)
            rclpy.init(args=args, context=context, domain_id=domain, signal_handler_options=signals)
            options.setdefault("use_global_arguments", False)
            self.node = rclpy.create_node(name, context=context, namespace=namespace or None, **options)
            self._executor = SingleThreadedExecutor(context=context)
            self._executor.add_node(self.node)

    def spin(self, duration_s: float) -> None:
        """Process callbacks for about `duration_s`; Ctrl-C is raised between two of them."""
        until_s = time.monotonic() + duration_s
        while (left_s := until_s - time.monotonic()) > 0:
            self.spin_once(min(left_s, INTERRUPT_S))

    def spin_once(self, timeout_s: float) -> None:
        """Process one callback, waiting for it at most `timeout_s`; Ctrl-C is raised after it."""
        with hold_interrupts():
            self._executor.spin_once(timeout_sec=timeout_s)

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        with hold_interrupts():
            if self._context.ok():
                self._executor.shutdown(timeout_sec=1)
                self.node.destroy_node()
                rclpy.shutdown(context=self._context)


class Closable(Protocol):
    """An `OwnNode`, or an object that owns one."""

    def close(self) -> None:
        """Leave ROS."""
        ...


Seeker = TypeVar("Seeker", bound=Closable)


def first_to_find(
    make: Callable[[], Seeker],
    has_found: Callable[[Seeker], bool],
    timeout_s: float,
    others: list[Seeker] | None = None,
) -> tuple[Seeker, bool]:
    """Let several nodes search for a peer, and return the first one that has found it.

    The others are closed, or appended to `others` if the caller wants to close them later.

    Two participants of Fast DDS discover each other within 0.12 s or, in about a quarter of all cases, only
    after 1 to 3 s. Which of the two happens is random for each participant, so a further participant is
    started after a moment. After `timeout_s` the first node is returned, with False.
    """
    began_s = time.monotonic()
    seekers: list[Seeker] = []
    found: Seeker | None = None
    try:
        while found is None and (spent_s := time.monotonic() - began_s) < timeout_s:
            if len(seekers) < ATTEMPTS and spent_s >= GAP_S * len(seekers):
                seekers.append(make())
            found = next((seeker for seeker in seekers if has_found(seeker)), None)
            time.sleep(0 if found is not None else POLL_S)
    except BaseException:
        for seeker in seekers:
            seeker.close()
        raise
    if not seekers:
        seekers.append(make())
    chosen = seekers[0] if found is None else found
    for seeker in seekers:
        if seeker is not chosen and others is not None:
            others.append(seeker)
        elif seeker is not chosen:
            seeker.close()
    return chosen, found is not None


COMMAND = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST)
"""Instructions, plans and answers: all arrive, in order."""

LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    history=HistoryPolicy.KEEP_LAST,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""State that a late subscriber needs: the last status."""

LATCHED_QUEUE = QoSProfile(
    depth=50,
    reliability=ReliabilityPolicy.RELIABLE,
    history=HistoryPolicy.KEEP_LAST,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""Latched state for subscribers that must not miss a change when another follows at once."""

STREAMED = QoSProfile(
    depth=10,
    reliability=ReliabilityPolicy.RELIABLE,
    history=HistoryPolicy.KEEP_LAST,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""Growing text: a late subscriber gets the newest version."""

REQUEST = STREAMED
"""Requests of short-lived processes: a recorder that discovers one late still gets all of them."""
