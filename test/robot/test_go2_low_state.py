"""The low state is read with every state while the body changes, and seldom while it is at rest."""

import pytest
from unitree_sdk2py.idl.default import unitree_go_msg_dds__LowState_, unitree_go_msg_dds__SportModeState_

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.robot.go2 import sdk

pytestmark = pytest.mark.dds

PERIOD_S = 0.05


class Reader:
    """A DDS reader that always has a low state, except while `is_empty`."""

    def __init__(self):
        self.takes, self.is_empty, self.soc = 0, False, 80

    def take(self, _count):
        self.takes += 1
        if self.is_empty:
            return []
        low = unitree_go_msg_dds__LowState_()
        low.bms_state.soc = self.soc
        return [low]


class Subscriber:
    def __init__(self, topic, _kind):
        self.topic, self.handler = topic, None

    def Init(self, handler=None, _length=0):  # noqa: N802
        self.handler = handler


class Body:
    """States at 20 Hz in virtual time."""

    def __init__(self, monkeypatch):
        self.clock, self.reader = VirtualClock(100.0), Reader()
        monkeypatch.setattr(sdk, "ChannelSubscriber", Subscriber)
        monkeypatch.setattr(sdk, "hold_subscriber", lambda _: None)
        monkeypatch.setattr(sdk, "_reader", lambda _: self.reader)
        self.feed = sdk.StateFeed(self.clock, "sport", "low", 0.5)
        self.message = unitree_go_msg_dds__SportModeState_()
        self.message.error_code = 1013

    def run(self, seconds):
        """Let the time pass; return how often the low state was read."""
        before = self.reader.takes
        for _ in range(round(seconds / PERIOD_S)):
            self.clock.sleep(PERIOD_S)
            self.message.stamp.nanosec = (self.message.stamp.nanosec + 50_000_000) % 1_000_000_000
            self.feed.on_sport_state(self.message)
        return self.reader.takes - before


@pytest.fixture
def body(monkeypatch):
    return Body(monkeypatch)


def test_a_body_at_rest_is_read_twice_a_second_and_the_charge_is_no_older(body):
    assert body.run(2.0) == 40
    body.run(1.0)
    assert body.run(10.0) in range(18, 22)
    body.reader.soc = 7
    body.run(sdk.REST_LOW_S + PERIOD_S)
    assert body.feed.newest().battery_soc == 0.07


@pytest.mark.parametrize(
    "change",
    [
        lambda message: message.velocity.__setitem__(0, 0.4),
        lambda message: message.position.__setitem__(0, 0.05),
        lambda message: setattr(message, "body_height", 0.2),
        lambda message: message.imu_state.rpy.__setitem__(1, 0.1),
        lambda message: setattr(message, "error_code", 1001),
    ],
    ids=["speed", "place", "height", "tilt", "state"],
)
def test_every_state_is_read_as_soon_as_the_body_changes(body, change):
    body.run(4.0)
    change(body.message)
    body.run(PERIOD_S)
    assert body.run(1.0) == 20


def test_the_noise_of_standing_is_no_change(body):
    body.run(4.0)
    reads = 0
    for number in range(10):
        body.message.imu_state.rpy[1] = 0.004 * (-1) ** number
        body.message.position[0] = 0.003 * (-1) ** number
        reads += body.run(1.0)
    assert reads in range(18, 22)


def test_a_state_counts_as_complete_once_the_charge_is_known_and_a_lost_one_is_asked_again(body):
    body.reader.is_empty = True
    assert body.run(3.0) == 60
    assert body.feed.is_moving()
    assert not body.feed.is_live()
    body.reader.is_empty = False
    body.run(PERIOD_S)
    assert body.feed.is_live()
    assert body.feed.newest().battery_soc == 0.8
