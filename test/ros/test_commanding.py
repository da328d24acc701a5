"""Requests, queue, approval, withdrawal, live parameters of the VLM node; `vsd say`, `vsd top` beside it."""

import contextlib
import json
import os
import pty
import signal
import sys
import threading
import time

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionServer, GoalResponse
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool

from test.ros import NAMESPACE, ROS_DOMAIN
from test.ros.reports import as_json
from test.ros.test_vlm_node import stage  # noqa: F401
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.ros import typed
from vlm_spec_decode_msgs import msg
from vlm_spec_decode_msgs.action import ExecuteInstruction

pytestmark = pytest.mark.ros


class Asker:
    def __init__(self, ear, eventually):
        self.ear, self.eventually = ear, eventually
        self.requests = ear.node.create_publisher(msg.Mission, "vlm/request", 10)
        self.withdrawals = ear.node.create_publisher(String, "vlm/withdraw", 10)
        self.beats = ear.node.create_publisher(String, "vlm/heartbeat", 10)
        self.heard_acks = []
        ear.node.create_subscription(msg.MissionAck, "vlm/ack", self.heard_acks.append, 50)
        self.verdicts = ear.node.create_client(SetBool, "vlm/approve")
        assert eventually(self.requests.get_subscription_count)
        assert eventually(self.withdrawals.get_subscription_count)
        assert self.verdicts.wait_for_service(30)

    def ask(self, instruction, mission="", **options):
        request = MissionRequest(instruction=instruction, mission=mission, **options)
        self.requests.publish(typed.request_to_message(request))

    def acks(self, mission):
        found = [as_json(message) for message in self.heard_acks]
        return [ack["state"] for ack in found if ack["mission"] == mission]

    def detail(self, mission):
        return [s["detail"] for s in self.ear.json("vlm/status") if s["mission"] == mission][-1]

    def states(self, mission):
        return [s["state"] for s in self.ear.json("vlm/status") if s["mission"] == mission]

    def call(self, client, request):
        future = client.call_async(request)
        assert self.eventually(future.done)
        return future.result()

    def verdict(self, yes):
        return self.call(self.verdicts, SetBool.Request(data=yes))

    def actions(self, mission):
        plans = self.ear.plans()
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


ASKS = ["red chair , blue chair . do you mean the red or the blue chair ? ask()"]


def test_a_reply_goes_to_the_question_that_it_names_and_counts_once(start, eventually):
    asker, _, source = start([ASKS, ASKS, ["ahead . done()"], ["…"]])
    asker.ask("the red one", "one", reply=True)
    assert eventually(lambda: asker.acks("one") == ["refused"]), "nobody has asked"
    asker.ask("go to the chair", "two")
    assert eventually(lambda: "waiting" in asker.states("two"))
    asker.ask("the red one", "two", reply=True, step=7)
    asker.ask("the red one", "one", reply=True)
    assert eventually(lambda: asker.acks("two") == ["taken", "refused"])
    assert eventually(lambda: asker.acks("one") == ["refused"] * 2)
    asker.ask("x" * 1990, "two", reply=True, step=1)
    assert eventually(lambda: asker.acks("two").count("refused") == 2)
    for _ in range(2):  # the second one is only acknowledged: it does not answer the next question
        asker.ask("the red one", "two", reply=True, step=1)
    assert eventually(lambda: asker.acks("two").count("taken") == 3)
    assert eventually(lambda: asker.states("two").count("waiting") == 2)
    time.sleep(0.3)
    assert len(source.engine.seen) == 2
    asker.ask("go on", "three", queue=True)
    asker.ear.say("x" * 1990)  # too long with what there is: refused, and the mission goes on waiting
    assert eventually(lambda: "failed" in asker.states(""))
    asker.ear.say("really the red one")  # text without a name is a reply while somebody waits for one
    assert eventually(lambda: "done" in asker.states("two"))
    assert source.engine.seen[2].instruction == "go to the chair . the red one . really the red one"
    assert eventually(lambda: "answering" in asker.states("three"))
    asker.ask("the blue one", reply=True)
    assert eventually(lambda: asker.acks("") == ["refused"] * 2)
    assert asker.states("three")[-1] == "answering", "a reply is never an instruction"


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


def test_a_request_that_comes_again_is_acknowledged_again_and_carried_out_once(start, eventually):
    asker, _, source = start([["forward(0.5) ", "…"]])
    assert eventually(lambda: asker.ear.node.count_publishers("vlm/ack"))
    for _ in range(3):
        asker.ask("go", "one")
    assert eventually(lambda: len(asker.acks("one")) >= 2)
    assert eventually(lambda: "answering" in asker.states("one"))
    asker.ask("go", "one")
    time.sleep(0.5)
    assert set(asker.acks("one")) == {"taken"}
    assert asker.states("one").count("looking") == 1
    assert len(source.engine.seen) == 1
    asker.ask("something else", "one")
    assert eventually(lambda: "refused" in asker.acks("one"))
    assert len(source.engine.seen) == 1


def test_a_mission_that_is_superseded_is_told_so(start, eventually):
    asker, _, _ = start([["forward(0.5) ", "…"], ["done()"]])
    asker.ask("first", "one")
    assert eventually(lambda: "answering" in asker.states("one"))
    asker.ask("second", "two")
    assert eventually(lambda: "cancelled" in asker.states("one"))
    assert "superseded" in asker.detail("one")
    assert eventually(lambda: "done" in asker.states("two"))


def test_silence_of_the_asker_ends_a_mission_under_way_and_one_that_waits(start, eventually):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    asker.ask("go", "one", lease_s=1.0)
    asker.ask("go", "two", queue=True, lease_s=1.0)
    for _ in range(15):
        for mission in ("one", "two"):
            asker.beats.publish(String(data=mission))
        time.sleep(0.1)
    assert "cancelled" not in asker.states("one") + asker.states("two")
    assert asker.actions("one")
    silent_s = time.monotonic()
    assert eventually(lambda: "cancelled" in asker.states("one"))
    assert 0.7 < time.monotonic() - silent_s < 5.0
    assert "silent" in asker.detail("one")
    assert eventually(lambda: "cancelled" in asker.states("two"))
    asker.beats.publish(String(data="one"))
    asker.beats.publish(String(data="never heard of"))
    assert eventually(lambda: asker.acks("one")[-1] == "over")
    assert eventually(lambda: asker.acks("never heard of") == ["over"])


def test_an_instruction_without_a_lease_goes_on_by_itself(start, eventually):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    asker.ear.say("go")
    assert eventually(lambda: "answering" in asker.ear.states())
    time.sleep(1.5)
    assert "cancelled" not in asker.ear.states()


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


def test_say_asks_its_terminal_for_the_reply(start, eventually, monkeypatch, capsys):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(ROS_DOMAIN))
    asker, _, source = start([ASKS, ["ahead . done()"]])
    master, slave = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(slave, closefd=False))
    monkeypatch.setattr("os.tcgetpgrp", lambda _: os.getpgrp())

    def type_late():
        eventually(lambda: "waiting" in asker.ear.states())
        os.write(master, b"\n")  # an empty line is no reply
        time.sleep(0.2)
        os.write(master, b"the red one\n")

    threading.Thread(target=type_late, daemon=True).start()
    assert cli.main(["say", "go to the chair", "--namespace", NAMESPACE]) == 0
    said = capsys.readouterr().out
    assert "waiting: asked: do you mean the red or the blue chair ?" in said
    assert "type the reply and press Enter" in said
    assert source.engine.seen[1].instruction == "go to the chair . the red one"


def test_say_reply_answers_the_mission_of_somebody_else(start, vsd, eventually):
    asker, _, source = start([ASKS, ASKS, ["ahead . done()"]])
    code, document = vsd("say", "the red one", "--reply")
    assert (code, document["error"]) == (2, "InstructionError")
    asker.ask("go to the chair", "one")
    assert eventually(lambda: "waiting" in asker.states("one"))
    code, document = vsd("say", "the red one", "--reply")
    assert (code, document["mission"], document["status"]) == (0, "one", "taken")
    assert document["question"] == "do you mean the red or the blue chair ?"
    assert eventually(lambda: asker.states("one").count("waiting") == 2)
    asker.ask("go on", "two", queue=True)  # its status hides the question from those who come late
    assert eventually(lambda: "queued" in asker.states("two"))
    code, document = vsd("say", "yes , that one", "--reply")
    assert (code, document["mission"], document["question"]) == (0, "one", "")
    assert eventually(lambda: "done" in asker.states("one"))
    assert source.engine.seen[2].instruction == "go to the chair . the red one . yes , that one"
    assert vsd("say", "the red one", "--reply", "--queue")[0] == 2


def test_say_with_approval_and_a_time_limit(start, vsd, eventually):
    asker, _, _ = start([["done()"], ["forward(0.5) ", "…"]])
    assert vsd("say", "go", "--yes")[0] == 0
    code, document = vsd("say", "go", "--timeout", "2")
    assert (code, document["status"]) == (1, "cancelled")
    assert "cancelled" in asker.ear.states()


def test_a_mission_that_is_left_to_itself_goes_on(start, vsd, eventually):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    code, document = vsd("say", "go", "--detach")
    assert (code, document["status"]) == (0, "taken")
    time.sleep(1.5)
    assert asker.states(document["mission"])[-1] in ("answering", "acting")
    assert vsd("say", "go", "--detach", "--approve")[0] == 2


def test_say_is_never_silent_about_what_it_waits_for(start, monkeypatch, capsys):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(ROS_DOMAIN))
    monkeypatch.setattr("vlm_spec_decode.cli.console.QUIET_S", 0.3)
    start([["forward(0.5) ", "…"]])
    assert cli.main(["say", "go", "--timeout", "1.5", "--namespace", NAMESPACE]) == 1
    said = capsys.readouterr().out
    assert "waiting for the answer" in said
    assert "no end within 1.5 s" in said
    assert said.rstrip().endswith("cancelled: cancel: withdrawn")


def test_a_recorder_does_not_count_as_a_listener(graph, vsd, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_spec_decode.cli.console.FIND_S", 2.0)
    node = graph.node("vsd_record")
    for topic in ("vlm/request", "vlm/withdraw", "vlm/heartbeat"):
        node.create_subscription(String, topic, print, 10)
    graph.start(node)
    code, document = vsd("say", "go")
    assert (code, document["error"]) == (4, "RobotUnreachable")


def test_a_node_that_does_not_acknowledge_is_named(graph, vsd, eventually):
    node = graph.node("vlm_node")
    withdrawn, asked = graph.listen(node, String, "vlm/withdraw"), []

    def hear(goal):
        asked.append(goal)
        return GoalResponse.REJECT

    node.create_publisher(msg.MissionAck, "vlm/ack", 10)
    server = ActionServer(node, ExecuteInstruction, "vlm/execute", lambda _: None, goal_callback=hear)
    graph.start(node)
    code, document = vsd("say", "go")
    assert (code, document["error"]) == (4, "RobotUnreachable")
    assert "has not taken the request" in document["message"]
    assert eventually(lambda: withdrawn)
    assert 2 < len(asked) < 12, "it is sent again"
    assert len({goal.mission for goal in asked}) == 1, "under the same name"
    graph.executor.wake()
    server.destroy()


@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP", "SIGKILL", "closed terminal"])
def test_whatever_ends_say_ends_its_mission(start, eventually, monkeypatch, way):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "say", "go", "--namespace", NAMESPACE]
    pid, end = pty.fork()
    if pid == 0:
        os.environ["ROS_DOMAIN_ID"] = str(ROS_DOMAIN)
        os.execv(command[0], command)
    try:
        assert eventually(lambda: "acting" in asker.ear.states() or "answering" in asker.ear.states(), 40.0)
        time.sleep(0.5)
        assert "cancelled" not in asker.ear.states()
        began_s = time.monotonic()
        if way == "closed terminal":
            os.close(end)
        else:
            os.kill(pid, getattr(signal, way))
        assert eventually(lambda: "cancelled" in asker.ear.states(), 10.0)
        spent_s = time.monotonic() - began_s
        assert spent_s < 3.0, "1.5 s on a machine that is not busy; benchmarks/hardening_terminal.py"
        expected = "silent" if way == "SIGKILL" else "withdrawn"
        assert expected in asker.ear.json("vlm/status")[-1]["detail"]
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == {"SIGKILL": -9}.get(way, 130)
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)


def test_an_interrupt_of_say_cancels_its_mission(start, vsd, eventually, monkeypatch):
    asker, _, _ = start([["forward(0.5) ", "…"]])
    from vlm_spec_decode.ros.operator import Operator

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


def test_top_shows_what_was_said(start, vsd, eventually, monkeypatch):
    monkeypatch.setattr("vlm_spec_decode.ros.status_board.ONCE_S", 1.5)
    asker, _, _ = start([["Ball ahead. done()"]])
    asker.ask("go", "one")
    assert eventually(lambda: "done" in asker.states("one"))

    for _ in range(3):
        code, document = vsd("top", "--once")
        assert (code, document["status"]["state"]) == (0, "done")
        assert document["trace"]["tokens"] == 3
        assert document["answer"] == "Ball ahead. done()"
        assert "locomotion_node (vlm/plan/status)" in document["missing"]
