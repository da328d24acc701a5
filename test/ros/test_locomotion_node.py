import math
import time

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from std_srvs.srv import SetBool, Trigger

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Done, Forward, StandUp, Turn
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, RobotError, RobotStale, RobotUnreachable
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.ros import diagnostics, typed
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode_msgs import msg

pytestmark = pytest.mark.ros


class Commander:
    """Another node: sends plans as the VLM node does, and hears what becomes of them."""

    def __init__(self, graph, robot, below=""):
        self.node = graph.node("commander", below)
        self.robot, self.graph = robot, graph
        self.plans = self.node.create_publisher(msg.Plan, "vlm/plan", 10)
        self.messages = graph.listen(self.node, msg.PlanStatus, "vlm/plan/status", 50)
        self.odometry = graph.listen(self.node, Odometry, "odom", 50)
        self.reports = graph.listen(self.node, DiagnosticArray, "/diagnostics")
        self.estop_client = self.node.create_client(SetBool, "e_stop")
        self.cancel_client = self.node.create_client(Trigger, "vlm/cancel")
        self.beating = None
        self.node.create_timer(0.05, self.beat)
        graph.start(self.node)

    def beat(self):
        if self.beating is not None:
            self.plans.publish(typed.plan_to_message(self.beating))

    def now_s(self):
        return self.node.get_clock().now().nanoseconds / 1e9

    def command(self, *actions, mission="m1", answer=1, age_s=0.0, final=True):
        self.beating = Plan(mission, answer, self.now_s() - age_s, 1, actions, final)

    def statuses(self):
        return [typed.plan_status_from_message(message) for message in self.messages]

    def states(self):
        return [status.state for status in self.statuses()]

    def call(self, client, request):
        future = client.call_async(request)
        deadline = time.monotonic() + 30
        while not future.done() and time.monotonic() < deadline:
            time.sleep(0.005)
        return future.result()

    def estop(self, engaged):
        return self.call(self.estop_client, SetBool.Request(data=engaged))

    def levels(self, name):
        lines = [line for report in self.reports for line in report.status]
        return [line.level for line in lines if line.name.endswith(name)]


@pytest.fixture
def stage(graph, eventually, tmp_path):
    patient = tmp_path / "patient.yaml"
    patient.write_text("watchdog_s: 10.0\nmax_state_age_s: 10.0\n")

    def start(robot=None, ready=True, **parameters):
        # A busy machine starves this process of its own heartbeat; where silence is the subject, the
        # shipped limits hold.
        parameters = {"limits_file": str(patient)} | parameters
        robot = robot or FakeRobot(WallClock())
        commander, failures = Commander(graph, robot), []
        node = graph.node("locomotion_node", **parameters)
        part = graph.start(node, LocomotionNode(node, robot, WallClock(), failures.append))
        assert eventually(commander.plans.get_subscription_count)
        assert commander.estop_client.wait_for_service(30)
        if ready:
            assert eventually(commander.statuses)
        return commander, part, robot, failures

    return start


def test_a_plan_moves_the_robot_and_odometry_tells(stage, eventually):
    commander, _, robot, _ = stage()
    commander.command(Turn(20.0), Forward(0.4), Done())
    assert eventually(lambda: "done" in commander.states())
    assert commander.statuses()[-1].executed == ("turn(20)", "forward(0.4)", "done()")
    x_m, y_m, _ = robot.true_pose
    assert (x_m**2 + y_m**2) ** 0.5 == pytest.approx(0.4, abs=0.1)
    pose = commander.odometry[-1].pose.pose.position
    assert (pose.x, pose.y) == pytest.approx((x_m, y_m), abs=0.05)
    assert commander.odometry[-1].header.frame_id == "odom"


def test_the_status_comes_at_its_rate_and_on_change(stage, eventually):
    commander, _, _, _ = stage()

    def comes_at_its_rate():
        before = len(commander.messages)
        time.sleep(1.0)
        return 5 <= len(commander.messages) - before <= 20

    assert eventually(comes_at_its_rate)
    commander.command(Forward(0.3))
    assert eventually(lambda: "moving" in commander.states() and "done" in commander.states())


def test_silence_of_the_commander_stops_the_robot(stage, eventually, tmp_path):
    limits = tmp_path / "limits.yaml"
    limits.write_text("watchdog_s: 1.0\n")
    commander, _, robot, _ = stage(limits_file=str(limits))

    def moves():
        # A machine that starves this process of its heartbeat stops the robot too soon: command anew.
        if "stopped" in commander.states()[-1:]:
            commander.command(Forward(2.5), mission=f"m{len(commander.states())}")
        return robot.state().speed_mps > 0.2

    commander.command(Forward(2.5))
    assert eventually(moves)
    commander.beating = None
    silent_s = time.monotonic()

    def stops():
        return [at_s for at_s, call in robot.calls if call == "stop" and at_s > silent_s]

    assert eventually(stops)
    assert eventually(lambda: commander.states()[-1] == "stopped")
    assert commander.statuses()[-1].reason == "watchdog"
    assert stops()[0] - silent_s < 3.0
    assert eventually(lambda: robot.state().is_still)


def test_the_e_stop_stops_latches_and_is_released_only_by_hand(stage, eventually):
    commander, _, robot, _ = stage()
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    response = commander.estop(True)
    assert response.success, response.message
    assert robot.state().is_still
    assert eventually(lambda: "estop" in commander.states())
    commander.command(Forward(1.0), mission="m2")
    time.sleep(0.4)
    assert robot.state().is_still
    assert eventually(lambda: diagnostics.ERROR in commander.levels("executor"))
    assert commander.estop(False).success
    commander.command(Forward(0.3), mission="m3")
    assert eventually(lambda: commander.statuses()[-1].state == "done")


def test_a_cancel_stops_the_mission(stage, eventually):
    commander, _, robot, _ = stage()
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    assert commander.call(commander.cancel_client, Trigger.Request()).success
    assert eventually(lambda: commander.statuses()[-1].state == "stopped")
    assert eventually(lambda: robot.state().is_still)
    assert commander.statuses()[-1].mission == "m1"


def test_a_mission_that_has_only_been_announced_can_be_cancelled(stage, eventually):
    commander, _, _, _ = stage()
    commander.command(answer=0, final=False)
    assert eventually(lambda: commander.statuses()[-1].mission == "m1")
    commander.call(commander.cancel_client, Trigger.Request())
    assert eventually(lambda: commander.statuses()[-1].state == "stopped")


@pytest.mark.parametrize(
    ("actions", "age_s", "reason"), [((Forward(50.0),), 0.0, "limit"), ((Forward(0.5),), 30.0, "stale_frame")]
)
def test_what_the_gate_refuses_is_named_and_moves_nothing(stage, eventually, actions, age_s, reason):
    commander, _, robot, _ = stage()
    commander.command(*actions, age_s=age_s)
    assert eventually(lambda: "refused" in commander.states())
    refused = next(status for status in commander.statuses() if status.state == "refused")
    assert refused.reason.startswith(reason)
    assert robot.true_pose[0] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    "plan",
    [
        msg.Plan(mission="m1", origin=9),
        msg.Plan(mission="m1", actions=[msg.RobotAction()]),
        msg.Plan(mission="m1", actions=[msg.RobotAction(kind=1, distance_m=math.nan)]),
        msg.Plan(mission="m" * 129),
    ],
    ids=["origin", "no action", "not a number", "a long name"],
)
def test_a_plan_that_cannot_be_read_stops_the_robot_by_name(stage, eventually, plan):
    commander, _, robot, _ = stage()
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    commander.plans.publish(plan)
    assert eventually(lambda: any(status.reason == "unparsable" for status in commander.statuses()))
    assert eventually(lambda: robot.state().is_still)
    assert eventually(lambda: diagnostics.WARN in commander.levels("plans"))


def test_closing_stops_a_walking_robot(stage, eventually):
    commander, part, robot, _ = stage()
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    part.close()
    assert any(call == "stop" for _, call in robot.calls[-3:])


class LeavingRobot(FakeRobot):
    """Does not confirm the last stop."""

    error: RobotError = RobotError("the body moves")

    def close(self):
        super().close()
        raise self.error


@pytest.mark.parametrize(
    ("error", "is_commanded", "said", "unsaid"),
    [
        (RobotStale("stands still"), False, "the robot had gone", "not confirmed"),
        (RobotStale("stands still"), True, "the stop was not confirmed: stands still", "had gone"),
        (RobotError("the body moves"), False, "the stop was not confirmed: the body moves", "had gone"),
    ],
)
def test_a_robot_that_has_gone_is_no_stop_that_failed(
    stage, eventually, capfd, error, is_commanded, said, unsaid
):
    robot = LeavingRobot(WallClock())
    robot.error = error
    commander, part, _, _ = stage(robot)
    if is_commanded:
        commander.command(Forward(2.5))
        assert eventually(lambda: robot.state().speed_mps > 0.2)
    part.close()
    heard = []

    def is_said():
        heard.append(capfd.readouterr().err)
        return said in "".join(heard)

    assert eventually(is_said, 5.0)
    assert unsaid not in "".join(heard)


class LateRobot(FakeRobot):
    """Answers only after some attempts, or never, or must not be used at all."""

    def __init__(self, error, attempts):
        super().__init__(WallClock())
        self.error, self.attempts = error, attempts

    def start(self):
        self.attempts -= 1
        if self.attempts >= 0:
            raise self.error
        super().start()


def test_a_robot_that_is_switched_on_later_is_picked_up(stage, eventually):
    commander, _, _, failures = stage(LateRobot(RobotUnreachable("no state"), 1), ready=False)
    commander.command(Forward(0.2))
    assert eventually(commander.statuses)
    assert not failures


@pytest.mark.parametrize("error", [RobotError("cyclonedds 11"), RobotUnreachable("off")])
def test_a_robot_that_cannot_be_used_ends_the_node_by_name(stage, eventually, error):
    commander, _, _, failures = stage(LateRobot(error, 99), ready=False, start_timeout_s=1.0)
    assert eventually(lambda: failures)
    assert failures == [error]
    assert eventually(lambda: diagnostics.ERROR in commander.levels("robot"))
    assert not commander.statuses()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_start_that_breaks_off_unforeseen_ends_the_node_too(stage, eventually):
    commander, _, _, failures = stage(LateRobot(ZeroDivisionError("a bug"), 99), ready=False)
    assert eventually(lambda: failures)
    assert "start-up broke off" in str(failures[0])
    assert not commander.statuses()


def test_an_e_stop_before_the_robot_is_up_keeps_it_down(stage, eventually):
    commander, _, robot, _ = stage(LateRobot(RobotUnreachable("no state"), 1), ready=False)
    assert commander.estop(True).message
    time.sleep(2.5)
    assert not commander.statuses()
    assert not any(call.startswith("start") for _, call in robot.calls)
    assert commander.estop(False).success
    assert eventually(commander.statuses)


def test_limits_come_from_a_file_and_unknown_ones_are_refused(stage, eventually, graph, tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text("max_distance_m: 0.2\n")
    commander, _, _, _ = stage(limits_file=str(path))
    commander.command(StandUp(), Forward(0.5))
    assert eventually(lambda: "refused" in commander.states())
    path.write_text("max_distanse_m: 0.2\n")
    node = graph.node("other", limits_file=str(path))
    with pytest.raises(ConfigError, match="max_distanse_m"):
        LocomotionNode(node, FakeRobot(WallClock()), WallClock(), print)


def test_simulated_time_that_stands_still_does_not_stop_the_watch(stage, eventually):
    commander, _, _, _ = stage(use_sim_time=True)
    before = len(commander.messages)
    assert eventually(lambda: len(commander.messages) - before >= 5)
    commander.command(Forward(0.5))
    assert eventually(lambda: "refused" in commander.states())
    assert commander.statuses()[-1].reason == "stale_frame"
    assert commander.estop(True).success
