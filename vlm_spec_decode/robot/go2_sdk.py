"""The edge to Unitree's SDK: joining the network, reading states, making clients.

All that the SDK does in its own way is turned into ours here: a network that is joined once per process,
bare failures, messages in place of states. Knows nothing of what the driver does with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from unitree_sdk2py.core.channel import ChannelFactory, ChannelSubscriber
from unitree_sdk2py.go2.sport.sport_client import SportClient
from unitree_sdk2py.idl.unitree_go.msg.dds_ import LowState_, SportModeState_

from vlm_spec_decode.core.errors import DomainBusy, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.robot.go2_config import Go2Config
from vlm_spec_decode.robot.go2_keep import borrow, close, give_back, keep
from vlm_spec_decode.robot.network import check_network

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
    if not factory.Init(domain, interface):
        raise RobotUnreachable(
            f"DDS cannot open domain {domain} on {interface!r}; "
            "is the interface up, and can cdds.LOG in the temp folder be written?"
        )
    setattr(factory, _JOINED, (domain, interface))


def make_sport_clients(*timeouts_s: float) -> list[SportClient]:
    """Return one SportClient per timeout, idle ones first; `go2_keep.give_back` each.

    The first is made alone, because the DDS library describes message types at their first use and fails
    when threads do that together; the others side by side.
    """
    first, *others = timeouts_s
    clients = [borrow(SportClient, first)]
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        return clients + list(pool.map(lambda timeout_s: borrow(SportClient, timeout_s), others))


def to_state(message: SportModeState_, received_s: float, battery_soc: float) -> RobotState:
    """Translate a state message. Four ranges of 0 mean "not measured" and become infinity.

    A single 0 is contact: a robot that touches something must not take it for free ground.
    """
    ranges = [float(value) for value in message.range_obstacle]
    if not any(ranges):
        ranges = [math.inf] * 4
    roll, pitch, yaw = message.imu_state.rpy
    return RobotState(
        stamp_s=message.stamp.sec + 1e-9 * message.stamp.nanosec,
        received_s=received_s,
        x_m=message.position[0],
        y_m=message.position[1],
        yaw_rad=yaw,
        vx_mps=message.velocity[0],
        vy_mps=message.velocity[1],
        vyaw_radps=message.yaw_speed,
        roll_rad=roll,
        pitch_rad=pitch,
        body_height_m=message.body_height,
        code=message.error_code,
        battery_soc=battery_soc,
        range_obstacle_m=(ranges[0], ranges[1], ranges[2], ranges[3]),
    )


class StateFeed:
    """The newest state, and whether the robot's stamp still moves. Readable from any thread."""

    def __init__(self, clock: Clock, sport_topic: str, low_topic: str, stale_after_s: float) -> None:
        """Subscribe. `join` must have been called."""
        self._clock = clock
        self._topic = sport_topic
        self._stale_after_s = stale_after_s
        self._state: RobotState | None = None
        self._progress_s = -math.inf
        self._battery_soc: float | None = None
        self._is_complete = False
        self._subscribers: list[Any] = [
            ChannelSubscriber(sport_topic, SportModeState_),
            ChannelSubscriber(low_topic, LowState_),
        ]
        for subscriber in self._subscribers:
            keep(subscriber)
        # Queue length 0: the handlers run in the listener and only keep the newest sample.
        self._subscribers[0].Init(self._on_sport, 0)
        self._subscribers[1].Init(self._on_low, 0)

    def is_moving(self) -> bool:
        """Return whether there is a state whose stamp has moved lately."""
        return self._clock.now() - self._progress_s <= self._stale_after_s

    def is_live(self) -> bool:
        """Return whether there is such a state that holds the battery, too, which has its own topic."""
        return self.is_moving() and self._is_complete

    def newest(self) -> RobotState:
        """Return the newest state. Raises RobotStale if its stamp stands still, or RobotUnreachable."""
        state = self._state
        if state is None:
            raise RobotUnreachable(f"no robot state on {self._topic}")
        if not self.is_moving():
            age_s = self._clock.now() - self._progress_s
            raise RobotStale(f"the stamp of {self._topic} has stood still for {age_s:.2f} s")
        return state

    def wait(self, done: Callable[[RobotState], bool], deadline_s: float) -> bool:
        """Wait until `done` holds for the newest state; whether it did before `deadline_s` of the clock."""
        while True:
            state = self._state
            if state is not None and done(state):
                return True
            if self._clock.now() >= deadline_s:
                return False
            self._clock.sleep(0.01)

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        while self._subscribers:
            close(self._subscribers.pop())

    def _on_sport(self, message: SportModeState_) -> None:
        now_s = self._clock.now()
        soc = 0.0 if self._battery_soc is None else self._battery_soc
        old, self._state = self._state, to_state(message, now_s, soc)
        self._is_complete = self._battery_soc is not None
        if old is None or old.stamp_s != self._state.stamp_s:
            self._progress_s = now_s

    def _on_low(self, message: LowState_) -> None:
        self._battery_soc = message.bms_state.soc / 100


@dataclass(frozen=True, slots=True)
class Link:
    """What a started driver holds. Three clients, so that no call waits behind another's timeout."""

    feed: StateFeed
    posture: SportClient
    move: SportClient
    stop: SportClient

    def close(self) -> None:
        """Leave; the clients wait for whoever joins next."""
        self.feed.close()
        for client in (self.posture, self.move, self.stop):
            give_back(client)


def connect(config: Go2Config, clock: Clock) -> Link:
    """Join the network and make what a driver needs. Raises as `join`; a missing robot shows later."""
    join(config.domain, config.interface)
    feed = StateFeed(clock, config.state_topic, config.low_topic, config.stale_after_s)
    # A Move has no reply; its timeout only bounds the wait for a service that is not there.
    clients = make_sport_clients(config.call_timeout_s, config.stop_timeout_s, config.stop_timeout_s)
    return Link(feed, *clients)
