"""Nodes with a life cycle: what a manager asks for happens, and what fails at the start fails by name."""

import threading

import pytest
import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from test.mission.scripted import ScriptedEngine
from test.ros import NAMESPACE
from test.ros.reports import kind_of
from test.ros.test_locomotion_node import Commander, LateRobot
from test.ros.test_vlm_node import Source
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, RobotError
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.ros.lifecycle import ManagedNode
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.nodes.vlm import VlmNode

pytestmark = pytest.mark.ros

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE
UNCONFIGURED, INACTIVE, ACTIVE = (
    State.PRIMARY_STATE_UNCONFIGURED,
    State.PRIMARY_STATE_INACTIVE,
    State.PRIMARY_STATE_ACTIVE,
)


class Manager:
    """Asks for transitions as `ros2 lifecycle set` does."""

    def __init__(self, graph, name, build, **parameters):
        overrides = [rclpy.Parameter(k, value=v) for k, v in ({"autostart": False} | parameters).items()]
        self.stopped = []
        options = {"context": graph.context, "namespace": NAMESPACE, "parameter_overrides": overrides}
        self.node = ManagedNode(name, build, lambda error=None: self.stopped.append(error), **options)
        graph.nodes.append(self.node)
        graph.parts.append(self.node)
        graph.start(self.node)
        self.own = graph.node("manager")
        self._change = self.own.create_client(ChangeState, f"{name}/change_state")
        self._state = self.own.create_client(GetState, f"{name}/get_state")
        graph.start(self.own)
        assert self._change.wait_for_service(30)
        assert self._state.wait_for_service(30)

    def set(self, transition):
        """Return whether it succeeded, and the state after it."""
        done = self.call(self._change, ChangeState.Request(transition=Transition(id=transition)))
        return done.success, self.state

    @property
    def state(self):
        return self.call(self._state, GetState.Request()).current_state.id

    @staticmethod
    def call(client, request):
        ended = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: ended.set())
        assert ended.wait(60)
        return future.result()


@pytest.fixture
def legs(graph, tmp_path):
    limits = tmp_path / "limits.yaml"
    limits.write_text("watchdog_s: 10.0\nmax_state_age_s: 10.0\n")
    robots = []

    def manage(make, **parameters):
        def build(node, stop):
            robots.append(make())
            return LocomotionNode(node, robots[-1], WallClock(), stop)

        return Manager(graph, "locomotion_node", build, limits_file=str(limits), **parameters), robots, limits

    return manage


def test_a_robot_is_brought_up_and_laid_to_rest_as_a_manager_asks(legs, graph, eventually):
    manager, robots, _ = legs(lambda: FakeRobot(WallClock()))
    commander = Commander(graph, None)
    assert manager.state == UNCONFIGURED
    assert manager.set(CONFIGURE) == (True, INACTIVE)
    assert not commander.messages
    assert not robots[0].calls
    assert manager.set(ACTIVATE) == (True, ACTIVE)
    commander.command(Forward(2.5))
    assert eventually(lambda: robots[0].state().speed_mps > 0.2)
    assert manager.set(DEACTIVATE) == (True, INACTIVE)
    assert any(call == "stop" for _, call in robots[0].calls[-3:])
    commander.beating = None
    assert eventually(lambda: not commander.plans.get_subscription_count())
    assert manager.set(ACTIVATE) == (True, ACTIVE)
    commander.command(Forward(0.3), mission="m2")
    assert eventually(lambda: commander.statuses()[-1].state == "done")
    assert len(robots) == 2
    assert manager.set(DEACTIVATE) == (True, INACTIVE)
    assert manager.set(CLEANUP) == (True, UNCONFIGURED)
    assert not manager.stopped


def test_a_robot_that_cannot_be_started_refuses_the_transition_and_may_be_tried_again(legs, graph):
    tries = iter([LateRobot(RobotError("cyclonedds 11"), 99), FakeRobot(WallClock())])
    manager, _, _ = legs(lambda: next(tries), start_timeout_s=1.0)
    assert manager.set(CONFIGURE) == (True, INACTIVE)
    assert manager.set(ACTIVATE) == (False, INACTIVE)
    assert manager.set(ACTIVATE) == (True, ACTIVE)
    assert not manager.stopped


def test_settings_that_do_not_hold_refuse_to_be_configured(legs, graph):
    manager, _, limits = legs(lambda: FakeRobot(WallClock()))
    limits.write_text("max_distanse_m: 0.2\n")
    assert manager.set(CONFIGURE) == (False, UNCONFIGURED)
    limits.write_text("max_distance_m: 0.2\n")
    assert manager.set(CONFIGURE) == (True, INACTIVE)


def test_a_vlm_node_whose_models_do_not_hold_stays_inactive(graph):
    errors = [ConfigError("unknown strategy 'fast'"), None]

    def build(node, stop):
        source = Source(ScriptedEngine([["done()"]]), errors.pop(0))
        return VlmNode(node, source, WallClock(), stop)

    manager = Manager(graph, "vlm_node", build)
    heard = graph.listen(manager.own, kind_of("vlm/plan"), "vlm/plan")
    assert manager.set(CONFIGURE) == (True, INACTIVE)
    assert manager.set(ACTIVATE) == (False, INACTIVE)
    assert manager.set(ACTIVATE) == (True, ACTIVE)
    assert not heard
