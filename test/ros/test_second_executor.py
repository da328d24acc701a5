"""A second locomotion node on one robot refuses to begin, by name; a dead one's place can be taken."""

import os
import signal
import time

import pytest
from std_msgs.msg import String

from test.ros import NAMESPACE
from test.ros.processes import NODES, ROOT
from test.ros.test_locomotion_node import Commander
from test.ros.test_locomotion_node import stage as stage  # noqa: PLC0414
from test.ros.test_velocity_robot import Platform
from test.simulator import dds_domain
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import RobotHeld
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.robot.lease import Claim
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.velocity_robot import VelocityTopics
from vlm_spec_decode_msgs import msg

pytestmark = pytest.mark.ros


def add(graph, robot, below="", **options):
    """Return a further locomotion node and what it failed with."""
    failures = []
    node = graph.node("locomotion_node", below, lease_wait_s=1.0)
    return graph.start(node, LocomotionNode(node, robot, WallClock(), failures.append, **options)), failures


def test_the_second_is_refused_and_touches_neither_robot(stage, graph, eventually):
    commander, _, robot, failures = stage()
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    other = FakeRobot(WallClock())
    second, refused = add(graph, other)
    assert eventually(lambda: refused)
    assert isinstance(refused[0], RobotHeld)
    assert f"'{NAMESPACE}/locomotion_node' (pid {os.getpid()} on host" in str(refused[0])
    assert second.is_settled
    second.close()
    assert not [call for _, call in other.calls if call]
    assert not failures
    assert robot.state().speed_mps > 0.2 or "done" in commander.states()


def test_the_e_stop_of_a_second_never_waits_for_the_lease(stage, graph, eventually):
    stage()
    other = FakeRobot(WallClock())
    second, refused = add(graph, other)
    assert second._supervisor.estop(True) is not None
    assert [call for _, call in other.calls if call] == ["stop"]
    second._supervisor.estop(False)
    assert eventually(lambda: refused)


def test_one_that_holds_and_hears_of_an_earlier_holder_brings_the_robot_to_rest(stage, graph, eventually):
    commander, part, robot, failures = stage()
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    earlier = Claim("0" * 32, "/earlier/locomotion_node", "other", 7, 0.0, holds=True)
    board = commander.node.create_publisher(String, "vlm/executor", 10)
    assert eventually(board.get_subscription_count)
    board.publish(String(data=earlier.to_json()))
    assert eventually(lambda: failures)
    assert isinstance(failures[0], RobotHeld)
    assert "'/earlier/locomotion_node' (pid 7 on host 'other'" in str(failures[0])
    assert robot.state().is_still
    commander.command(Forward(2.5), mission="again")
    assert part._supervisor.estop(True) is not None
    time.sleep(0.5)
    assert robot.state().is_still


def test_a_robot_in_a_namespace_of_its_own_is_not_refused(stage, graph, eventually):
    stage()
    neighbour = Commander(graph, None, "/neighbour")
    _, refused = add(graph, FakeRobot(WallClock()), "/neighbour")
    assert eventually(neighbour.statuses)
    assert not refused


def test_one_base_behind_cmd_vel_has_one_executor_whatever_their_namespaces(graph, eventually, monkeypatch):
    monkeypatch.setattr("vlm_spec_decode.robot.cmd_vel.STALE_S", 4.0)
    platform = Platform(graph)
    places = f"{NAMESPACE}/odom"
    failures = {"": [], "/other": []}
    parts = {}
    for below, failed in failures.items():
        options = {"cmd_vel_topic": f"{NAMESPACE}/cmd_vel", "odometry_topic": places, "lease_wait_s": 1.0}
        node = graph.node("locomotion_node", below, **options)
        base = VelocityTopics(node, WallClock())
        boards = (base.board,)
        part = LocomotionNode(
            node, base.robot, WallClock(), failed.append, publishes_odometry=False, boards=boards
        )
        parts[below] = graph.start(node, part)
    assert eventually(lambda: all(part.is_settled for part in parts.values()))
    assert [len(failed) for failed in failures.values()] == [0, 1]
    heard = len(platform.heard)
    parts["/other"].close()
    time.sleep(0.3)
    assert len(platform.heard) == heard, "a refused executor says nothing to the base, not even at its end"


def locomotion(processes, name, below):
    options = ["--ros-args", "-r", f"__ns:={NAMESPACE}{below}", "-p", f"domain:={dds_domain()}"]
    return processes.start(name, NODES / "locomotion_node", *options)


@pytest.mark.dds
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_between_processes_over_the_robots_own_domain(graph, processes, eventually):
    scene = ROOT / "config" / "scenes" / "empty.yaml"
    processes.vsd("sim", "sim", "--scene", scene, "--domain", dds_domain())
    names = {"a": "/a", "b": "/b", "c": "/c"}
    node = graph.node("listener")
    heard = {
        name: graph.listen(node, msg.PlanStatus, f"{NAMESPACE}{below}/vlm/plan/status")
        for name, below in names.items()
    }
    graph.start(node)
    # At the same instant, in namespaces of their own: only the robot's own domain shows them each other.
    both = {name: locomotion(processes, name, names[name]) for name in ("a", "b")}
    assert eventually(lambda: any(process.poll() is not None for process in both.values()), 90.0)
    loser = next(name for name, process in both.items() if process.poll() is not None)
    winner = next(name for name in both if name != loser)
    assert both[loser].returncode == 4
    said = processes.output(loser)
    assert f"RobotHeld: '{NAMESPACE}/{winner}/locomotion_node' (pid {both[winner].pid} on host" in said
    assert "Traceback" not in said
    assert not heard[loser]
    assert eventually(lambda: heard[winner], 60.0), processes.story()
    both[winner].send_signal(signal.SIGKILL)
    both[winner].wait(10)
    locomotion(processes, "c", names["c"])
    assert eventually(lambda: heard["c"], 60.0), processes.story()
    assert typed.plan_status_from_message(heard["c"][-1]).state == "idle"
