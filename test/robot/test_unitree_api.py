"""The Go2 driver over ROS 2 messages: the robot's contract holds, and the bytes are the robot's own."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from unitree_sdk2py.idl.unitree_api.msg.dds_ import Response_, ResponseHeader_, ResponseStatus_

from test.robot.contract import RobotDriverContract
from test.unitree_messages import MESSAGES, Topics
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import ConfigError, RobotRefused, RobotStale, RobotUnreachable
from vlm_spec_decode.core.ports import Clock, RobotDriver
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2.codes import PLANS
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.driver import Go2Driver
from vlm_spec_decode.robot.go2.link import APIS, ApiCall, PendingReplies, SportCalls
from vlm_spec_decode.ros.unitree_topics import RosConnector, find_messages
from vlm_spec_decode.sim.go2.dds import StateMessages
from vlm_spec_decode.sim.go2.robot import FaultSchedule, SimulatedRobot
from vlm_spec_decode.sim.go2.services import Reply, SportService
from vlm_spec_decode.sim.scene import Scene
from vlm_spec_decode.sim.world import World

STATE_S = 0.05
ROOM = Scene(0, 8.0, 8.0, (), Pose2D(0.0, 0.0, 0.5))


class RobotTime(VirtualClock):
    """Virtual time in which a simulated robot lives behind ROS topics, and says its state at 20 Hz."""

    def __init__(self) -> None:
        super().__init__(5.0)
        self.robot = SimulatedRobot(World(ROOM), self, FaultSchedule([], 5.0))
        self.service = SportService(self.robot)
        self.topics = Topics(self._on_request)
        self.is_silent = False
        self._messages = StateMessages(1000.0)
        self._said_s = 0.0

    def sleep(self, duration_s: float) -> None:
        until_s = self.now_s + duration_s
        while self.now_s < until_s - 1e-9:
            super().sleep(min(0.01, until_s - self.now_s))
            self.robot.tick()
            if self.now_s - self._said_s >= STATE_S - 1e-9 and not self.is_silent:
                self._said_s = self.now_s
                state = self.robot.snapshot()
                self.topics.say("/lf/lowstate", self._messages.low(state))
                self.topics.say("/lf/sportmodestate", self._messages.sport(state))

    def _on_request(self, request: Any) -> None:
        def answer(reply: Reply) -> None:
            if not request.header.policy.noreply and not self.is_silent:
                header = ResponseHeader_(request.header.identity, ResponseStatus_(reply.code))
                self.topics.say("/api/sport/response", Response_(header, reply.data, []))

        self.service.handle(request.header.identity.api_id, request.parameter, answer)


def make(clock: RobotTime, **settings: float) -> Go2Driver:
    return Go2Driver(Go2Config(**settings), clock, connect=RosConnector(clock.topics, MESSAGES))


class TestOverRosMessages(RobotDriverContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return RobotTime()

    @pytest.fixture
    def driver(self, clock: Clock) -> RobotDriver:
        assert isinstance(clock, RobotTime)
        return make(clock)


def test_what_goes_out_is_what_the_sdk_sends() -> None:
    clock = RobotTime()
    driver = make(clock)
    driver.start()
    driver.move(0.3, 0, -0.2)
    driver.stop()
    *_, move, stop = clock.topics.published
    assert json.loads(move.parameter) == {"x": 0.3, "y": 0.0, "z": -0.2}
    assert "0.0" in move.parameter
    assert (move.header.identity.api_id, move.header.policy.noreply) == (1008, True)
    assert (stop.header.identity.api_id, stop.header.policy.noreply, stop.parameter) == (1003, False, "{}")
    ids = [request.header.identity.id for request in clock.topics.published]
    assert len(set(ids)) == len(ids)


def test_every_posture_has_its_api() -> None:
    called = {step.call for plan in PLANS.values() for step in plan if step.call}
    assert called <= set(APIS)
    assert not {1030, 1031, 1032, 2041, 2043, 2044} & {api.id for api in APIS.values()}


def test_a_robot_that_is_not_there_is_unreachable() -> None:
    clock = RobotTime()
    clock.is_silent = True
    with pytest.raises(RobotUnreachable, match="nothing arrives"):
        make(clock).start()


def test_a_service_that_nobody_serves_is_said() -> None:
    clock = RobotTime()
    clock.topics.is_heard = False
    with pytest.raises(RobotUnreachable, match="RecoveryStand: could not send"):
        make(clock).start()


def test_a_robot_that_falls_silent_is_stale_and_its_stop_is_no_success() -> None:
    clock = RobotTime()
    driver = make(clock, stop_timeout_s=0.01)
    driver.start()
    driver.move(0.3, 0.0, 0.0)
    clock.is_silent = True
    clock.sleep(1.0)
    with pytest.raises(RobotStale):
        driver.state()
    with pytest.raises((RobotStale, RobotRefused)):
        driver.stop()


def test_what_has_been_closed_hears_nothing_more() -> None:
    clock = RobotTime()
    driver = make(clock)
    driver.start()
    driver.close()
    clock.sleep(0.2)
    assert not clock.topics._hear


def test_missing_messages_are_named_with_what_to_do() -> None:
    try:
        import unitree_api  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ConfigError, match=r"unitree_api is missing.*unitree_ros2"):
            find_messages()
    else:
        assert find_messages().request is not None


class Deaf:
    """A carrier that takes everything and brings no answer, or one that is for somebody else."""

    def __init__(self, replies: PendingReplies, *, foreign: bool = False) -> None:
        self.replies, self.foreign = replies, foreign

    def send(self, request_id: int, api: ApiCall, parameter: str) -> bool:
        if self.foreign:
            self.replies.put(request_id + 7, 0)
        return True


@pytest.mark.parametrize("foreign", [False, True])
def test_without_an_answer_of_its_own_a_call_times_out(foreign: bool) -> None:
    replies = PendingReplies(WallClock())
    calls = SportCalls(Deaf(replies, foreign=foreign), replies, 0.02)
    assert calls.call("StopMove") == codes.TIMEOUT
    assert calls.call("Move", 0.1, 0.0, 0.0) == codes.OK
    replies.put(1, 0)


def test_an_answer_from_another_thread_wakes_the_caller() -> None:
    replies = PendingReplies(WallClock())

    class Late:
        def send(self, request_id: int, api: ApiCall, parameter: str) -> bool:
            threading.Timer(0.05, replies.put, (request_id, 4206)).start()
            return True

    assert SportCalls(Late(), replies, 20.0).call("Sit") == 4206
