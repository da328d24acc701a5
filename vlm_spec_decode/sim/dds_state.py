"""The state topics: `SportModeState_` and `LowState_`, at full and at low rate.

Python needs some 145 and 370 µs to encode the two, so a topic is written only while somebody listens.
Fields that nobody reads from a robot (feet, since firmware 1.1.7) stay zero. Knows snapshots of the robot,
not its world.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cyclonedds.pub import DataWriter
from cyclonedds.topic import Topic
from unitree_sdk2py.idl.default import unitree_go_msg_dds__LowState_, unitree_go_msg_dds__SportModeState_
from unitree_sdk2py.idl.unitree_go.msg.dds_ import LowState_, SportModeState_

from vlm_spec_decode.sim.server_dds import Audience, Dds
from vlm_spec_decode.sim.server_robot import Snapshot

CELLS = 8
FAR_M = 8.0
"""What the range fields say where nothing is seen; the message has no infinity on a real robot."""


def quaternion(roll_rad: float, pitch_rad: float, yaw_rad: float) -> list[float]:
    """Return w, x, y, z of the z-y-x rotation."""
    cr, sr = math.cos(roll_rad / 2), math.sin(roll_rad / 2)
    cp, sp = math.cos(pitch_rad / 2), math.sin(pitch_rad / 2)
    cy, sy = math.cos(yaw_rad / 2), math.sin(yaw_rad / 2)
    return [
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    ]


class StateMessages:
    """The two messages, made once and filled anew; `epoch_s` is the robot's clock at its start."""

    def __init__(self, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._sport = unitree_go_msg_dds__SportModeState_()
        self._low = unitree_go_msg_dds__LowState_()

    def sport(self, state: Snapshot) -> SportModeState_:
        """Return the high-level state; the next call reuses the object."""
        message = self._sport
        stamp_s = self._epoch_s + state.time_s
        message.stamp.sec = int(stamp_s)
        message.stamp.nanosec = int((stamp_s - int(stamp_s)) * 1e9)
        message.error_code = state.code
        message.mode = state.mode
        message.progress = state.progress
        message.gait_type = state.gait
        self._imu(message.imu_state, state)
        message.position = [state.odometry.x_m, state.odometry.y_m, state.body_height_m]
        message.body_height = state.body_height_m
        vx, vy, vyaw = state.velocity
        message.velocity = [vx, vy, 0.0]
        message.yaw_speed = vyaw
        message.range_obstacle = [min(range_m, FAR_M) for range_m in state.range_obstacle_m]
        return message

    def low(self, state: Snapshot) -> LowState_:
        """Return the low-level state; the next call reuses the object."""
        message = self._low
        self._imu(message.imu_state, state)
        message.tick = int(state.time_s * 1000) & 0xFFFFFFFF
        for motor, angle in zip(message.motor_state, state.joints_rad, strict=False):
            motor.q = angle
        volts = 24.0 + 8.0 * state.battery_soc
        bms = message.bms_state
        bms.soc = round(100 * state.battery_soc)
        bms.current = -1500
        bms.cell_vol = [round(1000 * volts / CELLS)] * CELLS + [0] * (15 - CELLS)
        message.power_v = volts
        message.power_a = 1.5
        return message

    @staticmethod
    def _imu(imu: Any, state: Snapshot) -> None:
        imu.rpy = [state.roll_rad, state.pitch_rad, state.yaw_rad]
        imu.quaternion = quaternion(state.roll_rad, state.pitch_rad, state.yaw_rad)
        imu.gyroscope = list(state.imu.turning_radps)
        imu.accelerometer = list(state.imu.acceleration_mps2)


@dataclass(slots=True)
class _Feed:
    """One topic, its rate and when it is due."""

    writer: DataWriter[Any]
    audience: Audience
    fill: Callable[[Snapshot], Any]
    period_s: float
    is_sport: bool
    due_s: float = 0.0


class StatePublisher:
    """Writes what is due and listened to. Rates in Hz; 0 switches a pair of topics off."""

    def __init__(self, dds: Dds, epoch_s: float, *, rate_hz: float, lf_rate_hz: float) -> None:
        messages = StateMessages(epoch_s)
        self._feeds = [
            self._feed(dds, f"rt/{prefix}{name}", kind, fill, hz, is_sport)
            for prefix, hz in (("", rate_hz), ("lf/", lf_rate_hz))
            if hz > 0
            for name, kind, fill, is_sport in (
                ("sportmodestate", SportModeState_, messages.sport, True),
                ("lowstate", LowState_, messages.low, False),
            )
        ]

    def publish(self, now_s: float, snapshot: Callable[[], Snapshot], *, sport_on: bool) -> None:
        """Write the topics that are due at `now_s`; without the sport service its state is silent."""
        due = [feed for feed in self._feeds if now_s >= feed.due_s and (sport_on or not feed.is_sport)]
        heard = [feed for feed in due if feed.audience.readers]
        for feed in due:
            # Keep the beat; after a stall begin a new one instead of catching up.
            feed.due_s = max(feed.due_s + feed.period_s, now_s)
        state = snapshot() if heard else None
        for feed in heard:
            if state is not None:
                feed.writer.write(feed.fill(state))

    def close(self) -> None:
        """Write nothing more. Idempotent."""
        while self._feeds:
            feed = self._feeds.pop()
            feed.audience.leave(feed.writer)

    @staticmethod
    def _feed(
        dds: Dds, topic: str, kind: type, fill: Callable[[Snapshot], Any], rate_hz: float, is_sport: bool
    ) -> _Feed:
        audience = Audience()
        described: Topic[Any] = Topic(dds.participant, topic, kind)
        writer: DataWriter[Any] = DataWriter(dds.participant, described, listener=audience)
        return _Feed(writer, audience, fill, 1.0 / rate_hz, is_sport)
