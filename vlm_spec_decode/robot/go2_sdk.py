"""The edge to Unitree's SDK: joining the network, reading states, making clients.

All that the SDK does in its own way is turned into ours here: a network that is joined once per process,
bare failures, messages in place of states. Knows nothing of what the driver does with it.
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from unitree_sdk2py.core import channel
from unitree_sdk2py.core.channel import ChannelFactory, ChannelSubscriber
from unitree_sdk2py.go2.sport.sport_client import SportClient
from unitree_sdk2py.idl.unitree_go.msg.dds_ import LowState_, SportModeState_
from unitree_sdk2py.rpc import client_stub

from vlm_spec_decode.core import environment, environment_checks
from vlm_spec_decode.core.dds import MAX_PARTICIPANTS, domain_xml
from vlm_spec_decode.core.errors import DomainBusy, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.robot.go2_config import Go2Config
from vlm_spec_decode.robot.go2_keep import borrow, close, give_back, keep
from vlm_spec_decode.robot.link import Link, StateKeeper
from vlm_spec_decode.robot.network import check_network, middleware_clash
from vlm_spec_decode.robot.states import StateTable

# The SDK prints a line of its own for every request that it cannot send. The code that the call returns says
# the same, and what follows from it is said in our words.
setattr(client_stub, "print", lambda *_values, **_options: None)  # noqa: B010

_JOINED = "vsd_joined"
"""Attribute of the SDK's singleton that remembers what it was joined with; the SDK itself forgets."""


def join(domain: int, interface: str | None) -> None:
    """Join the robot's network, once per process; again with the same values is fine.

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
            "other code of this process has joined a DDS domain; use `robot.go2_sdk.join` there, too"
        )
    reason = _init(factory, domain, interface)
    if reason is not None:
        raise RobotUnreachable(f"DDS cannot open domain {domain} on {interface!r}: {_cause(domain, reason)}")
    setattr(factory, _JOINED, (domain, interface))


def _init(factory: ChannelFactory, domain: int, interface: str | None) -> str | None:
    """Join by the SDK, with our configuration; return what it says if it fails.

    The SDK's own lets ten processes join where there is no multicast, and traces into a file in /tmp that
    only one user can write. What went wrong it prints.
    """
    channel.ChannelConfigHasInterface = channel.ChannelConfigAutoDetermine = domain_xml(interface)
    said = io.StringIO()
    with redirect_stdout(said):
        joined = factory.Init(domain, interface)
    return None if joined else said.getvalue()


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
    """Return one SportClient per timeout, idle ones first; `go2_keep.give_back` each.

    The first is made alone, because the DDS library describes message types at their first use and fails
    when threads do that together; the others side by side.
    """
    first, *others = timeouts_s
    clients = [borrow(SportClient, first)]
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        return clients + list(pool.map(lambda timeout_s: borrow(SportClient, timeout_s), others))


class StateFeed(StateKeeper):
    """The newest state as the SDK's subscribers hear it."""

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
        self._subscribers: list[Any] = [
            ChannelSubscriber(sport_topic, SportModeState_),
            ChannelSubscriber(low_topic, LowState_),
        ]
        for subscriber in self._subscribers:
            keep(subscriber)
        # Queue length 0: the handlers run in the listener and only keep the newest sample.
        self._subscribers[0].Init(self.take_sport, 0)
        self._subscribers[1].Init(self.take_low, 0)

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        while self._subscribers:
            close(self._subscribers.pop())


@dataclass(frozen=True, slots=True)
class SdkCalls:
    """`robot.link.Calls` through one client of the SDK."""

    client: SportClient

    def call(self, name: str, *arguments: float) -> int:
        """Make one call and return its code."""
        return int(getattr(self.client, name)(*arguments))


def connect(config: Go2Config, clock: Clock) -> Link:
    """Join the network and make what a driver needs. Raises as `join`; a missing robot shows later."""
    join(config.domain, config.interface)
    feed = StateFeed(clock, config.state_topic, config.low_topic, config.stale_after_s, config.states)
    # A Move has no reply; its timeout only bounds the wait for a service that is not there.
    clients = make_sport_clients(config.call_timeout_s, config.stop_timeout_s, config.stop_timeout_s)
    posture, move, stop = (SdkCalls(client) for client in clients)

    def leave() -> None:
        feed.close()
        for client in clients:
            give_back(client)

    return Link(feed, posture, move, stop, leave)
