"""Requests, queue, approval, withdrawal, live parameters of the VLM node; `vsd say`, `vsd top` beside it."""

import json
import threading

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool

from test.ros import NAMESPACE, ROS_DOMAIN
from test.ros.test_vlm_node import stage  # noqa: F401
from vlm_spec_decode import cli
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.bridge.requests import Request

pytestmark = pytest.mark.ros


class Asker:
    def __init__(self, ear, eventually):
        self.ear, self.eventually = ear, eventually
        self.requests = ear.node.create_publisher(String, "vlm/request", 10)
        self.withdrawals = ear.node.create_publisher(String, "vlm/withdraw", 10)
        self.verdicts = ear.node.create_client(SetBool, "vlm/approve")
        assert eventually(self.requests.get_subscription_count)
        assert eventually(self.withdrawals.get_subscription_count)
        assert self.verdicts.wait_for_service(30)

    def ask(self, *arguments, **options):
        self.requests.publish(String(data=Request(*arguments, **options).to_json()))

    def states(self, mission):
        return [s["state"] for s in self.ear.json("vlm/status") if s["mission"] == mission]

    def call(self, client, request):
        future = client.call_async(request)
        assert self.eventually(future.done)
        return future.result()

    def verdict(self, yes):
        return self.call(self.verdicts, SetBool.Request(data=yes))

    def actions(self, mission):
        plans = [Plan.from_json(message.data) for message in self.ear.heard["vlm/plan"]]
        return {str(plan.actions) for plan in plans if plan.mission == mission and plan.actions}


@pytest.fixture
def start(stage, eventually):  # noqa: F811
    def begin(script, **parameters):
        ear, part, source = stage(script, **parameters)
        return Asker(ear, eventually), part, source

    return begin


def test_a_queued_mission_waits_and_a_plain_one_supersedes(start, eventually):
    asker, _, _ = start([["forward(0.5) ", "…"], ["done()"]])
    asker.ask("first", "one")
    assert eventually(lambda: "answering" in asker.states("one"))
    asker.ask("second", "two", queue=True)
    assert eventually(lambda: asker.states("two") == ["queued"])
    asker.ask("third", "three")
    assert eventually(lambda: "done" in asker.states("three"))
    assert asker.states("two") == ["queued", "cancelled"]


def test_the_queue_goes_on_after_a_success(start, eventually):
    asker, _, source = start([["…"], ["done()"]])
    source.engine.script[0] = ["done()"]
    source.engine.script[1] = ["done()"]
    asker.ask("first", "one", approve=True)
    assert eventually(lambda: "proposed" in asker.states("one"))
    asker.ask("second", "two", queue=True)
    assert eventually(lambda: "queued" in asker.states("two"))
    assert asker.verdict(True).success
    assert eventually(lambda: "done" in asker.states("two"))


def test_a_mission_is_withdrawn_by_its_name_waiting_or_under_way(start, eventually):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    asker.ask("first", "one")
    assert eventually(lambda: "answering" in asker.states("one"))
    asker.ask("second", "two", queue=True)
    assert eventually(lambda: "queued" in asker.states("two"))
    asker.withdrawals.publish(String(data="nobody"))
    asker.withdrawals.publish(String(data="two"))
    assert eventually(lambda: "cancelled" in asker.states("two"))
    assert "cancelled" not in asker.states("one")
    asker.withdrawals.publish(String(data="one"))
    assert eventually(lambda: "cancelled" in asker.states("one"))


def test_nothing_is_sent_before_the_yes(start, eventually):
    asker, _, _ = start([["turn(20)"], ["done()"]])
    assert not asker.verdict(True).success
    asker.ask("go", "one", approve=True)
    assert eventually(lambda: "proposed" in asker.states("one"))
    assert not asker.actions("one")
    assert asker.verdict(True).success
    assert eventually(lambda: asker.states("one").count("proposed") == 2)
    assert asker.actions("one") == {"(Turn(angle_deg=20.0),)"}
    assert asker.verdict(False).success
    assert eventually(lambda: "cancelled" in asker.states("one"))


def test_parameters_change_live_within_their_bounds(start, eventually):
    asker, _, _ = start([["done()"]])
    client = asker.ear.node.create_client(SetParameters, "vlm_node/set_parameters")
    assert client.wait_for_service(30)

    def change(name, value):
        parameter = Parameter(name, value=value).to_parameter_msg()
        return asker.call(client, SetParameters.Request(parameters=[parameter])).results[0]

    assert not change("fallback", "faster").successful
    assert "none of" in change("fallback", "faster").reason
    assert not change("hold_timeout_s", 1e9).successful
    assert not change("heartbeat_hz", 50.0).successful, "read-only"
    assert change("dry_run", True).successful
    asker.ask("go", "one")
    assert eventually(lambda: "done" in asker.states("one"))
    done = next(s for s in asker.ear.json("vlm/status") if s["state"] == "done")
    assert done["reason"] == "dry_run"


@pytest.fixture
def vsd(monkeypatch, capsys):
    """Run a command on the test's domain and namespace; return its exit code and its JSON."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(ROS_DOMAIN))

    def run(*arguments):
        code = cli.main([*arguments, "--namespace", NAMESPACE, "--json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_say_tells_the_answer_and_ends_with_the_missions_code(start, vsd):
    _, _, source = start([["Ball left. turn(20)"], ["done()"], ["forward(0.5)"]])
    code, document = vsd("say", "walk to the ball")
    assert (code, document["status"], document["actions"]) == (0, "done", ["turn(20)", "done()"])
    assert source.engine.seen[0].instruction == "walk to the ball"
    code, document = vsd("say", "go on", "--dry-run")
    assert (code, document["reason"], document["actions"]) == (0, "dry_run", ["forward(0.5)"])


def test_say_with_approval_and_a_time_limit(start, vsd, eventually):
    asker, _, _ = start([["done()"], ["forward(0.5) ", "…"]])
    assert vsd("say", "go", "--yes")[0] == 0
    code, document = vsd("say", "go", "--timeout", "2")
    assert (code, document["status"]) == (1, "cancelled")
    assert "cancelled" in asker.ear.states()


def test_an_interrupt_of_say_cancels_its_mission(start, vsd, eventually, monkeypatch):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    from vlm_spec_decode.bridge.operator import Operator

    spin, told = Operator.spin, threading.Event()

    def interrupted(self, duration_s=0.05):
        if "answering" in asker.ear.states() and not told.is_set():
            told.set()
            raise KeyboardInterrupt
        spin(self, duration_s)

    monkeypatch.setattr(Operator, "spin", interrupted)
    code, document = vsd("say", "go")
    assert (code, document["exit_code"]) == (130, 130)
    assert eventually(lambda: "cancelled" in asker.ear.states())


def test_top_shows_what_was_said(start, vsd, eventually):
    asker, _, _ = start([["Ball ahead. done()"]])
    asker.ask("go", "one")
    assert eventually(lambda: "done" in asker.states("one"))

    def shown():
        code, document = vsd("top", "--once")
        return code == 0 and document["status"].get("state") == "done"

    assert eventually(shown, 60.0)
