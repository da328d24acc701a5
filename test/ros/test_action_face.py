"""Missions as an action: goal, feedback, result, reject, cancel, supersession; from another process, too."""

import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient

from test.ros import NAMESPACE, ROS_DOMAIN
from test.ros.test_vlm_node import stage  # noqa: F401
from vlm_spec_decode.mission.messages import mission_status_from_message
from vlm_spec_decode_msgs import msg
from vlm_spec_decode_msgs.action import ExecuteInstruction
from vlm_spec_decode_msgs.srv import Approve

pytestmark = pytest.mark.ros

CLIENT = """
import json, sys
import rclpy
from rclpy.action import ActionClient
from vlm_spec_decode_msgs.action import ExecuteInstruction

rclpy.init()
node = rclpy.create_node("client", namespace=sys.argv[1])
client = ActionClient(node, ExecuteInstruction, "vlm/execute")
assert client.wait_for_server(30)

def wait(future):
    rclpy.spin_until_future_complete(node, future, timeout_sec=30)
    return future.result()

for instruction, cancels in (("go to the ball", False), ("", False), ("go on", True)):
    told = []
    goal = wait(client.send_goal_async(ExecuteInstruction.Goal(instruction=instruction),
                                       feedback_callback=lambda m: told.append(m.feedback)))
    if not goal.accepted:
        print(json.dumps({"accepted": False}))
        continue
    if cancels:
        while not any(feedback.text for feedback in told):
            rclpy.spin_once(node, timeout_sec=0.1)
        wait(goal.cancel_goal_async())
    response = wait(goal.get_result_async())
    result = response.result
    print(json.dumps({
        "accepted": True, "goal": response.status, "state": result.status.state, "text": result.text,
        "executed": list(result.executed), "states": [f.status.state for f in told],
        "texts": [f.text for f in told], "progress": [f.progress for f in told],
    }))
node.destroy_node()
rclpy.shutdown()
"""
STATES = msg.MissionStatus


def wait(future):
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    assert ended.wait(60)
    return future.result()


class Client:
    def __init__(self, ear):
        self.ear, self.told = ear, []
        self._client = ActionClient(ear.node, ExecuteInstruction, "vlm/execute")
        assert self._client.wait_for_server(30)

    def send(self, instruction, **fields):
        goal = ExecuteInstruction.Goal(instruction=instruction, **fields)
        return wait(self._client.send_goal_async(goal, lambda message: self.told.append(message.feedback)))

    def send_again(self, instruction, **fields):
        goal = ExecuteInstruction.Goal(instruction=instruction, **fields)
        for _ in range(20):
            told = threading.Event()
            future = self._client.send_goal_async(goal, lambda message: self.told.append(message.feedback))
            future.add_done_callback(lambda _, told=told: told.set())
            if told.wait(2.0):
                return future.result()
        raise AssertionError("no reply to a goal")

    @staticmethod
    def end(goal):
        response = wait(goal.get_result_async())
        return response.status, mission_status_from_message(response.result.status), response.result


@pytest.fixture
def serve(stage):  # noqa: F811
    def start(script, **parameters):
        ear, _, source = stage(script, **parameters)
        return Client(ear), ear, source

    return start


def test_goal_feedback_result_reject_and_cancel_from_another_process(stage):  # noqa: F811
    stage([["Ball left. ", "turn(20)"], ["forward(1) ", "done()"], ["forward(0.5) ", "…"]])
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, NAMESPACE],
        env=os.environ | {"ROS_DOMAIN_ID": str(ROS_DOMAIN)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    carried_out, rejected, cancelled = map(json.loads, done.stdout.splitlines())
    assert (carried_out["goal"], carried_out["state"]) == (GoalStatus.STATUS_SUCCEEDED, STATES.DONE)
    assert carried_out["executed"] == ["turn(20)", "forward(1)", "done()"]
    assert carried_out["states"][0] in (STATES.LOOKING, STATES.ANSWERING)
    assert STATES.ANSWERING in carried_out["states"]
    assert "Ball left. turn(20)" in carried_out["texts"]
    assert max(carried_out["progress"]) == 1.0
    assert rejected == {"accepted": False}
    assert (cancelled["goal"], cancelled["state"]) == (GoalStatus.STATUS_CANCELED, STATES.CANCELLED)
    assert "withdrawn" in cancelled["text"]


def test_a_new_goal_or_a_spoken_word_supersedes_the_one_under_way(serve, eventually):
    client, ear, source = serve([["forward(0.5) ", "…"], ["forward(0.5) ", "…"], ["done()"]])
    first = client.send("go to the chair", mission="one")
    assert eventually(lambda: "answering" in ear.states())
    second = client.send("come back", mission="two")
    assert second.accepted
    status, ending, _ = client.end(first)
    assert (status, ending.state, ending.mission) == (GoalStatus.STATUS_ABORTED, "cancelled", "one")
    assert "superseded" in ending.detail
    assert eventually(lambda: any(f.status.mission == "two" and f.text for f in client.told))
    ear.say("stay")
    assert client.end(second)[:1] == (GoalStatus.STATUS_ABORTED,)
    assert eventually(lambda: "done" in ear.states())
    assert [o.instruction for o in source.engine.seen] == ["go to the chair", "come back", "stay"]


def test_goals_that_wait_are_accepted_and_begin_in_turn(serve, eventually):
    client, ear, _ = serve([["forward(0.5) ", "…"]])
    client.send("go", mission="one")
    assert eventually(lambda: "answering" in ear.states())
    waiting = [client.send("go on", mission=f"w{number}", queue=True) for number in range(16)]
    assert all(goal.accepted for goal in waiting), "no thread of the node waits with them"
    assert not client.send("go on", queue=True).accepted, "as many as may wait"
    assert eventually(lambda: {f.status.mission for f in client.told if f.status.state == STATES.QUEUED})
    wait(waiting[3].cancel_goal_async())
    assert client.end(waiting[3])[0] == GoalStatus.STATUS_CANCELED
    assert ear.states().count("cancelled") == 1, "the others go on waiting"


def test_a_name_that_was_used_is_rejected_and_the_same_goal_again_is_the_same_mission(serve, eventually):
    client, ear, source = serve([["forward(0.5) ", "…"]])
    acks = []
    ear.node.create_subscription(msg.MissionAck, "vlm/ack", acks.append, 50)
    goals = [client.send("go", mission="one") for _ in range(2)]
    assert all(goal.accepted for goal in goals)
    assert eventually(lambda: "answering" in ear.states())
    assert not client.send("another one", mission="one").accepted
    assert eventually(lambda: any(ack.state == ack.REFUSED and "used once" in ack.detail for ack in acks))
    wait(goals[0].cancel_goal_async())
    assert [client.end(goal)[1].state for goal in goals] == ["cancelled", "cancelled"]
    assert len(source.engine.seen) == 1


def test_what_the_recorder_needs_is_published(serve, eventually, graph):
    client, ear, _ = serve([["done()"]])
    heard = graph.listen(ear.node, msg.Mission, "vlm/request")
    assert eventually(lambda: ear.node.count_subscribers("vlm/request") >= 2)
    client.end(client.send("go to the ball", mission="one"))
    assert eventually(lambda: [(m.instruction, m.mission) for m in heard] == [("go to the ball", "one")])


def test_the_node_ends_every_goal_when_it_ends(stage, eventually):  # noqa: F811
    ear, part, _ = stage([["forward(0.5) ", "…"]])
    client = Client(ear)
    goal = client.send("go")
    assert eventually(lambda: "answering" in ear.states())
    part.close()
    status, ending, _ = client.end(goal)
    assert (status, ending.detail) == (GoalStatus.STATUS_ABORTED, "the node ends")


def test_a_goal_that_is_sent_again_after_its_end_ends_as_it_did(serve, eventually):
    client, _, source = serve([["turn(20)"], ["done()"]])
    first = client.end(client.send("go", mission="one"))
    again = client.send("go", mission="one")
    assert again.accepted
    status, ending, result = client.end(again)
    assert (status, ending) == first[:2]
    assert list(result.executed) == list(first[2].executed) == ["turn(20)", "done()"]
    assert len(source.engine.seen) == 2, "it was carried out once"


PROCESS = """
import os, sys
from test.mission.scripted import ScriptedEngine
from test.ros.test_vlm_node import Source
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.ros.entry_points import run_node
from vlm_spec_decode.ros.nodes.vlm import VlmNode

os.environ["ROS_DOMAIN_ID"] = sys.argv[2]  # test.ros has set that of this process
engine = ScriptedEngine([["done()"]])
arguments = ["x", "--ros-args", "-r", "__ns:=" + sys.argv[1], "-p", "status_timeout_s:=30.0"]
sys.exit(run_node("vlm_node", lambda node, stop: VlmNode(node, Source(engine), WallClock(), stop), arguments))
"""


def test_every_goal_gets_its_result_when_the_process_ends(graph, eventually):
    process = subprocess.Popen([sys.executable, "-c", PROCESS, NAMESPACE, str(ROS_DOMAIN)])
    try:
        ear = SimpleNamespace(node=graph.node("ear"))
        graph.start(ear.node)
        client = Client(ear)
        # The replies of a process that has just been found may be lost: the same goal again is the same one.
        goals = [
            client.send_again("go", mission="one"),
            client.send_again("go on", mission="two", queue=True),
        ]
        results = [goal.get_result_async() for goal in goals]
        assert eventually(lambda: len({told.status.mission for told in client.told}) == 2)
        process.send_signal(signal.SIGINT)
        ends = [wait(result) for result in results]
        assert [end.status for end in ends] == [GoalStatus.STATUS_ABORTED] * 2
        assert [end.result.status.detail for end in ends] == ["the node ends"] * 2
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_yes_is_for_the_plan_that_it_names(serve, eventually):
    client, ear, _ = serve([["forward(0.5)"], ["done()"]])
    service = ear.node.create_client(Approve, "vlm/approve_plan")
    assert service.wait_for_service(30)

    def answer(**fields):
        response = wait(service.call_async(Approve.Request(**fields)))
        return response.success, response.message

    assert answer(yes=True) == (False, "no plan waits for a yes")
    goal = client.send("go", mission="one", approve=True)
    assert eventually(lambda: "proposed" in ear.states())
    assert answer(mission="two", yes=True)[0] is False
    assert answer(mission="one", step=7, yes=True) == (False, "another plan waits: step 1 of mission one")
    assert answer(mission="one", step=1, plan="forward(3)", yes=True)[0] is False
    assert answer(mission="one", step=1, plan="forward(0.5)", yes=True) == (True, "forward(0.5)")
    assert eventually(lambda: ear.states().count("proposed") == 2)
    assert answer(yes=False)[0]
    assert client.end(goal)[1].detail == "the plan was not approved"
